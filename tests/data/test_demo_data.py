"""The demo data: honest splits, the same bytes twice, whole or not at all."""

import json
import multiprocessing
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from fakedet.data.decode import read_image
from fakedet.data.demo import (
    LEAST_STD,
    PHOTOS,
    SEEN,
    UNSEEN,
    DemoRecipe,
    crops,
    demo_data,
    load_photos,
    make_demo_data,
    match_statistics,
    middle,
    postprocess,
)
from fakedet.errors import UserError

TINY = DemoRecipe(
    steps=2,
    batch=2,
    real=(("train", 12), ("val", 6), ("test", 8)),
    fake=(("train", 4), ("val", 3), ("test", 5)),
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_demo_data(tmp_path_factory.mktemp("demo"), 0, TINY)


def test_no_photograph_stands_in_two_splits(made: Path) -> None:
    frame = pd.read_csv(made)
    assert (frame.groupby("group")["split"].nunique() == 1).all()
    names = [set(PHOTOS[split]) for split in ("train", "val", "test")]
    files = [{file for _, file in PHOTOS[split].values()} for split in ("train", "val", "test")]
    for sets in (names, files):
        assert len(set.union(*sets)) == sum(map(len, sets))


def test_unseen_generators_are_in_the_test_split_only(made: Path) -> None:
    frame = pd.read_csv(made)
    assert len(SEEN) + len(UNSEEN) >= 6
    assert len(UNSEEN) >= 3
    for kind in UNSEEN:
        assert set(frame.loc[frame["generator"] == kind, "split"]) == {"test"}
    for kind in SEEN:
        assert set(frame.loc[frame["generator"] == kind, "split"]) == {"train", "val", "test"}
    counts = frame.groupby(["split", "label"]).size()
    assert counts[("train", 0)] == 12
    assert counts[("train", 1)] == 4 * len(SEEN)
    assert counts[("test", 1)] == 5 * (len(SEEN) + len(UNSEEN))


def test_every_image_is_there_and_of_one_size(made: Path) -> None:
    for path in pd.read_csv(made)["path"]:
        assert read_image(made.parent / path).shape == (TINY.size, TINY.size, 3)


def test_the_same_seed_gives_the_same_bytes_and_leaves_global_randomness_alone(made: Path, tmp_path: Path) -> None:
    torch.manual_seed(7)
    np.random.seed(7)
    before, numpy_before, threads = (
        torch.get_rng_state(),
        np.random.get_state()[1].copy(),
        torch.get_num_threads(),
    )
    again = make_demo_data(tmp_path / "again", 0, TINY)
    assert torch.equal(before, torch.get_rng_state())
    assert (numpy_before == np.random.get_state()[1]).all()
    assert torch.get_num_threads() == threads
    assert made.read_text() == again.read_text()
    for path in pd.read_csv(made)["path"]:
        assert (made.parent / path).read_bytes() == (again.parent / path).read_bytes(), path
    other = make_demo_data(tmp_path / "other", 1, TINY)
    path = pd.read_csv(other)["path"][0]
    assert (other.parent / path).read_bytes() != (made.parent / path).read_bytes()


def test_fakes_keep_their_crop_s_brightness_and_contrast() -> None:
    """Channel means and deviations must not tell the classes apart."""
    source = torch.rand(2, 3, 16, 16)
    made = match_statistics(torch.rand(2, 3, 16, 16) * 0.3 + 0.5, source)
    torch.testing.assert_close(made.mean((2, 3)), source.mean((2, 3)))
    torch.testing.assert_close(made.std((2, 3)), source.std((2, 3)))


def test_fakes_of_a_grey_photograph_are_as_grey_as_its_reals(made: Path) -> None:
    """A tint that no real has would tell the classes apart without a trace of any generator."""
    frame = pd.read_csv(made)
    grey_photos = {
        name for split in PHOTOS for name, photo in load_photos(split).items() if (photo == photo[..., :1]).all()
    }
    assert {"gravel", "coins", "grass"} <= grey_photos
    fakes = frame[frame["group"].isin(grey_photos) & (frame["label"] == 1)]
    assert len(fakes) > 10
    images = [read_image(made.parent / path) for path in fakes["path"]]
    colourless = [bool((image == image[..., :1]).all()) for image in images]
    # Noise, which three images in ten get, has colour in both classes.
    assert np.mean(colourless) > 0.5


def test_a_crop_s_middle_is_never_flat_whatever_its_margin() -> None:
    photo = np.full((300, 300, 3), 90, np.uint8)
    photo[:, 150:] = np.random.default_rng(0).integers(0, 256, (300, 150, 3), dtype=np.uint8)
    for margin in (0, 12):
        stream = crops({"half": photo}, 40, np.random.default_rng(1), margin)
        for _ in range(50):
            crop = next(stream)[1]
            assert crop.shape == (40 + 2 * margin, 40 + 2 * margin, 3)
            assert middle(crop, margin).std() >= LEAST_STD


def test_both_classes_are_cut_from_the_same_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    windows = []

    def spy(photos: dict[str, np.ndarray], size: int, rng: np.random.Generator, margin: int = 0):
        windows.append((size, margin))
        return crops(photos, size, rng, margin)

    monkeypatch.setattr("fakedet.data.demo.crops", spy)
    make_demo_data(tmp_path / "spied", 0, TINY)
    generators_learn = (48, 0)
    images = [window for window in windows if window != generators_learn]
    assert len(images) > 3 + len(SEEN)
    assert set(images) == {(TINY.size, TINY.margin)}


def test_a_missing_photograph_is_told_of_and_too_few_are_refused(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    there = dict(PHOTOS["test"])
    monkeypatch.setitem(PHOTOS, "test", {**there, "gone": (("skimage", "data"), "gone.png")})
    with caplog.at_level("WARNING", logger="fakedet"):
        assert set(load_photos("test")) == set(there)
    assert "gone.png" in caplog.text
    monkeypatch.setitem(PHOTOS, "test", {"gone": (("no_such_package", "data"), "gone.png")})
    with pytest.raises(UserError, match="photographs for 'test'"):
        load_photos("test")


def test_post_processing_does_not_know_the_class() -> None:
    image = np.full((16, 16, 3), 128, np.uint8)
    assert postprocess(image, np.random.default_rng(3)) == postprocess(image, np.random.default_rng(3))
    assert len({postprocess(image, np.random.default_rng(seed)) for seed in range(20)}) > 5


def test_files_tell_nothing_by_their_length(made: Path) -> None:
    """Smooth fakes would take fewer bytes than photographs, so that headers alone would tell them."""
    images = [made.parent / path for path in pd.read_csv(made)["path"]]
    assert len({path.stat().st_size for path in images}) == 1
    assert all(path.read_bytes()[:11].startswith(b"\xff\xd8\xff\xe0") for path in images)
    assert all(path.read_bytes().endswith(b"\xff\xd9") for path in images)


@pytest.mark.slow
def test_the_demo_passes_its_own_audit(demo_cache: Path, tmp_path: Path) -> None:
    from fakedet.cli.app import launch

    assert launch("audit", [f"data.manifest={demo_data(demo_cache)}", f"output_dir={tmp_path / 'a'}"]) == 0
    audit = json.loads((tmp_path / "a" / "audit.json").read_text())
    assert set(audit["generators"]) == {*SEEN, *UNSEEN}
    assert all(entry["header"]["auc"]["value"] < 0.6 for entry in audit["generators"].values())
    assert not [found for found in audit["findings"] if found["level"] == "problem" or found["kind"] == "header"]


def test_a_damaged_cache_is_made_again(tmp_path: Path) -> None:
    manifest = demo_data(tmp_path, 0, TINY)
    first = pd.read_csv(manifest)["path"][0]
    whole = (manifest.parent / first).read_bytes()
    stamp = (manifest.parent / "files.txt").stat().st_mtime_ns
    demo_data(tmp_path, 0, TINY)
    assert (manifest.parent / "files.txt").stat().st_mtime_ns == stamp, "a whole cache is not made again"
    scored = manifest.with_name("manifest.test-scored.jsonl")
    scored.write_text("{}")  # that its test split was scored, say
    demo_data(tmp_path, 0, TINY)
    assert scored.is_file()
    (manifest.parent / first).write_bytes(whole[:100])
    demo_data(tmp_path, 0, TINY)
    assert (manifest.parent / first).read_bytes() == whole
    manifest.unlink()
    demo_data(tmp_path, 0, TINY)
    assert manifest.is_file()
    assert not list(tmp_path.glob("*.tmp"))


def test_what_a_killed_process_left_is_cleared_and_a_garbled_listing_noticed(tmp_path: Path) -> None:
    manifest = demo_data(tmp_path, 0, TINY)
    left = tmp_path / f"{manifest.parent.name}.99999.tmp"
    left.mkdir()
    listing = (manifest.parent / "files.txt").read_bytes()
    (manifest.parent / "files.txt").write_bytes(b"\xff\xfe\x00")
    demo_data(tmp_path, 0, TINY)
    assert (manifest.parent / "files.txt").read_bytes() == listing
    assert not left.exists()


def test_a_whole_cache_serves_where_nothing_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = demo_data(tmp_path, 0, TINY)

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("fakedet.data.demo.FileLock", refuse)
    assert demo_data(tmp_path, 0, TINY) == manifest
    with pytest.raises(UserError, match="cannot be kept"):
        demo_data(tmp_path, 1, TINY)


def _build(arguments: tuple[Path, int]) -> int:
    return demo_data(arguments[0], 0, TINY).with_name("files.txt").stat().st_mtime_ns


@pytest.mark.slow
def test_two_processes_build_once(tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        stamps = pool.map(_build, [(tmp_path, 0), (tmp_path, 1)])
    assert stamps[0] == stamps[1]


def test_photographs_are_really_there() -> None:
    for split in ("train", "val", "test"):
        assert len(load_photos(split)) == len(PHOTOS[split])


@pytest.mark.slow
def test_content_does_not_give_the_class_away(demo_cache: Path) -> None:
    """A classifier that sees only an 8×8 thumbnail and colours must stay near chance."""
    import cv2
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    manifest = demo_data(demo_cache)
    frame = pd.read_csv(manifest)

    def content(path: str) -> np.ndarray:
        image = read_image(manifest.parent / path)
        colours = [np.histogram(image[..., channel], 8, (0, 256))[0] / image[..., 0].size for channel in range(3)]
        return np.concatenate([cv2.resize(image, (8, 8), interpolation=cv2.INTER_AREA).ravel() / 255, *colours])

    features = np.stack([content(path) for path in frame["path"]])
    train, test = (frame["split"] == "train").to_numpy(), (frame["split"] == "test").to_numpy()
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=2000))
    model.fit(features[train], frame["label"][train])
    auc = roc_auc_score(frame["label"][test], model.decision_function(features[test]))
    assert 0.38 < auc < 0.62
    sizes = np.array([(manifest.parent / path).stat().st_size for path in frame["path"]])
    by_size = roc_auc_score(frame["label"][test], sizes[test])
    assert 0.3 < by_size < 0.7


@pytest.mark.slow
def test_colour_and_compression_do_not_give_the_class_away(demo_cache: Path) -> None:
    """Neither a tint in grey photographs nor the JPEG quality may rank fakes of any generator above reals."""
    from PIL import Image
    from scipy.stats import ks_2samp
    from sklearn.metrics import roc_auc_score

    manifest = demo_data(demo_cache)
    frame = pd.read_csv(manifest)
    coarseness = []
    for path in frame["path"]:
        with Image.open(manifest.parent / path) as image:
            coarseness.append(sum(image.quantization[0]))
    frame["coarseness"] = coarseness
    by_class = [frame.loc[frame["label"] == label, "coarseness"] for label in (0, 1)]
    assert ks_2samp(*by_class).pvalue > 0.001
    grey = frame[(frame["split"] == "test") & frame["group"].isin({"gravel", "coins", "camera"})].copy()
    images = [read_image(manifest.parent / path).astype(float) for path in grey["path"]]
    grey["tint"] = [np.abs(image - image.mean(-1, keepdims=True)).mean() for image in images]
    for kind in (*SEEN, *UNSEEN):
        some = grey[(grey["label"] == 0) | (grey["generator"] == kind)]
        assert 0.35 < roc_auc_score(some["label"], some["tint"]) < 0.65, kind
