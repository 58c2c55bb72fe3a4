"""What every process of fakedet sets up first, and how it says that something went wrong."""

from __future__ import annotations

import errno
import importlib
import logging
import signal
import sys
from typing import Any

from omegaconf import DictConfig, OmegaConf

from fakedet.commands.sweep import job_folder
from fakedet.errors import Preempted
from fakedet.runs.quiet import quiet_libraries
from fakedet.runs.ranks import is_main_process

FULL_OR_READ_ONLY = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


class _Console(logging.StreamHandler[Any]):
    """Write to what standard output is at the time, which may be redirected."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> Any:  # type: ignore[override]
        """Standard output as it is now."""
        return sys.stdout


def set_up_logging(job: int | None = None) -> None:
    """Let fakedet's log speak to the console in plain lines.

    Args:
        job: number of a sweep's job, which each line then begins with: several may speak at a time.
    """
    logger = logging.getLogger("fakedet")
    if not logger.handlers:
        logger.addHandler(_Console())
    for handler in logger.handlers:
        if isinstance(handler, _Console):
            handler.setFormatter(logging.Formatter("%(message)s" if job is None else f"[{job}] %(message)s"))
    logger.setLevel(logging.INFO)
    logger.propagate = False


def register_resolvers() -> None:
    """Register what our configs interpolate with: ``fakedet_job`` names the folder of a sweep's job."""

    def job(*, _root_: Any) -> str:
        return job_folder(_root_)

    OmegaConf.register_new_resolver("fakedet_job", job, replace=True)


def run_verb(verb: str, config: DictConfig, overrides: list[str]) -> Any:
    """Run a verb's module on its config."""
    module = importlib.import_module(f"fakedet.commands.{verb}")
    quiet_libraries()
    return module.run(config, overrides)


def end_by_signal(stop: Preempted) -> None:
    """End this process by the signal that it was sent, as whoever sent it expects.

    A launcher that has a handler of its own, as submitit has, puts the job back into the queue here.
    """
    if not is_main_process():
        return  # rank zero tells the cluster; an exit status of ours could end it before it has
    print(
        f"fakedet: {stop}; give the same command again, or `fakedet resume`, to go on",
        file=sys.stderr,
        flush=True,
    )
    signal.raise_signal(stop.signal)
    raise SystemExit(128 + stop.signal)  # somebody catches the signal and does nothing about it


def fail(message: str, status: int) -> int:
    """Say in one line what went wrong, and give the status back."""
    print(f"fakedet: {message}", file=sys.stderr)
    return status
