"""What a study leaves behind: summary.json, table, figures and report.html."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from fakedet.errors import UserError
from fakedet.evaluation.comparison import Comparison, compare
from fakedet.evaluation.heatmap import plot_matrix
from fakedet.evaluation.html import Figure
from fakedet.evaluation.intervals import plot_intervals
from fakedet.evaluation.page import Page, write_page
from fakedet.evaluation.plots import plot_curves
from fakedet.evaluation.predictions import read_predictions
from fakedet.evaluation.rescore import rescored
from fakedet.evaluation.table import rows, write_csv, write_markdown
from fakedet.evaluation.verdict import verdict
from fakedet.metrics.bootstrap import Interval
from fakedet.runs.curves import read_curves
from fakedet.runs.folder import provenance, write_json
from fakedet.runs.study_job import Job, JobResult

SHORTCUT = 0.7
"""AUC of a classifier that sees only headers, above which it is told."""


@dataclass(frozen=True)
class Finished:
    """A job that ended well, with what it left."""

    job: Job
    facts: dict[str, Any]
    identity: dict[str, Any]
    frame: pd.DataFrame
    metrics: dict[str, Any]


def compare_jobs(
    results: Sequence[JobResult],
    study: Mapping[str, Any],
    bootstrap: Mapping[str, int],
    other: str | None = None,
) -> tuple[Comparison, list[Finished]]:
    """Compare the jobs that ended well, in the order of the study's methods.

    Args:
        results: how the jobs ended.
        study: the resolved ``study`` node.
        bootstrap: its settings.
        other: the name of another manifest that they were scored on; None: their own test split.

    Raises:
        UserError: none ended well, or none of the baseline.
    """
    jobs = [result.job for result in results]
    finished = [_read(job, other) for job in jobs if (job.is_scored(other) if other else job.is_trained)]
    if not finished:
        raise UserError("no job ended well: " + "; ".join(f"{r.job.name}: {r.error}" for r in results))
    runs: dict[str, list[tuple[int, pd.DataFrame]]] = {method: [] for method in study["methods"]}
    for done in finished:
        runs[done.job.method].append((done.job.seed, done.frame))
    for name, derived in (study.get("derived") or {}).items():
        runs[name] = [(seed, rescored(frame, derived["score"])) for seed, frame in runs[derived["of"]]]
    runs = {method: found for method, found in runs.items() if found}
    # Stage 1 has seen no fakes at all; "seen" is what the detectors with fakes were trained on. Where these differ,
    # no generator is seen or unseen for all of them.
    sets = set(_seen(finished).values()) - {()}
    seen = list(sets.pop()) if len(sets) == 1 else None
    pairs = finished[0].identity["pairs"]
    known = finished[0].facts["reals"]
    comparison = compare(
        runs, study["baseline"], pairs, seen, bootstrap["resamples"], bootstrap["seed"], known_reals=known
    )
    return comparison, finished


def write_report(
    root: Path,
    study: Mapping[str, Any],
    comparison: Comparison,
    finished: Sequence[Finished],
    results: Sequence[JobResult],
    seconds: float,
    command: list[str],
    other: str | None = None,
) -> Path:
    """Write everything into the study's folder, or of another manifest into a folder in it; give the report's path."""
    folder = root / f"on_{other}" if other else root
    folder.mkdir(exist_ok=True)
    facts = provenance(command)
    run_rows = [_run_row(done, root, comparison.members("map_unseen")) for done in finished]
    shortcuts = _shortcuts(finished)
    failures = [f"{result.job.name}: {result.error}" for result in results if result.error]
    summary = {
        **comparison.to_dict(),
        "verdict": verdict(comparison),
        "failures": failures,
        "seconds": seconds,
        "provenance": facts,
        "runs": run_rows,
    }
    write_json(folder / "summary.json", summary)
    write_csv(comparison, folder / "table.csv")
    write_markdown(comparison, folder / "table.md")
    page = Page(
        title=f"{study['title']}: {other}" if other else str(study["title"]),
        comparison=comparison,
        figures=_figures(folder, comparison, finished, [] if other else finished),
        runs=run_rows,
        facts=_facts(facts, finished, seconds),
        command=" ".join(facts["command"]),
        caveats=[*study.get("caveats", ()), *told_by_headers(finished)],
        failures=failures,
        shortcuts=shortcuts,
    )
    write_page(page, folder / "report.html")
    return folder / "report.html"


def _read(job: Job, other: str | None) -> Finished:
    frame, identity = read_predictions(job.results(other) / "predictions.parquet")
    facts = json.loads((job.folder / "run.json").read_text(encoding="utf-8"))
    metrics = json.loads((job.results(other) / "metrics.json").read_text(encoding="utf-8"))
    return Finished(job, facts, identity, frame, metrics)


def _seen(finished: Sequence[Finished]) -> dict[str, tuple[str, ...]]:
    return {done.job.method: tuple(sorted(done.identity["seen_generators"])) for done in finished}


def _figures(
    folder: Path, comparison: Comparison, finished: Sequence[Finished], trained: Sequence[Finished]
) -> list[Figure]:
    seen = _seen(finished)
    figures = [_intervals(folder, comparison, metric) for metric in comparison.values]
    if len(set(seen.values()) - {()}) > 1:
        cells = {name: comparison.values["auc"][name] for name in comparison.generators}
        matrix = plot_matrix(
            cells, seen, "AUC; a frame: fakes that this detector never saw", folder / "matrix.png"
        )
        figures.append(Figure(matrix, "AUC of each detector (row) on each generator (column)"))
    first = finished[0].job.seed
    curves = {done.job.method: read_curves(done.job.folder) for done in trained if done.job.seed == first}
    if curves:
        drawn = plot_curves(curves, folder / "curves.png")
        figures.append(
            Figure(drawn, f"Training curves, seed {first}; losses of different methods are not comparable")
        )
    for done in trained:
        picture = done.job.folder / "embedding.png"
        if done.job.seed == first and picture.is_file():
            figures.append(Figure(picture, f"{done.job.method}, seed {first}: embeddings of test images"))
    return figures


def _intervals(folder: Path, comparison: Comparison, metric: str) -> Figure:
    found = rows(comparison, metric)
    listed = {row.name: {method: cell.to_dict() for method, cell in row.cells.items()} for row in found}
    sections = {row.name: row.section for row in found}
    intervals = plot_intervals(
        listed,
        f"{metric.upper()} with 95 % intervals",
        folder / f"{metric}.png",
        sections=sections,
        chance={row.name: comparison.chance(row.key) if metric == "ap" else 0.5 for row in found},
    )
    return Figure(
        intervals, f"{metric.upper()} per generator, and means over seen, unseen and all; dotted: chance"
    )


def _run_row(done: Finished, folder: Path, unseen: Sequence[str]) -> dict[str, Any]:
    metrics = done.metrics
    # Of the comparison's unseen generators: for stage 1, which saw no fakes, its own metrics count all.
    found = [
        metrics["per_generator"][name]["ap"]["value"] for name in unseen if name in metrics["per_generator"]
    ]
    mean = sum(found) / len(found) if found and None not in found else None
    return {
        "method": done.job.method,
        "seed": done.job.seed,
        "mAP unseen": None if mean is None else round(mean, 4),
        "kept epoch": done.facts["kept_epoch"],
        "seconds": round(done.facts["seconds"]["all"], 1),
        "parameters": done.facts["parameters"],
        "unreadable images": metrics["quarantined"]["n"],
        "changed": " ".join(done.job.changes),
        "folder": str(done.job.folder.relative_to(folder)),
    }


def told_by_headers(finished: Sequence[Finished]) -> list[str]:
    """Say which generators a classifier of headers tells, in a sentence; empty where it tells none."""
    told = [name for name, found in _shortcuts(finished).items() if found.value > SHORTCUT]
    if not told:
        return []
    return [f"Format, size and compression alone tell {', '.join(told)} (AUC above {SHORTCUT}): the detectors' numbers "
            "there may be this shortcut."]  # fmt: skip


def _shortcuts(finished: Sequence[Finished]) -> dict[str, Interval]:
    """Read what headers give away; the same for all jobs, whose data are the same."""
    found = {}
    for name, entry in finished[0].metrics.get("shortcut", {}).items():
        numbers = [
            math.nan if entry["auc"][key] is None else entry["auc"][key] for key in ("value", "low", "high")
        ]
        found[name] = Interval(*numbers)
    return found


def _facts(facts: Mapping[str, Any], finished: Sequence[Finished], seconds: float) -> dict[str, Any]:
    git = facts["git"]
    state = "not a checkout"
    if git:
        state = git["commit"][:12] + (" with uncommitted changes" if git["dirty"] else "")
    return {
        "fakedet": facts["fakedet"],
        "git": state,
        "packages": ", ".join(f"{name} {version}" for name, version in facts["packages"].items()),
        "machine": f"{facts['cpus']} CPUs, {facts['platform']}, Python {facts['python']}",
        "manifest (sha256)": finished[0].facts["manifest_sha256"],
        "trained on": ", ".join(sorted({g for done in finished for g in done.identity["seen_generators"]})),
        "time": f"{seconds:.0f} s in all; " + ", ".join(
            f"{method} {sum(d.facts['seconds']['all'] for d in finished if d.job.method == method):.0f} s"
            for method in dict.fromkeys(done.job.method for done in finished)),
        "made": facts["started"],
    }  # fmt: skip
