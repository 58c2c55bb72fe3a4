"""Several methods on the same rows: means over seeds, paired differences, and what they say."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fakedet.errors import UserError, nearest
from fakedet.evaluation.over_seeds import Draws, OverSeeds
from fakedet.evaluation.predictions import align, group_codes
from fakedet.metrics.bootstrap import Interval, percentile_interval
from fakedet.metrics.pairing import Counterparts, Pairs, real_counterparts
from fakedet.metrics.per_generator import BootstrapTable, GeneratorSummary, bootstrap_statistics

MEANS = ("map_seen", "map_unseen", "map")
METRICS = ("ap", "auc")

Runs = Mapping[str, Sequence[tuple[int, pd.DataFrame]]]
Values = dict[str, dict[str, dict[str, Interval]]]
Differences = dict[str, dict[str, dict[str, "Difference"]]]


@dataclass(frozen=True)
class Difference:
    """A method minus the baseline, on the same rows, seeds and resamples."""

    interval: Interval
    p: float
    """Two-sided; 2 (b + 1) / (R + 1) for b of R resamples on zero's other side, so never 0."""

    @property
    def exceeds(self) -> bool:
        """Whether the interval excludes zero."""
        return bool(self.interval.low > 0 or self.interval.high < 0)

    @property
    def way(self) -> str:
        """Give "above" or "below" where the interval excludes zero, else ""."""
        return ("above" if self.interval.low > 0 else "below") if self.exceeds else ""

    def to_dict(self) -> dict[str, Any]:
        """Give plain values for JSON."""
        p = None if np.isnan(self.p) else self.p
        return {**self.interval.to_dict(), "p": p, "exceeds": self.exceeds}


@dataclass(frozen=True)
class Comparison:
    """Methods compared; values are means over seeds, intervals are over groups of images and over seeds.

    Attributes:
        methods: names, in the order given.
        baseline: what the others are compared with.
        seeds: of each method, rising.
        generators: what stands behind each generator's row.
        values: metric → generator or mean → method → interval.
        differences: metric → generator or mean → method (not the baseline) → difference.
        n_rows: images that all runs scored.
        n_left_out: images that only some runs scored.
        n_groups: groups (photos or prompts) among them.
        support: mean → groups that its rarer class, real or fake, comes from.
        n_resamples: of the bootstrap.
        level: of the intervals.
    """

    methods: list[str]
    baseline: str
    seeds: dict[str, list[int]]
    generators: dict[str, GeneratorSummary]
    values: Values
    differences: Differences
    n_rows: int
    n_left_out: int
    n_groups: int
    support: dict[str, int]
    n_resamples: int
    level: float

    def to_dict(self) -> dict[str, Any]:
        """Give summary.json's content."""
        return {
            "methods": self.methods,
            "baseline": self.baseline,
            "seeds": self.seeds,
            "n_seeds": {method: len(seeds) for method, seeds in self.seeds.items()},
            "n_images": self.n_rows,
            "n_images_left_out": self.n_left_out,
            "n_groups": self.n_groups,
            "n_groups_behind_means": self.support,
            "n_resamples": self.n_resamples,
            "level": self.level,
            "generators": {
                name: {"seen": row.seen, "n_real": row.n_real, "n_fake": row.n_fake, "n_groups": row.n_groups,
                       "reals": list(row.reals), "rule": row.rule}
                for name, row in self.generators.items()
            },
            "values": _plain(self.values),
            "differences_to_baseline": _plain(self.differences),
        }  # fmt: skip

    def members(self, mean: str) -> list[str]:
        """List the generators that a mean is over: those of its kind with both classes."""
        return [name for name in self._kind(mean) if name not in self.left_out(mean)]

    def chance(self, key: str) -> float:
        """Give the AP of a detector that guesses, for a generator or a mean: the share of fakes among the images."""
        names = [key] if key in self.generators else self.members(key)
        shares = [row.n_fake / (row.n_fake + row.n_real) for row in (self.generators[name] for name in names)]
        return sum(shares) / len(shares) if shares else float("nan")

    def left_out(self, mean: str) -> list[str]:
        """List the generators that a mean leaves out because they have one class only."""
        rows = self.generators
        return [name for name in self._kind(mean) if not (rows[name].n_real and rows[name].n_fake)]

    def _kind(self, mean: str) -> list[str]:
        wanted = {"map_seen": (True,), "map_unseen": (False,), "map": (True, False, None)}[mean]
        return [name for name, row in self.generators.items() if row.seen in wanted]


def compare(
    runs: Runs,
    baseline: str,
    pairs: Pairs | None,
    seen: Collection[str] | None,
    n_resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
    known_reals: Collection[str] | None = None,
) -> Comparison:
    """Compare methods on the rows that all their runs scored.

    Every resample draws whole groups of images and, where a method has several, seeds. A difference is paired over
    both: it is over the seeds that method and baseline share, the same ones drawn for both. Where they share none,
    seeds are drawn apart.

    Args:
        runs: method → (seed, predictions frame) of each of its runs.
        baseline: one of the methods.
        pairs: see :func:`fakedet.metrics.pairing.real_counterparts`.
        seen: generators seen in training; None where nobody knows.
        n_resamples: of the bootstrap.
        seed: of the bootstrap.
        level: of the intervals, in (0, 1).
        known_reals: see :func:`fakedet.metrics.pairing.real_counterparts`.

    Raises:
        UserError: a method without runs, an unknown baseline, or frames of different data.
    """
    ordered = {method: sorted(rows, key=lambda row: row[0]) for method, rows in runs.items()}
    if not ordered.get(baseline):
        finished = [method for method, rows in ordered.items() if rows]
        raise UserError(f"the baseline '{baseline}' has no finished run; {nearest(baseline, finished)}")
    empty = [method for method, rows in ordered.items() if not rows]
    if empty:
        raise UserError(f"no finished run of {', '.join(empty)}; leave such methods out of the comparison")
    frames = {f"{method}#{i}": frame for method, rows in ordered.items() for i, (_, frame) in enumerate(rows)}
    frame, logits, left_out = align(frames)
    table = bootstrap_statistics(frame, logits, pairs, seen, n_resamples, seed, known_reals)
    seeds = {method: [int(number) for number, _ in rows] for method, rows in ordered.items()}
    values, differences = _statistics(table, seeds, baseline, Draws(n_resamples, seed), level)
    groups = group_codes(frame)
    support = _support(real_counterparts(frame, pairs, known_reals), groups, table)
    return Comparison(
        list(ordered), baseline, seeds, dict(table.generators), values, differences, len(frame), left_out,
        len(np.unique(groups)), support, n_resamples, level,
    )  # fmt: skip


def _statistics(
    table: BootstrapTable, seeds: Mapping[str, list[int]], baseline: str, draws: Draws, level: float
) -> tuple[Values, Differences]:
    values: Values = {metric: {} for metric in METRICS}
    differences: Differences = {metric: {} for metric in METRICS}
    for metric in METRICS:
        for name in (*table.generators, *MEANS):
            found = {
                method: OverSeeds.read(table, method, metric, name, own) for method, own in seeds.items()
            }
            values[metric][name] = {
                method: percentile_interval(*one.mean(list(one.values), draws), level)
                for method, one in found.items()
            }
            differences[metric][name] = {
                method: _difference(*one.less(found[baseline], draws), level)
                for method, one in found.items()
                if method != baseline
            }
    return values, differences


def _difference(value: float, samples: NDArray[np.float64], level: float) -> Difference:
    interval = percentile_interval(value, samples, level)
    known = samples[~np.isnan(samples)]
    if np.isnan(interval.low):
        return Difference(interval, float("nan"))
    beyond = min(int((known <= 0).sum()), int((known >= 0).sum()))
    return Difference(interval, min(1.0, 2 * (beyond + 1) / (len(known) + 1)))


def _support(
    counterparts: Mapping[str, Counterparts], groups: NDArray[np.int64], table: BootstrapTable
) -> dict[str, int]:
    result = {}
    for mean in MEANS:
        rows = [list(counterparts.values())[place] for place in table.members(mean)]
        sides = ([row.real_rows for row in rows], [row.fake_rows for row in rows])
        result[mean] = min(len(np.unique(groups[np.concatenate(side)])) if side else 0 for side in sides)
    return result


def _plain(tree: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _plain(node) if isinstance(node, Mapping) else node.to_dict() for key, node in tree.items()}
