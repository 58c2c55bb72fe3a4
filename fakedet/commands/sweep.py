"""What belongs to a sweep as a whole: names of its jobs' folders, and which of its jobs failed."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

# Which keys are swept, for the processes that run the jobs; they do not see the sweep's command line.
SWEPT = "FAKEDET_SWEPT"
FAILED = "failed.jsonl"
LONGEST = 120

failed_jobs: list[dict[str, Any]] = []
"""Of the last sweep that this process ended."""


def remember_swept(arguments: list[str]) -> None:
    """Keep which keys of a command line take several values."""
    parsed = OverridesParser.create().parse_overrides([item for item in arguments if "=" in item[1:]])
    os.environ[SWEPT] = ",".join(str(item.key_or_group) for item in parsed if item.is_sweep_override())


def job_folder(root: Any) -> str:
    """Name a job's folder by what is swept; where nothing is, by all that is overridden.

    Args:
        root: the job's config, with its ``hydra`` node.
    """
    settings = root.hydra
    swept = set(filter(None, os.environ.get(SWEPT, "").split(",")))
    swept |= set(OmegaConf.select(settings, "sweeper.params", default=None) or {})
    left_out = set(settings.job.config.override_dirname.exclude_keys)
    overrides = [str(item) for item in settings.overrides.task]
    overrides = [item for item in overrides if item.partition("=")[0].lstrip("+~") not in left_out]
    # Command lines hold what the sweep fixes, too; the swept ones alone tell its jobs apart.
    telling = [item for item in overrides if item.partition("=")[0].lstrip("+~") in swept] or overrides
    text = ",".join(telling)
    return "".join(sign if sign.isalnum() or sign in "=.,-_+" else "-" for sign in text)[:LONGEST]


def note_failure(settings: Any, error: Exception) -> None:
    """Write down in the sweep's folder that a job of it failed; its jobs may run anywhere."""
    row = {"job": settings.job.num, "folder": settings.runtime.output_dir, "error": str(error)}
    with (Path(settings.sweep.dir) / FAILED).open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


class SweepSummary(Callback):
    """Say at the end of a sweep how many of its jobs failed, wherever they ran."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Forget what an earlier start of this sweep wrote down."""
        failed_jobs.clear()
        (Path(config.hydra.sweep.dir) / FAILED).unlink(missing_ok=True)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Read what the jobs wrote down, and tell it in one line."""
        path = Path(config.hydra.sweep.dir) / FAILED
        if path.is_file():
            failed_jobs.extend(json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())
            numbers = ", ".join(str(row["job"]) for row in failed_jobs)
            one = len(failed_jobs) == 1
            print(
                f"{len(failed_jobs)} job{' of this sweep has' if one else 's of this sweep have'} failed ({numbers}); "
                f"`fakedet compare runs={config.hydra.sweep.dir}` gives each cause and the command that runs it alone"
            )
