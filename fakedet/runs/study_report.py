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
from fakedet.evaluation.html import Figure
from fakedet.evaluation.page import Page, write_page
from fakedet.evaluation.plots import plot_curves, plot_intervals
from fakedet.evaluation.predictions import read_predictions
from fakedet.evaluation.table import MEAN_NAMES, markdown, rows, write_csv
from fakedet.evaluation.verdict import verdict
from fakedet.metrics.bootstrap import Interval
from fakedet.runs.curves import read_curves
from fakedet.runs.folder import provenance, write_json
from fakedet.runs.study import Job, JobResult


@dataclass(frozen=True)
class Finished:
    """A job that ended well, with what it left."""

    job: Job
    facts: dict[str, Any]
    identity: dict[str, Any]
    frame: pd.DataFrame


def compare_jobs(
    results: Sequence[JobResult], baseline: str, bootstrap: Mapping[str, int]
) -> tuple[Comparison, list[Finished]]:
    """Compare the jobs that ended well, in the order of the study's methods.

    Raises:
        UserError: none ended well, or none of the baseline.
    """
    finished = [_read(result.job) for result in results if result.error is None]
    if not finished:
        raise UserError("no job ended well: " + "; ".join(f"{r.job.name}: {r.error}" for r in results))
    runs: dict[str, list[tuple[int, pd.DataFrame]]] = {}
    for done in finished:
        runs.setdefault(done.job.method, []).append((done.job.seed, done.frame))
    # Stage 1 has seen no fakes at all; "seen" is what the detectors with fakes were trained on.
    seen = sorted({name for done in finished for name in done.identity["seen_generators"]})
    pairs = finished[0].identity["pairs"]
    known = finished[0].facts["reals"]
    comparison = compare(
        runs, baseline, pairs, seen, bootstrap["resamples"], bootstrap["seed"], known_reals=known
    )
    return comparison, finished


def write_report(
    folder: Path,
    study: Mapping[str, Any],
    comparison: Comparison,
    finished: Sequence[Finished],
    results: Sequence[JobResult],
    seconds: float,
    command: list[str],
) -> Path:
    """Write everything into the study's folder and give the report's path."""
    facts = provenance(command)
    failures = [f"{result.job.name}: {result.error}" for result in results if result.error]
    summary = {
        **comparison.to_dict(),
        "verdict": verdict(comparison),
        "failures": failures,
        "seconds": seconds,
        "provenance": facts,
        "runs": [_run_row(done, folder) for done in finished],
    }
    write_json(folder / "summary.json", summary)
    write_csv(comparison, folder / "table.csv")
    (folder / "table.md").write_text(markdown(comparison), encoding="utf-8")
    page = Page(
        title=str(study["title"]),
        comparison=comparison,
        figures=_figures(folder, comparison, finished),
        runs=[_run_row(done, folder) for done in finished],
        facts=_facts(facts, finished, seconds),
        command=" ".join(facts["command"]),
        caveats=list(study.get("caveats", ())),
        failures=failures,
        shortcuts=_shortcuts(finished),
    )
    write_page(page, folder / "report.html")
    return folder / "report.html"


def _read(job: Job) -> Finished:
    frame, identity = read_predictions(job.folder / "predictions.parquet")
    facts = json.loads((job.folder / "run.json").read_text(encoding="utf-8"))
    return Finished(job, facts, identity, frame)


def _figures(folder: Path, comparison: Comparison, finished: Sequence[Finished]) -> list[Figure]:
    listed = {
        row.name: {method: cell.to_dict() for method, cell in row.cells.items()} for row in rows(comparison)
    }
    sections = {row.name: row.section for row in rows(comparison)}
    intervals = plot_intervals(
        listed,
        "AP with 95 % intervals",
        folder / "ap.png",
        sections=sections,
        chance={row.name: comparison.chance(row.key) for row in rows(comparison)},
    )
    first = finished[0].job.seed
    curves = {done.job.method: read_curves(done.job.folder) for done in finished if done.job.seed == first}
    figures = [
        Figure(intervals, f"AP per generator and means ({', '.join(MEAN_NAMES.values())}); dotted: chance"),
        Figure(plot_curves(curves, folder / "curves.png"),
               f"Training curves, seed {first}; losses of different methods are not comparable"),
    ]  # fmt: skip
    for done in finished:
        picture = done.job.folder / "embedding.png"
        if done.job.seed == first and picture.is_file():
            figures.append(Figure(picture, f"{done.job.method}, seed {first}: embeddings of test images"))
    return figures


def _run_row(done: Finished, folder: Path) -> dict[str, Any]:
    metrics = json.loads((done.job.folder / "metrics.json").read_text(encoding="utf-8"))
    unseen = metrics["map_unseen"]["value"]
    return {
        "method": done.job.method,
        "seed": done.job.seed,
        "mAP unseen": None if unseen is None else round(unseen, 4),
        "kept epoch": done.facts["kept_epoch"],
        "seconds": round(done.facts["seconds"]["all"], 1),
        "parameters": done.facts["parameters"],
        "unreadable images": metrics["quarantined"]["n"],
        "changed": " ".join(done.job.changes),
        "folder": str(done.job.folder.relative_to(folder)),
    }


def _shortcuts(finished: Sequence[Finished]) -> dict[str, Interval]:
    """Read what headers give away; the same for all jobs, whose data are the same."""
    metrics = json.loads((finished[0].job.folder / "metrics.json").read_text(encoding="utf-8"))
    found = {}
    for name, entry in metrics.get("shortcut", {}).items():
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
