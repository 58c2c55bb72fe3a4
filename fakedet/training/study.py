"""training/study"""

from __future__ import annotations

import gc
import json
import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import pandas as pd
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from fakedet.errors import Preempted, UserError
from fakedet.evaluation.comparison import Comparison, compare, rows, verdict, write_csv, write_markdown
from fakedet.evaluation.plots import plot_curves, plot_intervals, plot_matrix, read_curves
from fakedet.evaluation.predictions import read_predictions
from fakedet.evaluation.report import Page, write_page
from fakedet.metrics.bootstrap import Interval
from fakedet.pages import Drawing
from fakedet.training.resume import differences
from fakedet.utils import provenance, write_json


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
    from fakedet.evaluation.evaluate import evaluate
    from fakedet.training.train import train
    from fakedet.utils import quiet_libraries

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


ANEW = "name another output_dir, or pass overwrite=true to train such jobs anew"


class OverridesError(UserError):
    """The overrides of a method do not compose.

    Args:
        job: whose they are.
        reason: in a line.
    """

    def __init__(self, job: Job, reason: str) -> None:
        super().__init__(f"study: the overrides of '{job.method}': {reason}")
        self.job = job


def check_study(config: Mapping[str, Any]) -> None:
    """Refuse a ``study`` node that no study could follow.

    Raises:
        UserError: the first mistake.
    """
    methods, seeds = config["methods"], config["seeds"]
    if not isinstance(methods, Mapping) or not methods:
        raise UserError("study.methods: name → a list of overrides of `fakedet train`, one or more")
    lists = {f"methods.{name}": overrides for name, overrides in methods.items()}
    lists |= {f"also.{name}": overrides for name, overrides in (config.get("also") or {}).items()}
    for name, overrides in {**lists, "common": config["common"]}.items():
        if not isinstance(overrides, list) or not all(isinstance(override, str) for override in overrides):
            raise UserError(
                f"study.{name}={overrides}: a list of overrides, such as [model=bce]; [] for none"
            )
    if not isinstance(seeds, list) or not seeds or not all(type(seed) is int and seed >= 0 for seed in seeds):
        raise UserError(f"study.seeds={seeds}: a list of whole numbers from 0, one or more")
    if len(set(seeds)) < len(seeds):
        raise UserError(f"study.seeds={seeds}: each seed once; the same seed gives the same run")
    for name in [*(config.get("first") or ()), config["baseline"]]:
        if name not in methods:
            raise UserError(f"study: '{name}' is not among its methods: {', '.join(methods)}")


def check_jobs(jobs: Sequence[Job]) -> None:
    """Compose each method, read its data, build its encoder; where jobs may be replaced, stale ones count as not done.

    Raises:
        UserError: overrides that no config knows, values that no run could use, data that cannot be read, an encoder
            that cannot be built, or a finished job of a config or of data that have changed since.
    """
    configs = dict(_composed(jobs))
    data = _Manifests()
    for job in jobs:
        config = configs[job.method]
        stale = _stale(job, config, data) if job.is_trained else ""
        if stale and job.replace:
            job.forget()
        elif stale:
            raise UserError(f"{job.folder} was trained by another {stale}; {ANEW}")
    _check_also(jobs, data)
    # Of every method, also of one without a finished job.
    for config in configs.values():
        data.of_training(config)
    _check_encoders({job.method: configs[job.method] for job in jobs if not job.is_trained})


def _composed(jobs: Sequence[Job]) -> Iterator[tuple[str, DictConfig]]:
    from fakedet.config import check_config

    for job in {job.method: job for job in reversed(jobs)}.values():
        try:
            config = compose_job(job)
        except (HydraException, OmegaConfBaseException) as error:
            raise OverridesError(job, short(error)) from error
        try:
            check_config(config)
        except UserError as error:
            raise UserError(f"study: '{job.method}': {error}") from error
        yield job.method, config


def _stale(job: Job, config: DictConfig, data: _Manifests) -> str:
    """Say in what a finished job differs from what its overrides mean today; "" if in nothing."""
    ours = config.copy()
    ours.output_dir, ours.seed = str(job.folder), job.seed
    if changes := differences(ours):
        more = f" and {len(changes) - 1} more" if len(changes) > 1 else ""
        return f"config than '{job.method}' is now: {changes[0]}{more}"
    if job.facts().get("manifest_sha256") != data.of_training(config):
        return f"manifest: {config.data.manifest} has changed since"
    return ""


def _check_also(jobs: Sequence[Job], data: _Manifests) -> None:
    """Read the other manifests; scores of one that has changed since are made anew."""
    for name in jobs[0].also:
        try:
            sha256 = data.of_scoring(compose_also(jobs[0], name))
        except (HydraException, OmegaConfBaseException) as error:
            raise UserError(f"study.also.{name}: {short(error)}") from error
        except UserError as error:
            raise UserError(f"study.also.{name}: {error}") from error
        for job in jobs:
            if job.is_scored(name) and job.facts(name).get("manifest_sha256") != sha256:
                job.forget(name)


class _Manifests:
    """The sha256 of each manifest, read once."""

    def __init__(self) -> None:
        self._known: dict[str, str] = {}

    def of_training(self, config: DictConfig) -> str:
        from fakedet.training.train import make_datamodule

        return self._sha256(config, lambda: make_datamodule(config))

    def of_scoring(self, config: DictConfig) -> str:
        from fakedet.build import build_datamodule

        settings = {**_plain(config.data), "crop_size": 64, "eval_policy": "crop", "match": None}
        return self._sha256(config, lambda: build_datamodule(settings))

    def _sha256(self, config: DictConfig, make: Any) -> str:
        key = json.dumps(_plain(config.data), sort_keys=True)
        if key not in self._known:
            self._known[key] = make().manifest.sha256
        return self._known[key]


def _check_encoders(configs: Mapping[str, DictConfig]) -> None:
    """Build every encoder that is not the same as one before."""
    from fakedet.build import build_encoder

    seen = set()
    for method, config in configs.items():
        encoder = _plain(config.model.encoder)
        if (key := json.dumps(encoder, sort_keys=True)) in seen:
            continue
        seen.add(key)
        try:
            build_encoder(encoder)
        except UserError as error:
            raise UserError(f"study: '{method}': {error}") from error


def _plain(node: DictConfig) -> dict[str, Any]:
    content: dict[str, Any] = OmegaConf.to_container(node, resolve=True)  # type: ignore[assignment]
    return content


log = logging.getLogger("fakedet")


class StudyProgress:
    """Show how far each job is: bars on a terminal, one line a finished job elsewhere.

    Args:
        files: progress file of every job, by the job's name.
    """

    def __init__(self, files: Mapping[str, Path]) -> None:
        self._files = dict(files)
        self._bars = Progress(
            TextColumn("{task.description:<22}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TextColumn("steps"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[state]}"),
            console=Console(file=sys.stdout),
        )
        self._tasks: dict[str, TaskID] = {}
        self._live = sys.stdout.isatty()
        self._finished = 0

    def __enter__(self) -> StudyProgress:
        if self._live:
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._bars.stop()

    def update(self) -> None:
        """Read every job's file and move its bar."""
        if not self._live:
            return
        for name, file in self._files.items():
            try:
                content = json.loads(file.read_text(encoding="utf-8"))
            except (OSError, ValueError):
                continue  # not begun, or already gone
            if name not in self._tasks:
                self._tasks[name] = self._bars.add_task(name, total=content["total"], state="")
            task = self._bars.tasks[self._tasks[name]]
            # Stage 1 inside a job counts its own steps first; then the job's own begin at zero again.
            self._bars.update(task.id, completed=content["done"], total=content["total"])

    def finish(self, name: str, seconds: float, error: str | None) -> None:
        """Mark a job as done or failed."""
        self._finished += 1
        state = "done" if error is None else "FAILED"
        if self._live:
            task = self._tasks.get(name)
            if task is None:
                task = self._tasks[name] = self._bars.add_task(name, total=1, completed=1, state=state)
            total = self._bars.tasks[task].total
            self._bars.update(task, completed=total if error is None else None, state=state)
            self._bars.stop_task(task)
        count = f"{self._finished}/{len(self._files)}"
        if not self._live or error is not None:
            log.info(
                "%s  %-22s %s after %.0f s%s", count, name, state, seconds, f": {error}" if error else ""
            )


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


SHORTCUT = 0.7
"""AUC of a classifier that sees only headers, above which it is told."""


@dataclass(frozen=True)
class Finished:
    """A job that ended well, with what it left."""

    job: Job
    facts: dict[str, Any]
    identity: dict[str, Any]
    frame: pd.DataFrame
    metrics: dict[str, Any]


def compare_jobs(
    results: Sequence[JobResult],
    study: Mapping[str, Any],
    bootstrap: Mapping[str, int],
    other: str | None = None,
) -> tuple[Comparison, list[Finished]]:
    """Compare the jobs that ended well, in the order of the study's methods.

    Args:
        results: how the jobs ended.
        study: the resolved ``study`` node.
        bootstrap: its settings.
        other: the name of another manifest that they were scored on; None: their own test split.

    Raises:
        UserError: none ended well, or none of the baseline.
    """
    jobs = [result.job for result in results]
    finished = [_read(job, other) for job in jobs if (job.is_scored(other) if other else job.is_trained)]
    if not finished:
        raise UserError("no job ended well: " + "; ".join(f"{r.job.name}: {r.error}" for r in results))
    runs: dict[str, list[tuple[int, pd.DataFrame]]] = {method: [] for method in study["methods"]}
    for done in finished:
        runs[done.job.method].append((done.job.seed, done.frame))
    runs = {method: found for method, found in runs.items() if found}
    # Stage 1 has seen no fakes at all; "seen" is what the detectors with fakes were trained on. Where these differ,
    # no generator is seen or unseen for all of them.
    sets = set(_seen(finished).values()) - {()}
    seen = list(sets.pop()) if len(sets) == 1 else None
    pairs = finished[0].identity["pairs"]
    known = finished[0].facts["reals"]
    comparison = compare(
        runs, study["baseline"], pairs, seen, bootstrap["resamples"], bootstrap["seed"], known_reals=known
    )
    return comparison, finished


def write_report(
    root: Path,
    study: Mapping[str, Any],
    comparison: Comparison,
    finished: Sequence[Finished],
    results: Sequence[JobResult],
    seconds: float,
    command: list[str],
    other: str | None = None,
) -> Path:
    """Write everything into the study's folder, or of another manifest into a folder in it; give the report's path."""
    folder = root / f"on_{other}" if other else root
    folder.mkdir(exist_ok=True)
    facts = provenance(command)
    run_rows = [_run_row(done, root, comparison.members("map_unseen")) for done in finished]
    shortcuts = _shortcuts(finished)
    failures = [f"{result.job.name}: {result.error}" for result in results if result.error]
    summary = {
        **comparison.to_dict(),
        "verdict": verdict(comparison),
        "failures": failures,
        "seconds": seconds,
        "provenance": facts,
        "runs": run_rows,
    }
    write_json(folder / "summary.json", summary)
    write_csv(comparison, folder / "table.csv")
    write_markdown(comparison, folder / "table.md")
    page = Page(
        title=f"{study['title']}: {other}" if other else str(study["title"]),
        comparison=comparison,
        figures=_figures(folder, comparison, finished, [] if other else finished),
        runs=run_rows,
        facts=_facts(facts, finished, seconds),
        command=" ".join(facts["command"]),
        caveats=[*study.get("caveats", ()), *told_by_headers(finished)],
        failures=failures,
        shortcuts=shortcuts,
    )
    write_page(page, folder / "report.html")
    return folder / "report.html"


def _read(job: Job, other: str | None) -> Finished:
    frame, identity = read_predictions(job.results(other) / "predictions.parquet")
    facts = json.loads((job.folder / "run.json").read_text(encoding="utf-8"))
    metrics = json.loads((job.results(other) / "metrics.json").read_text(encoding="utf-8"))
    return Finished(job, facts, identity, frame, metrics)


def _seen(finished: Sequence[Finished]) -> dict[str, tuple[str, ...]]:
    return {done.job.method: tuple(sorted(done.identity["seen_generators"])) for done in finished}


def _figures(
    folder: Path, comparison: Comparison, finished: Sequence[Finished], trained: Sequence[Finished]
) -> list[Drawing]:
    seen = _seen(finished)
    figures = [_intervals(folder, comparison, metric) for metric in comparison.values]
    if len(set(seen.values()) - {()}) > 1:
        cells = {name: comparison.values["auc"][name] for name in comparison.generators}
        matrix = plot_matrix(
            cells, seen, "AUC; a frame: fakes that this detector never saw", folder / "matrix.png"
        )
        figures.append(Drawing(matrix, "AUC of each detector (row) on each generator (column)"))
    first = finished[0].job.seed
    curves = {done.job.method: read_curves(done.job.folder) for done in trained if done.job.seed == first}
    if curves:
        drawn = plot_curves(curves, folder / "curves.png")
        figures.append(
            Drawing(drawn, f"Training curves, seed {first}; losses of different methods are not comparable")
        )
    for done in trained:
        picture = done.job.folder / "embedding.png"
        if done.job.seed == first and picture.is_file():
            figures.append(Drawing(picture, f"{done.job.method}, seed {first}: embeddings of test images"))
    return figures


def _intervals(folder: Path, comparison: Comparison, metric: str) -> Drawing:
    found = rows(comparison, metric)
    listed = {row.name: {method: cell.to_dict() for method, cell in row.cells.items()} for row in found}
    sections = {row.name: row.section for row in found}
    intervals = plot_intervals(
        listed,
        f"{metric.upper()} with 95 % intervals",
        folder / f"{metric}.png",
        sections=sections,
        chance={row.name: comparison.chance(row.key) if metric == "ap" else 0.5 for row in found},
    )
    return Drawing(
        intervals, f"{metric.upper()} per generator, and means over seen, unseen and all; dotted: chance"
    )


def _run_row(done: Finished, folder: Path, unseen: Sequence[str]) -> dict[str, Any]:
    metrics = done.metrics
    # Of the comparison's unseen generators: for stage 1, which saw no fakes, its own metrics count all.
    found = [
        metrics["per_generator"][name]["ap"]["value"] for name in unseen if name in metrics["per_generator"]
    ]
    mean = sum(found) / len(found) if found and None not in found else None
    return {
        "method": done.job.method,
        "seed": done.job.seed,
        "mAP unseen": None if mean is None else round(mean, 4),
        "kept epoch": done.facts["kept_epoch"],
        "seconds": round(done.facts["seconds"]["all"], 1),
        "parameters": done.facts["parameters"],
        "unreadable images": metrics["quarantined"]["n"],
        "changed": " ".join(done.job.changes),
        "folder": str(done.job.folder.relative_to(folder)),
    }


def told_by_headers(finished: Sequence[Finished]) -> list[str]:
    """Say which generators a classifier of headers tells, in a sentence; empty where it tells none."""
    told = [name for name, found in _shortcuts(finished).items() if found.value > SHORTCUT]
    if not told:
        return []
    return [f"Format, size and compression alone tell {', '.join(told)} (AUC above {SHORTCUT}): the detectors' numbers "
            "there may be this shortcut."]  # fmt: skip


def _shortcuts(finished: Sequence[Finished]) -> dict[str, Interval]:
    """Read what headers give away; the same for all jobs, whose data are the same."""
    found = {}
    for name, entry in finished[0].metrics.get("shortcut", {}).items():
        found[name] = Interval.from_dict(entry["auc"])
    return found


def _facts(facts: Mapping[str, Any], finished: Sequence[Finished], seconds: float) -> dict[str, Any]:
    git = facts["git"]
    state = "not a checkout"
    if git:
        state = git["commit"][:12] + (" with uncommitted changes" if git["dirty"] else "")
    return {
        "fakedet": facts["fakedet"],
        "git": state,
        "packages": ", ".join(f"{name} {version}" for name, version in facts["packages"].items()),
        "machine": f"{facts['cpus']} CPUs, {facts['platform']}, Python {facts['python']}",
        "manifest (sha256)": finished[0].facts["manifest_sha256"],
        "trained on": ", ".join(sorted({g for done in finished for g in done.identity["seen_generators"]})),
        "time": f"{seconds:.0f} s in all; " + ", ".join(
            f"{method} {sum(d.facts['seconds']['all'] for d in finished if d.job.method == method):.0f} s"
            for method in dict.fromkeys(done.job.method for done in finished)),
        "made": facts["started"],
    }  # fmt: skip
