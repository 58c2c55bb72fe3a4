"""Rebuild tables, figures and the page from predictions files alone: what ``fakedet report`` does."""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import DictConfig, OmegaConf

from fakedet.errors import UserError, nearest
from fakedet.evaluation.comparison import Comparison, compare
from fakedet.evaluation.html import Figure
from fakedet.evaluation.page import Page, write_page
from fakedet.evaluation.plots import plot_intervals, plot_scores
from fakedet.evaluation.predictions import read_predictions
from fakedet.evaluation.reliability import plot_curves_of_decision, plot_reliability
from fakedet.evaluation.robustness_plot import plot_robustness
from fakedet.evaluation.table import markdown, rows, write_csv
from fakedet.evaluation.verdict import verdict
from fakedet.metrics.bootstrap import Interval
from fakedet.runs.folder import open_folder, provenance, write_config, write_json
from fakedet.runs.robustness import measure as measure_robustness

log = logging.getLogger("fakedet")

ORIGINAL = "original"


@dataclass(frozen=True)
class Read:
    """One predictions file."""

    method: str
    seed: int
    path: Path
    frame: pd.DataFrame
    identity: dict[str, Any]

    @property
    def original(self) -> pd.DataFrame:
        """The rows of images as they are."""
        return self.frame[self.frame["view"] == ORIGINAL].reset_index(drop=True)


def report(config: DictConfig, overrides: list[str]) -> tuple[Comparison, Path]:
    """Write report.html, summary.json, table.csv, table.md and figures from predictions files.

    Raises:
        UserError: a file is no predictions file, or they are of different data.
    """
    started = time.perf_counter()
    given = config.predictions
    paths = [given] if isinstance(given, str) else [str(path) for path in given]
    if not paths:
        raise UserError("predictions=[]: name at least one predictions.parquet")
    read = _named([read_predictions(path) for path in paths], [Path(path) for path in paths])
    baseline = config.baseline or read[0].method
    methods = list(dict.fromkeys(one.method for one in read))
    if baseline not in methods:
        raise UserError(f"baseline={baseline}: {nearest(baseline, methods)}")
    runs: dict[str, list[tuple[int, pd.DataFrame]]] = {}
    for one in read:
        runs.setdefault(one.method, []).append((one.seed, one.original))
    seen = sorted({name for one in read for name in one.identity.get("seen_generators", [])})
    given_pairs: Any = OmegaConf.to_container(config.pairs) if config.pairs is not None else None
    pairs: Any = given_pairs or read[0].identity.get("pairs")
    bootstrap: dict[str, int] = OmegaConf.to_container(config.bootstrap)  # type: ignore[assignment]
    reals = _reals(read)
    comparison = compare(
        runs, baseline, pairs, seen, bootstrap["resamples"], bootstrap["seed"], known_reals=reals
    )  # type: ignore[arg-type]
    folder = open_folder(config.output_dir, config.overwrite)
    write_config(folder, config, overrides)
    write_csv(comparison, folder / "table.csv")
    (folder / "table.md").write_text(markdown(comparison), encoding="utf-8")
    facts = provenance(["fakedet", "report", *overrides])
    write_json(
        folder / "summary.json", {**comparison.to_dict(), "verdict": verdict(comparison), "provenance": facts}
    )
    page = Page(
        title=str(config.title),
        comparison=comparison,
        figures=_figures(folder, comparison, read, pairs, seen, bootstrap, reals),
        runs=[_row(one) for one in read],
        facts={"fakedet": facts["fakedet"], "made": facts["started"], "trained on": ", ".join(seen) or "no fakes",
               "time": f"{time.perf_counter() - started:.1f} s"},
        command=" ".join(facts["command"]),
        caveats=_caveats(read),
        shortcuts=_shortcuts(read[0].identity.get("shortcut") or {}),
    )  # fmt: skip
    write_page(page, folder / "report.html")
    return comparison, folder / "report.html"


def _named(read: list[tuple[pd.DataFrame, dict[str, Any]]], paths: list[Path]) -> list[Read]:
    """Name each file's method; files of one method and seed are told apart by their folder."""
    named = []
    keys = [
        (str(identity.get("name", path.parent.name)), int(identity.get("seed", 0)))
        for (_, identity), path in zip(read, paths, strict=True)
    ]
    twice = Counter(keys)
    for (frame, identity), path, (name, seed) in zip(read, paths, keys, strict=True):
        if twice[name, seed] > 1:
            name = f"{name} ({path.resolve().parent.name})"
        frame = frame if "view" in frame else frame.assign(view=ORIGINAL)
        named.append(Read(name, seed, path, frame, identity))
    return named


def _reals(read: list[Read]) -> set[str]:
    reals = read[0].original.query("label == 0")
    return (set(reals["generator"]) | set(reals.get("source", []))) - {""}


def _figures(
    folder: Path, comparison: Comparison, read: list[Read], pairs: Any, seen: list[str], bootstrap: dict[str, int],
    reals: set[str],
) -> list[Figure]:  # fmt: skip
    listed = {
        row.name: {method: cell.to_dict() for method, cell in row.cells.items()} for row in rows(comparison)
    }
    sections = {row.name: row.section for row in rows(comparison)}
    first = {one.method: one for one in reversed(read)}  # the first file of each method
    shown = {method: first[method].original for method in comparison.methods}
    figures = [
        Figure(plot_intervals(listed, "AP with 95 % intervals", folder / "ap.png", sections=sections),
               "AP per generator and means; dotted: 0.5"),
        Figure(plot_curves_of_decision(shown, folder / "roc_pr.png"),
               "ROC and precision-recall of all fakes against all reals of the file; first seed of each method"),
        Figure(plot_reliability(shown, folder / "reliability.png"),
               "Reliability of the calibrated scores, reals and fakes weighing one half each: on the diagonal, of "
               "images scored 0.8 four in five are fakes"),
    ]  # fmt: skip
    for number, (method, one) in enumerate(first.items()):
        figures.append(Figure(plot_scores(one.original, folder / f"scores_{number}.png", seen=set(seen)),
                              f"{method}: logits of reals and of each generator's fakes"))  # fmt: skip
        if one.frame["view"].nunique() > 1:
            content, _ = measure_robustness(one.frame, pairs, seen, bootstrap, reals)
            figures.append(Figure(plot_robustness(content, folder / f"robustness_{number}.png"),
                                  f"{method}: mAP of degraded images; dashed: as they are"))  # fmt: skip
    return figures


def _caveats(read: list[Read]) -> list[str]:
    told = []
    for one in read:
        used = one.identity.get("data_was_used_for")
        if used:
            told.append(f"{one.method}: these data were used for {used} it; its results flatter.")
        if not one.identity.get("operating_point"):
            told.append(f"{one.method}: no operating point, so its scores are not calibrated.")
    return list(dict.fromkeys(told))


def _shortcuts(content: Mapping[str, Any]) -> dict[str, Interval]:
    found = {}
    for name, entry in content.items():
        numbers = [
            math.nan if entry["auc"][key] is None else entry["auc"][key] for key in ("value", "low", "high")
        ]
        found[name] = Interval(*numbers)
    return found


def _row(one: Read) -> dict[str, Any]:
    point = one.identity.get("operating_point") or {}
    return {
        "method": one.method, "seed": one.seed, "split": one.identity.get("split"),
        "images": len(one.original), "views": one.frame["view"].nunique(),
        "threshold for reals called fake": point.get("rate"), "fitted on": point.get("split"),
        "checkpoint": one.identity.get("checkpoint"), "file": str(one.path),
    }  # fmt: skip
