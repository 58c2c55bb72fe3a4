"""One progress bar a job, drawn from the files that the jobs keep."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

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
