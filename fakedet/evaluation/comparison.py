"""Comparing methods over seeds: paired differences with intervals, a verdict in sentences, and tables."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from rich.table import Table
from rich.text import Text

from fakedet.errors import UserError, nearest
from fakedet.evaluation.predictions import align, called_fake
from fakedet.metrics.bootstrap import Interval, percentile_interval, share_interval
from fakedet.metrics.decisions import Accuracy, accuracies
from fakedet.metrics.pairing import Counterparts, Pairs, against, group_cells, real_counterparts
from fakedet.metrics.per_generator import METRICS, BootstrapTable, GeneratorSummary, bootstrap_statistics, mean_members

MEANS = {"map_seen": "mean, seen", "map_unseen": "mean, unseen", "map": "mean, all"}  # mean -> its name in tables
WHERE = {"map_seen": "seen generators", "map_unseen": "unseen generators", "map": "all generators"}  # in sentences
TITLES = {  # metric -> its name in tables
    "ap": "AP", "auc": "AUC", "auc_matched": "AUC among images of the same content",
    "accuracy": "Accuracy at the stored threshold",
}  # fmt: skip
SECTIONS = {True: "seen", False: "unseen", None: "unknown"}  # GeneratorSummary.seen -> section of tables
FEW_GROUPS = 20  # with fewer groups, a bootstrap over groups is known to give intervals that are too narrow
# The same for seeds: the bootstrap over k seeds finds (k − 1) / k of their variance, and none with one seed.
FEW_SEEDS = 5

Run = tuple[int, int]  # a run of a method: its seed, and the number of earlier runs with this seed
Statistic = tuple[float, NDArray[np.float64]]  # of a run: its value, and (R,) of the resamples
Runs = Mapping[str, Sequence[tuple[int, pd.DataFrame]]]
Values = dict[str, dict[str, dict[str, Interval]]]
Differences = dict[str, dict[str, dict[str, "Difference"]]]


@dataclass(frozen=True)
class Difference:
    """A method minus the baseline, on the same rows, seeds and resamples."""

    interval: Interval
    p: float  # two-sided: 2 (b + 1) / (R + 1), where b of R resamples lie on the other side of zero; so never 0

    @property
    def way(self) -> str:
        """Return "above" or "below" where the interval excludes zero, else ""."""
        return "above" if self.interval.low > 0 else "below" if self.interval.high < 0 else ""

    @property
    def exceeds(self) -> bool:
        """Whether the interval excludes zero."""
        return bool(self.way)

    @property
    def p_text(self) -> str:
        """The p-value as text; "" if it is not known."""
        return "" if np.isnan(self.p) else "p < 0.01" if self.p < 0.01 else f"p = {self.p:.2f}"

    def to_row(self) -> dict[str, Any]:
        """Return the cells of table.csv."""
        return {"difference": self.interval.value, "difference_low": self.interval.low,
                "difference_high": self.interval.high, "p": self.p, "exceeds": self.exceeds}  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {**self.interval.to_dict(), "p": None if np.isnan(self.p) else self.p, "exceeds": self.exceeds}


@dataclass(frozen=True)
class Comparison:
    """Methods compared; values are means over seeds, intervals are over groups of images and over seeds."""

    methods: list[str]  # in the order given
    baseline: str  # the method that the others are compared with
    seeds: dict[str, list[int]]  # of each method, rising
    generators: dict[str, GeneratorSummary]
    classes: dict[str, Accuracy]  # what the rows of the metric accuracy stand for
    # Metric → generator, mean or key of ``classes`` → method → interval. AP and AUC are there if any generator has
    # fakes and reals, accuracy if any method has a threshold or there is nothing else.
    values: Values
    differences: Differences  # the same → method (not the baseline) → difference
    n_rows: int  # images that all runs scored
    n_left_out: int  # images that only some runs scored
    n_groups: int  # groups (photographs or prompts) among the images that all scored
    support: dict[str, int]  # mean → groups that its rarer class, real or fake, comes from
    n_resamples: int
    level: float

    def to_dict(self) -> dict[str, Any]:
        """Return the content of summary.json."""

        def plain(tree: Mapping[str, Any]) -> dict[str, Any]:
            return {key: plain(node) if isinstance(node, Mapping) else node.to_dict() for key, node in tree.items()}

        return {
            "methods": self.methods, "baseline": self.baseline, "seeds": self.seeds,
            "n_seeds": {method: len(seeds) for method, seeds in self.seeds.items()},
            "n_images": self.n_rows, "n_images_left_out": self.n_left_out, "n_groups": self.n_groups,
            "n_groups_behind_means": self.support, "n_resamples": self.n_resamples, "level": self.level,
            "generators": {name: asdict(row) for name, row in self.generators.items()},
            "classes": {key: {name: getattr(row, name) for name in ("label", "name", "n", "n_groups")}
                        for key, row in self.classes.items()},
            "values": plain(self.values), "differences_to_baseline": plain(self.differences),
        }  # fmt: skip

    def members(self, mean: str) -> list[str]:
        """Return the generators that a mean is over: those of its kind with both classes."""
        return mean_members(self.generators, mean)[0]

    @property
    def few_groups(self) -> int:
        """Return how many groups the results rest on where they are too few to trust the intervals, else 0."""
        counts = [count for mean, count in self.support.items() if self.members(mean)]
        fewest = min(counts or [row.n_groups for row in self.classes.values() if not row.name], default=0)
        return fewest if fewest < FEW_GROUPS else 0

    @property
    def leading_mean(self) -> str | None:
        """Return the mean that decides what won: over unseen generators, else over seen, else over all."""
        return next((mean for mean in ("map_unseen", "map_seen", "map") if self.members(mean)), None)

    @property
    def best(self) -> str:
        """Return the method with the highest leading mean AP; the baseline where there is none."""
        values = self.values["ap"][self.leading_mean] if self.leading_mean else {}
        return max(values, key=lambda method: values[method].value, default=self.baseline)

    def chance(self, name: str) -> float:
        """Return the AP of a detector that guesses, for a generator or a mean: the share of fakes among the images."""
        rows = [self.generators[one] for one in ([name] if name in self.generators else self.members(name))]
        shares = [row.n_fake / (row.n_fake + row.n_real) for row in rows]
        return sum(shares) / len(shares) if shares else float("nan")


def compare(
    runs: Runs, baseline: str, pairs: Pairs | None, seen: Collection[str] | None, n_resamples: int = 1000,
    seed: int = 0, level: float = 0.95, known_reals: Collection[str] | None = None,
) -> Comparison:  # fmt: skip
    """Compare methods on the rows that all their runs scored.

    Every resample draws whole groups of images and, where a method has several, seeds. A difference is paired over
    both: it is over the seeds that method and baseline share, with the same seeds drawn for both. Where they share
    none, their seeds are drawn independently.

    Args:
        runs: method → (seed, predictions frame) of each of its runs; ``baseline`` is one of the methods.
        pairs, known_reals: as for :func:`fakedet.metrics.pairing.real_counterparts`.
        seen: generators seen in training; None where nobody knows.
        n_resamples, seed, level: of the bootstrap and its intervals; the level is in (0, 1).

    Raises:
        UserError: a method without runs, an unknown baseline, or frames of different data.
    """
    if not runs.get(baseline):
        finished = [method for method, own in runs.items() if own]
        raise UserError(f"the baseline '{baseline}' has no finished run; {nearest(baseline, finished)}")
    if empty := [method for method, own in runs.items() if not own]:
        raise UserError(f"no finished run of {', '.join(empty)}; leave such methods out of the comparison")
    frames: dict[str, pd.DataFrame] = {}
    keys: dict[str, dict[Run, str]] = {method: {} for method in runs}
    for method, listed in runs.items():
        for number, frame in sorted(listed, key=lambda row: row[0]):
            key = f"{method}#{len(keys[method])}"
            earlier = sum(other == number for other, _ in keys[method])
            keys[method][int(number), earlier] = key
            frames[key] = frame
    frame, aligned, left_out = align(frames)
    logits = {key: own["logit"].to_numpy(dtype=np.float64) for key, own in aligned.items()}
    called = {key: called_fake(own) for key, own in aligned.items()}
    table = bootstrap_statistics(frame, logits, pairs, seen, n_resamples, seed, known_reals)
    classes = accuracies(frame, called, n_resamples, seed)
    found = _statistics(table, classes, called)
    values: Values = {metric: {} for metric in found}
    differences: Differences = {metric: {} for metric in found}
    for metric, by_name in found.items():
        for name, by_key in by_name.items():
            by_run = {method: {run: by_key[key] for run, key in own.items()} for method, own in keys.items()}
            means = {method: mean_of_runs(list(own.values()), seed) for method, own in by_run.items()}
            values[metric][name] = {
                method: share_interval(*mean, classes[name].n_groups, level) if metric == "accuracy"
                else percentile_interval(*mean, level) for method, mean in means.items()
            }  # fmt: skip
            differences[metric][name] = {method: _difference(own, by_run[baseline], seed, level)
                                         for method, own in by_run.items() if method != baseline}  # fmt: skip
    return Comparison(
        list(runs), baseline, {method: [number for number, _ in own] for method, own in keys.items()},
        table.generators, classes, values, differences, len(frame), left_out, len(set(group_cells(frame)[0])),
        _support(frame, real_counterparts(frame, pairs, known_reals), table.generators), n_resamples, level,
    )  # fmt: skip


def _statistics(
    table: BootstrapTable, classes: Mapping[str, Accuracy], called: Mapping[str, NDArray[np.float64]]
) -> dict[str, dict[str, dict[str, Statistic]]]:
    """Return metric → generator, mean or class → key of a run → its value, and (R,) values of the resamples.

    AP and AUC where a generator has fakes and reals; the accuracy where it has not, or any run has a threshold.
    """
    found: dict[str, dict[str, dict[str, Statistic]]] = {}
    for metric in METRICS if mean_members(table.generators, "map")[0] else ():
        if metric == "auc_matched" and table.matched_by != "features":  # by source it is the plain AUC, or nearly
            continue
        found[metric] = {
            name: {key: (table.value(key, metric, name), table.samples(key, metric, name)) for key in called}
            for name in (*table.generators, *MEANS)
        }
    if not found or not all(np.isnan(calls).all() for calls in called.values()):
        found["accuracy"] = {name: {key: (row.points[key], row.samples[key]) for key in called}
                             for name, row in classes.items()}  # fmt: skip
    return found


def _support(
    frame: pd.DataFrame, counterparts: Mapping[str, Counterparts], generators: Mapping[str, GeneratorSummary]
) -> dict[str, int]:
    """Count, for each mean, the groups that its rarer class comes from."""
    groups, support = group_cells(frame)[0], {}
    for mean in MEANS:
        own = [counterparts[name] for name in mean_members(generators, mean)[0]]
        sides = ([row.real_rows for row in own], [row.fake_rows for row in own])
        support[mean] = min(len(set(groups[np.concatenate(side)])) if side else 0 for side in sides)
    return support


def mean_of_runs(runs: Sequence[Statistic], seed: int, stream: int = 0) -> Statistic:
    """Return the mean over runs, and the (R,) means over as many drawn with replacement in each resample."""
    by_seed = np.stack([samples for _, samples in runs], axis=1)
    # Methods with equally many seeds get the same draw; another stream is an independent one.
    rng = np.random.default_rng([seed, len(runs), *([stream] if stream else [])])
    drawn = np.take_along_axis(by_seed, rng.integers(len(runs), size=by_seed.shape), axis=1).mean(axis=1)
    return float(np.mean([value for value, _ in runs])), drawn


def _difference(own: Mapping[Run, Statistic], base: Mapping[Run, Statistic], seed: int, level: float) -> Difference:
    """Subtract the baseline, over the seeds that both have."""
    shared = [run for run in own if run in base]
    value, samples = mean_of_runs([own[run] for run in shared or own], seed)
    base_value, base_samples = mean_of_runs([base[run] for run in shared or base], seed, stream=0 if shared else 1)
    return difference_of(value - base_value, samples - base_samples, level)


def difference_of(value: float, samples: NDArray[np.float64], level: float) -> Difference:
    """Return a difference with its interval and two-sided p from its value and the (R,) paired resamples."""
    interval = percentile_interval(value, samples, level)
    if np.isnan(interval.low):
        return Difference(interval, float("nan"))
    known = samples[~np.isnan(samples)]
    beyond = min(int((known <= 0).sum()), int((known >= 0).sum()))
    return Difference(interval, min(1.0, 2 * (beyond + 1) / (len(known) + 1)))


def opening(comparison: Comparison) -> list[str]:
    """Say in three plain sentences what was compared, what won or that nothing did, and how sure that is."""
    methods, base = comparison.methods, comparison.baseline
    fakes = sum(row.n_fake for row in comparison.generators.values())
    unseen = len([row for row in comparison.generators.values() if row.seen is False])
    told = f"{len(methods)} methods ({', '.join(methods)}) were compared" if methods[1:] else f"{base} was tested"
    compared = f"{told} on {comparison.n_rows - fakes:,} real images"
    if fakes:
        count = len(comparison.generators)
        compared += f" and {fakes:,} fakes by {count} generator{'s' * (count > 1)}"
        compared += f", of which {unseen or 'none'} {'were' if unseen > 1 else 'was'} kept out of training"
    if (mean := comparison.leading_mean) is None:
        return [f"{compared}.", *verdict(comparison)[:2]]
    where, values, gaps = WHERE[mean], comparison.values["ap"][mean], comparison.differences["ap"][mean]
    better = sorted((name for name, gap in gaps.items() if gap.way == "above"), key=lambda name: -values[name].value)
    worse = [name for name, gap in gaps.items() if gap.way == "below"]
    value, guess = values[base].value, comparison.chance(mean)
    if not gaps:
        won = f"On {where} its mean AP is {value:.2f}, where a guess has {guess:.2f} and a perfect detector 1."
    elif comparison.few_groups or not better:
        won = f"Nothing won: on {where} the mean AP of {base} is {value:.2f} (a guess has {guess:.2f}), and no method "
        won += "is shown to be better." if better or not worse else f"is better; {_and(worse)} had less."
    else:
        won = f"{better[0]} won: on {where} its mean AP is {values[better[0]].value:.2f}, that of {base} {value:.2f}"
        won += f"; {_and(better[1:])} also did better than {base}." if better[1:] else "."
    return [f"{compared}.", won, _sure(comparison, [*better, *worse])]


def _sure(comparison: Comparison, different: Sequence[str]) -> str:
    seeds = min(len(own) for own in comparison.seeds.values())
    times = f"{seeds} training run{'s' * (seeds > 1)} of each method"
    if few := comparison.few_groups:
        hint = f"; the difference of {_and(different)} to {comparison.baseline} is a hint only" if different else ""
        told = f"How sure: not very. It rests on {few} photographs or prompts and {times}"
        return f"{told}, too few to trust the intervals{hint}."
    told = f"How sure: the {comparison.level:.0%} intervals are over {comparison.n_groups:,} photographs or prompts"
    if seeds < FEW_SEEDS:
        return f"{told}, but only {times}: they understate how much training varies."
    return f"{told} and {times}."


def _and(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if names[1:] else names)


def verdict(comparison: Comparison) -> list[str]:
    """Say in sentences whether differences exceed their intervals, and what the intervals do not cover."""
    told = [*_sentences(comparison, "map_unseen"), *_sentences(comparison, "map_seen")]
    told = told or _sentences(comparison, "map") or _sentences_of_accuracy(comparison)
    if few := comparison.few_groups:
        told.append(f"The intervals rest on only {few} photographs or prompts: with so few, they are too narrow, and a "
                    "difference that exceeds its interval is a hint and no result.")  # fmt: skip
    told += seed_notes(comparison.seeds, comparison.baseline)
    if comparison.n_left_out:
        told.append(f"{comparison.n_left_out} images that not every run has scored are left out for all methods.")
    return told


def seed_notes(seeds: Mapping[str, Sequence[int]], baseline: str) -> list[str]:
    """Say in sentences what the intervals do not cover of how training varies, and which seeds differ."""
    told = []
    fewest = min(map(len, seeds.values()))
    if fewest == 1:
        told.append("With one seed per method, the intervals leave out how much training varies.")
    elif fewest < FEW_SEEDS:
        told.append(f"With {fewest} seeds per method, the intervals understate how much training varies.")
    for method, own in seeds.items():
        if list(own) != list(seeds[baseline]):
            shared = ", ".join(str(seed) for seed in own if seed in seeds[baseline])
            over = f"over the seeds that both have ({shared})" if shared else "not paired over seeds"
            told.append(f"{method} and {baseline} have different seeds; their difference is {over}.")
    return told


def _sentences(comparison: Comparison, mean: str) -> list[str]:
    members = comparison.members(mean)
    if not members:
        return []
    fakes = sum(comparison.generators[name].n_fake for name in members)
    aps, aucs = (comparison.values[metric][mean] for metric in ("ap", "auc"))
    ap_gaps, auc_gaps = (comparison.differences[metric][mean] for metric in ("ap", "auc"))
    base = aps[comparison.baseline].text(".3f")
    told = [f"On {WHERE[mean]} ({len(members)}, with {fakes} fakes), {comparison.baseline} reaches mAP {base}."]
    hint = ", which is too narrow here" if comparison.support[mean] < FEW_GROUPS else ""
    for method, gap in ap_gaps.items():
        says = f"is {gap.way} it" if gap.way else "does not differ from it"
        value, interval = aps[method].text(".3f"), gap.interval.text("+.3f")
        told.append(f"{method} ({value}) {says} by more than the interval{hint if gap.way else ''}: {interval}.")
    areas = [f"{comparison.baseline} {aucs[comparison.baseline].text('.3f')}"]
    for method, gap in auc_gaps.items():
        way = f", {gap.way} it by more than the interval{hint}" if gap.way else ""
        areas.append(f"{method} {aucs[method].text('.3f')} ({gap.interval.text('+.3f')}{way})")
    # AUC does not depend on the number of fakes per real, as AP does.
    return [*told, f"Mean AUC there (chance is 0.5 whatever the share of fakes): {'; '.join(areas)}."]


def _sentences_of_accuracy(comparison: Comparison) -> list[str]:
    """Say what can be said where no generator has fakes and reals: false alarms, or how many fakes are detected."""
    told = ["No generator has fakes and real counterparts among these images, so AP and AUC are not defined."]
    for key, row in comparison.classes.items():
        if row.name:
            continue
        values = comparison.values["accuracy"][key]
        what = ("real images, {} calls {} real: the others are false alarms", "fakes, {} detects {}")[row.label]
        told.append(f"Of {row.n} " + what.format(comparison.baseline, values[comparison.baseline].text(".3f")) + ".")
        for method, gap in comparison.differences["accuracy"][key].items():
            says = f"is {gap.way} it" if gap.way else "does not differ from it"
            interval = gap.interval.text("+.3f")
            told.append(f"{method} ({values[method].text('.3f')}) {says} by more than the interval: {interval}.")
        if without := [method for method, value in values.items() if np.isnan(value.value)]:
            told.append(f"{', '.join(without)}: without a threshold, so only scores are known; train with a validation "
                        "split that has reals.")  # fmt: skip
    return told


@dataclass(frozen=True)
class Row:
    """One row of a table: a generator, a mean or a class."""

    name: str
    key: str  # in ``Comparison.values``
    section: str  # of SECTIONS, or "mean"; for accuracy "real" (a collection of reals) or "all" (images of a class)
    counts: str
    cells: dict[str, Interval]

    @property
    def below(self) -> str:
        """What stands below the name: the section of a generator, and the counts."""
        return f"{self.section}, {self.counts}" if self.section in SECTIONS.values() else self.counts

    @property
    def sums_up(self) -> bool:
        """Whether it stands for several rows."""
        return self.section in ("mean", "all")


def rows(comparison: Comparison, metric: str = "ap") -> list[Row]:
    """List the collections of reals (for accuracy), the seen generators, the unseen generators, then the means."""
    values = comparison.values[metric]
    if metric == "accuracy":
        return _rows_of_accuracy(comparison)
    listed = []
    for name, row in sorted(comparison.generators.items(), key=lambda item: list(SECTIONS).index(item[1].seen)):
        counts = f"{row.n_real} real ({against(row.rule, row.reals)}), {row.n_fake} fake"
        listed.append(Row(name, name, SECTIONS[row.seen], counts, values[name]))
    for key, name in MEANS.items():
        members, left_out = mean_members(comparison.generators, key)
        if members:
            counts = f"{len(members)} generator{'s' * (len(members) > 1)}"
            counts += f", without {', '.join(left_out)}" if left_out else ""
            listed.append(Row(name, key, "mean", counts, values[key]))
    return listed


def _rows_of_accuracy(comparison: Comparison) -> list[Row]:
    values, classes = comparison.values["accuracy"], comparison.classes
    sections = {name: SECTIONS[row.seen] for name, row in comparison.generators.items()}
    listed = []
    for key, row in classes.items():
        kind = ("real", "fake")[row.label]
        members = [other for other in classes.values() if other.label == row.label and other.name]
        # ForenSynths names the reals as the generator that was trained on them.
        twice = f" ({kind})" if sum(other.name == row.name for other in classes.values()) > 1 else ""
        section = "all" if not row.name else "real" if row.label == 0 else sections.get(row.name, "unknown")
        if row.name or len(members) != 1:
            name = row.name + twice if row.name else f"all {kind}s"
            listed.append(Row(name, key, section, f"{row.n} {kind}", values[key]))
    return sorted(listed, key=lambda one: ("real", *SECTIONS.values(), "all").index(one.section))


def console_table(comparison: Comparison, title: str) -> Table:
    """Lay out the APs, of one class alone the accuracies, for a terminal; six methods fit 100 columns."""
    metric = next(iter(comparison.values))
    # Text and not str: a name may contain what rich would take for markup.
    table = Table(title=Text(title), title_justify="left", caption_justify="left", pad_edge=False)
    table.add_column("generator", overflow="fold", min_width=14)
    for method in comparison.methods:
        table.add_column(Text(method), justify="right", overflow="fold", min_width=9)
    section = ""
    for row in rows(comparison, metric):
        if section and row.section != section:
            table.add_section()
        section = row.section
        cells = [Text.assemble((row.name, "bold" if row.sums_up else ""), "\n", (row.below, "dim"))]
        for method in comparison.methods:
            value, _, interval = row.cells[method].text().partition(" ")
            below = (interval.strip("[]").replace(", ", "–"), "dim")
            cells.append(Text.assemble(value, "\n", below) if interval else Text(value))
        table.add_row(*cells)
    over = "(bootstrap over photographs or prompts, and seeds)" + "; means over generators" * (metric == "ap")
    table.caption = Text(f"{TITLES[metric]} with {comparison.level:.0%} interval {over}")
    return table


def write_csv(comparison: Comparison, path: Path) -> None:
    """Write one line per generator or mean, method and metric, with the difference to the baseline."""
    lines = []
    for metric, by_name in comparison.differences.items():
        for row in rows(comparison, metric):
            for method, cell in row.cells.items():
                line = {"metric": metric, "name": row.key, "section": row.section, "counts": row.counts,
                        "method": method, **vars(cell)}  # fmt: skip
                if gap := by_name[row.key].get(method):
                    line |= gap.to_row()
                lines.append(line)
    pd.DataFrame(lines).to_csv(path, index=False)


def markdown(comparison: Comparison, metric: str = "ap", differences: bool = False) -> str:
    """Write the table in Markdown: each method's values, or the other methods' paired differences to the baseline."""
    methods = [method for method in comparison.methods if not (differences and method == comparison.baseline)]
    lines = ["| " + " | ".join(["generator", *map(escape, methods)]) + " |", "|---|" + "---:|" * len(methods)]
    for row in rows(comparison, metric):
        name = f"**{escape(row.name)}**" if row.sums_up else escape(row.name)
        gaps = comparison.differences[metric][row.key]
        cells = [gaps[method].interval.text("+.3f") if differences else row.cells[method].text() for method in methods]
        lines.append(f"| {name} ({escape(row.below)}) | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def write_markdown(comparison: Comparison, path: Path) -> None:
    """Write each metric's table, and the paired differences to the baseline where there are other methods."""
    parts = []
    for metric in comparison.values:
        parts.append(f"{TITLES[metric]}\n\n{markdown(comparison, metric)}")
        if comparison.methods[1:]:
            head = f"{TITLES[metric]}: paired differences to {comparison.baseline}"
            parts.append(f"{head}\n\n{markdown(comparison, metric, differences=True)}")
    path.write_text("\n".join(parts), encoding="utf-8")


def escape(name: str) -> str:
    """Escape what would end a table's cell or start a tag."""
    return name.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")
