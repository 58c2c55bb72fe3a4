"""UnivFD and RINE: layers on a frozen CLIP, against CLIP's network and the preprocessing written anew."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

import fakedet
from fakedet.published import settings_of
from tests.detectors.naive import CLIP, centre, normalised, picture, saved
from tests.detectors.vits import Vit, clip_large

SIZES = [(300, 257), (224, 224), (100, 260)]


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(clip_large(), tmp_path_factory.mktemp("clip"))


def written(net: Vit, folder: Path) -> Path:
    """Write a backbone, under OpenAI's names."""
    save_file({f"visual.{name}": value.detach() for name, value in net.state_dict().items()}, folder / "c.safetensors")
    return folder / "c.safetensors"


def shallow(name: str) -> dict[str, Any]:
    """Give a detector's config with a CLIP of two blocks, as the tests' is."""
    settings = settings_of(name)
    settings["model"]["encoder"]["depth"] = 2
    return settings


@pytest.mark.parametrize("size", SIZES)
def test_univfd_is_a_linear_layer_on_clips_embedding_of_the_centre(
    tmp_path: Path, backbone: Path, size: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    layer, image = nn.Linear(768, 1), picture(*size)
    with torch.no_grad():
        wanted = float(layer(clip_large()(normalised(centre(image, 224), CLIP))))
    file = saved(layer.state_dict(), tmp_path)
    detector = fakedet.load(detector=shallow("univfd"), weights=file, backbone=backbone)
    found = detector.predict(image, views=(), tiles=0)
    assert found.logit == pytest.approx(wanted, rel=1e-4, abs=1e-4)
    assert found.verdict == ("fake" if wanted > 0 else "real")


def test_missing_public_weights_are_one_line_that_names_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    file = saved(nn.Linear(768, 1).state_dict(), tmp_path)
    told = r"^detector=univfd .*timm/vit_large_patch14_clip_224\.openai.* backbone=FILE .*FAKEDET_CLIP_LARGE=FILE"
    with pytest.raises(fakedet.UserError, match=told):
        fakedet.load(detector=shallow("univfd"), weights=file)


@pytest.mark.skipif("FAKEDET_PUBLISHED" not in os.environ, reason="FAKEDET_PUBLISHED: folder of the published files")
def test_the_published_head_of_univfd(backbone: Path) -> None:
    file = Path(os.environ["FAKEDET_PUBLISHED"], "univfd", "fc_weights.pth")
    layer, image = torch.load(file, map_location="cpu", weights_only=True), picture(300, 257)
    with torch.no_grad():
        wanted = float(clip_large()(normalised(centre(image, 224), CLIP)) @ layer["weight"][0] + layer["bias"])
    detector = fakedet.load(detector=shallow("univfd"), weights=file, backbone=backbone)
    assert detector.predict(image, views=(), tiles=0).logit == pytest.approx(wanted, rel=1e-4, abs=1e-4)


class Rine(nn.Module):
    """What RINE trains, with its names."""

    def __init__(self, blocks: int, projections: int, width: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.randn(1, blocks, width))
        first, second = [nn.Dropout()], [nn.Dropout()]
        for number in range(projections):
            first += [nn.Linear(width if number else 1024, width), nn.ReLU(), nn.Dropout()]
            second += [nn.Linear(width, width), nn.ReLU(), nn.Dropout()]
        self.proj1, self.proj2 = nn.Sequential(*first), nn.Sequential(*second)
        self.head = nn.Sequential(
            nn.Linear(width, width), nn.ReLU(), nn.Dropout(), nn.Linear(width, width), nn.ReLU(), nn.Dropout(),
            nn.Linear(width, 1),
        )  # fmt: skip
        for weight in self.parameters():
            if weight.ndim == 2:  # so that the picture matters, not the biases alone
                nn.init.kaiming_normal_(weight)

    def forward(self, clip: Vit, images: Tensor) -> Tensor:
        clip(images)
        tokens = self.proj1(torch.stack([block.seen[:, 0] for block in clip.transformer["resblocks"]], dim=1))
        return self.head(self.proj2((torch.softmax(self.alpha, dim=1) * tokens).sum(dim=1)))


RINES = [("rine", 2, 1024), ("rine_2class", 4, 128), ("rine_1class", 4, 1024)]


@pytest.mark.parametrize(("name", "projections", "width"), RINES)
def test_rine_weighs_the_class_tokens_of_clips_blocks(
    tmp_path: Path, backbone: Path, name: str, projections: int, width: int
) -> None:
    torch.manual_seed(0)
    trained = Rine(2, projections, width).eval()
    assert len(trained.state_dict()) == {2: 15, 4: 23}[projections]
    detector = fakedet.load(detector=shallow(name), weights=saved(trained.state_dict(), tmp_path), backbone=backbone)
    for size in SIZES:
        image = picture(*size)
        with torch.no_grad():
            wanted = float(trained(clip_large(), normalised(centre(image, 224), CLIP)))
        assert detector.predict(image, views=(), tiles=0).logit == pytest.approx(wanted, rel=1e-4, abs=1e-4)


@pytest.mark.slow
def test_rine_of_latent_diffusion_takes_the_mean_logit_of_ten_crops(tmp_path: Path, backbone: Path) -> None:
    torch.manual_seed(0)
    trained, image = Rine(2, 4, 1024).eval(), picture(300, 257)
    corners = [(0, 0, 224, 224), (33, 0, 257, 224), (0, 76, 224, 300), (33, 76, 257, 300), (16, 38, 240, 262)]
    views = [one.crop(box) for one in (image, image.transpose(Image.FLIP_LEFT_RIGHT)) for box in corners]
    with torch.no_grad():
        wanted = float(torch.cat([trained(clip_large(), normalised(view, CLIP)) for view in views]).mean())
    file = saved(trained.state_dict(), tmp_path)
    detector = fakedet.load(detector=shallow("rine_ldm"), weights=file, backbone=backbone)
    found = detector.predict(image, views=(), tiles=0)
    assert found.logit == pytest.approx(wanted, rel=1e-4, abs=1e-4)
    assert detector.generators == ["latent_diffusion"]


@pytest.mark.skipif("FAKEDET_PUBLISHED" not in os.environ, reason="FAKEDET_PUBLISHED: folder of the published files")
def test_the_published_file_of_rine(tmp_path: Path) -> None:
    file = Path(os.environ["FAKEDET_PUBLISHED"], "rine", "model_2class_trainable.pth")
    trained, clip, image = Rine(24, 4, 128).eval(), clip_large(24), picture(300, 257)
    trained.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    with torch.no_grad():
        wanted = float(trained(clip, normalised(centre(image, 224), CLIP)))
    detector = fakedet.load(detector="rine_2class", weights=file, backbone=written(clip, tmp_path))
    assert detector.predict(image, views=(), tiles=0).logit == pytest.approx(wanted, rel=1e-4, abs=1e-4)
