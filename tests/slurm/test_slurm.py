"""A real SLURM of one node: a job of two ranks, a sweep, and a job that is stopped, queued again, and goes on."""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
import torch

from fakedet.evaluation.predictions import read_predictions

pytestmark = pytest.mark.slow
CLUSTER = Path(__file__).with_name("cluster.sh")
TINY = ["data=manifest", "data.crop_size=32", "data.batch_size=8", "data.steps_per_epoch=5", "threads=1",
        "bootstrap.resamples=20", "header_audit=false", "hydra.launcher.cpus_per_task=1"]  # fmt: skip
# Long enough to be stopped in the middle: 80 epochs of about 0.2 s.
TWO_RANKS = ["model=bce", *TINY, "trainer.max_epochs=80", "trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2",
             "hydra.launcher.tasks_per_node=2", "hydra.sweep.subdir=run", "logger=wandb"]  # fmt: skip


@pytest.fixture(scope="module")
def slurm() -> Iterator[dict[str, str]]:
    """Start a SLURM, give the environment that reaches it, and stop it."""
    needed = ("slurmctld", "slurmd", "munged", "sbatch", "runuser")
    if missing := [name for name in needed if shutil.which(name) is None]:
        pytest.skip(f"no SLURM of Debian's slurm-wlm and munge here: {', '.join(missing)} missing")
    if os.geteuid() != 0:
        pytest.skip("starting SLURM's daemons needs root")
    # munge wants a short path to its socket, and folders that nobody else can write.
    folder = tempfile.mkdtemp(prefix="fakedet-slurm-", dir="/var/tmp")
    started = subprocess.run([CLUSTER, "start", folder], capture_output=True, text=True, timeout=300, check=False)
    try:
        assert started.returncode == 0, started.stdout + started.stderr
        yield {**os.environ, "SLURM_CONF": f"{folder}/slurm.conf", "WANDB_MODE": "offline"}
    finally:
        subprocess.run(["scancel", "-u", "root"], env={**os.environ, "SLURM_CONF": f"{folder}/slurm.conf"},
                       capture_output=True, check=False)  # fmt: skip
        subprocess.run([CLUSTER, "stop", folder], check=False)
        shutil.rmtree(folder, ignore_errors=True)


class Launched:
    """`fakedet train -m hydra/launcher=slurm ...`, waiting for its jobs."""

    def __init__(
        self, environment: dict[str, str], manifest: Path, folder: Path, *arguments: str, verb: str = "train"
    ) -> None:
        self.environment, self.folder = environment, folder
        self.log = folder.parent / f"{folder.name}.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "fakedet", verb, "-m", "hydra/launcher=slurm", f"data.manifest={manifest}",
                 f"hydra.sweep.dir={folder}", *arguments],
                env=environment, stdout=log, stderr=subprocess.STDOUT, cwd=folder.parent,
            )  # fmt: skip

    def wait(self) -> str:
        status = self.process.wait(600)  # without accounting, submitit looks less and less often
        outputs = "".join(path.read_text() for path in self.folder.glob(".submitit/**/*_log.out"))
        assert status == 0, self.log.read_text() + outputs
        return outputs

    def job(self) -> str:
        return subprocess.run(["squeue", "--noheader", "--format", "%A"], env=self.environment, text=True,
                              capture_output=True, check=True).stdout.split()[0]  # fmt: skip

    def state(self, job: str) -> str:
        return subprocess.run(["squeue", "--noheader", "--format", "%T", "--jobs", job], env=self.environment,
                              text=True, capture_output=True, check=False).stdout.strip()  # fmt: skip


@pytest.fixture(scope="module")
def uninterrupted(slurm, tiny_manifest_module: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("slurm") / "whole"
    Launched(slurm, tiny_manifest_module, folder, *TWO_RANKS).wait()
    return folder / "run"


def test_two_tasks_train_one_run(uninterrupted: Path, tiny_manifest_module: Path) -> None:
    frame, _ = read_predictions(uninterrupted / "predictions.parquet")
    manifest = pd.read_csv(tiny_manifest_module)
    assert sorted(frame["path"]) == sorted(manifest.loc[manifest["split"] == "test", "path"])
    assert json.loads((uninterrupted / "run.json").read_text())["seed"] == 0


def test_a_sweep_runs_a_job_for_each_set_of_overrides(slurm, tiny_manifest_module: Path, tmp_path: Path) -> None:
    Launched(slurm, tiny_manifest_module, tmp_path / "sweep", *TINY, "trainer.max_epochs=1", "model=bce,supcon",
             "seed=1,2").wait()  # fmt: skip
    found = {}
    for path in (tmp_path / "sweep").glob("*/run.json"):
        info = read_predictions(path.parent / "predictions.parquet")[1]
        found[info["name"], json.loads(path.read_text())["seed"]] = path
    assert set(found) == {("bce", 1), ("bce", 2), ("supcon", 1), ("supcon", 2)}


def test_a_study_runs_as_an_array_and_is_compared(slurm, tiny_manifest_module: Path, tmp_path: Path) -> None:
    launched = Launched(slurm, tiny_manifest_module, tmp_path / "study", *TINY, "study=seeds", "trainer.max_epochs=1",
                        "model=bce,supcon", "seed=1,2", "logger=csv", verb="study")  # fmt: skip
    launched.wait()
    summary = json.loads((tmp_path / "study" / "summary.json").read_text())
    assert summary["seeds"] == {"bce": [1, 2], "supcon": [1, 2]}
    assert summary["baseline"] == "bce"
    assert (tmp_path / "study" / "report.html").is_file()
    assert launched.log.read_text().count("done after") == 4
    assert len(list((tmp_path / "study" / ".submitit").iterdir())) >= 4, "SLURM ran them"


def test_a_stopped_job_is_queued_again_and_ends_like_one_that_never_was(
    slurm, uninterrupted: Path, tiny_manifest_module: Path, tmp_path: Path
) -> None:
    launched = Launched(slurm, tiny_manifest_module, tmp_path / "stopped", *TWO_RANKS)
    log = tmp_path / "stopped" / "run" / "run.log"
    until(lambda: log.is_file() and "epoch 7/" in log.read_text())
    # What SLURM itself sends before the time limit (--signal=USR2@...).
    job = launched.job()
    subprocess.run(["scancel", "--signal=USR2", job], env=slurm, check=True)
    until(lambda: launched.state(job) == "PENDING")
    # SLURM lets a requeued job wait for two minutes.
    subprocess.run(["scontrol", "update", f"JobId={job}", "StartTime=now"], env=slurm, check=True)
    outputs = launched.wait()
    said = log.read_text()
    assert "Requeued job" in outputs
    assert re.search(r"going on after step \d+, in epoch (\d+)", said)
    assert int(re.search(r"in epoch (\d+)", said)[1]) >= 7
    assert said.count("epoch 3/80") == 1, "no epoch before the stop is trained again"
    results = [(folder / "metrics.json").read_text() for folder in (log.parent, uninterrupted)]
    left, right = ({**json.loads(text), "checkpoint": None} for text in results)
    assert left == right
    states = [torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
              for folder in (log.parent, uninterrupted)]  # fmt: skip
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[1])
    curves = [pd.read_csv(folder / "logs" / "metrics.csv") for folder in (log.parent, uninterrupted)]
    kept = [table.loc[table["val/loss"].notna(), ["epoch", "step", "val/loss", "val/map"]].reset_index(drop=True)
            for table in curves]  # fmt: skip
    pd.testing.assert_frame_equal(*kept)
    # Both starts wrote into one wandb run.
    names = [path.name for path in (log.parent / "wandb").glob("offline-run-*")]
    assert len(names) == 2
    assert {name.rsplit("-", 1)[1] for name in names} == {(log.parent / "wandb_id.txt").read_text()}


def until(reached, seconds: float = 300.0) -> None:
    end = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < end, "nothing came"
        time.sleep(0.1)
