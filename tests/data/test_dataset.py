"""Datasets: what an item and a batch hold, and what becomes of files that cannot be read."""

from pathlib import Path

import numpy as np
import pytest
import torch

from fakedet.data.dataset import EvaluationDataset, ImageDataset, collate
from fakedet.data.decode import read_image
from fakedet.data.manifest import Manifest, load_manifest
from fakedet.data.sampler import Draw
from fakedet.data.sources import FileSource
from fakedet.data.transforms import Augmentation, evaluation_views
from fakedet.errors import UserError


@pytest.fixture
def manifest(tiny_manifest: Path) -> Manifest:
    return load_manifest(tiny_manifest)


def codes_of(manifest: Manifest) -> np.ndarray:
    return manifest.frame["generator"].astype("category").cat.codes.to_numpy().astype(np.int64)


def source(manifest: Manifest) -> FileSource:
    return FileSource(manifest.root, manifest.frame["path"].tolist())


def training(manifest: Manifest, views: int = 1, pool: np.ndarray | None = None) -> ImageDataset:
    train = np.flatnonzero(manifest.frame["split"] == "train")
    return ImageDataset(manifest, codes_of(manifest), source(manifest), Augmentation("light"), 32, views,
                        train if pool is None else pool)  # fmt: skip


def evaluation(manifest: Manifest, policy: str) -> EvaluationDataset:
    return EvaluationDataset(manifest, codes_of(manifest), source(manifest), policy, 32)


def destroy(manifest: Manifest, rows) -> None:
    for row in rows:
        (manifest.root / manifest.frame["path"][row]).write_bytes(b"not an image")


def rows_of(manifest: Manifest, generator: str, split: str) -> list[int]:
    frame = manifest.frame
    return frame.index[(frame["generator"] == generator) & (frame["split"] == split)].tolist()


def test_a_batch_is_what_the_contract_says(manifest: Manifest) -> None:
    dataset = training(manifest, views=2)
    rows = [rows_of(manifest, "real_x", "train")[0], rows_of(manifest, "gen_b", "train")[1]]
    batch = dataset.collate([dataset[Draw(row, 7)] for row in rows])
    assert batch["image"].shape == (2, 2, 3, 32, 32)
    assert batch["image"].dtype == torch.uint8
    assert batch["id"].tolist() == rows
    assert batch["label"].tolist() == [0, 1]
    assert batch["generator"].tolist() == codes_of(manifest)[rows].tolist()
    assert all(batch[key].dtype == torch.int64 for key in ("id", "label", "generator"))
    assert batch["quarantined"] == []
    first, second = batch["image"][0]
    assert not torch.equal(first, second), "each view has randomness of its own"
    again = training(manifest, views=2)[Draw(rows[0], 7)]
    np.testing.assert_array_equal(np.stack(again["views"]).transpose(0, 3, 1, 2), batch["image"][0])


@pytest.mark.parametrize(("policy", "views"), [("crop", 1), ("multi-crop", 5), ("resize", 1)])
def test_evaluation_sees_exactly_the_policy_s_views(manifest: Manifest, policy: str, views: int) -> None:
    dataset = evaluation(manifest, policy)
    batch = dataset.collate([dataset[Draw(3, seed)] for seed in (1, 2)])
    expected = evaluation_views(read_image(manifest.root / manifest.frame["path"][3]), 32, policy)
    assert batch["image"].shape == (2, views, 3, 32, 32)
    for image in batch["image"]:
        np.testing.assert_array_equal(image, np.stack(expected).transpose(0, 3, 1, 2))


def test_a_bad_training_image_is_replaced_by_one_of_its_generator_and_reported(manifest: Manifest) -> None:
    rows = rows_of(manifest, "gen_a", "train")
    destroy(manifest, rows[:2])
    dataset = training(manifest)
    items = [dataset[Draw(rows[0], seed)] for seed in range(30)]
    assert {item["id"] for item in items} == set(rows[2:]), "any of the readable ones, no other"
    for item in items:
        assert item["label"] == 1
        assert item["generator"] == codes_of(manifest)[item["id"]]
        first = item["quarantined"][0]
        assert (first["id"], first["path"]) == (rows[0], manifest.frame["path"][rows[0]])
        assert "not an image" in first["reason"]
        assert {record["id"] for record in item["quarantined"]} <= set(rows[:2])
    again = dataset[Draw(rows[0], 5)]
    assert again["id"] == items[5]["id"], "the draw's seed decides"


def test_a_generator_broken_as_a_whole_is_replaced_by_its_class(
    manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fakedet.data.dataset.TRIES", 6)  # fewer than the generator has images
    broken = rows_of(manifest, "gen_a", "train")
    destroy(manifest, broken)
    dataset = training(manifest)
    found = {dataset[Draw(broken[0], seed)]["id"] for seed in range(40)}
    assert found <= set(rows_of(manifest, "gen_b", "train")), "fakes of training, never of test"
    assert len(found) > 3


def test_replacements_come_from_the_rows_that_are_trained_on(manifest: Manifest) -> None:
    rows = rows_of(manifest, "real_x", "train")
    destroy(manifest, rows[:1])
    dataset = training(manifest, pool=np.array(rows[:3]))
    assert {dataset[Draw(rows[0], seed)]["id"] for seed in range(30)} == set(rows[1:3])


def test_nothing_readable_is_an_error_that_names_files(manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fakedet.data.dataset.TRIES", 6)
    fakes = rows_of(manifest, "gen_a", "train") + rows_of(manifest, "gen_b", "train")
    destroy(manifest, fakes)
    with pytest.raises(
        UserError, match=r"no training image could be read.*gen_a.*not an image.* and 1 more; .*data\.root"
    ):
        training(manifest)[Draw(fakes[0], 0)]


def test_bad_evaluation_images_are_left_out_and_reported(manifest: Manifest) -> None:
    destroy(manifest, [4, 5])
    dataset = evaluation(manifest, "multi-crop")
    batch = dataset.collate([dataset[Draw(row, row)] for row in (3, 4, 5, 6)])
    assert batch["id"].tolist() == [3, 6]
    assert [record["id"] for record in batch["quarantined"]] == [4, 5]
    only_bad = dataset.collate([dataset[Draw(row, row)] for row in (4, 5)])
    assert only_bad["image"].shape == (0, 5, 3, 32, 32)
    assert only_bad["image"].dtype == torch.uint8
    assert only_bad["label"].shape == only_bad["generator"].shape == only_bad["id"].shape == (0,)
    assert only_bad["label"].dtype == torch.int64
    assert len(only_bad["quarantined"]) == 2
    assert collate([], 1, 8)["image"].shape == (0, 1, 3, 8, 8)
