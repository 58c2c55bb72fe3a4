"""Sweeps through the real command line: names, failures, what is done already, and what a stop leaves behind."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import torch

from fakedet.cli.app import launch

SMALL = ["model=bce", "data=manifest", "data.crop_size=32", "data.batch_size=16", "trainer.max_epochs=1", "threads=1",
         "bootstrap.resamples=0", "header_audit=false", "hydra.sweep.dir=sweep"]  # fmt: skip


def test_folders_are_named_by_what_is_swept_and_failures_and_finished_jobs_are_told(
    tiny_manifest: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    sweep = ["-m", *SMALL, f"data.manifest={tiny_manifest}", "data.steps_per_epoch=4", "model.optimizer.warmup=0",
             "trainer.gradient_clip_val=null", "model.optimizer.lr=1e-3,1e30"]  # fmt: skip
    assert launch("train", sweep) == 2
    said = capfd.readouterr().out
    folders = {path.name for path in (tmp_path / "sweep").iterdir() if path.is_dir()}
    assert folders == {
        "model.optimizer.lr=0.001",
        "model.optimizer.lr=1e+30",
    }
    assert "[0] training bce on" in said
    assert "[1] training bce on" in said
    assert "1 job of this sweep has failed (1); `fakedet compare runs=sweep` gives" in said
    facts = tmp_path / "sweep" / "model.optimizer.lr=0.001" / "run.json"
    stamp = facts.stat().st_mtime_ns
    assert launch("train", sweep) == 2
    assert "holds this very run, finished: it is not trained again" in capfd.readouterr().out
    assert facts.stat().st_mtime_ns == stamp
    assert launch("train", [*sweep[:-1], "model.optimizer.lr=1e-3"]) == 0
    assert "failed" not in capfd.readouterr().out


def test_a_job_that_crashes_is_named_and_the_others_go_on(
    tiny_manifest: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever ends a job, not only what fakedet explains."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "crashing.py").write_text(
        "from lightning.pytorch import Callback\n"
        "class Crash(Callback):\n"
        "    def __init__(self, really):\n"
        "        self.really = really\n"
        "    def on_train_start(self, *arguments):\n"
        "        assert not self.really\n"
    )
    sweep = ["-m", *SMALL, f"data.manifest={tiny_manifest}", "debug=step", "+callbacks.crash._target_=crashing.Crash",
             "+callbacks.crash.really=true,false"]  # fmt: skip
    assert launch("train", sweep) == 1
    said = capfd.readouterr()
    assert "1 job of this sweep has failed (0)" in said.out
    assert "Traceback" in said.err
    assert len(list((tmp_path / "sweep").glob("*/run.json"))) == 1


PATIENCE = 300  # seconds; a busy machine starts slowly


@contextmanager
def started(arguments: list[str], folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Start a run that would train for long, and wait until its first step is done; nothing of it outlives the test."""
    run = subprocess.Popen([sys.executable, "-m", "fakedet", "train", *arguments, "data.steps_per_epoch=100000",
                            "callbacks.progress.file=progress.json", "callbacks.resume.every_steps=100000"],
                           cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                           start_new_session=True)  # fmt: skip
    try:
        deadline = time.monotonic() + PATIENCE
        while not (folder / "progress.json").is_file():
            assert run.poll() is None, run.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.1)
        yield run
    finally:
        with suppress(ProcessLookupError):
            os.killpg(run.pid, signal.SIGKILL)
        run.communicate()


def processes_of(folder: Path, library: str = "") -> list[str]:
    """Give the command lines of the processes that run in a folder, and have loaded a library."""
    found = []
    for process in Path("/proc").iterdir():
        try:
            if (
                process.name.isdigit()
                and (process / "cwd").resolve() == folder
                and (process / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
                and library in (process / "maps").read_text()
            ):
                found.append((process / "cmdline").read_text().replace("\0", " "))
        except OSError:  # it ended meanwhile
            continue
    return found


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds the workers in /proc")
def test_a_parallel_sweep_that_is_told_to_stop_leaves_points_and_no_workers(
    tiny_manifest: Path, tmp_path: Path
) -> None:
    sweep = ["-m", *SMALL, f"data.manifest={tiny_manifest}", "seed=0,1", "hydra/launcher=local"]
    with started(sweep, tmp_path) as run:
        run.terminate()
        run.wait(timeout=PATIENCE)
        deadline = time.monotonic() + PATIENCE + 120  # as below
        while processes_of(tmp_path):
            assert time.monotonic() < deadline, processes_of(tmp_path)
            time.sleep(0.2)
    points = list(tmp_path.glob("sweep/*/checkpoints/resume.ckpt"))
    assert points, "a worker that was training writes its point"
    assert all(torch.load(point, weights_only=True)["global_step"] > 0 for point in points)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds the workers in /proc")
def test_a_worker_whose_job_does_not_mind_the_stop_ends_after_it(tiny_manifest: Path, tmp_path: Path) -> None:
    """Joblib's own workers wait 300 s for the next job of a parent that is no more."""
    (tmp_path / "deaf.py").write_text(
        "import os, signal\n"
        "from lightning.pytorch import Callback\n"
        "class Deaf(Callback):\n"
        "    def on_train_batch_start(self, trainer, *arguments):\n"
        "        signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "        trainer.should_stop = os.getppid() != int(os.environ['FAKEDET_PARENT'])\n"
    )
    sweep = ["-m", "--config-dir", "conf", *SMALL, f"data.manifest={tiny_manifest}", "seed=0,1",
             "hydra/launcher=local", "+callbacks.deaf._target_=deaf.Deaf", "test_after_fit=false"]  # fmt: skip
    (tmp_path / "conf").mkdir()
    with started(sweep, tmp_path) as run:
        run.terminate()
        run.wait(timeout=PATIENCE)
        deadline = time.monotonic() + 200
        while processes_of(tmp_path):
            assert time.monotonic() < deadline, processes_of(tmp_path)
            time.sleep(0.2)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds the workers in /proc")
def test_workers_that_are_still_starting_end_with_their_parent(tiny_manifest: Path, tmp_path: Path) -> None:
    sweep = ["-m", *SMALL, f"data.manifest={tiny_manifest}", "seed=0,1", "hydra/launcher=local"]
    run = subprocess.Popen([sys.executable, "-m", "fakedet", "train", *sweep, "data.steps_per_epoch=100000"],
                           cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                           start_new_session=True)  # fmt: skip
    try:
        deadline = time.monotonic() + PATIENCE
        while not any("LokyProcess" in line for line in processes_of(tmp_path, "libtorch")):
            assert run.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        run.terminate()
        run.wait(timeout=PATIENCE)
        # One that was given no job yet ends when joblib's workers do that have nothing to do: after 300 s.
        deadline = time.monotonic() + PATIENCE + 120
        while processes_of(tmp_path):
            assert time.monotonic() < deadline, processes_of(tmp_path)
            time.sleep(0.2)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(run.pid, signal.SIGKILL)


@pytest.mark.slow
def test_two_ranks_that_are_told_to_stop_say_one_line(tiny_manifest: Path, tmp_path: Path) -> None:
    alone = [*SMALL[:-1], f"data.manifest={tiny_manifest}", "trainer=ddp", "trainer.accelerator=cpu",
             "trainer.max_epochs=1", "output_dir=run"]  # fmt: skip
    with started(alone, tmp_path) as run:
        os.kill(run.pid, signal.SIGTERM)
        _, errors = run.communicate(timeout=PATIENCE)
    assert run.returncode == -signal.SIGTERM
    assert "Traceback" not in errors
    assert errors.strip().count("\n") == 0
    assert "give the same command again" in errors
    assert (tmp_path / "run" / "checkpoints" / "resume.ckpt").is_file()
