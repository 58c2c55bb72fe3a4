"""Say which file a stalled DataLoader waits for: a dead mount or a huge file would else be silence."""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch.utils.data import get_worker_info

log = logging.getLogger("fakedet")

IDLE = -1


class Reading:
    """Which row each worker reads at the moment, in memory that all processes share.

    Args:
        workers: their number; 0 is one, the main process.
    """

    def __init__(self, workers: int) -> None:
        self.rows = torch.full((max(1, workers),), IDLE, dtype=torch.int64).share_memory_()

    @contextmanager
    def of(self, row: int) -> Iterator[None]:
        """Note that this process reads a row."""
        worker = get_worker_info()
        slot = 0 if worker is None or worker.id >= len(self.rows) else worker.id
        self.rows[slot] = row
        try:
            yield
        finally:
            self.rows[slot] = IDLE

    def busy(self) -> list[tuple[int, int]]:
        """List (worker, row) of those that read."""
        return [(worker, row) for worker, row in enumerate(self.rows.tolist()) if row != IDLE]


class StallWatch:
    """Log a warning when a batch takes too long, once for each such batch.

    Args:
        seconds: that a batch may take.
        describe: says what is being waited for.
    """

    def __init__(self, seconds: float, describe: Callable[[], str]) -> None:
        self.seconds, self.describe = seconds, describe
        self._since: float | None = None
        self._told = False
        self._thread: threading.Thread | None = None

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Watch a wait."""
        if self._thread is None:
            # It knows its watch weakly and ends with it.
            self._thread = threading.Thread(
                target=_look, args=(weakref.ref(self), self.seconds / 4), daemon=True
            )
            self._thread.start()
        self._since, self._told = time.monotonic(), False
        try:
            yield
        finally:
            self._since = None

    def look(self) -> None:
        """Tell of a wait that has become too long."""
        since = self._since
        if since is not None and not self._told and time.monotonic() - since > self.seconds:
            self._told = True
            log.warning("no batch for %.0f s: %s", time.monotonic() - since, self.describe())


def _look(watch: weakref.ref[StallWatch], pause: float) -> None:
    while (own := watch()) is not None:
        own.look()
        del own
        time.sleep(pause)
