"""``fakedet study``: several methods × seeds in, one comparison out."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from fakedet.commands.mistakes import check_command_line
from fakedet.errors import UserError
from fakedet.evaluation.table import console_table
from fakedet.evaluation.verdict import verdict
from fakedet.runs.folder import open_folder, write_config
from fakedet.runs.resuming import lock
from fakedet.runs.study import plan, run_jobs
from fakedet.runs.study_check import OverridesError, check_jobs
from fakedet.runs.study_job import Job
from fakedet.runs.study_report import compare_jobs, told_by_headers, write_report

log = logging.getLogger("fakedet")


def run(config: DictConfig, overrides: list[str]) -> None:
    """Train what is not trained yet, compare, and exit with status 1 if a job failed."""
    started = time.perf_counter()
    # A study that was stopped goes on in its folder, so an occupied one is not refused.
    folder = open_folder(Path(config.output_dir), overwrite=True).resolve()
    with lock(folder, "running a study"):
        _run(config, overrides, folder, started)


def _run(config: DictConfig, overrides: list[str], folder: Path, started: float) -> None:
    if config.jobs < 1:
        raise UserError(f"jobs={config.jobs}: at least 1")
    study: dict[str, Any] = OmegaConf.to_container(config.study, resolve=True)  # type: ignore[assignment]
    first, rest = plan(study, folder, list(config.extra), _search(), config.overwrite)
    log.info(
        "study '%s': %d jobs, %d at a time, into %s", study["name"], len(first + rest), config.jobs, folder
    )
    _check(first + rest)
    write_config(folder, config, overrides)
    results = run_jobs([first, rest], config.jobs)
    for result in results:
        if result.error:
            log.warning("FAILED %s: %s (%s/console.log)", result.job.name, result.error, result.job.folder)
    bootstrap: dict[str, int] = OmegaConf.to_container(config.bootstrap)  # type: ignore[assignment]
    console = Console(width=None if Console().is_terminal else 130)
    reports = []
    for other in (None, *(study.get("also") or {})):
        try:
            comparison, finished = compare_jobs(results, study, bootstrap, other)
        except UserError as error:
            if other is None:
                raise
            log.warning("no comparison on %s: %s", other, error)
            continue
        seconds = time.perf_counter() - started
        command = ["fakedet", "study", *overrides]
        reports.append(write_report(folder, study, comparison, finished, results, seconds, command, other))
        console.print(console_table(comparison, f"{study['title']}: {other}" if other else study["title"]))
        for sentence in [*verdict(comparison), *told_by_headers(finished)]:
            console.print(sentence, soft_wrap=True, highlight=False)
    log.info("time     %.0f s", time.perf_counter() - started)
    log.info("summary  %s", folder / "summary.json")
    for report in reversed(reports):
        log.info("report   %s", report)
    if any(result.error for result in results):
        raise SystemExit(1)


def _check(jobs: Sequence[Job]) -> None:
    try:
        check_jobs(jobs)
    except OverridesError as mistake:
        folders = [part for source in _search() for part in ("--config-dir", source.removeprefix("file://"))]
        try:
            check_command_line("train", [*folders, *mistake.job.overrides])
        except UserError as error:  # it knows the nearest valid name
            raise UserError(f"study: '{mistake.job.method}': {error}") from mistake
        raise


def _search() -> list[str]:
    """Give the folders of ``--config-dir``, for the processes that compose the jobs."""
    sources = HydraConfig.get().runtime.config_sources
    return [f"file://{source.path}" for source in sources if source.provider == "command-line"]
