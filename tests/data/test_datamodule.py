"""The data module: the same batches whatever the number of workers, through Lightning's own loops."""

import logging
import os
import warnings
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from fakedet.data.datamodule import ImageDataModule, check_data_module
from fakedet.data.decode import DecodeError
from fakedet.data.manifest import Manifest, load_manifest
from fakedet.data.transforms import Augmentation
from fakedet.errors import UserError
from fakedet.metrics.pairing import real_counterparts


def module(manifest: Path, **settings) -> ImageDataModule:
    defaults = {"crop_size": 24, "batch_size": 8, "eval_batch_size": 5, "augment": Augmentation("views")}
    return ImageDataModule(str(manifest), **(defaults | settings))


def same(a: list, b: list) -> bool:
    return len(a) == len(b) and all(
        torch.equal(x[key], y[key]) for x, y in zip(a, b, strict=True) for key in ("image", "id", "label", "generator")
    )


def epoch_of(loader, epoch: int) -> list:
    loader.batch_sampler.sampler.set_epoch(epoch)  # as Lightning does
    return list(loader)


def test_batches_are_byte_equal_with_any_number_of_workers(tiny_manifest: Path) -> None:
    one, two = (module(tiny_manifest, num_workers=workers, views=2).train_dataloader() for workers in (0, 2))
    first = [epoch_of(one, epoch) for epoch in range(2)]
    second = [epoch_of(two, epoch) for epoch in range(2)]
    assert not any(batch["quarantined"] for batch in first[0])
    assert same(first[0], second[0])
    assert same(first[1], second[1])
    assert not same(first[0], first[1]), "epochs differ"
    assert same(first[0], epoch_of(module(tiny_manifest, views=2).train_dataloader(), 0)), "runs repeat"
    assert not same(first[0], epoch_of(module(tiny_manifest, views=2, seed=1).train_dataloader(), 0))


def test_loading_leaves_the_global_random_state_alone(tiny_manifest: Path) -> None:
    for workers in (0, 1):
        loader = module(tiny_manifest, num_workers=workers).train_dataloader()
        torch.manual_seed(5)
        expected = torch.rand(3)
        torch.manual_seed(5)
        epoch_of(loader, 0)
        epoch_of(loader, 1)
        assert torch.equal(torch.rand(3), expected), f"{workers} workers"


def test_an_epoch_is_one_pass_over_the_training_rows(tiny_manifest: Path) -> None:
    data = module(tiny_manifest)
    train = data.manifest.rows("train")
    loader = data.train_dataloader()
    assert len(loader) == -(-len(train) // 8)
    seen = {row for batch in epoch_of(loader, 0) for row in batch["id"].tolist()}
    assert seen == set(train.index), "classes and generators are equal here, so each row comes"
    assert len(module(tiny_manifest, steps_per_epoch=3).train_dataloader()) == 3
    assert len(module(tiny_manifest, batch_size=24).train_dataloader()) == 2, "rounded up"


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_evaluation_gives_each_row_once_in_order(tiny_manifest: Path, split: str) -> None:
    data = module(tiny_manifest, eval_policy="multi-crop")
    batches = list(data.eval_dataloader(split))
    assert [row for batch in batches for row in batch["id"].tolist()] == data.manifest.rows(split).index.tolist()
    assert batches[0]["image"].shape == (5, 5, 3, 24, 24)
    frame, cells = data.manifest.frame, data.cells
    for batch in batches:
        for row, label, code in zip(*(batch[key].tolist() for key in ("id", "label", "generator")), strict=True):
            assert label == frame["label"][row] == cells.is_fake[code]
            assert cells.names[code] == frame["generator"][row]


def test_whole_pictures_are_evaluated_one_by_one_whatever_their_sizes(tiny_manifest: Path) -> None:
    data = module(tiny_manifest, eval_policy="whole46", num_workers=1)
    batches = list(data.eval_dataloader("test"))
    assert [batch["id"].tolist() for batch in batches] == [[row] for row in data.manifest.rows("test").index]
    # Files are 40 to 47 rows high and 48 pixels wide: of the 48, the middle 46 are seen.
    for batch in batches:
        pixels = cv2.imread(str(tiny_manifest.parent / data.manifest.frame["path"][int(batch["id"])]))[..., ::-1]
        top = (len(pixels) - min(46, len(pixels))) // 2
        expected = pixels[top : top + 46, 1:47].transpose(2, 0, 1)
        np.testing.assert_array_equal(batch["image"].numpy(), expected[None, None])


class Recorder(LightningModule):
    """Write down what the training loop is given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen: dict[int, list[list[int]]] = {}

    def training_step(self, batch, batch_idx):
        self.seen.setdefault(self.current_epoch, []).append(batch["id"].tolist())
        return self.weight.sum() * batch["image"].float().mean()

    def validation_step(self, batch, batch_idx):
        assert len(batch["id"]) == len(batch["image"])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(data: ImageDataModule, epochs: int, folder: Path, resume: Path | None = None) -> Recorder:
    recorder = Recorder()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = Trainer(max_epochs=epochs, accelerator="cpu", logger=False, enable_progress_bar=False,
                          enable_model_summary=False, use_distributed_sampler=False, default_root_dir=folder,
                          callbacks=[ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1)])  # fmt: skip
        trainer.fit(recorder, datamodule=data, ckpt_path=resume)
    return recorder


@pytest.mark.parametrize("workers", [0, 1])
def test_lightning_draws_the_sampler_s_epochs_and_a_resumed_run_the_rest(
    tiny_manifest: Path, tmp_path: Path, workers: int
) -> None:
    data = module(tiny_manifest, num_workers=workers)
    sampler = data.train_dataloader().batch_sampler
    expected = {e: [[d.id for d in sampler.batch(e, s)] for s in range(len(sampler))] for e in range(3)}
    whole = fit(module(tiny_manifest, num_workers=workers), 3, tmp_path / "whole")
    assert whole.seen == expected
    resumed = fit(module(tiny_manifest, num_workers=workers), 3, tmp_path / "rest", tmp_path / "whole/epoch=1.ckpt")
    assert resumed.seen == {2: expected[2]}


def test_cells_pair_as_the_report_does(tiny_manifest: Path) -> None:
    frame = pd.read_csv(tiny_manifest)
    # Reals of gen_a's own name stand in training only: no counterparts of a test.
    own = frame.index[(frame["generator"] == "real_x") & (frame["split"] == "train")]
    frame.loc[own, "generator"] = "gen_a"
    frame["source"] = np.where(frame["generator"].isin(["real_y", "gen_c"]), "sky", "")
    path = tiny_manifest.with_name("paired.csv")
    frame.to_csv(path, index=False)
    data = module(path)
    for stage, split in (("fit", "val"), ("test", "test")):
        data.setup(stage)
        cells, rows = data.cells, data.manifest.rows(split)
        assert sorted(cells.names) == ["gen_a", "gen_a", "gen_b", "gen_c", "real_x", "real_y:sky"]
        for name, found in real_counterparts(rows, None).items():
            (code,) = [c for c, known in enumerate(cells.names) if known == name and cells.is_fake[c]]
            assert set(cells.codes[rows.index[found.fake_rows]]) == {code}
            expected = set(rows.index[found.real_rows])
            assert {row for row in rows.index if cells.codes[row] in cells.counterparts[code]} == expected, name
    assert "gen_c" in real_counterparts(data.manifest.rows("test"), None)


def test_facts_about_the_data(tiny_manifest: Path) -> None:
    data = module(tiny_manifest)
    assert data.seen_generators == ["gen_a", "gen_b"]
    assert data.has_split("test")
    assert not data.has_split("other")
    assert data.describe() == "train 16 real + 16 fake, val 8 real + 8 fake, test 8 real + 16 fake"
    assert next(iter(data.subset_dataloader(np.array([7, 3]))))["id"].tolist() == [7, 3]


def test_stage_1_and_the_bank_see_training_reals_only(tiny_manifest: Path) -> None:
    data = module(tiny_manifest, real_only=True, views=2, batch_size=4)
    labels, splits = data.manifest.frame["label"], data.manifest.frame["split"]
    loader = data.train_dataloader()
    drawn = {row for epoch in range(3) for batch in epoch_of(loader, epoch) for row in batch["id"].tolist()}
    bank = [row for batch in data.bank_dataloader(100) for row in batch["id"].tolist()]
    assert len(loader) == 4
    assert drawn == set(bank)
    assert len(bank) == 16
    assert set(labels[bank]) == {0}
    assert set(splits[bank]) == {"train"}
    assert sum(len(batch["id"]) for batch in data.bank_dataloader(4)) == 4
    both = module(tiny_manifest)
    fakes = [row for batch in both.bank_dataloader(100, 1) for row in batch["id"].tolist()]
    assert set(labels[fakes]) == {1}
    assert set(splits[fakes]) == {"train"}
    assert len(fakes) == 16


def test_required_splits_and_classes_are_named(tiny_manifest: Path) -> None:
    frame = pd.read_csv(tiny_manifest)
    path = tiny_manifest.with_name("reals.csv")
    frame[(frame["label"] == 0) | (frame["split"] != "train")].to_csv(path, index=False)
    with pytest.raises(UserError, match="'train' has no fake"):
        module(path).require("train", "val")
    module(path, real_only=True).require("train", "val")
    frame[(frame["label"] == 1) | (frame["split"] != "train")].to_csv(path, index=False)
    with pytest.raises(UserError, match="no real images"):
        module(path, real_only=True).require("train", "val")


@pytest.mark.parametrize("workers", [0, 1])
def test_unreadable_training_data_end_in_one_message(tiny_manifest: Path, workers: int) -> None:
    frame = pd.read_csv(tiny_manifest)
    for path in frame.loc[(frame["label"] == 1) & (frame["split"] == "train"), "path"]:
        (tiny_manifest.parent / path).write_bytes(b"")
    with pytest.raises(UserError) as caught:
        list(module(tiny_manifest, num_workers=workers).train_dataloader())
    assert str(caught.value).startswith("no training image could be read in the place of gen_")
    assert "Traceback" not in str(caught.value)


@pytest.mark.parametrize(("settings", "message"), [
    ({"num_workers": -1}, r"data\.num_workers=-1: .*valid: 0 .* to \d+"),
    ({"num_workers": 10**4}, r"data\.num_workers=10000: .*valid: 0 .* to \d+"),
    ({"crop_size": 0}, r"data\.crop_size=0"),
    ({"crop_size": None}, r"data\.crop_size=None"),
    ({"eval_batch_size": 0}, r"data\.eval_batch_size=0"),
    ({"steps_per_epoch": 0}, r"data\.steps_per_epoch=0"),
    ({"eval_policy": "crp"}, r"data\.eval_policy: 'crp'.*did you mean 'crop'"),
    ({"max_quarantine": 5}, r"data\.max_quarantine=5"),
])  # fmt: skip
def test_wrong_settings_are_named_before_anything_is_read(settings: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        module(Path("nowhere.csv"), **settings)


def test_more_workers_than_cores_are_noted_without_a_warning(
    tiny_manifest: Path, caplog: pytest.LogCaptureFixture
) -> None:
    workers = 2 * (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    with warnings.catch_warnings(), caplog.at_level(logging.INFO, "fakedet"):
        warnings.simplefilter("error")
        module(tiny_manifest, num_workers=workers).train_dataloader()
    assert f"data.num_workers={workers}" in caplog.text


def test_a_subclass_may_say_where_the_data_are(tiny_manifest: Path) -> None:
    class Elsewhere(ImageDataModule):
        def read_manifest(self):
            return load_manifest(tiny_manifest)

    data = Elsewhere("", crop_size=24)
    data.prepare()
    assert len(data.manifest.frame) == 72


class InMemory:
    """A source of the user's own: pictures that were never files, one of them broken."""

    def __init__(self, names: list[str]) -> None:
        self.names = names

    def read(self, row: int) -> bytes:
        if row == 3:
            raise DecodeError("no picture 3")
        picture = np.full((24, 24, 3), row, np.uint8)
        return cv2.imencode(".png", picture)[1].tobytes()


class FrameModule(ImageDataModule):
    """A data module of the user's own: a data frame instead of a table, a source instead of files."""

    def __init__(self, extra: int, **settings) -> None:
        super().__init__("", **settings)
        self.extra = extra

    def read_manifest(self) -> Manifest:
        frame = pd.DataFrame({"path": [f"picture {row}" for row in range(24)], "label": [0, 1] * 12,
                              "split": ["train"] * 12 + ["val"] * 6 + ["test"] * 6})  # fmt: skip
        return Manifest.from_frame(frame.assign(generator=frame["label"].map({0: "camera", 1: "gan"})))

    def make_source(self) -> InMemory:
        return InMemory(self.manifest.frame["path"].tolist())


@pytest.mark.parametrize("workers", [0, 2])
def test_images_and_their_bytes_may_come_from_anywhere(workers: int) -> None:
    data = FrameModule(extra=5, crop_size=24, num_workers=workers, batch_size=4)
    assert check_data_module(data) is data
    data.require("train", "val", "test")
    for batch in [*data.train_dataloader(), *data.eval_dataloader("test")]:
        for row, image in zip(batch["id"].tolist(), batch["image"], strict=True):
            assert (image == row).all()
    (record,) = next(iter(data.bank_dataloader(100, 1)))["quarantined"]
    assert (record["id"], record["reason"]) == (3, "no picture 3")
    with pytest.raises(UserError, match="<data frame>: row 1 has no generator"):
        Manifest.from_frame(pd.DataFrame({"path": ["a"], "label": [0], "generator": [""]}))


def test_a_data_module_that_lacks_something_is_refused_before_data_are_read() -> None:
    class Foreign(LightningDataModule):
        crop_size = 24

        @property
        def manifest(self):
            raise AssertionError("nothing is read yet")

        def train_dataloader(self):
            raise AssertionError("nothing is read yet")

    with pytest.raises(UserError, match=r"data\._target_=.*Foreign has no as_read, cells, .*val_dataloader") as caught:
        check_data_module(Foreign())
    for there in ("crop_size", "manifest,", " train_dataloader"):
        assert there not in str(caught.value)
    assert "ImageDataModule" in str(caught.value)
    with pytest.raises(UserError, match=r"not a lightning\.pytorch\.LightningDataModule"):
        check_data_module(object())
    check_data_module(ImageDataModule("nowhere.csv"))


@pytest.mark.corpus
def test_the_development_corpus_loads(corpus: Path) -> None:
    data = module(corpus / "matched" / "manifest.csv", crop_size=128, batch_size=64, steps_per_epoch=2)
    data.require("train", "val", "test")
    assert data.seen_generators == ["ldm", "midjourney", "stable_diffusion_v1", "stylegan3"]
    for batch in data.train_dataloader():
        assert batch["label"].sum() == 32
        fakes = pd.Series(batch["generator"][batch["label"] == 1]).value_counts()
        assert fakes.tolist() == [8, 8, 8, 8]
        assert batch["quarantined"] == []
