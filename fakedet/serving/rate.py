"""How many pictures one visitor may show in a minute."""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Callable

WINDOW = 60.0


class RateLimit:
    """Count what each visitor showed in the last minute.

    Args:
        per_minute: at most so many.
        clock: gives seconds.
    """

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.per_minute, self.clock = per_minute, clock
        self._times: defaultdict[str, deque[float]] = defaultdict(deque)

    def wait(self, visitor: str, count: int = 1) -> float:
        """Take note of pictures of a visitor; give 0, or the seconds until so many are welcome (inf: never)."""
        now = self.clock()
        for name in [name for name, times in self._times.items() if not times or times[-1] <= now - WINDOW]:
            del self._times[name]
        if count > self.per_minute:
            return float("inf")
        times = self._times[visitor]
        while times and times[0] <= now - WINDOW:
            times.popleft()
        over = len(times) + count - self.per_minute
        if over > 0:
            return times[over - 1] + WINDOW - now
        times.extend([now] * count)
        return 0.0
