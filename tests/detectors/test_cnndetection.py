"""Published detectors: each against its network and preprocessing written anew, with weights that the test makes."""

import argparse
import hashlib
from pathlib import Path

import pandas as pd
import pytest
import torch
import torchvision
from PIL import Image

import fakedet
from fakedet.cli.app import launch
from fakedet.published import settings_of
from tests.detectors.naive import IMAGENET, centre, normalised, picture, saved, with_random_statistics

DETECTORS = Path(__file__).parents[2] / "conf" / "detector"
SIZES = [(300, 257), (224, 224), (100, 260)]


def cnndetection(seed: int = 0) -> torch.nn.Module:
    net = torchvision.models.resnet50(weights=None)
    net.fc = torch.nn.Linear(2048, 1)
    return with_random_statistics(net, seed)


@pytest.mark.parametrize("size", SIZES)
def test_cnndetection_looks_at_the_centre_of_the_picture_as_it_is(tmp_path: Path, size: tuple[int, int]) -> None:
    net, image = cnndetection(), picture(*size)
    file = saved({"model": net.state_dict(), "optimizer": {"state": {}}, "total_steps": 3}, tmp_path)
    with torch.no_grad():
        wanted = float(net(normalised(centre(image, 224), IMAGENET)))
    detector = fakedet.load(detector="cnndetection", weights=file)
    found = detector.predict(image, views=(), tiles=0)
    assert found.logit == pytest.approx(wanted, abs=1e-4)
    assert found.score == pytest.approx(torch.tensor(wanted).sigmoid().item(), abs=1e-4)
    assert found.verdict == ("fake" if wanted > 0 else "real")
    assert detector.generators == ["progan"]


def test_a_file_of_another_detector_is_refused_and_told_what_it_lacks(tmp_path: Path) -> None:
    file = saved(torchvision.models.resnet18(weights=None).state_dict(), tmp_path)
    with pytest.raises(fakedet.UserError, match=r"no file of detector=cnndetection: .*weights of the model are not"):
        fakedet.load(detector="cnndetection", weights=file)


def test_missing_weights_are_one_line_that_says_what_to_fetch() -> None:
    with pytest.raises(fakedet.UserError, match=r"fetch blur_jpg_prob0\.5\.pth .* and pass weights=FILE"):
        fakedet.load(detector="cnndetection")
    with pytest.raises(fakedet.UserError, match=r"there is no file nowhere\.pth"):
        fakedet.load(detector="cnndetection", weights="nowhere.pth")


def test_an_unknown_detector_is_told_the_nearest() -> None:
    with pytest.raises(fakedet.UserError, match="cnndetection"):
        fakedet.load(detector="cnndetect", weights="x")


class Hostile:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (Path(Hostile.trace),))

    trace = ""


def test_a_published_file_can_run_nothing(tmp_path: Path) -> None:
    Hostile.trace = str(tmp_path / "ran")
    file = saved({"model": cnndetection().state_dict(), "extra": Hostile()}, tmp_path)
    with pytest.raises(fakedet.UserError, match=r"is no PyTorch file of tensors and plain values.* or names code"):
        fakedet.load(detector="cnndetection", weights=file)
    assert not (tmp_path / "ran").exists()


def test_settings_of_a_training_beside_the_weights_are_passed_over(tmp_path: Path) -> None:
    net = cnndetection()
    state = {f"module.{key}": value for key, value in net.state_dict().items()}
    file = saved({"model": state, "args": argparse.Namespace(lr=1.0)}, tmp_path)
    image = Image.new("RGB", (230, 230), (9, 99, 199))
    with torch.no_grad():
        wanted = float(net(normalised(centre(image, 224), IMAGENET)))
    found = fakedet.load(detector="cnndetection", weights=file)
    assert found.predict(image, views=(), tiles=0).logit == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("path", sorted(DETECTORS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_config_names_its_source_licence_and_rows_of_published_tables(path: Path) -> None:
    settings = settings_of(path.stem)
    assert settings["name"] == path.stem
    for key in ("paper", "source", "licence", "file", "fetch", "crop_size", "eval_policy", "threshold", "trained_on"):
        assert settings[key], key
    names = set()
    for table in DETECTORS.parents[1].glob("fakedet/benchmarks/*.csv"):
        rows = pd.read_csv(table)
        names |= {*rows["detector"], *(rows["detector"] + " / " + rows["source"])}
    assert set(settings["published_as"]) <= names
    with pytest.raises(fakedet.UserError, match=r"needs its authors' weights: fetch .* and pass weights=FILE"):
        fakedet.load(detector=path.stem)


def test_a_checkpoint_and_a_published_detector_exclude_each_other(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    for verb, words in (("predict", ["source=x"]), ("evaluate", ["data.manifest=x.csv"])):
        words = [*words, "detector=cnndetection", "weights=x.pth", "checkpoint=demo"]
        assert launch(verb, words) == 2
        assert "checkpoint=demo and detector=cnndetection: name one of them" in capsys.readouterr().err


def test_another_file_than_the_published_one_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = saved({"model": cnndetection().state_dict()}, tmp_path)
    settings, right = settings_of("cnndetection"), hashlib.sha256(file.read_bytes()).hexdigest()
    with caplog.at_level("WARNING", "fakedet"):
        fakedet.load(detector={**settings, "sha256": right}, weights=file)
        assert not caplog.messages
        fakedet.load(detector={**settings, "sha256": "0" * 64}, weights=file)
    assert f"its sha256 is {right}, not that of the published file, {'0' * 64}" in caplog.text
