"""One job of a study: a method with a seed, trained, tested, and scored on the study's other manifests."""

from __future__ import annotations

import gc
import json
import logging
import os
import signal
import time
import traceback
from collections.abc import Iterable, Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from fakedet.errors import Preempted
from fakedet.runs.resuming import differences


@dataclass(frozen=True)
class Job:
    """One method with one seed."""

    method: str
    seed: int
    overrides: tuple[str, ...]
    folder: Path
    search: tuple[str, ...] = ()
    """Folders of configs besides fakedet's own (``--config-dir``)."""
    also: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Name → overrides of ``fakedet evaluate``: other manifests that the trained detector is scored on."""
    replace: bool = False
    """Whether what another config has left in the folder may be replaced."""

    @property
    def changes(self) -> list[str]:
        """What the job overrides, besides its folders and seed."""
        kept = ("output_dir=", "trace_cache=", "overwrite=", "seed=")
        return [override for override in self.overrides if not override.startswith(kept)]

    @property
    def name(self) -> str:
        """What the job is called on the console."""
        return f"{self.method} seed {self.seed}"

    @property
    def progress_file(self) -> Path:
        """Where the job says how far it is."""
        return self.folder.parent / f"{self.folder.name}.progress.json"

    @property
    def is_done(self) -> bool:
        """Whether an earlier start of the study finished this very job."""
        return self.is_trained and all(self.is_scored(name) for name in self.also)

    @property
    def is_begun(self) -> bool:
        """Whether an earlier start of the study began this very job."""
        return _left_by(self.folder, self.overrides)

    @property
    def is_taken(self) -> bool:
        """Whether the folder holds what other overrides have trained, in full or in part."""
        trained = (self.folder / "run.json").is_file() or any(self.folder.glob("**/*.ckpt"))
        return trained and not self.is_begun

    @property
    def is_trained(self) -> bool:
        """Whether an earlier start of the study trained and tested this very job."""
        return (self.folder / "run.json").is_file() and self.is_begun

    def is_scored(self, name: str) -> bool:
        """Whether this very job has scored another manifest."""
        folder = self.results(name)
        return (folder / "run.json").is_file() and _left_by(folder, self.scoring(name))

    def facts(self, name: str | None = None) -> dict[str, Any]:
        """Read run.json of the training, or of the scoring of another manifest."""
        content: dict[str, Any] = json.loads((self.results(name) / "run.json").read_text(encoding="utf-8"))
        return content

    def forget(self, name: str | None = None) -> None:
        """Let the training, or the scoring of another manifest, count as not done."""
        (self.results(name) / "run.json").unlink(missing_ok=True)

    def results(self, name: str | None = None) -> Path:
        """Give the folder of the predictions of the job's own test split, or of another manifest."""
        return self.folder / f"on_{name}" if name else self.folder

    def scoring(self, name: str) -> tuple[str, ...]:
        """Give the overrides of ``fakedet evaluate`` for another manifest, besides checkpoint and folder."""
        threads = (override for override in self.overrides if override.startswith("threads="))
        return (*threads, *self.also[name])


@dataclass(frozen=True)
class JobResult:
    """How a job ended."""

    job: Job
    seconds: float
    error: str | None = None
    """One line; the traceback is in the job's console.log."""


def _left_by(folder: Path, overrides: tuple[str, ...]) -> bool:
    """Say whether these overrides left a folder; the study's own place among them may have changed since."""
    try:
        earlier = OmegaConf.to_container(OmegaConf.load(folder / "overrides.yaml"))
    except (OSError, ValueError):
        return False
    return isinstance(earlier, list) and _without_places(earlier) == _without_places(overrides)


def _without_places(overrides: Iterable[Any]) -> list[str]:
    return [text for text in map(str, overrides) if not text.startswith(("output_dir=", "trace_cache="))]


def run_job(job: Job) -> JobResult:
    """Do what of a job is not done yet; what it prints goes into its console.log, and so does its traceback."""
    # Before the libraries are made quiet: Lightning's import sets the level of its own log.
    from fakedet.runs.evaluation import evaluate
    from fakedet.runs.quiet import quiet_libraries
    from fakedet.runs.training import train

    quiet_libraries()
    started = time.perf_counter()
    job.folder.mkdir(parents=True, exist_ok=True)
    with (job.folder / "console.log").open("a", encoding="utf-8") as console:
        handler = logging.StreamHandler(console)
        logger = logging.getLogger("fakedet")
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False
        try:
            with redirect_stdout(console), redirect_stderr(console):
                if not job.is_trained:
                    for name in job.also:
                        job.forget(name)  # what an earlier detector scored
                    train(compose_job(job), list(job.overrides))
                for name in job.also:
                    if not job.is_scored(name):
                        evaluate(compose_scoring(job, name), list(job.scoring(name)))
            return JobResult(job, time.perf_counter() - started)
        except Preempted as stop:  # the worker was told to stop, not this job
            signal.signal(stop.signal, signal.SIG_DFL)
            os.kill(os.getpid(), stop.signal)
            raise
        except BaseException as error:
            traceback.print_exc(file=console)
            return JobResult(job, time.perf_counter() - started, short(error))
        finally:
            logger.removeHandler(handler)
            job.progress_file.unlink(missing_ok=True)
            gc.collect()  # a trainer and its nets refer to each other; large trunks would pile up job after job


def compose_job(job: Job) -> DictConfig:
    """Compose the config of a job's training."""
    # What this study left goes on; what else is there was refused, is no training, or may be replaced.
    settings = [*job.overrides, f"callbacks.progress.file={job.progress_file}"]
    config = _compose("train", [*settings, f"overwrite={not job.is_begun}"], job.search)
    if job.replace and differences(config):  # the same overrides, composed by an older version
        config.overwrite = True
    return config


def compose_also(job: Job, name: str) -> DictConfig:
    """Compose the config that scores another manifest, as yet without a detector."""
    target = [f"output_dir={job.results(name)}", "overwrite=true"]
    return _compose("evaluate", [*job.scoring(name), *target], job.search)


def compose_scoring(job: Job, name: str) -> DictConfig:
    """Compose the config that scores another manifest with the job's detector."""
    config = compose_also(job, name)
    config.checkpoint = str(job.folder / job.facts()["checkpoint"])
    return config


def _compose(name: str, overrides: list[str], search: tuple[str, ...]) -> DictConfig:
    if GlobalHydra.instance().is_initialized():
        return compose(name, overrides=overrides)
    with initialize_config_module("fakedet.conf", version_base="1.3"):
        path = [f"hydra.searchpath=[{','.join(search)}]"] if search else []
        return compose(name, overrides=[*path, *overrides])


def short(error: BaseException) -> str:
    """Tell an error in one line."""
    return " ".join(str(error).split())[:300] or type(error).__name__
