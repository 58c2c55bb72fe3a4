"""Comparing methods by families of generators left out of training: means, worst families, and what to choose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fakedet.errors import UserError, nearest
from fakedet.evaluation import plots
from fakedet.evaluation.comparison import (
    FEW_GROUPS,
    TITLES,
    Difference,
    Statistic,
    difference_of,
    escape,
    mean_of_runs,
    seed_notes,
)
from fakedet.evaluation.predictions import align, called_fake
from fakedet.metrics.bootstrap import Interval, draw_families, mean_over_families, percentile_interval
from fakedet.metrics.decisions import Strata, false_alarms, percent
from fakedet.metrics.families import bootstrap_families
from fakedet.metrics.matched import content_note
from fakedet.metrics.pairing import against
from fakedet.metrics.per_generator import METRICS, BootstrapTable, GeneratorSummary
from fakedet.pages import Drawing, render
from fakedet.utils import write_json

MEAN, WORST = "mean over families", "worst family"

Predictions = Mapping[tuple[str, str, int], pd.DataFrame]


@dataclass(frozen=True)
class FamilyComparison:
    """Methods compared on families of generators that they were trained without.

    Values are means over seeds. The interval of a family and of the worst one is over photographs or prompts, and over
    seeds; that of the mean is over families too. The worst family is that with the lowest value; its interval keeps the
    families as they are, because a bootstrap over families is not valid for the lowest of them.
    """

    methods: list[str]  # in the order given
    baseline: str
    seeds: dict[str, list[int]]  # of each method, rising
    families: dict[str, GeneratorSummary]
    matched_by: str | None  # see :class:`fakedet.metrics.per_generator.AveragePrecision`
    # Metric (of METRICS) → :data:`MEAN`, :data:`WORST` or family → method → interval
    values: dict[str, dict[str, dict[str, Interval]]]
    differences: dict[str, dict[str, dict[str, Difference]]]  # the same, of methods other than the baseline
    worst: dict[str, dict[str, str]]  # metric → method → its worst family
    n_images: int
    n_groups: int
    notes: list[str]  # runs that are left out and why, and what the intervals do not cover
    n_resamples: int
    level: float

    @property
    def chosen(self) -> str:
        """The method with the highest mean AUC over families."""
        return max(self.methods, key=lambda method: self.values["auc"][MEAN][method].value)

    def to_dict(self) -> dict[str, Any]:
        """Return the content of summary.json."""

        def plain(tree: Mapping[str, Any]) -> dict[str, Any]:
            return {key: plain(node) if isinstance(node, Mapping) else node.to_dict() for key, node in tree.items()}

        families = {name: {key: value for key, value in asdict(row).items() if key != "seen"}
                    for name, row in self.families.items()}  # fmt: skip
        return {**vars(self), "families": families, "values": plain(self.values), "chosen": self.chosen,
                "differences": plain(self.differences)}  # fmt: skip


def compare_families(
    predictions: Predictions, baseline: str, resamples: int = 1000, seed: int = 0, level: float = 0.95
) -> FamilyComparison:
    """Compare methods on the families that each run was trained without.

    Every resample draws families, photographs or prompts, and the seeds of each method, all with replacement and the
    same for all methods (:func:`fakedet.metrics.families.bootstrap_families`). Differences are over the seeds that a
    method shares with the baseline.

    Args:
        predictions: (method, family, seed) → the test images scored by the method's run that was trained without the
            family: path, label, generator, family, source, group, logit and, where known, content, a (D,) array for
            each image that says what it shows (see :func:`fakedet.metrics.matched.content_pairs`). Fakes of other
            families are left out.
        baseline: one of the methods.
        resamples, seed, level: of the bootstrap and its intervals.

    Raises:
        UserError: an unknown baseline, a column missing, a method without any seed that has run on all families, or
            runs of one family that scored different images.
    """
    methods = list(dict.fromkeys(method for method, _, _ in predictions))
    if baseline not in methods:
        raise UserError(f"baseline={baseline}: {nearest(baseline, methods)}")
    families = sorted({family for _, family, _ in predictions})
    seeds, notes = _complete(predictions, methods, families)
    keys = {(method, number): f"{method}#{number}" for method, own in seeds.items() for number in own}
    frames: dict[str, pd.DataFrame] = {}
    logits: dict[str, dict[str, NDArray[np.float64]]] = {}
    for family in families:
        runs = {key: _of_family(predictions[method, family, number], family, f"{method}, seed {number}")
                for (method, number), key in keys.items()}  # fmt: skip
        frames[family], aligned, left_out = align(runs)
        logits[family] = {key: frame["logit"].to_numpy(dtype=np.float64) for key, frame in aligned.items()}
        if left_out:
            notes.append(f"{family}: {left_out} images that not every run has scored are left out for all methods.")
    if len(families) < FEW_GROUPS:
        notes.append(f"With {len(families)} families, intervals over families are somewhat too narrow.")
    table = bootstrap_families(frames, logits, resamples, seed)
    drawn = draw_families(len(families), resamples, seed)
    images = pd.concat([frame[["path", "group"]] for frame in frames.values()])
    found = {
        metric: _Metric(table, metric, keys, families, drawn, seed).compare(seeds, baseline, level)
        for metric in METRICS if metric != "auc_matched" or table.matched_by
    }  # fmt: skip
    return FamilyComparison(
        methods, baseline, seeds, table.generators, table.matched_by,
        {metric: values for metric, (values, _, _) in found.items()},
        {metric: differences for metric, (_, differences, _) in found.items()},
        {metric: worst for metric, (_, _, worst) in found.items()},
        int(images["path"].nunique()), int(images["group"].nunique()), [*notes, *seed_notes(seeds, baseline)],
        resamples, level,
    )  # fmt: skip


class _Metric:
    """One metric of all runs, and how it is summed up over seeds and families."""

    def __init__(
        self, table: BootstrapTable, metric: str, keys: Mapping[tuple[str, int], str], families: Sequence[str],
        drawn: NDArray[np.int64], seed: int,
    ) -> None:  # fmt: skip
        self.table, self.metric, self.keys, self.drawn, self.seed = table, metric, keys, drawn, seed
        # Those without fakes that show what a real does have no matched AUC.
        known = [metric != "auc_matched" or table.generators[name].n_matched > 0 for name in families]
        self.families, self.known = list(families), np.array(known)

    def compare(
        self, seeds: Mapping[str, list[int]], baseline: str, level: float
    ) -> tuple[dict[str, dict[str, Interval]], dict[str, dict[str, Difference]], dict[str, str]]:
        """Return values, differences to the baseline and worst families; see :class:`FamilyComparison`."""
        values: dict[str, dict[str, Interval]] = {name: {} for name in (MEAN, WORST, *self.families)}
        differences: dict[str, dict[str, Difference]] = {name: {} for name in values}
        worst = {}
        for method, own in seeds.items():
            rows = self._rows(method, own)
            known = {family: rows[family][0] for family in self.families if not np.isnan(rows[family][0])}
            worst[method] = min(known, key=lambda family: known[family], default="")
            for name, (value, samples) in rows.items():
                values[name][method] = percentile_interval(value, samples, level)
            if method != baseline:
                shared = [number for number in own if number in seeds[baseline]]
                first = self._rows(method, shared or own)
                second = self._rows(baseline, shared or seeds[baseline], stream=0 if shared else 1)
                for name, (value, samples) in first.items():
                    gap = difference_of(value - second[name][0], samples - second[name][1], level)
                    differences[name][method] = gap
        return values, differences, worst

    def _rows(self, method: str, seeds: Sequence[int], stream: int = 0) -> dict[str, Statistic]:
        """Average a method over seeds and sum it up over families."""
        each = {}
        for family in self.families:
            runs = [self.keys[method, number] for number in seeds]
            found = [(self.table.value(run, self.metric, family), self.table.samples(run, self.metric, family))
                     for run in runs]  # fmt: skip
            each[family] = mean_of_runs(found, self.seed, stream)
        values = np.array([value for value, _ in each.values()])[self.known]
        samples = np.stack([samples for _, samples in each.values()], axis=1)[:, self.known]
        if not len(values):
            nothing = (float("nan"), np.full(len(samples), np.nan))
            return {MEAN: nothing, WORST: nothing, **each}
        mean = mean_over_families(samples, self.drawn[:, self.known])
        return {MEAN: (float(values.mean()), mean), WORST: (float(values.min()), samples.min(axis=1)), **each}


def _complete(
    predictions: Predictions, methods: Sequence[str], families: Sequence[str]
) -> tuple[dict[str, list[int]], list[str]]:
    """Return the seeds of each method that have run on all families, and a sentence for each that has not."""
    seeds: dict[str, list[int]] = {}
    notes = []
    for method in methods:
        seeds[method] = []
        for number in sorted({number for name, _, number in predictions if name == method}):
            lacking = [family for family in families if (method, family, number) not in predictions]
            if lacking:
                notes.append(f"{method}, seed {number}, is left out: no run without {', '.join(lacking)}.")
            else:
                seeds[method].append(number)
        if not seeds[method]:
            raise UserError(f"{method}: no seed has run on all {len(families)} families. {' '.join(notes)}")
    return seeds, notes


def _of_family(frame: pd.DataFrame, family: str, run: str) -> pd.DataFrame:
    """Return the family's fakes and all reals of a run's predictions."""
    wanted = ("path", "label", "generator", "family", "source", "group", "logit")
    if missing := [name for name in wanted if name not in frame]:
        raise UserError(f"{run}, without {family}: the predictions have no column {', '.join(missing)}")
    return frame[(frame["label"] == 0) | (frame["family"] == family)]


def next_window(frame: pd.DataFrame, windows: Mapping[str, Sequence[str]]) -> pd.Series:
    """Name the window of each fake that came next after those that its run was trained on, "" for what came later.

    Args:
        frame: images with the column ``left_out``, which is "" for families that were trained on.
        windows: name → its families, by date.
    """
    of = {family: name for name, families in windows.items() for family in families}
    named = frame["family"].map(of).where((frame["left_out"] != "") & (frame["label"] == 1))
    first = next((name for name in windows if (named == name).any()), "")
    return named.where(named == first, "").fillna("")


def tell_false_alarms(frames: Mapping[str, Sequence[pd.DataFrame]]) -> list[str]:
    """Say of each method how often it calls photographs fake whose collection its run was trained without.

    Args:
        frames: method → the photographs of such runs, with their verdicts and the collection ``left_out``.
    """
    told = []
    for method, parts in frames.items():
        rows = pd.concat(parts, ignore_index=True)
        called = called_fake(rows)
        if len(rows) and not np.isnan(called).any():
            alarms = false_alarms(called, Strata.of(rows["left_out"], rows["group"]))
            each = ", ".join(f"{name} {percent(share)} %" for name, share in alarms.shares.items())
            told.append(f"{method}: called fake at each run's threshold: {alarms}. By collection: {each}.")
    return told


def opening(comparison: FamilyComparison) -> list[str]:
    """Say in sentences how the methods rank, what is chosen, and what the matched AUC says of it."""
    values, worst, base = comparison.values["auc"], comparison.worst["auc"], comparison.baseline
    ranked = sorted(comparison.methods, key=lambda method: -values[MEAN][method].value)
    told = []
    for number, method in enumerate(ranked, start=1):
        line = (
            f"{number}. {method}: mean AUC over {len(comparison.families)} families {values[MEAN][method].text('.3f')}"
        )
        line += f", worst family {worst[method]} {values[WORST][method].text('.3f')}"
        if "auc_matched" in comparison.values:
            line += f", on the same content {comparison.values['auc_matched'][MEAN][method].text('.3f')}"
        if gap := comparison.differences["auc"][MEAN].get(method):
            line += f"; difference to {base} {gap.interval.text('+.3f')} ({gap.p_text or 'p unknown'})"
        told.append(line)
    best = comparison.chosen
    line = f"chosen: {best}: highest mean; its worst family is {worst[best]} ({values[WORST][best].text('.3f')})"
    if gap := comparison.differences["auc"][MEAN].get(best):
        line += f"; the difference to {base} {'excludes' if gap.exceeds else 'does not exclude'} 0"
    told.append(f"{line}.")
    for method in comparison.methods if "auc_matched" in comparison.values else ():
        matched = comparison.values["auc_matched"][MEAN][method]
        if note := content_note(values[MEAN][method], matched, comparison.matched_by):
            told.append(f"{method}: {note}")
    return told


def table(comparison: FamilyComparison, metric: str, differences: bool = False) -> str:
    """Lay out a metric in Markdown: means first, then families; ``differences``: paired, to the baseline."""
    methods = [method for method in comparison.methods if not (differences and method == comparison.baseline)]
    lines = ["| " + " | ".join(["family", *map(escape, methods)]) + " |", "|---|" + "---:|" * len(methods)]
    for name, cells in comparison.values[metric].items():
        gaps = comparison.differences[metric][name]
        found = [gaps[method].interval.text("+.3f") if differences else cells[method].text(".3f") for method in methods]
        lines.append("| " + " | ".join([escape(name) + below(comparison, name, metric), *found]) + " |")
    return "\n".join(lines) + "\n"


def below(comparison: FamilyComparison, name: str, metric: str) -> str:
    """Say what a family was measured on, in brackets; "" for the mean and the worst family."""
    if not (row := comparison.families.get(name)):
        return ""
    matched = f", {row.n_matched} of them with reals of the same content" * (metric == "auc_matched")
    return f" ({row.n_fake} fake{matched}, {row.n_real} real: {against(row.rule, row.reals)})"


def write_report(comparison: FamilyComparison, folder: Path, title: str, caveats: Sequence[str]) -> list[str]:
    """Write summary.json, table.csv, table.md, a figure for each metric and report.html into a folder.

    Returns:
        Lines for the console: the ranking, the choice, the caveats and notes.
    """
    told, read_with = opening(comparison), [*caveats, *comparison.notes]
    write_json(folder / "summary.json", {**comparison.to_dict(), "title": title, "opening": told, "caveats": read_with})
    lines = []
    for metric, by_name in comparison.values.items():
        for name, cells in by_name.items():
            for method, cell in cells.items():
                gap = comparison.differences[metric][name].get(method)
                of = comparison.worst[metric][method] if name == WORST else ""
                line = {"metric": metric, "family": name, "of": of, "method": method, **vars(cell)}
                lines.append(line | (gap.to_row() if gap else {}))
    pd.DataFrame(lines).to_csv(folder / "table.csv", index=False)
    others, parts, figures = (
        comparison.methods[1:],
        [f"# {title}\n", "\n".join(f"- {line}" for line in told) + "\n"],
        [],
    )
    for metric in comparison.values:
        parts.append(f"## {TITLES[metric]}\n\n{table(comparison, metric)}")
        if others:
            head = f"### {TITLES[metric]}: paired differences to {comparison.baseline}"
            parts.append(f"{head}\n\n{table(comparison, metric, differences=True)}")
        listed = {name: {method: cell.to_dict() for method, cell in cells.items()}
                  for name, cells in comparison.values[metric].items()}  # fmt: skip
        sections = {name: "mean" if name in (MEAN, WORST) else "family" for name in listed}
        picture = plots.plot_intervals(listed, TITLES[metric],
                                       folder / f"{metric}.png", sections, {} if metric == "ap" else None)  # fmt: skip
        figures.append(Drawing(picture, f"{TITLES[metric]} of each method: the mean over families, the worst family, "
                                        "then each family by the detectors that were trained without it."))  # fmt: skip
    parts += ["".join(f"- {line}\n" for line in read_with)] if read_with else []
    (folder / "table.md").write_text("\n".join(parts), encoding="utf-8")
    render(
        "fakedet.evaluation", "report/families.html", folder / "report.html", title=title, comparison=comparison,
        opening=told, caveats=read_with, figures=figures, titles=TITLES, top=(MEAN, WORST), below=below,
    )  # fmt: skip
    return [*told, *read_with]
