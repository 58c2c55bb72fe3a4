"""A study: several methods × seeds, trained side by side through their Hydra configs."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from fakedet.errors import UserError
from fakedet.runs.study_check import ANEW, check_study
from fakedet.runs.study_job import Job, JobResult, run_job, short
from fakedet.runs.study_progress import StudyProgress

log = logging.getLogger("fakedet")

GRACE = 60
"""Seconds that a worker has for its resume point."""


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
        UserError: a study that nobody could follow, or a place that is taken.
    """
    check_study(config)
    methods: Mapping[str, Sequence[str]] = config["methods"]
    early = config.get("first") or ()
    also = {name: tuple(overrides) for name, overrides in (config.get("also") or {}).items()}

    def job(method: str, seed: int) -> Job:
        target = folder / method / f"seed{seed}"
        shared = [f"trace_cache={folder / 'stage1'}", f"seed={seed}", f"output_dir={target}"]
        overrides = (*config["common"], *methods[method], *extra, *shared)
        return Job(method, seed, overrides, target, tuple(search), also, overwrite)

    first = [job(method, seed) for seed in config["seeds"] for method in early]
    rest = [job(method, seed) for seed in config["seeds"] for method in methods
            if method not in early]  # fmt: skip
    if not overwrite:
        _check_free([*first, *rest], folder)
    return first, rest


def _check_free(jobs: Sequence[Job], folder: Path) -> None:
    taken = [job for job in jobs if job.is_taken]
    if taken:
        more = f" and {len(taken) - 1} more" if len(taken) > 1 else ""
        raise UserError(
            f"output_dir={folder} holds what other settings trained: {taken[0].name}{more} (see overrides.yaml in "
            f"{taken[0].folder}); {ANEW}"
        )


def run_jobs(phases: Iterable[Sequence[Job]], workers: int) -> list[JobResult]:
    """Run phase after phase, ``workers`` jobs at a time, with one progress bar a job.

    A job that fails does not stop the others. Jobs that an earlier start finished are not run again.
    """
    # Fresh interpreters: a fork would copy PyTorch's threads and locks in whatever state they are in.
    context = multiprocessing.get_context("spawn")
    results = []
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_prepare_worker) as pool:
        try:
            for jobs in phases:
                waiting = [job for job in jobs if not job.is_done]
                ended = [JobResult(job, 0.0) for job in jobs if job not in waiting]
                ended += _watch(_submit(pool, waiting))
                # As planned, not as they ended: a report must not depend on which job was the faster.
                results += sorted(ended, key=lambda result: jobs.index(result.job))
        except KeyboardInterrupt:
            _stop(pool)
            raise
    return results


def _submit(pool: ProcessPoolExecutor, jobs: Sequence[Job]) -> dict[Future[JobResult], Job]:
    """Start jobs in workers that leave Ctrl-C, which a terminal sends to all, to this process."""
    ours = signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # what is started inherits it, before any code of ours
    try:
        return {pool.submit(run_job, job): job for job in jobs}
    finally:
        signal.signal(signal.SIGINT, ours)


def _stop(pool: ProcessPoolExecutor) -> None:
    """End the workers as SLURM would: those that train write a resume point, and no other job begins."""
    pool.shutdown(wait=False, cancel_futures=True)
    log.warning("stopping: running jobs write what they go on from")
    workers = multiprocessing.active_children()
    try:
        for worker in workers:
            worker.terminate()
        for worker in workers:
            worker.join(GRACE)
    finally:  # also where Ctrl-C came again
        for worker in workers:
            worker.kill()


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
