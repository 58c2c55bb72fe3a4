"""Time two ways of doing one job in turns, so that a busy machine slows both of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

ROUNDS = 9


@dataclass(frozen=True)
class Timing:
    """What one interleaved run gave; times are seconds an item."""

    name: str
    ours: list[float]
    reference: list[float]

    @property
    def ratios(self) -> list[float]:
        """How many times as fast ours was, round by round."""
        return [theirs / own for own, theirs in zip(self.ours, self.reference, strict=True)]


def interleaved(
    name: str, ours: Callable[[], object], reference: Callable[[], object], items: int, rounds: int = ROUNDS
) -> Timing:
    """Run ours, the reference, ours, the reference, and so on.

    Args:
        name: of the row in the table.
        ours: one pass over the work.
        reference: one pass over the same work.
        items: how many a pass does; times are divided by it.
        rounds: passes of each that are timed; one of each before them is not.
    """
    ours()
    reference()
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for job, kept in zip((ours, reference), times, strict=True):
            start = time.perf_counter()
            job()
            kept.append((time.perf_counter() - start) / items)
    return Timing(name, *times)


def table(title: str, timings: list[Timing], target: float | None) -> str:
    """Show medians with minimum and maximum, as a Markdown table."""
    lines = [
        f"{title}; milliseconds an item and ratio per round: median (min-max) of {len(timings[0].ours)} rounds",
        "",
        "| | ours | reference | reference / ours | target |",
        "|---|---|---|---|---|",
    ]
    for timing in timings:
        own, theirs = (_spread([1e3 * t for t in times]) for times in (timing.ours, timing.reference))
        ratio = _spread(timing.ratios)
        lines.append(f"| {timing.name} | {own} | {theirs} | {ratio} | {'none' if target is None else f'{target:g}'} |")
    return "\n".join(lines)


def _spread(values: list[float]) -> str:
    def show(value: float) -> str:
        return f"{value:.3g}" if value < 1000 else f"{value:.0f}"

    return f"{show(statistics.median(values))} ({show(min(values))}-{show(max(values))})"
