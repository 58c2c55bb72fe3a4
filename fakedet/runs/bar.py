"""A progress bar for work on files: on a terminal it moves, in a log it is a line now and then."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

log = logging.getLogger("fakedet")

SECONDS_BETWEEN_LINES = 30.0


class Bar:
    """How far some work is.

    Args:
        what: is done.
        total: number of items; None: not known beforehand.
    """

    def __init__(self, what: str, total: int | None) -> None:
        self.what, self.total = what, total
        self._live = sys.stdout.isatty()
        self._said = time.monotonic()
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            TextColumn("{task.completed:,.0f}"),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            *([TimeRemainingColumn()] if total is not None else []),
            console=Console(file=sys.stdout),
            transient=True,
            disable=not self._live,
        )
        self._task = self.progress.add_task(what, total=total, note="")

    def show(self, done: int, note: str = "") -> None:
        """Move to ``done`` items."""
        if self._live:
            self.progress.update(self._task, completed=done, note=note)
        elif time.monotonic() - self._said > SECONDS_BETWEEN_LINES:
            self._said = time.monotonic()
            of = f" of {self.total:,}" if self.total is not None else ""
            log.info("%s: %s%s%s", self.what, f"{done:,}", of, f", {note}" if note else "")


@contextmanager
def bar(what: str, total: int | None = None) -> Iterator[Bar]:
    """Show the progress of some work until it ends."""
    shown = Bar(what, total)
    with shown.progress:
        yield shown
