"""What every process of fakedet sets up first, and how it says that something went wrong."""

from __future__ import annotations

import errno
import importlib
import logging
import signal
import sys
from typing import Any

from omegaconf import DictConfig, OmegaConf

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


def set_up_logging() -> None:
    """Let fakedet's log speak to the console in plain lines."""
    logger = logging.getLogger("fakedet")
    if not logger.handlers:
        handler = _Console()
        handler.setFormatter(logging.Formatter("%(message)s"))
        logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False


def register_resolvers() -> None:
    """Register what our configs interpolate with: ``fakedet_slug`` makes a folder name of overrides."""

    def slug(text: str) -> str:
        kept = "".join(sign if sign.isalnum() or sign in "=.,-_" else "-" for sign in text)
        return kept[:120]

    OmegaConf.register_new_resolver("fakedet_slug", slug, replace=True)


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
