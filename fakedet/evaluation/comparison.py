"""evaluation/comparison"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from rich.table import Table
from rich.text import Text

from fakedet.errors import UserError, nearest
from fakedet.evaluation.predictions import align, group_codes
from fakedet.metrics.bootstrap import Interval, percentile_interval
from fakedet.metrics.pairing import Counterparts, Pairs, real_counterparts
from fakedet.metrics.per_generator import BootstrapTable, GeneratorSummary, bootstrap_statistics, mean_members

Run = tuple[int, int]


@dataclass(frozen=True)
class Draws:
    """Seeds drawn with replacement for every resample: the same draw for as many seeds."""

    n_resamples: int
    seed: int

    def __call__(self, count: int, stream: int = 0) -> NDArray[np.int64]:
        """Give (R, count) places among ``count`` seeds; another stream is an independent draw."""
        rng = np.random.default_rng([self.seed, count, *([stream] if stream else [])])
        return rng.integers(count, size=(self.n_resamples, count))


@dataclass(frozen=True)
class OverSeeds:
    """A statistic of a method, for each of its runs.

    Attributes:
        values: run → value; a run is its seed, and how many with this seed came before it.
        samples: run → (R,) of the resamples.
    """

    values: dict[Run, float]
    samples: dict[Run, NDArray[np.float64]]

    @classmethod
    def read(
        cls, table: BootstrapTable, method: str, metric: str, name: str, seeds: Sequence[int]
    ) -> OverSeeds:
        """Read the runs of a method."""
        keys = {(seed, seeds[:place].count(seed)): f"{method}#{place}" for place, seed in enumerate(seeds)}
        return cls(
            {run: table.value(key, metric, name) for run, key in keys.items()},
            {run: table.samples(key, metric, name) for run, key in keys.items()},
        )

    def mean(self, runs: Sequence[Run], draws: Draws, stream: int = 0) -> tuple[float, NDArray[np.float64]]:
        """Give the mean over these runs and the (R,) means over those drawn in each resample."""
        by_seed = np.stack([self.samples[run] for run in runs], axis=1)
        drawn = np.take_along_axis(by_seed, draws(len(runs), stream), axis=1).mean(axis=1)
        return float(np.mean([self.values[run] for run in runs])), drawn

    def less(self, base: OverSeeds, draws: Draws) -> tuple[float, NDArray[np.float64]]:
        """Give the difference to the baseline over the seeds that both have, and that of each resample."""
        shared = [run for run in self.values if run in base.values]
        value, samples = self.mean(shared or list(self.values), draws)
        base_value, base_samples = base.mean(shared or list(base.values), draws, stream=0 if shared else 1)
        return value - base_value, samples - base_samples


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
        rows = [
            list(counterparts.values())[place]
            for place in [list(counterparts).index(one) for one in mean_members(table.generators, mean)[0]]
        ]
        sides = ([row.real_rows for row in rows], [row.fake_rows for row in rows])
        result[mean] = min(len(np.unique(groups[np.concatenate(side)])) if side else 0 for side in sides)
    return result


def _plain(tree: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _plain(node) if isinstance(node, Mapping) else node.to_dict() for key, node in tree.items()}


# Below this many groups a bootstrap over groups is known to give intervals that are too narrow.
FEW_GROUPS = 20
# The same for seeds; the bootstrap over k seeds finds (k − 1) / k of their variance, with one seed none.
FEW_SEEDS = 5


def verdict(comparison: Comparison) -> list[str]:
    """Say in sentences whether differences exceed their intervals, and what these leave out."""
    told = [
        *_sentences(comparison, "map_unseen", "unseen generators"),
        *_sentences(comparison, "map_seen", "seen generators"),
    ] or _sentences(comparison, "map", "all generators")
    return told + _reservations(comparison)


def _sentences(comparison: Comparison, mean: str, words: str) -> list[str]:
    members = comparison.members(mean)
    if not members:
        return []
    fakes = sum(comparison.generators[name].n_fake for name in members)
    base = _text(comparison.values["ap"][mean][comparison.baseline])
    told = [f"On {words} ({len(members)}, with {fakes} fakes), {comparison.baseline} reaches mAP {base}."]
    for method, difference in comparison.differences["ap"][mean].items():
        value, gap = comparison.values["ap"][mean][method], _text(difference.interval, "+.3f")
        says = (
            f"is {difference.way} it by more than the interval"
            if difference.way
            else "cannot be told from it"
        )
        told.append(f"{method} ({_text(value)}) {says}: {gap}.")
    return [*told, _areas(comparison, mean)]


def _areas(comparison: Comparison, mean: str) -> str:
    """Tell the mean AUCs, which do not depend on how many fakes there are for a real."""
    gaps = comparison.differences["auc"][mean]
    told = []
    for method, value in comparison.values["auc"][mean].items():
        gap = gaps.get(method)
        way = f", {gap.way} it by more than the interval" if gap and gap.way else ""
        told.append(f"{method} {_text(value)}" + (f" ({_text(gap.interval, '+.3f')}{way})" if gap else ""))
    return f"Mean AUC there, where a guess is 0.5 however many fakes there are: {'; '.join(told)}."


def _reservations(comparison: Comparison) -> list[str]:
    told = []
    few = [
        groups
        for mean, groups in comparison.support.items()
        if comparison.members(mean) and groups < FEW_GROUPS
    ]
    if few:
        told.append(
            f"The intervals rest on only {min(few)} photographs or prompts: over so few, they are a lower "
            "bound of the uncertainty, and no difference here settles a question."
        )
    fewest = min(len(seeds) for seeds in comparison.seeds.values())
    if fewest == 1:
        told.append("With one seed a method, the intervals leave out how much training varies.")
    elif fewest < FEW_SEEDS:
        told.append(f"With {fewest} seeds a method, the intervals understate how much training varies.")
    base = comparison.seeds[comparison.baseline]
    for method, seeds in comparison.seeds.items():
        if seeds != base:
            shared = ", ".join(str(seed) for seed in seeds if seed in base)
            over = (
                f"over the seeds that both have ({shared})"
                if shared
                else "not paired over seeds: they share none"
            )
            told.append(
                f"{method} and {comparison.baseline} have not the same seeds; their difference is {over}."
            )
    if comparison.n_left_out:
        told.append(f"{comparison.n_left_out} images that not every run has scored are left out of all.")
    return told


def _text(interval: Interval, form: str = ".3f") -> str:
    if math.isnan(interval.low):
        return f"{interval.value:{form}}"
    return f"{interval.value:{form}} [{interval.low:{form}}, {interval.high:{form}}]"


MEAN_NAMES = {"map_seen": "mean, seen", "map_unseen": "mean, unseen", "map": "mean, all"}


@dataclass(frozen=True)
class Row:
    """One row: a generator or a mean."""

    name: str
    key: str
    section: str
    """"seen", "unseen", "unknown" or "mean"."""
    counts: str
    cells: dict[str, Interval]


def rows(comparison: Comparison, metric: str = "ap") -> list[Row]:
    """List seen generators, unseen generators, then the means."""
    values = comparison.values[metric]
    listed = []
    for section, wanted in (("seen", True), ("unseen", False), ("unknown", None)):
        for name, row in comparison.generators.items():
            if row.seen is wanted:
                counts = f"{row.n_real} real, {row.n_fake} fake"
                listed.append(Row(name, name, section, counts, values[name]))
    for key, name in MEAN_NAMES.items():
        members, left_out = comparison.members(key), comparison.left_out(key)
        if members:
            counts = f"{len(members)} generator{'s' if len(members) > 1 else ''}"
            counts += f", without {', '.join(left_out)}" if left_out else ""
            listed.append(Row(name, key, "mean", counts, values[key]))
    return listed


def console_table(comparison: Comparison, title: str) -> Table:
    """Lay the APs out for a terminal, value above interval; six methods fit 100 columns."""
    table = Table(title=Text(title), title_justify="left", caption_justify="left", pad_edge=False)
    table.add_column("generator", overflow="fold", min_width=14)
    for method in comparison.methods:
        table.add_column(Text(method), justify="right", overflow="fold", min_width=9)
    section = ""
    for row in rows(comparison):
        if section and row.section != section:
            table.add_section()
        section = row.section
        below = row.counts if section == "mean" else f"{section}, {row.counts}"
        # Text and not str: a name may hold what rich would take for markup.
        head = Text.assemble((row.name, "bold" if section == "mean" else ""), "\n", (below, "dim"))
        table.add_row(head, *(_two_lines(row.cells[method]) for method in comparison.methods))
    table.caption = Text(
        f"AP with {comparison.level:.0%} interval (bootstrap over photographs or prompts, and seeds); "
        "means over generators"
    )
    return table


def write_csv(comparison: Comparison, path: Path) -> None:
    """Write one line a generator or mean, method and metric, with the difference to the baseline."""
    lines = []
    for metric, by_name in comparison.differences.items():
        for row in rows(comparison, metric):
            for method, cell in row.cells.items():
                line = {"metric": metric, "name": row.key, "section": row.section, "counts": row.counts,
                        "method": method, "value": cell.value, "low": cell.low, "high": cell.high}  # fmt: skip
                difference = by_name[row.key].get(method)
                if difference:
                    gap = difference.interval
                    line |= {"difference": gap.value, "difference_low": gap.low, "difference_high": gap.high,
                             "p": difference.p, "exceeds": difference.exceeds}  # fmt: skip
                lines.append(line)
    pd.DataFrame(lines).to_csv(path, index=False)


def markdown(comparison: Comparison, metric: str = "ap") -> str:
    """Write the table in Markdown."""
    return _markdown(comparison, metric, comparison.methods, lambda row, method: row.cells[method].text())


def markdown_differences(comparison: Comparison, metric: str = "ap") -> str:
    """Write the paired differences to the baseline in Markdown; empty where there is no other method."""
    differences = comparison.differences[metric]
    others = [method for method in comparison.methods if method != comparison.baseline]
    if not others:
        return ""
    return _markdown(
        comparison,
        metric,
        others,
        lambda row, method: differences[row.key][method].interval.text("+.3f"),
    )


def write_markdown(comparison: Comparison, path: Path) -> None:
    """Write every metric's table, and below it the paired differences to the baseline where there are any."""
    parts = []
    for metric in comparison.values:
        parts.append(f"{metric.upper()}\n\n{markdown(comparison, metric)}")
        if differences := markdown_differences(comparison, metric):
            parts.append(f"{metric.upper()}: paired differences to {comparison.baseline}\n\n{differences}")
    path.write_text("\n".join(parts), encoding="utf-8")


def _markdown(
    comparison: Comparison, metric: str, methods: Sequence[str], cell: Callable[[Row, str], str]
) -> str:
    lines = [
        "| generator | " + " | ".join(_escape(method) for method in methods) + " |",
        "|---|" + "---:|" * len(methods),
    ]
    for row in rows(comparison, metric):
        name = _escape(row.name)
        head = f"**{name}** ({_escape(row.counts)})"
        if row.section != "mean":
            head = f"{name} ({row.section}, {row.counts})"
        lines.append(f"| {head} | " + " | ".join(cell(row, method) for method in methods) + " |")
    return "\n".join(lines) + "\n"


def _two_lines(cell: Interval) -> Text:
    value, _, interval = cell.text().partition(" ")
    if not interval:
        return Text(value)
    return Text.assemble(value, "\n", (interval.strip("[]").replace(", ", "–"), "dim"))


def _escape(name: str) -> str:
    """Keep a name from ending its cell or starting a tag."""
    return name.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")
