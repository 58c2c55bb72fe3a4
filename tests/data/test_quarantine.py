"""The quarantine counts each image once, each split for itself."""

from pathlib import Path

import pandas as pd
import pytest

from fakedet.data.manifest import Manifest, Quarantine, load_manifest
from fakedet.errors import UserError


@pytest.fixture
def manifest(tiny_manifest: Path) -> Manifest:
    return load_manifest(tiny_manifest)


def record(manifest: Manifest, row: int, reason: str = "empty file") -> dict:
    return {"id": row, "path": manifest.frame["path"][row], "reason": reason}


def test_images_count_once_by_class_split_and_generator(manifest: Manifest) -> None:
    frame = manifest.frame
    real, fake = int(frame.index[frame["label"] == 0][0]), int(frame.index[frame["label"] == 1][-1])
    records = [record(manifest, real), record(manifest, real, "again"), record(manifest, fake)]
    quarantine = Quarantine.from_records(records, manifest, ("train", "val", "test"))
    assert len(quarantine) == 2
    assert quarantine.describe().startswith("2 images could not be read and were left out (1 ")
    summary = quarantine.summary()
    assert (summary["n"], summary["n_real"], summary["n_fake"]) == (2, 1, 1)
    assert summary["per_generator"] == {frame["generator"][real]: 1, frame["generator"][fake]: 1}
    sizes = frame["split"].value_counts()
    assert summary["share_per_split"] == {
        "train": 1 / sizes["train"], "val": 0.0, "test": 1 / sizes["test"]}  # fmt: skip


def test_a_broken_split_does_not_hide_behind_a_large_one(manifest: Manifest) -> None:
    val = manifest.frame.index[manifest.frame["split"] == "val"]
    bad = [record(manifest, int(row)) for row in val[: len(val) // 4]]
    quarantine = Quarantine.from_records(bad, manifest, ("train", "val", "test"))
    assert len(bad) / len(manifest.frame) < 0.1
    quarantine.check(0.25)
    with pytest.raises(UserError, match=r"4 of 16 images of the split 'val' \(25\.0%\).*data\.max_quarantine=0\.1"):
        quarantine.check(0.1)


def test_the_list_is_written_where_there_is_one(manifest: Manifest, tmp_path: Path) -> None:
    none = Quarantine.from_records([], manifest, ("test",))
    none.check(0.0)
    none.write(tmp_path / "none.csv")
    assert not (tmp_path / "none.csv").exists()
    some = Quarantine.from_records([record(manifest, 3, "truncated, badly")], manifest, ("train",))
    some.write(tmp_path / "some.csv")
    (row,) = pd.read_csv(tmp_path / "some.csv").to_dict("records")
    assert (row["id"], row["path"], row["reason"]) == (3, manifest.frame["path"][3], "truncated, badly")


def test_a_generator_that_lost_all_its_images_is_named(manifest: Manifest) -> None:
    frame = manifest.frame
    test = frame[frame["split"] == "test"]
    bad = [record(manifest, int(row)) for row in test.index[test["generator"] == "gen_c"]]
    quarantine = Quarantine.from_records(bad, manifest, ("test",))
    assert quarantine.lost("test", test[test["generator"] != "gen_c"]) == ["gen_c"]
    half = Quarantine.from_records(bad[:2], manifest, ("test",))
    assert half.lost("test", test.drop(index=[item["id"] for item in bad[:2]])) == []
