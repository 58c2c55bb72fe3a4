"""Published detectors of GRIP-UNINA's ResNet-50 without strides in its stem, against the network written anew."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torchvision
from torch import Tensor

import fakedet
from fakedet.cli.app import launch
from fakedet.published import settings_of
from tests.detectors.naive import IMAGENET, normalised, picture, saved, with_random_statistics

SIZES = [(32, 45), (60, 24), (17, 33)]
VARIANTS = {
    "dmimage_progan": ["progan"],
    "aligned_forensics": ["latent_diffusion_autoencoder"],
    "stay_positive": ["latent_diffusion_autoencoder"],
}


class FullResolution(torch.nn.Module):
    """A ResNet-50 whose first convolution and pooling take every pixel: a map of logits, an eighth of the picture."""

    def __init__(self) -> None:
        super().__init__()
        self.net = torchvision.models.resnet50(weights=None)
        self.net.fc = torch.nn.Linear(2048, 1)
        with_random_statistics(self.net)

    def forward(self, x: Tensor) -> Tensor:
        """Give the mean of the map of logits, as the authors' evaluation does."""
        net, functional = self.net, torch.nn.functional
        x = functional.conv2d(x, net.conv1.weight, stride=1, padding=3)
        x = functional.max_pool2d(functional.relu(net.bn1(x)), 3, stride=1, padding=1)
        x = net.layer4(net.layer3(net.layer2(net.layer1(x))))
        logits = torch.einsum("nchw,kc->nkhw", x, net.fc.weight) + net.fc.bias.view(1, -1, 1, 1)
        return logits.mean(dim=(1, 2, 3))


@pytest.fixture(scope="module")
def net() -> FullResolution:
    torch.manual_seed(0)
    net = FullResolution().eval()
    with torch.no_grad():  # so that its answers are of both kinds, and near 0
        net.net.fc.weight /= 10
        net.net.fc.bias -= net(normalised(picture(*SIZES[0]), IMAGENET)) - 0.1
    return net


@pytest.fixture(scope="module")
def file(net: FullResolution, tmp_path_factory: pytest.TempPathFactory) -> Path:
    content = {"model": net.net.state_dict(), "optimizer": {"state": {}, "param_groups": []}, "total_steps": 9}
    return saved(content, tmp_path_factory.mktemp("grip"))


def test_the_whole_picture_is_seen_at_full_resolution(net: FullResolution, file: Path) -> None:
    detector = fakedet.load(detector="dmimage", weights=file)
    pictures = [picture(*size, seed=number) for number, size in enumerate(SIZES)]
    with torch.no_grad():
        wanted = [float(net(normalised(image, IMAGENET))) for image in pictures]
    found = detector.predict(pictures, views=(), tiles=0)
    assert found["logit"].tolist() == pytest.approx(wanted, abs=1e-4)
    assert (found["verdict"] == np.where(np.array(wanted) > 0, "fake", "real")).all()
    pixels = torch.from_numpy(np.asarray(pictures[0]).transpose(2, 0, 1)[None] / 255.0).float()
    assert detector(pixels).tolist() == pytest.approx(wanted[:1], abs=1e-4)
    assert detector.embed(pictures).shape == (3, 2048)


def test_of_a_picture_over_the_limit_the_middle_is_seen(net: FullResolution, file: Path) -> None:
    image = picture(25, 38)
    with torch.no_grad():
        wanted = float(net(normalised(image.crop((3, 0, 35, 25)), IMAGENET)))
    detector = fakedet.load(detector={**settings_of("dmimage_progan"), "eval_policy": "whole32"}, weights=file)
    assert detector.generators == ["progan"]
    assert detector.predict(image, views=(), tiles=0).logit == pytest.approx(wanted, abs=1e-4)


@pytest.mark.parametrize(("name", "generators"), VARIANTS.items())
def test_variants_differ_in_their_training_alone(name: str, generators: list[str]) -> None:
    own, first = settings_of(name), settings_of("dmimage")
    assert own["name"] == name
    assert [key for key, count in own["trained_on"]["fake"].items() if count is not None] == generators
    for key in ("model", "rename", "crop_size", "eval_policy", "threshold", "fake_class"):
        assert own[key] == first[key], key


@pytest.mark.slow
def test_whole_pictures_of_all_sizes_are_evaluated_with_altered_copies(
    net: FullResolution, file: Path, tmp_path: Path
) -> None:
    rows = []
    for number, size in enumerate([*SIZES, (30, 30)]):
        image = picture(*size, seed=number)
        image.save(tmp_path / f"{number}.png")
        with torch.no_grad():
            rows.append((f"{number}.png", number % 2, float(net(normalised(image, IMAGENET)))))
    table = pd.DataFrame(rows, columns=["path", "label", "logit"])
    table.assign(generator=np.where(table["label"], "made", "camera"), split="test").drop(columns="logit").to_csv(
        tmp_path / "manifest.csv", index=False
    )
    command = ["detector=dmimage", f"weights={file}", f"data.manifest={tmp_path}/manifest.csv",
               f"output_dir={tmp_path}/out", "+robustness.resize=[0.5]", "bootstrap.resamples=5"]  # fmt: skip
    assert launch("evaluate", command) == 0
    found = pd.read_parquet(tmp_path / "out" / "predictions.parquet")
    original = found[found["view"] == "original"].set_index("path")["logit"]
    assert original.to_dict() == pytest.approx(table.set_index("path")["logit"].to_dict(), abs=1e-4)
    assert found["view"].value_counts().to_dict() == {"original": 4, "resize/0.5": 4}
    views = json.loads((tmp_path / "out" / "robustness.json").read_text())["views"]
    assert set(views) == {"original", "resize/0.5"}
