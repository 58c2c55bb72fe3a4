"""A study: several methods × seeds, trained side by side through their Hydra configs."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fakedet.errors import UserError
from fakedet.runs.resuming import differences
from fakedet.runs.study_job import Job, JobResult, compose_job, run_job, short
from fakedet.runs.study_progress import StudyProgress

log = logging.getLogger("fakedet")


def plan(
    config: Mapping[str, Any],
    folder: Path,
    extra: Sequence[str],
    search: Sequence[str] = (),
    overwrite: bool = False,
) -> tuple[list[Job], list[Job]]:
    """List the jobs of a study: those whose stage 1 others reuse, then the rest.

    Args:
        config: the resolved ``study`` node.
        folder: the study's folder.
        extra: overrides added to every job.
        search: folders of configs besides fakedet's own.
        overwrite: whether jobs may take the place of what other overrides trained in their folders.

    Raises:
        UserError: a ``first`` or ``baseline`` that is not among the methods, a seed twice, or a place that is taken.
    """
    methods: Mapping[str, Sequence[str]] = config["methods"]
    for name in [*config.get("first", ()), config["baseline"]]:
        if name not in methods:
            raise UserError(f"study: '{name}' is not among its methods: {', '.join(methods)}")
    if len(set(config["seeds"])) < len(config["seeds"]):
        raise UserError(
            f"study.seeds={list(config['seeds'])}: each seed once; the same seed gives the same run"
        )

    also = {name: tuple(overrides) for name, overrides in (config.get("also") or {}).items()}

    def job(method: str, seed: int) -> Job:
        target = folder / method / f"seed{seed}"
        shared = [f"trace_cache={folder / 'stage1'}", f"seed={seed}", f"output_dir={target}"]
        overrides = (*config["common"], *methods[method], *extra, *shared)
        return Job(method, seed, overrides, target, tuple(search), also, overwrite)

    first = [job(method, seed) for seed in config["seeds"] for method in config.get("first", ())]
    rest = [job(method, seed) for seed in config["seeds"] for method in methods
            if method not in config.get("first", ())]  # fmt: skip
    if not overwrite:
        _check_free([*first, *rest], folder)
    return first, rest


def _check_free(jobs: Sequence[Job], folder: Path) -> None:
    taken = [job for job in jobs if job.is_taken]
    if taken:
        more = f" and {len(taken) - 1} more" if len(taken) > 1 else ""
        raise UserError(
            f"output_dir={folder} holds what other settings trained: {taken[0].name}{more} (see overrides.yaml in "
            f"{taken[0].folder}); name another output_dir, or pass overwrite=true to train those jobs anew"
        )


def check(jobs: Sequence[Job]) -> None:
    """Compose each method, build each encoder and read the first method's data, once.

    Mistakes and missing weights so stop the study at once, and data are made once. Where jobs may be replaced, those
    whose config has changed since count as not done.

    Raises:
        UserError: overrides that no config knows, a finished job of a config that has changed since, an encoder that
            cannot be built, or data that cannot be read.
    """
    from fakedet.runs.fitting import make_datamodule

    composed = {}
    for job in {job.method: job for job in reversed(jobs)}.values():
        try:
            composed[job.method] = compose_job(job)
        except (HydraException, OmegaConfBaseException) as error:
            raise UserError(f"study: the overrides of '{job.method}': {short(error)}") from error
    _check_configs([(job, composed[job.method]) for job in jobs if job.is_trained])
    _check_encoders({job.method: composed[job.method] for job in jobs if not job.is_done})
    make_datamodule(composed[jobs[0].method])


def _check_configs(trained: Sequence[tuple[Job, DictConfig]]) -> None:
    """Compare what trained each job with what its overrides mean today: a config may have been edited since."""
    for job, config in trained:
        config.output_dir, config.seed = str(job.folder), job.seed
        changes = differences(config)
        if changes and job.replace:
            (job.folder / "run.json").unlink()
        elif changes:
            more = f" and {len(changes) - 1} more" if len(changes) > 1 else ""
            raise UserError(
                f"{job.folder} was trained by another config than '{job.method}' is now: {changes[0]}{more}; name "
                "another output_dir, or pass overwrite=true to train such jobs anew"
            )


def _check_encoders(configs: Mapping[str, DictConfig]) -> None:
    """Build every encoder that is not the same as one before."""
    from fakedet.build import build_encoder

    seen = set()
    for method, config in configs.items():
        encoder = OmegaConf.to_container(config.model.encoder, resolve=True)
        if (key := json.dumps(encoder, sort_keys=True)) in seen:
            continue
        seen.add(key)
        try:
            build_encoder(encoder)  # type: ignore[arg-type]
        except UserError as error:
            raise UserError(f"study: '{method}': {error}") from error


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
            futures = {pool.submit(run_job, job): job for job in waiting}
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
                if isinstance(error, BrokenProcessPool):
                    raise UserError(
                        "a process of the study was killed, by a signal or for want of memory; finished jobs are kept, "
                        "and the same command goes on (with jobs=1 they need less memory)"
                    ) from error
                result = JobResult(job, 0.0, short(error)) if error else future.result()
                results.append(result)
                progress.finish(job.name, result.seconds, result.error)
            progress.update()
    return results


def _prepare_worker() -> None:
    """Make a worker's process single-threaded, several share the machine's cores, and let it end with its study."""
    import torch

    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)


def _end_with_parent() -> None:
    """A study that is killed takes no leave of its workers: they would train on, unseen, in folders it wants again."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
