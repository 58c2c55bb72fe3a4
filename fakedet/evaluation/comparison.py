"""Several methods on the same rows: means over seeds, paired differences, and what they say."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fakedet.errors import UserError
from fakedet.metrics.bootstrap import Interval, percentile_interval
from fakedet.metrics.pairing import Pairs
from fakedet.metrics.per_generator import BootstrapTable, GeneratorSummary, bootstrap_statistics

MEANS = ("map_seen", "map_unseen", "map")
METRICS = ("ap", "auc")
# Below this many groups a bootstrap over groups is known to give intervals that are too narrow.
FEW_GROUPS = 20

Runs = Mapping[str, Sequence[tuple[int, pd.DataFrame]]]


@dataclass(frozen=True)
class Difference:
    """A method minus the baseline, on the same rows, seeds and resamples."""

    interval: Interval
    p: float
    """Two-sided, from the share of resamples on the other side of zero; never below 1 / resamples."""

    @property
    def exceeds(self) -> bool:
        """Whether the interval excludes zero."""
        return bool(self.interval.low > 0 or self.interval.high < 0)

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
        seeds: of each method.
        generators: what stands behind each generator's row.
        values: metric → generator or mean → method → interval.
        differences: metric → generator or mean → method (not the baseline) → difference.
        n_rows: images that all runs scored.
        n_left_out: images that only some runs scored.
        n_groups: groups (photos or prompts) among them.
    """

    methods: list[str]
    baseline: str
    seeds: dict[str, list[int]]
    generators: dict[str, GeneratorSummary]
    values: dict[str, dict[str, dict[str, Interval]]]
    differences: dict[str, dict[str, dict[str, Difference]]]
    n_rows: int
    n_left_out: int
    n_groups: int

    def to_dict(self) -> dict[str, Any]:
        """Give summary.json's content."""
        return {
            "methods": self.methods,
            "baseline": self.baseline,
            "seeds": self.seeds,
            "n_images": self.n_rows,
            "n_images_left_out": self.n_left_out,
            "n_groups": self.n_groups,
            "generators": {
                name: {"seen": row.seen, "n_real": row.n_real, "n_fake": row.n_fake, "n_groups": row.n_groups,
                       "reals": list(row.reals), "rule": row.rule}
                for name, row in self.generators.items()
            },
            "values": _plain(self.values),
            "differences_to_baseline": _plain(self.differences),
            "verdict": self.verdict(),
        }  # fmt: skip

    def verdict(self) -> list[str]:
        """Say in sentences whether differences exceed their intervals."""
        sentences = [
            *self._sentences("map_unseen", "unseen generators"),
            *self._sentences("map_seen", "seen generators"),
        ]
        if self.n_groups < FEW_GROUPS:
            sentences.append(
                f"The test images come from only {self.n_groups} photographs: intervals over so few are a lower "
                "bound of the uncertainty, and no difference here settles a question."
            )
        if self.n_left_out:
            sentences.append(f"{self.n_left_out} images that not every run could read are left out of all.")
        return sentences

    def _sentences(self, name: str, words: str) -> list[str]:
        base = self.values["ap"][name][self.baseline]
        if np.isnan(base.value):
            return []
        told = [f"On {words}, {self.baseline} reaches mAP {_text(base)}."]
        for method in self.methods:
            if method == self.baseline:
                continue
            value, difference = self.values["ap"][name][method], self.differences["ap"][name][method]
            gap = difference.interval
            change = f"{gap.value:+.3f} [{gap.low:+.3f}, {gap.high:+.3f}]"
            if difference.exceeds:
                way = "above" if gap.value > 0 else "below"
                told.append(f"{method} ({_text(value)}) is {way} it by more than the interval: {change}.")
            else:
                told.append(f"{method} ({_text(value)}) cannot be told from it: {change}.")
        return told


def compare(
    runs: Runs,
    baseline: str,
    pairs: Pairs | None,
    seen: Collection[str] | None,
    n_resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Comparison:
    """Compare methods on the rows that all their runs scored.

    Every resample draws whole groups of images and, where a method has several, seeds; methods with the same
    number of seeds draw the same ones, so that differences are paired over both.

    Args:
        runs: method → (seed, predictions frame) of each of its runs.
        baseline: one of the methods.
        pairs: see :func:`fakedet.metrics.pairing.real_counterparts`.
        seen: generators seen in training.
        n_resamples: of the bootstrap.
        seed: of the bootstrap.
        level: of the intervals.

    Raises:
        UserError: no runs, an unknown baseline, or frames of different data.
    """
    if baseline not in runs or not runs[baseline]:
        raise UserError(
            f"the baseline '{baseline}' has no finished run; there are: {', '.join(runs) or 'none'}"
        )
    frame, logits, left_out = _align(runs)
    table = bootstrap_statistics(frame, logits, pairs, seen, n_resamples, seed)
    names = [*table.generators, *MEANS]
    drawn = _draw_seeds(runs, n_resamples, seed)
    values: dict[str, dict[str, dict[str, Interval]]] = {}
    differences: dict[str, dict[str, dict[str, Difference]]] = {}
    for metric in METRICS:
        values[metric], differences[metric] = {}, {}
        for name in names:
            points = {method: _point(table, method, runs, metric, name) for method in runs}
            samples = {method: _samples(table, method, runs, metric, name, drawn[method]) for method in runs}
            values[metric][name] = {
                method: percentile_interval(points[method], samples[method], level) for method in runs
            }
            differences[metric][name] = {
                method: _difference(
                    points[method] - points[baseline], samples[method] - samples[baseline], level
                )
                for method in runs
                if method != baseline
            }
    groups = int(frame["group"].nunique()) if "group" in frame else len(frame)
    return Comparison(
        list(runs), baseline, {method: [s for s, _ in rows] for method, rows in runs.items()},
        dict(table.generators), values, differences, len(frame), left_out, groups,
    )  # fmt: skip


def _align(runs: Runs) -> tuple[pd.DataFrame, dict[str, NDArray[np.float64]], int]:
    """Bring all frames to the rows that they share, in one order."""
    frames = {_key(method, number): frame.set_index("path") for method, rows in runs.items()
              for number, (_, frame) in enumerate(rows)}  # fmt: skip
    first = next(iter(frames.values()))
    shared, union = first.index, first.index
    for frame in frames.values():
        shared, union = shared.intersection(frame.index, sort=False), union.union(frame.index, sort=False)
    if len(shared) < 0.5 * len(union):
        raise UserError(
            f"the runs scored different data: they share {len(shared)} of {len(union)} images; compare runs that "
            "were evaluated on the same manifest and split"
        )
    base = first.loc[shared]
    for key, frame in frames.items():
        if not (frame.loc[shared, "label"].to_numpy() == base["label"].to_numpy()).all():
            raise UserError(f"{key}: the same images have other labels than in the first run")
    logits = {key: frame.loc[shared, "logit"].to_numpy(dtype=np.float64) for key, frame in frames.items()}
    return base.reset_index(), logits, len(union) - len(shared)


def _key(method: str, number: int) -> str:
    return f"{method}#{number}"


def _draw_seeds(runs: Runs, n_resamples: int, seed: int) -> dict[str, NDArray[np.int64]]:
    """Draw seeds with replacement for every resample: the same draw for methods with as many seeds."""
    return {
        method: np.random.default_rng([seed, len(rows)]).integers(len(rows), size=(n_resamples, len(rows)))
        for method, rows in runs.items()
    }


def _point(table: BootstrapTable, method: str, runs: Runs, metric: str, name: str) -> float:
    return float(np.mean([table.value(_key(method, i), metric, name) for i in range(len(runs[method]))]))


def _samples(
    table: BootstrapTable, method: str, runs: Runs, metric: str, name: str, drawn: NDArray[np.int64]
) -> NDArray[np.float64]:
    by_seed = np.stack(
        [table.samples(_key(method, i), metric, name) for i in range(len(runs[method]))], axis=1
    )
    chosen: NDArray[np.float64] = np.take_along_axis(by_seed, drawn[: len(by_seed)], axis=1).mean(axis=1)
    return chosen


def _difference(value: float, samples: NDArray[np.float64], level: float) -> Difference:
    known = samples[~np.isnan(samples)]
    if len(known) == 0:
        return Difference(percentile_interval(value, samples, level), float("nan"))
    tail = min(float((known <= 0).mean()), float((known >= 0).mean()))
    return Difference(percentile_interval(value, samples, level), min(1.0, max(2 * tail, 1 / len(known))))


def _text(interval: Interval) -> str:
    return f"{interval.value:.3f} [{interval.low:.3f}, {interval.high:.3f}]"


def _plain(tree: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _plain(node) if isinstance(node, Mapping) else node.to_dict() for key, node in tree.items()}
