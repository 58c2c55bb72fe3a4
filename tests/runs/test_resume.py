"""A run that is killed at any moment and started again ends with the bits of one that never was."""

import json
import multiprocessing
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch

from fakedet.data import dataset
from fakedet.data.datamodule import ImageDataModule
from fakedet.data.transforms import Augmentation
from fakedet.evaluation.predictions import read_predictions

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["fakedet.training.train", "fakedet.cli.app", "fakedet.cli.verbs"])

# Five steps an epoch, three epochs; dropout draws from PyTorch's own generator, the recipe from the sampler's.
COMMON = ["data=manifest", "data.crop_size=32", "data.batch_size=8", "data.steps_per_epoch=5", "trainer.max_epochs=3",
          "trainer.log_every_n_steps=1", "callbacks.resume.every_steps=2", "callbacks.resume.min_seconds=0",
          "threads=1", "bootstrap.resamples=20", "header_audit=false", "augment=cnndet"]  # fmt: skip
DROPOUT = ["model/encoder=timm", "model.encoder.name=test_resnet", "model.encoder.pretrained=false",
           "+model.encoder.drop_rate=0.3"]  # fmt: skip


def child(arguments: list[str], what: str | None, number: int, log: str) -> None:
    """Train, and kill this very process at the n-th time that something happens."""
    with open(log, "a", encoding="utf-8") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    torch.set_num_threads(1)
    # A process from a fork server would start its own for the loader's workers, which would outlive the kill.
    multiprocessing.set_start_method("fork", force=True)
    if what is not None:
        arm(what, number)
    from fakedet.cli.app import launch

    os._exit(launch("train", arguments))


def arm(what: str, number: int) -> None:
    from fakedet.methods.base import Detector
    from fakedet.methods.ntf import NaturalTraceForensics, NaturalTracePretraining
    from fakedet.methods.supervised import SupervisedDetector

    methods = (SupervisedDetector, NaturalTracePretraining, NaturalTraceForensics)
    steps = [(method, "training_step") for method in methods]
    if what.startswith("SIG"):
        places, act = steps, lambda *_: os.kill(os.getpid(), getattr(signal, what))
    else:
        act = tear if what == "write" else die
        places = {
            "step": steps,
            "backward": [(torch.Tensor, "backward")],
            "validation": [(Detector, "validation_step")],
            "write": [(torch, "save")],
            "rename": [(os, "replace")],
            "image": [(dataset, "decode_image")],
            "results": [(pq, "write_table")],
        }[what]
    left = [number]
    for owner, name in places:
        setattr(owner, name, counted(getattr(owner, name), left, act))


def counted(original, left: list[int], act):
    """Wrap a function so that the n-th call of all that share ``left`` acts first."""

    def wrapped(*args, **kwargs):
        left[0] -= 1
        if left[0] == 0:
            act(*args)
        return original(*args, **kwargs)

    return wrapped


def die(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def tear(content: object, file) -> None:
    """Leave half a checkpoint behind."""
    file.write(b"PK\x03\x04" + b"\0" * 1000)
    file.flush()
    die()


def run(arguments: list[str], log: Path, what: str | None = None, number: int = 0) -> int:
    process = CONTEXT.Process(target=child, args=(arguments, what, number, str(log)))
    process.start()
    process.join(120)
    status = process.exitcode
    process.close()
    assert status is not None, log.read_text()
    return status


def results(folder: Path) -> dict[str, object]:
    """Everything that a run leaves behind but for times and places."""
    metrics = json.loads((folder / "metrics.json").read_text())
    frame, info = read_predictions(folder / "predictions.parquet")
    weights = {}
    for name in ("best", "last"):
        content = torch.load(folder / "checkpoints" / f"{name}.ckpt", weights_only=True)
        states = [content["state_dict"], content["optimizer_states"][0]["state"], content["lr_schedulers"]]
        weights[name] = (content["epoch"], content["global_step"], states)
    quarantine = folder / "quarantine.csv"
    return {
        "metrics": {key: value for key, value in metrics.items() if key != "checkpoint"},
        "frame": frame, "point": info["operating_point"], "weights": weights,
        "curves": without_times(pd.read_csv(folder / "logs" / "metrics.csv")),
        "quarantine": quarantine.read_text() if quarantine.is_file() else "",
        "kept": json.loads((folder / "run.json").read_text())["kept_epoch"],
    }  # fmt: skip


def without_times(curves: pd.DataFrame) -> pd.DataFrame:
    """Leave out how fast it was; rows that hold nothing else go."""
    kept = curves[[name for name in curves if not name.startswith("perf/")]]
    return kept[kept.drop(columns=["epoch", "step"]).notna().any(axis=1)].reset_index(drop=True)


def assert_same(one: object, other: object, place: str = "") -> None:
    """Compare bit for bit."""
    assert type(one) is type(other), place
    if isinstance(one, dict):
        assert list(one) == list(other), place
        for key in one:
            assert_same(one[key], other[key], f"{place}/{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), place
        for number, (left, right) in enumerate(zip(one, other, strict=True)):
            assert_same(left, right, f"{place}/{number}")
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other), place
    elif isinstance(one, pd.DataFrame):
        pd.testing.assert_frame_equal(one, other, check_exact=True, obj=place)
    else:
        assert one == other or (one != one and other != other), place


@pytest.fixture(scope="module")
def data(tiny_manifest_module: Path) -> Path:
    """The tiny manifest with a training image that cannot be read."""
    table = pd.read_csv(tiny_manifest_module)
    broken = table[(table["split"] == "train") & (table["label"] == 1)]["path"].iloc[0]
    (tiny_manifest_module.parent / broken).write_bytes(b"\xff\xd8\xff not an image")
    return tiny_manifest_module


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory):
    """Give the arguments and results of uninterrupted runs, each trained once."""
    done: dict[str, tuple[list[str], dict[str, object]]] = {}

    def of(name: str, *more: str) -> tuple[list[str], dict[str, object]]:
        if name not in done:
            folder = tmp_path_factory.mktemp("whole") / name
            arguments = [*COMMON, f"data.manifest={data}", "data.max_quarantine=0.5", *more]
            own = [*arguments, f"output_dir={folder}", f"stage1_cache={folder.parent / 'cache'}"]
            assert run(own, folder.parent / "log") == 0, (folder.parent / "log").read_text()
            done[name] = arguments, results(folder)
        return done[name]

    return of


def points() -> list[tuple[str, int]]:
    """Some moments of each kind; drawn once, so that a failure can be repeated."""
    rng = np.random.default_rng(0)
    most = {
        "step": 15,
        "backward": 15,
        "validation": 4,
        "write": 10,
        "rename": 12,
        "image": 60,
        "results": 1,
    }
    return [(what, int(number)) for what, last in most.items()
             for number in rng.choice(np.arange(1, last + 1), min(last, 4), replace=False)]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("what", "number"), points())
def test_a_killed_run_ends_with_the_same_bits(whole, what: str, number: int, tmp_path: Path) -> None:
    arguments, expected = whole("bce", "model=bce", *DROPOUT)
    own = [*arguments, f"output_dir={tmp_path / 'run'}"]
    assert run(own, tmp_path / "log", what, number) == -signal.SIGKILL, (tmp_path / "log").read_text()
    assert run(own, tmp_path / "log") == 0, (tmp_path / "log").read_text()
    assert_same(results(tmp_path / "run"), expected)
    assert not list((tmp_path / "run").glob("**/resume.ckpt"))


@pytest.mark.slow
@pytest.mark.parametrize(("what", "number"), [(None, 0), ("step", 11), ("write", 2), ("results", 1)])
def test_epochs_that_are_short_write_no_point_but_the_last(
    whole, what: str | None, number: int, tmp_path: Path
) -> None:
    arguments, expected = whole("bce", "model=bce", *DROPOUT)
    own = [*arguments, "callbacks.resume.every_steps=1000", "callbacks.resume.min_seconds=1000",
           f"output_dir={tmp_path / 'run'}"]  # fmt: skip
    if what:
        assert run(own, tmp_path / "log", what, number) == -signal.SIGKILL, (tmp_path / "log").read_text()
    assert run(own, tmp_path / "log") == 0, (tmp_path / "log").read_text()
    assert_same(results(tmp_path / "run"), expected)


@pytest.mark.slow
@pytest.mark.parametrize("number", [2, 5, 14])
@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
def test_a_run_that_is_told_to_stop_loses_no_step(whole, name: str, number: int, tmp_path: Path) -> None:
    arguments, expected = whole("bce", "model=bce", *DROPOUT)
    own = [*arguments, "callbacks.resume.every_steps=1000", f"output_dir={tmp_path / 'run'}"]
    assert run(own, tmp_path / "log", name, number) == -getattr(signal, name)
    said = (tmp_path / "log").read_text()
    assert "give the same command again" in said
    assert "Traceback" not in said
    point = torch.load(tmp_path / "run" / "checkpoints" / "resume.ckpt", weights_only=True)
    assert point["global_step"] == number
    assert run(own, tmp_path / "log") == 0, (tmp_path / "log").read_text()
    assert_same(results(tmp_path / "run"), expected)


@pytest.mark.slow
@pytest.mark.parametrize(("what", "number"), [("step", 3), ("step", 9), ("validation", 2)])
def test_both_stages_go_on(whole, what: str, number: int, tmp_path: Path) -> None:
    arguments, expected = whole("transfer", "model=ntf", "data.num_workers=1", "trainer.max_epochs=2")
    own = [*arguments, f"output_dir={tmp_path / 'run'}", f"stage1_cache={tmp_path / 'cache'}"]
    assert run(own, tmp_path / "log", what, number) == -signal.SIGKILL, (tmp_path / "log").read_text()
    assert run(own, tmp_path / "log") == 0, (tmp_path / "log").read_text()
    assert_same(results(tmp_path / "run"), expected)


@pytest.mark.slow
def test_a_run_killed_again_and_again_arrives(whole, tmp_path: Path) -> None:
    arguments, expected = whole("bce", "model=bce", *DROPOUT)
    own = [*arguments, f"output_dir={tmp_path / 'run'}"]
    kills = 0
    while run(own, tmp_path / "log", "step", 4) == -signal.SIGKILL:
        kills += 1
        assert kills < 12
    assert kills >= 3
    assert_same(results(tmp_path / "run"), expected)


@pytest.mark.slow
def test_a_moved_run_goes_on_where_it_is_now(whole, tmp_path: Path) -> None:
    from fakedet.training.resume import config_of

    arguments, expected = whole("bce", "model=bce", *DROPOUT)
    old, new, log = tmp_path / "old", tmp_path / "new", tmp_path / "log"
    assert run([*arguments, f"output_dir={old}"], log, "step", 13) == -signal.SIGKILL, log.read_text()
    old.rename(new)
    config, _ = config_of(str(new))
    assert str(old) not in str(config)
    assert config.callbacks.resume.path == str(new / "checkpoints" / "resume.ckpt")
    assert run([*arguments, f"output_dir={new}"], log) == 0, log.read_text()
    assert not old.exists()
    assert_same(results(new), expected)


def test_overwriting_a_live_run_leaves_its_points(tmp_path: Path) -> None:
    from omegaconf import OmegaConf

    from fakedet.errors import UserError
    from fakedet.training.resume import lock_folder, open_or_resume

    point = tmp_path / "checkpoints" / "resume.ckpt"
    point.parent.mkdir()
    point.touch()
    config = OmegaConf.create({"output_dir": str(tmp_path), "overwrite": True, "resume": True})
    taken = lock_folder(tmp_path)
    with pytest.raises(UserError, match="another process is training"):
        open_or_resume(config)
    assert point.exists()
    taken.release()
    open_or_resume(config)
    assert not point.exists()


@pytest.mark.parametrize("text", ["", "- 1\n", "a: [1\n b"])
def test_a_config_that_is_none_is_told(text: str, tmp_path: Path) -> None:
    from omegaconf import OmegaConf

    from fakedet.errors import UserError
    from fakedet.training.resume import config_of, open_or_resume

    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(UserError, match=r"config\.yaml"):
        config_of(str(tmp_path))
    with pytest.raises(UserError, match=r"config\.yaml"):
        open_or_resume(OmegaConf.create({"output_dir": str(tmp_path), "overwrite": False, "resume": True}))


@pytest.mark.parametrize("taken", [0, 3, 5, 7])
def test_the_data_go_on_where_their_state_was_taken(tiny_manifest: Path, taken: int) -> None:
    """Epochs of five steps; the state names the next step, whoever prefetched."""

    def data(workers: int) -> ImageDataModule:
        return ImageDataModule(
            str(tiny_manifest), crop_size=32, batch_size=8, steps_per_epoch=5, num_workers=workers,
            augment=Augmentation("light"),
        )  # fmt: skip

    def batches(module: ImageDataModule, first: int) -> Iterator[dict]:
        loader = module.train_dataloader()
        for epoch in range(first, 3):
            loader.batch_sampler.set_epoch(epoch)  # as Lightning does
            yield from loader

    whole = list(batches(data(0), 0))
    assert len(whole) == 15
    stopped = data(1)
    begun = batches(stopped, 0)
    for _ in range(taken):
        next(begun)
    state = stopped.state_dict()
    begun.close()
    resumed = data(0)
    resumed.load_state_dict(state)
    rest = list(batches(resumed, state.get("epoch", 0)))
    assert len(rest) == 15 - taken
    for one, other in zip(rest, whole[taken:], strict=True):
        assert torch.equal(one["id"], other["id"])
        assert torch.equal(one["image"], other["image"])
