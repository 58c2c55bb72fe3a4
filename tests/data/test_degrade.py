"""Degraded views: a window gives what the whole image would, and every image is decoded once."""

import json
from pathlib import Path
from typing import ClassVar

import cv2
import numpy as np
import pytest
import torch
from skimage import data

from fakedet.checkpoint import load_detector
from fakedet.cli.app import launch
from fakedet.data.dataset import RobustDataset
from fakedet.data.decode import decode_image
from fakedet.data.degrade import FAMILIES, View, _autoencoder, degraded_views, make_views
from fakedet.data.sampler import Draw
from fakedet.data.transforms import evaluation_views
from fakedet.errors import UserError
from fakedet.evaluation.predictions import read_predictions
from tests.models.test_autoencoder import files, naive


def photo(height: int = 300, width: int = 401) -> np.ndarray:
    return np.ascontiguousarray(data.astronaut()[:height, :width])


@pytest.mark.parametrize(
    ("family", "severity"),
    [("jpeg", 30), ("jpeg", 85), ("blur", 0.5), ("blur", 2), ("brightness", 1.2), ("contrast", 0.8)],
)
@pytest.mark.parametrize("shape", [(300, 401), (97, 64), (50, 30), (512, 512)])
def test_a_window_equals_the_whole_image(family: str, severity: float, shape: tuple[int, int]) -> None:
    image = photo(*shape)
    (ours,) = degraded_views(image, View(family, severity), 64, "crop", 0)
    if min(shape) >= 64:
        whole = FAMILIES[family].apply(image, severity, np.random.default_rng(0))
        (naive,) = evaluation_views(whole, 64, "crop")
        # OpenCV's blur rounds in another order at some widths.
        assert np.abs(ours.astype(int) - naive).max() <= (1 if family == "blur" else 0)
    assert ours.shape == (64, 64, 3)


@pytest.mark.parametrize("factor", [0.5, 0.75, 1.5, 2.0])
def test_scaled_windows_look_like_the_scaled_image(factor: float) -> None:
    image = photo(400, 400)
    (ours,) = degraded_views(image, View("resize", factor), 96, "crop", 0)
    whole = FAMILIES["resize"].apply(image, factor, np.random.default_rng(0))
    (naive,) = evaluation_views(whole, 96, "crop")
    # Positions are rounded to pixels of their own: half a pixel apart at most.
    best = min(
        np.abs(np.roll(ours.astype(float), (dy, dx), (0, 1))[4:-4, 4:-4] - naive[4:-4, 4:-4]).mean()
        for dy in (-1, 0, 1) for dx in (-1, 0, 1)
    )  # fmt: skip
    assert best < 6
    assert np.abs(naive.astype(float) - evaluation_views(image, 96, "crop")[0]).mean() > 15


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("policy", ["crop", "multi-crop", "resize"])
def test_every_family_takes_any_image_and_is_deterministic(family: str, policy: str) -> None:
    severity = {"jpeg": 60, "webp": 60, "forwarded": 2}.get(family, 0.7)
    for shape in ((1, 1), (20, 200), (150, 130)):
        image = photo(*shape)
        before = image.copy()
        first = degraded_views(image, View(family, severity), 32, policy, 5)
        again = degraded_views(image, View(family, severity), 32, policy, 5)
        assert len(first) == (5 if policy == "multi-crop" else 1)
        assert all(view.shape == (32, 32, 3) and view.dtype == np.uint8 for view in first)
        assert all((one == two).all() for one, two in zip(first, again, strict=True))
        assert (image == before).all()


def test_noise_has_the_stated_spread_and_differs_between_images() -> None:
    flat = np.full((128, 128, 3), 128, np.uint8)
    (one,) = degraded_views(flat, View("noise", 5), 96, "crop", 1)
    (two,) = degraded_views(flat, View("noise", 5), 96, "crop", 2)
    assert one.astype(float).std() == pytest.approx(5, rel=0.05)
    assert (one != two).mean() > 0.8


def test_mistakes_name_the_nearest_and_the_range() -> None:
    names = [view.name for view in make_views({"jpeg": [95, 30], "blur": [0.5]})]
    assert names == ["original", "jpeg/95", "jpeg/30", "blur/0.5"]
    with pytest.raises(UserError, match="did you mean 'jpeg'"):
        make_views({"jpg": [90]})
    with pytest.raises(UserError, match=r"robustness: jpeg/101: a number from 1 to 100"):
        make_views({"jpeg": [101]})


def test_an_image_is_read_and_decoded_once_for_all_views(monkeypatch: pytest.MonkeyPatch) -> None:
    class Counted:
        read_rows: ClassVar[list[int]] = []

        def read(self, row: int) -> bytes:
            self.read_rows.append(row)
            return b"broken" if row == 2 else cv2.imencode(".png", photo(64 + row, 80))[1].tobytes()

    decoded: list[bytes] = []
    monkeypatch.setattr(
        "fakedet.data.dataset.decode_image", lambda content: decoded.append(content) or decode_image(content)
    )
    views = make_views({"jpeg": [75, 50], "resize": [0.5], "blur": [1]})
    dataset = RobustDataset(Counted(), views, "multi-crop", 32)
    batch = dataset.collate([dataset[Draw(row, row)] for row in range(4)])
    assert Counted.read_rows == [0, 1, 2, 3]
    assert len(decoded) == 4
    assert batch["image"].shape == (3 * 5, 5, 3, 32, 32)
    assert batch["id"].tolist() == [0] * 5 + [1] * 5 + [3] * 5
    assert batch["view"].tolist() == [0, 1, 2, 3, 4] * 3


def test_a_sweep_decodes_each_image_once_and_keeps_the_original(tiny_manifest: Path, tmp_path: Path) -> None:
    arguments = ["model=bce", "data=manifest", "data.crop_size=32", "data.batch_size=16", "trainer.max_epochs=1",
                 "threads=1", "bootstrap.resamples=0", "header_audit=false", f"data.manifest={tiny_manifest}",
                 f"output_dir={tmp_path}/run"]  # fmt: skip
    assert launch("train", arguments) == 0
    broken = tiny_manifest.parent / "gen_c" / "test 0.jpg"
    broken.write_bytes(b"broken")
    assert launch("evaluate", [
        f"checkpoint={tmp_path}/run/checkpoints/best.ckpt", f"data.manifest={tiny_manifest}", "robustness=quick",
        f"output_dir={tmp_path}/e", "bootstrap.resamples=20", "header_audit=false", "data.max_quarantine=0.5",
    ]) == 0  # fmt: skip
    frame, _ = read_predictions(tmp_path / "e" / "predictions.parquet")
    counts = frame["view"].value_counts()
    assert counts.to_dict() == {
        "original": 23,
        "jpeg/75": 23,
        "resize/0.5": 23,
        "blur/1": 23,
        "social/0.6": 23,
    }
    content = json.loads((tmp_path / "e" / "robustness.json").read_text())
    assert content["decoded"] == 23
    assert content["views"]["original"]["map"]["drop"]["value"] == 0
    entry = content["views"]["jpeg/75"]["gen_a"]
    assert entry["drop"]["value"] == pytest.approx(content["views"]["original"]["gen_a"]["value"] - entry["value"])
    assert (tmp_path / "e" / "robustness.png").stat().st_size > 0
    # The same detector on files that were degraded beforehand gives the same logits.
    own = frame[(frame["view"] == "jpeg/75") & frame["path"].str.startswith("gen_a")].set_index("path")["logit"]
    method = load_detector(tmp_path / "run" / "checkpoints" / "best.ckpt").eval()
    for path, logit in own.items():
        image = cv2.imread(str(tiny_manifest.parent / str(path)))
        encoded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 75])[1]
        (crop,) = evaluation_views(cv2.imdecode(encoded, cv2.IMREAD_COLOR)[..., ::-1], 32, "crop")
        images = torch.from_numpy(np.ascontiguousarray(crop.transpose(2, 0, 1)))[None, None].float() / 255
        with torch.no_grad():
            assert float(method.score_views(images).logit) == pytest.approx(logit, abs=1e-4)


def test_a_second_generator_is_the_auto_encoder_over_what_the_detector_sees(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _autoencoder.cache_clear()
    monkeypatch.delenv("FAKEDET_VAE", raising=False)
    with pytest.raises(UserError, match="export FAKEDET_VAE=FOLDER"):
        degraded_views(photo(), View("regenerated", 1), 20, "crop", 0)
    states = files(tmp_path, pools=False)
    monkeypatch.setenv("FAKEDET_VAE", str(tmp_path))
    (found,) = degraded_views(photo(), View("regenerated", 2), 24, "crop", 0)
    (crop,) = evaluation_views(photo(), 24, "crop")
    image = torch.from_numpy(crop.copy()).permute(2, 0, 1)[None]
    for _ in range(2):
        image = (naive(states, image.float() / 255).clamp(0, 1) * 255).round().to(torch.uint8)
    assert np.abs(found.astype(int) - image[0].permute(1, 2, 0).numpy()).max() <= 1
    assert degraded_views(photo(), View("regenerated", 1), 21, "crop", 0)[0].shape == (21, 21, 3)
    _autoencoder.cache_clear()
