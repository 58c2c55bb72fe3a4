"""evaluation/report"""

from __future__ import annotations

import base64
import json
import logging
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import DictConfig, OmegaConf

from fakedet.config import check_config
from fakedet.errors import UserError, nearest
from fakedet.evaluation.comparison import Comparison, compare, rows, verdict, write_csv, write_markdown
from fakedet.evaluation.evaluate import measure_robustness
from fakedet.evaluation.plots import (
    draw_map,
    plot_curves_of_decision,
    plot_intervals,
    plot_reliability,
    plot_robustness,
    plot_scores,
)
from fakedet.evaluation.predictions import (
    MAP,
    Read,
    confident_errors,
    read_files,
    read_pictures,
    read_predictions,
)
from fakedet.metrics.bootstrap import Interval
from fakedet.pages import Drawing, render
from fakedet.utils import FAILURE, open_folder, provenance, write_config, write_json


@dataclass(frozen=True)
class Shown:
    """A small picture with what is said of it."""

    jpeg: bytes
    caption: str

    @property
    def data(self) -> str:
        """The picture as a data URI."""
        return "data:image/jpeg;base64," + base64.b64encode(self.jpeg).decode()


@dataclass(frozen=True)
class Gallery:
    """Small pictures side by side."""

    title: str
    pictures: Sequence[Shown]


@dataclass(frozen=True)
class Page:
    """What a report shows.

    Attributes:
        title: of the page.
        comparison: its tables and verdict.
        figures: its pictures.
        runs: one mapping a run for the provenance table; a run that lacks another's key shows a dash.
        facts: name → value, for what holds of all runs.
        command: how to make it again.
        caveats: sentences to read the numbers with.
        failures: jobs that failed, one line each.
        galleries: the most confident errors, as pictures.
        provenance: run → all that is known of it, as text.
        shortcuts: generator → AUC of a classifier that sees only headers, to stand beside the detectors'.
    """

    title: str
    comparison: Comparison
    figures: Sequence[Drawing]
    runs: Sequence[Mapping[str, Any]]
    facts: Mapping[str, Any]
    command: str
    caveats: Sequence[str] = field(default_factory=list)
    failures: Sequence[str] = field(default_factory=list)
    galleries: Sequence[Gallery] = field(default_factory=list)
    provenance: Mapping[str, str] = field(default_factory=dict)
    shortcuts: Mapping[str, Interval] = field(default_factory=dict)


def write_page(page: Page, path: Path) -> None:
    """Render a page into one self-contained HTML file; whatever it shows is escaped."""
    render(
        "fakedet.evaluation",
        "report/report.html",
        path,
        verdict=verdict(page.comparison),
        page=page,
        comparison=page.comparison,
        tables=[(metric.upper(), metric, rows(page.comparison, metric)) for metric in page.comparison.values],
        columns=list(dict.fromkeys(name for run in page.runs for name in run)),
        probability=_probability,
    )


def _probability(p: float) -> str:
    if p != p:
        return ""
    return "p < 0.01" if p < 0.01 else f"p = {p:.2f}"


def figures(
    folder: Path, comparison: Comparison, first: dict[str, Read], pairs: Any, seen: list[str],
    bootstrap: dict[str, int], reals: set[str],
) -> list[Drawing]:  # fmt: skip
    """Draw the figures of all methods, then those of each.

    Args:
        folder: for the PNGs.
        comparison: of the files.
        first: the first file of each method.
        pairs: generator → its reals.
        seen: generators that were trained on.
        bootstrap: resamples and seed.
        reals: names of real collections.
    """
    listed = {
        row.name: {name: cell.to_dict() for name, cell in row.cells.items()} for row in rows(comparison)
    }
    sections = {row.name: row.section for row in rows(comparison)}
    shown = {method: first[method].original for method in comparison.methods}
    drawn = [
        Drawing(plot_intervals(listed, "AP with 95 % intervals", folder / "ap.png", sections=sections,
        chance={row.name: comparison.chance(row.key) for row in rows(comparison)}),
               "AP per generator and means; dotted: chance, the share of fakes"),
        Drawing(plot_curves_of_decision(shown, folder / "roc_pr.png"),
               "ROC and precision-recall of all fakes against all reals of the file; first seed of each method"),
        Drawing(plot_reliability(shown, folder / "reliability.png"),
               "Reliability of the calibrated scores, reals and fakes weighing one half each: on the diagonal, of "
               "images scored 0.8 four in five are fakes"),
    ]  # fmt: skip
    for number, (method, one) in enumerate(first.items()):
        drawn.append(Drawing(plot_scores(one.original, folder / f"scores_{number}.png", seen=set(seen)),
                            f"{method}: logits of reals and of each generator's fakes"))  # fmt: skip
        share = one.identity.get("map_share")
        if share and set(MAP) <= set(one.original) and one.original[MAP].notna().any(axis=None):
            drawn.append(Drawing(draw_map(one.original, share, set(seen), folder / f"map_{number}.png"),
                                f"{method}: test images on the two main directions of its embedding"))  # fmt: skip
        if one.frame["view"].nunique() > 1:
            content = measure_robustness(one.frame, pairs, seen, bootstrap, reals)
            drawn.append(Drawing(plot_robustness(content, folder / f"robustness_{number}.png"),
                                f"{method}: mAP of degraded images; dashed: as they are"))  # fmt: skip
    return drawn


def galleries(first: dict[str, Read]) -> list[Gallery]:
    """Show the small pictures that each method's file carries, reals taken for fakes first."""
    found = []
    for method, one in first.items():
        held = one.original[one.original["path"].isin(one.pictures)]
        alarms, misses = confident_errors(held, None, len(held))
        for title, table in (("reals that look most fake", alarms), ("fakes that look most real", misses)):
            if len(table):
                pictures = [
                    Shown(one.pictures[str(row["path"])], _caption(row)) for _, row in table.iterrows()
                ]
                found.append(Gallery(f"{method}: {title}", pictures))
    return found


def provenance_of(read: list[Read]) -> dict[str, str]:
    """Write down all that is known of each file's run, but for the scores that its operating point keeps."""
    told = {}
    for one in read:
        identity = dict(one.identity)
        if isinstance(identity.get("operating_point"), dict):
            identity["operating_point"] = {
                key: value
                for key, value in identity["operating_point"].items()
                if not isinstance(value, dict | list)
            }
        told[f"{one.method}, seed {one.seed}: {one.path}"] = json.dumps(
            identity, indent=2, ensure_ascii=False
        )
    return told


def _caption(row: pd.Series[Any]) -> str:
    score = f", score {row['score']:.2f}" if "score" in row and row["score"] == row["score"] else ""
    return f"{row['generator']}{score}, logit {row['logit']:.1f}: {row['path']}"


log = logging.getLogger("fakedet")


def report_on(config: DictConfig, overrides: list[str]) -> tuple[Comparison, Path]:
    """Write report.html, summary.json, table.csv, table.md and figures from predictions files.

    Raises:
        UserError: a file is no predictions file, or they are of different data.
    """
    check_config(config)
    if config.pairs is not None and not OmegaConf.is_dict(config.pairs):
        raise UserError(
            f"pairs={config.pairs}: a mapping of generators to their reals, such as {{gan: real}}"
        )
    given = config.predictions
    paths = [given] if isinstance(given, str) else [str(path) for path in given]
    if not paths:
        raise UserError("predictions=[]: name at least one predictions.parquet")
    read = read_files([Path(path) for path in paths])
    return write_report(read, config, ["fakedet", "report", *overrides])


def write_report(
    read: list[Read], config: DictConfig, command: list[str], rows: Sequence[Mapping[str, Any]] = (),
    failures: Sequence[str] = (),
) -> tuple[Comparison, Path]:  # fmt: skip
    """Write the report of predictions that have been read.

    Args:
        read: at least one.
        config: output_dir, overwrite, baseline, pairs, title and bootstrap.
        command: how to make it again.
        rows: of the table of runs; empty: what is known from the files.
        failures: jobs that failed, one line each.

    Raises:
        UserError: the files are of different data, or there is no such baseline.
    """
    started = time.perf_counter()
    seen = sorted({name for one in read for name in one.identity.get("seen_generators", [])})
    given_pairs: Any = OmegaConf.to_container(config.pairs) if config.pairs is not None else None
    pairs: Any = given_pairs or read[0].identity.get("pairs")
    bootstrap: dict[str, int] = OmegaConf.to_container(config.bootstrap)  # type: ignore[assignment]
    comparison = _compare(read, config.baseline, pairs, seen, bootstrap)
    first = {one.method: one for one in reversed(read)}
    folder = open_folder(config.output_dir, config.overwrite)
    write_config(folder, config, command[2:])
    facts = provenance(command)
    _write_tables(folder, comparison, facts)
    page = Page(
        title=str(config.title),
        comparison=comparison,
        figures=figures(folder, comparison, first, pairs, seen, bootstrap, _reals(read)),
        galleries=galleries(first),
        provenance=provenance_of(read),
        runs=rows or [_row(one) for one in read],
        failures=failures,
        facts={"fakedet": facts["fakedet"], "made": facts["started"], "trained on": ", ".join(seen) or "no fakes",
               "time": f"{time.perf_counter() - started:.1f} s"},
        command=" ".join(facts["command"]),
        caveats=_caveats(read),
        shortcuts=_shortcuts(read[0].identity.get("shortcut") or {}),
    )  # fmt: skip
    write_page(page, folder / "report.html")
    return comparison, folder / "report.html"


def _compare(
    read: list[Read], baseline: str | None, pairs: Any, seen: list[str], bootstrap: dict[str, int]
) -> Comparison:
    methods = list(dict.fromkeys(one.method for one in read))
    baseline = baseline or methods[0]
    if baseline not in methods:
        raise UserError(f"baseline={baseline}: {nearest(baseline, methods)}")
    runs: dict[str, Any] = {}
    for one in read:
        runs.setdefault(one.method, []).append((one.seed, one.original))
    return compare(
        runs, baseline, pairs, seen, bootstrap["resamples"], bootstrap["seed"], known_reals=_reals(read)
    )


def _write_tables(folder: Path, comparison: Comparison, facts: Mapping[str, Any]) -> None:
    write_csv(comparison, folder / "table.csv")
    write_markdown(comparison, folder / "table.md")
    write_json(
        folder / "summary.json", {**comparison.to_dict(), "verdict": verdict(comparison), "provenance": facts}
    )


def _reals(read: list[Read]) -> set[str]:
    reals = read[0].original.query("label == 0")
    return (set(reals["generator"]) | set(reals.get("source", []))) - {""}


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
        found[name] = Interval.from_dict(entry["auc"])
    return found


def _row(one: Read) -> dict[str, Any]:
    point = one.identity.get("operating_point") or {}
    return {
        "method": one.method, "seed": one.seed, "split": one.identity.get("split"),
        "images": len(one.original), "views": one.frame["view"].nunique(),
        "threshold for reals called fake": point.get("rate"), "fitted on": point.get("split"),
        "checkpoint": one.identity.get("checkpoint"), "file": str(one.path),
    }  # fmt: skip


# They name a run or its place, not what it does.
NOT_COMPARED = (
    "seed",
    "output_dir",
    "overwrite",
    "resume",
    "trace_cache",
    "threads",
    "logger",
    "sweep",
    "hydra",
)


@dataclass(frozen=True)
class SweptRun:
    """One run's folder."""

    folder: Path
    overrides: dict[str, str]
    seed: int
    facts: dict[str, Any] | None
    """run.json; None for a run that has not finished."""
    failure: str
    """Why it failed; "" for a run that was stopped or is under way."""


def compare_runs(config: DictConfig, overrides: list[str]) -> tuple[Comparison, Path]:
    """Compare all finished runs below some folders, seeds of the same overrides taken together.

    Raises:
        UserError: there is no finished run, or they were evaluated on different data.
    """
    given = [config.runs] if isinstance(config.runs, str) else [str(item) for item in config.runs]
    runs = [run for name in given for run in _find_runs(Path(name))]
    done = [run for run in runs if run.facts and (run.folder / "predictions.parquet").is_file()]
    failures = [_describe_run(run) for run in runs if run.facts is None]
    for line in failures:
        log.warning("%s", line)
    if not done:
        raise UserError(f"runs={', '.join(given)}: there is no finished run with predictions.parquet below")
    differing = _differing(done)
    read, rows = [], []
    for run in sorted(done, key=lambda run: (_run_label(run, differing), run.seed)):
        frame, identity = read_predictions(run.folder / "predictions.parquet")
        pictures = read_pictures(run.folder / "predictions.parquet")
        read.append(
            Read(
                _run_label(run, differing),
                run.seed,
                run.folder / "predictions.parquet",
                frame,
                identity,
                pictures,
            )
        )
        rows.append(_run_row(run, differing))
    return write_report(read, config, ["fakedet", "compare", *overrides], rows, failures)


def _find_runs(root: Path) -> list[SweptRun]:
    if not root.is_dir():
        raise UserError(f"runs={root}: there is no such folder")
    found = []
    for path in sorted(root.rglob("config.yaml")):
        folder = path.parent
        # Stage 1 has no config of its own, and reports have no model.
        if not (folder / "overrides.yaml").is_file() or "model" not in OmegaConf.load(path):
            continue
        facts = _json(folder / "run.json")
        listed: Any = OmegaConf.to_container(OmegaConf.load(folder / "overrides.yaml"))
        pairs = dict(item.lstrip("+~").partition("=")[::2] for item in listed)
        seed = int(facts["seed"]) if facts else int(pairs.get("seed", 0))
        failure = (_json(folder / FAILURE) or {}).get("error", "")
        found.append(SweptRun(folder, pairs, seed, facts, failure))
    return found


def _json(path: Path) -> dict[str, Any] | None:
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content


def _differing(runs: Sequence[SweptRun]) -> list[str]:
    keys = dict.fromkeys(key for run in runs for key in run.overrides if not key.startswith(NOT_COMPARED))
    return [key for key in keys if len({run.overrides.get(key) for run in runs}) > 1]


def _run_label(run: SweptRun, differing: Sequence[str]) -> str:
    named = [f"{key}={run.overrides[key]}" for key in differing if key in run.overrides]
    if not named:
        return str(OmegaConf.load(run.folder / "config.yaml").name)
    return run.overrides[differing[0]] if differing == ["model"] else ", ".join(named)


def _describe_run(run: SweptRun) -> str:
    """Say what became of a run that did not finish, and how to run it alone."""
    again = f"fakedet resume run={shlex.quote(str(run.folder))}"
    cause = f"failed: {run.failure}" if run.failure else "has not finished"
    return f"{run.folder.name} {cause}. Alone: {again}"


def _run_row(run: SweptRun, differing: Sequence[str]) -> dict[str, Any]:
    assert run.facts is not None
    return {
        **{key: run.overrides.get(key) for key in differing}, "seed": run.seed,
        "validation": _rounded(run.facts.get("validation")), "minutes": _rounded(run.facts["seconds"]["all"] / 60),
        "parameters": run.facts["parameters"], "kept epoch": run.facts["kept_epoch"], "folder": str(run.folder),
    }  # fmt: skip


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)
