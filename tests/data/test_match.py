"""Matching: one format, size and compression, the same on disk and on the fly."""

import errno
import io
import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from PIL import Image
from scipy.stats import chisquare
from skimage import data

from fakedet.cli.app import launch
from fakedet.data.datamodule import ImageDataModule
from fakedet.data.decode import DecodeError, decode_image, parse_header
from fakedet.data.match import Matcher
from fakedet.errors import UserError


def photo(seed: int, size: int = 96) -> NDArray[np.uint8]:
    rng = np.random.default_rng(seed)
    whole = [data.astronaut(), data.coffee(), data.chelsea()][seed % 3]
    top, left = rng.integers(0, whole.shape[0] - size), rng.integers(0, whole.shape[1] - size)
    return np.ascontiguousarray(whole[top : top + size, left : left + size])


def encoded(image: NDArray[np.uint8], kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    """Give reals that are JPEG of many sizes and fakes that are PNG of one: told apart by any header."""
    rows = []
    for split in ("train", "val", "test"):
        for number in range(12):
            for kind, label in (("photos", 0), ("gan", 1)):
                path = f"{split}/{kind}/{number}.{'png' if label else 'jpg'}"
                image = photo(len(rows), 96 if label else 80 + 3 * number)
                content = encoded(image, "PNG") if label else encoded(image, "JPEG", quality=88)
                (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
                (tmp_path / path).write_bytes(content)
                rows.append((path, label, kind, split))
    pd.DataFrame(rows, columns=["path", "label", "generator", "split"]).to_csv(tmp_path / "m.csv", index=False)
    return tmp_path / "m.csv"


def test_output_is_standard_jpeg_of_one_size_and_of_the_stated_qualities() -> None:
    matcher = Matcher(48, history=(70, 96), quality=(75, 79))
    image = encoded(photo(0), "PNG")
    qualities = []
    for number in range(300):
        out = matcher(image, f"{number}.png")
        header = parse_header(out)
        assert (header.format, header.width, header.height) == ("JPEG", 48, 48)
        qualities.append(header.jpeg_quality)
        with Image.open(io.BytesIO(out)) as opened:
            assert [layer[1:3] for layer in opened.layer] == [(2, 2), (1, 1), (1, 1)]  # type: ignore[attr-defined]
    counts = np.bincount(qualities, minlength=80)[75:80]
    assert counts.sum() == 300
    assert chisquare(counts).pvalue > 1e-3


def test_equal_steps_for_both_classes_against_a_naive_chain() -> None:
    """Compress, crop, compress with PIL, with the choices that the matcher made, gives its pixels but for rounding."""
    matcher, image = Matcher(48, history=(90, 90), quality=(80, 80)), photo(1)
    got = decode_image(matcher(encoded(image, "PNG"), "x")).astype(int)
    first = decode_image(encoded(image, "JPEG", quality=90, subsampling="4:2:0"))
    errors = []
    for top in range(49):
        for left in range(49):
            crop = np.ascontiguousarray(first[top : top + 48, left : left + 48])
            naive = decode_image(encoded(crop, "JPEG", quality=80, subsampling="4:2:0")).astype(int)
            errors.append(np.abs(naive - got).mean())
    assert min(errors) < 0.2
    assert np.median(errors) > 3


def test_choices_depend_on_seed_and_name_alone() -> None:
    image, other = encoded(photo(0), "PNG"), encoded(photo(1), "PNG")
    matcher = Matcher(48)
    assert matcher(image, "a.png") == Matcher(48)(image, "a.png")
    assert matcher(image, "a.png") != matcher(image, "b.png")
    assert matcher(image, "a.png") != Matcher(48, seed=1)(image, "a.png")
    assert parse_header(matcher(image, "a.png")).jpeg_quality == parse_header(matcher(other, "a.png")).jpeg_quality


def test_small_images_are_refused_and_never_enlarged() -> None:
    with pytest.raises(DecodeError, match="96x96 pixels, smaller than the 97"):
        Matcher(97)(encoded(photo(0), "PNG"), "a")
    assert decode_image(Matcher(96)(encoded(photo(0), "PNG"), "a")).shape == (96, 96, 3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": 8}, "match.size=8"), ({"size": 64, "quality": [90, 80]}, r"match.quality=\[90, 80\]"),
        ({"size": 64, "history": [0, 80]}, "match.history"), ({"size": 64, "quality": "80"}, "match.quality=80"),
        ({"size": 64, "quality": None}, "match.quality=None"),
    ],
)  # fmt: skip
def test_settings_out_of_range_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Matcher(**settings)  # type: ignore[arg-type]


def test_on_disk_equals_on_the_fly_and_headers_tell_nothing_after(
    manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert launch("match", [f"data.manifest={manifest}", f"output_dir={tmp_path}/out"]) == 0
    printed = capsys.readouterr().out
    evidence = json.loads((tmp_path / "out" / "match.json").read_text())
    assert evidence["match"]["size"] == 80  # all images have 80 pixels or more
    assert evidence["before"]["gan"]["auc"]["value"] == 1
    assert evidence["after"]["gan"]["auc"]["low"] <= 0.6
    assert "gan                      1.000 [1.000, 1.000]" in printed
    disk = ImageDataModule(str(tmp_path / "out" / "manifest.parquet"), crop_size=64)
    flying = ImageDataModule(str(manifest), crop_size=64, match={"size": 80})
    for split in ("train", "val", "test"):
        for ours, theirs in zip(disk.eval_dataloader(split), flying.eval_dataloader(split), strict=True):
            assert (ours["image"] == theirs["image"]).all()
            assert (ours["label"] == theirs["label"]).all()
    assert len(disk.manifest.frame) == 72
    assert disk.manifest.root == (tmp_path / "out" / "images").resolve()


def test_interrupted_matching_goes_on_and_other_settings_are_refused(
    manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [f"data.manifest={manifest}", f"output_dir={tmp_path}/out", "data.match.size=64"]
    written = 0
    real = Path.write_bytes

    def filling(self: Path, content: bytes) -> int:
        nonlocal written
        written += ".jpg" in self.name
        if written > 20:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(self, content)

    monkeypatch.setattr(Path, "write_bytes", filling)
    assert launch("match", arguments) == 2
    assert "No space left on device" in capsys.readouterr().err
    assert not (tmp_path / "out" / "manifest.parquet").exists()
    monkeypatch.undo()
    begun = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "images").rglob("*.jpg")}
    assert len(begun) == 20
    assert launch("match", arguments) == 0
    assert all(path.stat().st_mtime_ns == time for path, time in begun.items())
    assert len(pd.read_parquet(tmp_path / "out" / "manifest.parquet")) == 72
    capsys.readouterr()
    assert launch("match", [*arguments, "data.match.seed=1"]) == 2
    assert "is not empty" in capsys.readouterr().err


def test_images_that_cannot_be_matched_are_listed(
    manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "test/gan/3.png").write_bytes(b"broken")
    assert launch("match", [f"data.manifest={manifest}", f"output_dir={tmp_path}/out", "data.match.size=90"]) == 0
    rejected = pd.read_csv(tmp_path / "out" / "manifest.rejected.csv")
    small = {f"{split}/photos/{number}.jpg" for split in ("train", "val", "test") for number in range(4)}
    assert set(rejected["path"]) == small | {"test/gan/3.png"}
    printed = capsys.readouterr().out
    assert "12  real photos" in printed
    assert "1  fake gan" in printed


def test_crop_larger_than_the_match_is_refused(manifest: Path) -> None:
    with pytest.raises(UserError, match=r"data.crop_size=128 is larger than data.match.size=64"):
        ImageDataModule(str(manifest), crop_size=128, match={"size": 64})
    assert ImageDataModule(str(manifest), crop_size=128, match={"size": 0}).matcher is None


def test_a_size_that_no_image_reaches_is_an_error(
    manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [f"data.manifest={manifest}", f"output_dir={tmp_path}/out", "data.match.size=500"]
    assert launch("match", arguments) == 2
    told = capsys.readouterr().err
    assert "no image could be matched to 500 pixels, the first: train/photos/0.jpg: 80x80 pixels" in told


def test_families_go_with_the_copies(manifest: Path, tmp_path: Path) -> None:
    frame = pd.read_csv(manifest)
    frame.assign(family=frame["label"].map({0: "", 1: "gans"})).to_csv(manifest, index=False)
    assert launch("match", [f"data.manifest={manifest}", f"output_dir={tmp_path}/out"]) == 0
    copies = ImageDataModule(str(tmp_path / "out" / "manifest.parquet")).manifest.frame
    assert set(copies.loc[copies["label"] == 1, "family"]) == {"gans"}
    assert (copies["family"] == copies["generator"])[copies["label"] == 0].all()
