"""Shards: the same bytes, the same batches, whole or not at all."""

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from fakedet.cli.app import launch
from fakedet.data.datamodule import ImageDataModule
from fakedet.data.decode import DecodeError
from fakedet.data.sampler import BalancedBatchSampler, Draw, Shards
from fakedet.data.sources import ShardSource
from fakedet.data.transforms import Augmentation
from fakedet.errors import UserError

pytest.importorskip("litdata")


def shard(manifest: Path, folder: Path, *more: str) -> int:
    return launch("shard", [f"data.manifest={manifest}", f"output_dir={folder}", *more])


@pytest.fixture
def sharded(tiny_manifest: Path, tmp_path: Path) -> Path:
    """Give the manifest of shards of a few images each."""
    assert shard(tiny_manifest, tmp_path / "shards", "shard_mb=0.03") == 0
    return tmp_path / "shards" / "manifest.parquet"


def test_every_row_has_the_bytes_of_its_file(sharded: Path, tiny_manifest: Path) -> None:
    ours, files = ImageDataModule(str(sharded)), ImageDataModule(str(tiny_manifest))
    frame, other = ours.manifest.frame, files.manifest.frame
    assert sorted(frame["path"]) == sorted(other["path"])
    rows = dict(zip(other["path"], other.index, strict=True))
    columns = ["path", "label", "generator", "source", "split", "group"]
    for row, path in enumerate(frame["path"]):
        assert ours.read_bytes(row) == files.read_bytes(rows[path])
        assert frame.loc[row, columns].tolist() == other.loc[rows[path], columns].tolist()
    numbers = ours.manifest.fact("shard")
    assert numbers.max() >= 5
    assert (np.diff(numbers) >= 0).all()


def test_the_same_draws_give_the_same_pixels(sharded: Path, tiny_manifest: Path) -> None:
    """Batches differ in which rows they hold, for the walk goes by shards; a row and a seed give one view."""
    views = []
    for path in (sharded, tiny_manifest):
        data = ImageDataModule(str(path), crop_size=24, augment=Augmentation("views"))
        dataset = data.train_dataloader().dataset
        rows = data.manifest.frame.sort_values("path").index
        views.append([dataset[Draw(int(row), 5)]["views"][0] for row in rows])
    for ours, theirs in zip(*views, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_gives_every_row_once_and_equal_pixels(sharded: Path, tiny_manifest: Path, workers: int) -> None:
    seen = {}
    for path in (sharded, tiny_manifest):
        data = ImageDataModule(str(path), crop_size=24, num_workers=min(workers, 2), eval_batch_size=5)
        pixels = {}
        for batch in data.eval_dataloader("test"):
            for row, image in zip(batch["id"].tolist(), batch["image"], strict=True):
                name = data.manifest.frame["path"][row]
                assert name not in pixels
                pixels[name] = image
        seen[path] = pixels
    ours, theirs = seen[sharded], seen[tiny_manifest]
    assert set(ours) == set(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def sampler(rank: int = 0, world: int = 1, window: int | None = 2) -> BalancedBatchSampler:
    labels = np.repeat([0, 1], 200)
    generators = ["r"] * 200 + ["a"] * 100 + ["b"] * 100
    shards = Shards(np.arange(400) // 10, window) if window else None
    return BalancedBatchSampler(np.arange(400), labels, generators, [""] * 400, 8, 100, 0, False, rank, world, shards)


def test_walks_keep_few_shards_open_and_use_every_row_once_a_round() -> None:
    batches = list(sampler())
    rows = np.array([[draw.id for draw in batch] for batch in batches])
    reals, fakes = rows[:, 0::2], rows[:, 1::2]
    assert (reals < 200).all()
    assert (fakes >= 200).all()
    # 200 reals at 4 a step: a round takes 50 steps, and each real is in it once.
    assert sorted(reals[:50].ravel()) == list(range(200))
    assert sorted(fakes[:50].ravel()) == list(range(200, 400))
    # Two shards of ten rows are open at a time: five steps of reals see two shards, wherever they begin at a window.
    for start in range(0, 50, 5):
        assert len(set(reals[start : start + 5].ravel() // 10)) == 2
    assert reals[:50].ravel().tolist() != reals[50:].ravel().tolist()
    anywhere = np.array([[draw.id for draw in batch] for batch in sampler(window=None)])[:, 0::2]
    assert len(set(anywhere[:5].ravel() // 10)) > 8


def test_ranks_share_the_batch_of_one_process() -> None:
    whole = list(sampler())
    for step, parts in enumerate(zip(*(list(sampler(rank, 2)) for rank in (0, 1)), strict=True)):
        assert [draw for part in parts for draw in part] == whole[step]
    late = sampler()
    late.set_start_step(37)
    assert list(late) == whole[37:]


def test_matched_shards(tiny_manifest: Path, tmp_path: Path) -> None:
    assert shard(tiny_manifest, tmp_path / "s", "data.match.size=24", "data.crop_size=24") == 0
    frame = pd.read_parquet(tmp_path / "s" / "manifest.parquet")
    assert set(zip(frame["width"], frame["height"], frame["format"], strict=True)) == {(24, 24, "JPEG")}
    disk = ImageDataModule(str(tmp_path / "s" / "manifest.parquet"), crop_size=24)
    flying = ImageDataModule(str(tiny_manifest), crop_size=24, match={"size": 24})
    rows = dict(zip(flying.manifest.frame["path"], flying.manifest.frame.index, strict=True))
    assert all(
        disk.read_bytes(row) == flying.read_bytes(rows[path]) for row, path in enumerate(disk.manifest.frame["path"])
    )


def test_unreadable_images_are_left_out_and_named(
    tiny_manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frame = pd.read_csv(tiny_manifest)
    first, second = frame["path"][0], frame["path"][1]
    (tiny_manifest.parent / first).write_bytes(b"broken")
    (tiny_manifest.parent / second).unlink()
    assert shard(tiny_manifest, tmp_path / "s") == 0
    rejected = pd.read_csv(tmp_path / "s" / "rejected.csv")
    assert set(rejected["path"]) == {first, second}
    assert "left out:" in capsys.readouterr().out
    assert len(ImageDataModule(str(tmp_path / "s" / "manifest.parquet")).manifest.frame) == len(frame) - 2


def test_occupied_folders_are_not_replaced_unasked(
    sharded: Path, tiny_manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sharded.read_bytes()
    assert shard(tiny_manifest, sharded.parent) == 2
    assert "overwrite=true" in capsys.readouterr().err
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    assert shard(tiny_manifest, tmp_path / "mine", "overwrite=true") == 2
    assert "holds no shards" in capsys.readouterr().err
    assert shard(tiny_manifest, sharded.parent, "overwrite=true") == 0
    assert pd.read_parquet(sharded).equals(pd.read_parquet(sharded))
    assert before[:4] == b"PAR1"
    assert not list(tmp_path.glob(".*"))


def test_a_full_disk_leaves_the_old_shards(
    sharded: Path,
    tiny_manifest: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = {path.name: path.read_bytes() for path in sharded.parent.iterdir()}

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("fakedet.data.shards.pq.write_table", full)
    assert shard(tiny_manifest, sharded.parent, "overwrite=true") == 2
    assert "No space left on device; what was there is unchanged" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in sharded.parent.iterdir()} == before
    assert not list(tmp_path.glob(".*"))


def test_missing_and_damaged_shards(sharded: Path, tmp_path: Path) -> None:
    data = ImageDataModule(str(sharded), crop_size=24, max_quarantine=1.0)
    shutil.rmtree(tmp_path / "moved", ignore_errors=True)
    (tmp_path / "moved").mkdir()
    shutil.copy(sharded, tmp_path / "moved" / "manifest.parquet")
    with pytest.raises(UserError, match=r"there are no shards here \(index.json is missing\)"):
        ImageDataModule(str(tmp_path / "moved" / "manifest.parquet")).read_bytes(0)
    rows = np.flatnonzero(data.manifest.fact("shard") == 1)
    (sharded.parent / "chunk-0-1.bin").unlink()
    batches = (
        list(data.eval_dataloader("train")) + list(data.eval_dataloader("val")) + list(data.eval_dataloader("test"))
    )
    bad = {record["id"]: record["reason"] for batch in batches for record in batch["quarantined"]}
    assert set(bad) == set(rows.tolist())
    assert all(reason.startswith("its shard cannot be read") for reason in bad.values())
    with pytest.raises(UserError, match=r"index\.json is missing"):
        ImageDataModule(str(sharded), root=str(tmp_path)).read_bytes(0)


def test_shards_of_another_manifest_are_refused(sharded: Path, tiny_manifest: Path, tmp_path: Path) -> None:
    """Their positions would give wrong images under right labels."""
    frame = pd.read_csv(tiny_manifest)
    frame[frame["generator"] != "real_x"].to_csv(tiny_manifest.parent / "part.csv", index=False)
    assert shard(tiny_manifest.parent / "part.csv", tmp_path / "other") == 0
    mixed = ImageDataModule(str(sharded), root=str(tmp_path / "other"), crop_size=24)
    with pytest.raises(UserError, match="these are the shards of another manifest"):
        mixed.read_bytes(0)
    with pytest.raises(UserError, match="these are the shards of another manifest"):
        list(mixed.eval_dataloader("test"))
    with pytest.raises(UserError, match="these are the shards of another manifest"):
        list(
            ImageDataModule(str(sharded), root=str(tmp_path / "other"), crop_size=24, num_workers=2).eval_dataloader(
                "test"
            )
        )


def test_an_image_of_another_size_in_a_rows_place_is_named(sharded: Path) -> None:
    data = ImageDataModule(str(sharded))
    source = data.image_source
    assert isinstance(source, ShardSource)
    source.sizes = source.sizes + (np.arange(len(source.sizes)) == 5)
    with pytest.raises(DecodeError, match="bytes in its place instead of"):
        data.read_bytes(5)
    assert data.read_bytes(4)


def test_shards_of_another_place_are_fetched_into_the_cache(sharded: Path, tmp_path: Path) -> None:
    remote = ImageDataModule(str(sharded), root=f"local:{sharded.parent}", shard_cache=str(tmp_path / "cache"))
    local = ImageDataModule(str(sharded))
    for row in range(len(local.manifest.frame)):
        assert remote.read_bytes(row) == local.read_bytes(row)
    assert list((tmp_path / "cache").rglob("chunk-*.bin"))


def test_without_litdata_the_extra_is_named(sharded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "litdata", None)
    with pytest.raises(UserError, match=r'pip install "fakedet\[shards\]"'):
        ImageDataModule(str(sharded)).read_bytes(0)


@pytest.mark.slow
def test_a_killed_run_leaves_no_folder(tiny_manifest: Path, tmp_path: Path) -> None:
    script = f"""
import os
from fakedet.cli.app import launch
import fakedet.data.shards as module
real = module.write_rejected
def die(*_): os.kill(os.getpid(), 9)
module.write_rejected = die
launch("shard", ["data.manifest={tiny_manifest}", "output_dir={tmp_path}/s"])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == -9, done.stderr
    assert not (tmp_path / "s").exists()
    assert shard(tiny_manifest, tmp_path / "s") == 0


@pytest.mark.slow
def test_two_processes_train_from_shards(sharded: Path, tmp_path: Path) -> None:
    arguments = [
        "train", "model=bce", "trainer=ddp", "trainer.accelerator=cpu", "trainer.max_epochs=1", "data=manifest",
        f"data.manifest={sharded}", "data.crop_size=32", "data.batch_size=8", "data.num_workers=1", "threads=1",
        "bootstrap.resamples=0", f"output_dir={tmp_path}/run",
    ]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "fakedet", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    predictions = pd.read_parquet(tmp_path / "run" / "predictions.parquet")
    wanted = pd.read_parquet(sharded)
    assert sorted(predictions["path"]) == sorted(wanted.loc[wanted["split"] == "test", "path"])


def test_families_go_with_the_shards(tiny_manifest: Path, tmp_path: Path) -> None:
    frame = pd.read_csv(tiny_manifest)
    frame.assign(family=frame["label"].map({0: "", 1: "gans"})).to_csv(tiny_manifest, index=False)
    assert shard(tiny_manifest, tmp_path / "shards") == 0
    sharded = ImageDataModule(str(tmp_path / "shards" / "manifest.parquet")).manifest.frame
    assert set(sharded.loc[sharded["label"] == 1, "family"]) == {"gans"}
