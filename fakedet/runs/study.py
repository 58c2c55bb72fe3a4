"""A study: several methods × seeds, trained side by side through their Hydra configs."""

from __future__ import annotations

import logging
import multiprocessing
import time
import traceback
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from fakedet.errors import UserError
from fakedet.runs.study_progress import StudyProgress

log = logging.getLogger("fakedet")


@dataclass(frozen=True)
class Job:
    """One method with one seed."""

    method: str
    seed: int
    overrides: tuple[str, ...]
    folder: Path
    search: tuple[str, ...] = ()
    """Folders of configs besides fakedet's own (``--config-dir``)."""

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
        return (self.folder / "run.json").is_file() and self.is_begun

    @property
    def is_begun(self) -> bool:
        """Whether an earlier start of the study began this very job."""
        try:
            earlier = OmegaConf.to_container(OmegaConf.load(self.folder / "overrides.yaml"))
        except (OSError, ValueError):
            return False
        return earlier == list(self.overrides)


@dataclass(frozen=True)
class JobResult:
    """How a job ended."""

    job: Job
    seconds: float
    error: str | None = None
    """One line; the traceback is in the job's console.log."""


def plan(
    config: Mapping[str, Any], folder: Path, extra: Sequence[str], search: Sequence[str] = ()
) -> tuple[list[Job], list[Job]]:
    """List the jobs of a study: those whose stage 1 others reuse, then the rest.

    Args:
        config: the resolved ``study`` node.
        folder: the study's folder.
        extra: overrides added to every job.
        search: folders of configs besides fakedet's own.

    Raises:
        UserError: a ``first`` or ``baseline`` that is not among the methods.
    """
    methods: Mapping[str, Sequence[str]] = config["methods"]
    for name in [*config.get("first", ()), config["baseline"]]:
        if name not in methods:
            raise UserError(f"study: '{name}' is not among its methods: {', '.join(methods)}")

    def job(method: str, seed: int) -> Job:
        target = folder / method / f"seed{seed}"
        shared = [f"trace_cache={folder / 'stage1'}", f"seed={seed}", f"output_dir={target}"]
        overrides = (*config["common"], *methods[method], *extra, *shared)
        return Job(method, seed, overrides, target, tuple(search))

    first = [job(method, seed) for seed in config["seeds"] for method in config.get("first", ())]
    rest = [job(method, seed) for seed in config["seeds"] for method in methods
            if method not in config.get("first", ())]  # fmt: skip
    return first, rest


def prepare_data(job: Job) -> None:
    """Read and check a job's data here first: demo data are made once, and mistakes stop the study at once."""
    from fakedet.runs.fitting import make_datamodule

    make_datamodule(_compose(job))


def run_jobs(phases: Iterable[Sequence[Job]], workers: int) -> list[JobResult]:
    """Run phase after phase, ``workers`` jobs at a time, with one progress bar a job.

    A job that fails does not stop the others. Jobs that an earlier start finished are not run again.
    """
    # Fresh interpreters: a fork would copy PyTorch's threads and locks in whatever state they are in.
    context = multiprocessing.get_context("spawn")
    results = []
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_prepare_worker) as pool:
        for jobs in phases:
            waiting = [job for job in jobs if not job.is_done]
            results += [JobResult(job, 0.0) for job in jobs if job.is_done]
            futures = {pool.submit(_run_job, job): job for job in waiting}
            results += _watch(futures)
    return results


def _watch(futures: Mapping[Future[JobResult], Job]) -> list[JobResult]:
    results: list[JobResult] = []
    pending = dict(futures)
    with StudyProgress({job.name: job.progress_file for job in futures.values()}) as progress:
        while pending:
            time.sleep(0.2)
            for future in [future for future in pending if future.done()]:
                job = pending.pop(future)
                error = future.exception()
                result = JobResult(job, 0.0, _short(error)) if error else future.result()
                results.append(result)
                progress.finish(job.name, result.seconds, result.error)
            progress.update()
    return results


def _prepare_worker() -> None:
    """Make a worker's process quiet and single-threaded: several of them share the machine's cores."""
    import torch

    torch.set_num_threads(1)


def _run_job(job: Job) -> JobResult:
    from fakedet.runs.quiet import quiet_libraries
    from fakedet.runs.training import train

    quiet_libraries()

    started = time.perf_counter()
    job.folder.mkdir(parents=True, exist_ok=True)
    with (job.folder / "console.log").open("w", encoding="utf-8") as console:
        handler = logging.StreamHandler(console)
        logger = logging.getLogger("fakedet")
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False
        try:
            with redirect_stdout(console), redirect_stderr(console):
                train(_compose(job), list(job.overrides))
            return JobResult(job, time.perf_counter() - started)
        except BaseException as error:
            traceback.print_exc(file=console)
            return JobResult(job, time.perf_counter() - started, _short(error))
        finally:
            logger.removeHandler(handler)
            job.progress_file.unlink(missing_ok=True)


def _compose(job: Job) -> DictConfig:
    loader = GlobalHydra.instance()
    # What another study left in the folder is replaced; what this one left goes on.
    settings = [
        *job.overrides,
        f"callbacks.progress.file={job.progress_file}",
        f"overwrite={not job.is_begun}",
    ]
    if loader.is_initialized():
        config = compose("train", overrides=settings)
    else:
        with initialize_config_module("fakedet.conf", version_base="1.3"):
            search = [f"hydra.searchpath=[{','.join(job.search)}]"] if job.search else []
            config = compose("train", overrides=[*search, *settings])
    return config


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
