"""Reports: of predictions files alone, of the runs below a folder, and of a study; one code path for all."""

from __future__ import annotations

import base64
import json
import logging
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
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
    plot_curves,
    plot_curves_of_decision,
    plot_intervals,
    plot_matrix,
    plot_reliability,
    plot_robustness,
    plot_scores,
    read_curves,
)
from fakedet.evaluation.predictions import MAP, Read, confident_errors, read_files, read_pictures, read_predictions
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
    folder: Path, comparison: Comparison, first: dict[str, Read], pairs: Any, bootstrap: dict[str, int],
    reals: set[str], trained: bool,
) -> list[Drawing]:  # fmt: skip
    """Draw the figures of all methods, then those of each.

    Args:
        folder: for the PNGs.
        comparison: of the files.
        first: the first file of each method.
        pairs: generator → its reals.
        bootstrap: resamples and seed.
        reals: names of real collections.
        trained: whether the files lie in the folders of their training runs.
    """
    shown = {method: first[method].original for method in comparison.methods}
    seen_by = {method: tuple(sorted(_seen_by(first[method]))) for method in comparison.methods}
    drawn = [_intervals(folder, comparison, metric) for metric in comparison.values]
    if len(set(seen_by.values()) - {()}) > 1:
        cells = {name: comparison.values["auc"][name] for name in comparison.generators}
        title = "AUC; a frame: fakes that this detector never saw"
        drawn.append(Drawing(plot_matrix(cells, seen_by, title, folder / "matrix.png"),
                             "AUC of each detector (row) on each generator (column)"))  # fmt: skip
    curves = {method: read_curves(one.path.parent) for method, one in first.items()} if trained else {}
    if curves:
        drawn.append(Drawing(plot_curves(curves, folder / "curves.png"),
                             "Training curves, first seed of each method; losses of different methods are not "
                             "comparable"))  # fmt: skip
    drawn += [
        Drawing(plot_curves_of_decision(shown, folder / "roc_pr.png"),
               "ROC and precision-recall of all fakes against all reals of the file; first seed of each method"),
        Drawing(plot_reliability(shown, folder / "reliability.png"),
               "Reliability of the calibrated scores, reals and fakes weighing one half each: on the diagonal, of "
               "images scored 0.8 four in five are fakes"),
    ]  # fmt: skip
    for number, (method, one) in enumerate(first.items()):
        seen = _seen_by(one)
        drawn.append(Drawing(plot_scores(one.original, folder / f"scores_{number}.png", seen=seen),
                            f"{method}: logits of reals and of each generator's fakes"))  # fmt: skip
        share = one.info.get("map_share")
        if share and set(MAP) <= set(one.original) and one.original[MAP].notna().any(axis=None):
            drawn.append(Drawing(draw_map(one.original, share, seen, folder / f"map_{number}.png"),
                                f"{method}: test images on the two main directions of its embedding"))  # fmt: skip
        if one.frame["view"].nunique() > 1:
            content = measure_robustness(one.frame, pairs, sorted(seen), bootstrap, reals)
            drawn.append(Drawing(plot_robustness(content, folder / f"robustness_{number}.png"),
                                f"{method}: mAP of degraded images; dashed: as they are"))  # fmt: skip
    return drawn


def _seen_by(one: Read) -> set[str]:
    return set(one.info.get("seen_generators", []))


def _intervals(folder: Path, comparison: Comparison, metric: str) -> Drawing:
    found = rows(comparison, metric)
    listed = {row.name: {method: cell.to_dict() for method, cell in row.cells.items()} for row in found}
    picture = plot_intervals(
        listed,
        f"{metric.upper()} with 95 % intervals",
        folder / f"{metric}.png",
        sections={row.name: row.section for row in found},
        chance={row.name: comparison.chance(row.key) if metric == "ap" else 0.5 for row in found},
    )
    chance = "chance, the share of fakes" if metric == "ap" else "chance"
    return Drawing(picture, f"{metric.upper()} per generator and means; dotted: {chance}")


def galleries(first: dict[str, Read]) -> list[Gallery]:
    """Show the small pictures that each method's file carries, reals taken for fakes first."""
    found = []
    for method, one in first.items():
        held = one.original[one.original["path"].isin(one.pictures)]
        alarms, misses = confident_errors(held, None, len(held))
        for title, table in (("reals that look most fake", alarms), ("fakes that look most real", misses)):
            if len(table):
                pictures = [Shown(one.pictures[str(row["path"])], _caption(row)) for _, row in table.iterrows()]
                found.append(Gallery(f"{method}: {title}", pictures))
    return found


def provenance_of(read: list[Read]) -> dict[str, str]:
    """Write down all that is known of each file's run, but for the scores that its operating point keeps."""
    told = {}
    for one in read:
        info = dict(one.info)
        if isinstance(info.get("operating_point"), dict):
            info["operating_point"] = {
                key: value for key, value in info["operating_point"].items() if not isinstance(value, dict | list)
            }
        told[f"{one.method}, seed {one.seed}: {one.path}"] = json.dumps(info, indent=2, ensure_ascii=False)
    return told


def _caption(row: pd.Series[Any]) -> str:
    score = f", score {row['score']:.2f}" if "score" in row and row["score"] == row["score"] else ""
    return f"{row['generator']}{score}, logit {row['logit']:.1f}: {row['path']}"


log = logging.getLogger("fakedet")


@dataclass(frozen=True)
class Report:
    """A report that has been written.

    Attributes:
        title: of the page.
        comparison: its tables.
        path: of the page.
        caveats: sentences to read its numbers with, besides those that its user gave.
    """

    title: str
    comparison: Comparison
    path: Path
    caveats: Sequence[str]


def report_on(config: DictConfig, overrides: list[str]) -> Report:
    """Write report.html, summary.json, table.csv, table.md and figures from predictions files.

    Raises:
        UserError: a file is no predictions file, or they are of different data.
    """
    check_config(config)
    given = config.predictions
    paths = [given] if isinstance(given, str) else [str(path) for path in given]
    if not paths:
        raise UserError("predictions=[]: name at least one predictions.parquet")
    read = read_files([Path(path) for path in paths])
    return write_report(read, config, ["fakedet", "report", *overrides])


def write_report(
    read: list[Read], config: DictConfig, command: list[str], runs: Sequence[Run] = (), failures: Sequence[str] = (),
    caveats: Sequence[str] = (), trained: bool = False,
) -> Report:  # fmt: skip
    """Write the report of predictions that have been read.

    Args:
        read: at least one.
        config: output_dir, overwrite, baseline, pairs, title and bootstrap.
        command: how to make it again.
        runs: that wrote the predictions, in the same order; empty where only the files are known.
        failures: jobs without a result, one line each.
        caveats: sentences that the page shows before its numbers.
        trained: whether the predictions lie in the folders of the runs.

    Raises:
        UserError: the files are of different data, or there is no such baseline.
    """
    started = time.perf_counter()
    if config.pairs is not None and not OmegaConf.is_dict(config.pairs):
        raise UserError(f"pairs={config.pairs}: a mapping of generators to their reals, such as {{gan: real}}")
    given_pairs: Any = OmegaConf.to_container(config.pairs) if config.pairs is not None else None
    pairs: Any = given_pairs or read[0].info.get("pairs")
    bootstrap: dict[str, int] = OmegaConf.to_container(config.bootstrap)  # type: ignore[assignment]
    comparison = _compare(read, config.baseline, pairs, bootstrap)
    first = {one.method: one for one in reversed(read)}
    folder = open_folder(config.output_dir, config.overwrite)
    write_config(folder, config, command[2:])
    facts = provenance(command)
    unseen = comparison.members("map_unseen")
    table = (
        [_run_row(run, one, unseen) for run, one in zip(runs, read, strict=True)]
        if runs
        else [_row(one) for one in read]
    )
    summary = {**comparison.to_dict(), "verdict": verdict(comparison), "failures": list(failures), "runs": table,
               "provenance": facts}  # fmt: skip
    write_json(folder / "summary.json", summary)
    write_csv(comparison, folder / "table.csv")
    write_markdown(comparison, folder / "table.md")
    shortcuts = _shortcuts(read[0].info.get("shortcut") or {})
    noted = [*_caveats(read), *_told_by_headers(shortcuts)]
    page = Page(
        title=str(config.title),
        comparison=comparison,
        figures=figures(folder, comparison, first, pairs, bootstrap, _reals(read), trained),
        galleries=galleries(first),
        provenance=provenance_of(read),
        runs=table,
        failures=failures,
        facts=_facts(facts, read, runs, time.perf_counter() - started),
        command=" ".join(facts["command"]),
        caveats=[*caveats, *noted],
        shortcuts=shortcuts,
    )  # fmt: skip
    write_page(page, folder / "report.html")
    return Report(str(config.title), comparison, folder / "report.html", noted)


def _compare(read: list[Read], baseline: str | None, pairs: Any, bootstrap: dict[str, int]) -> Comparison:
    methods = list(dict.fromkeys(one.method for one in read))
    baseline = baseline or methods[0]
    if baseline not in methods:
        raise UserError(f"baseline={baseline}: {nearest(baseline, methods)}")
    runs: dict[str, Any] = {}
    for one in read:
        runs.setdefault(one.method, []).append((one.seed, one.original))
    # Stage 1 saw no fakes at all. Where detectors saw different generators, none is seen or unseen for all of them.
    sets = {tuple(sorted(_seen_by(one))) for one in read} - {()}
    seen: list[str] | None = None if len(sets) > 1 else [name for names in sets for name in names]
    return compare(runs, baseline, pairs, seen, bootstrap["resamples"], bootstrap["seed"], known_reals=_reals(read))


def _reals(read: list[Read]) -> set[str]:
    reals = read[0].original.query("label == 0")
    return (set(reals["generator"]) | set(reals.get("source", []))) - {""}


def _facts(facts: Mapping[str, Any], read: list[Read], runs: Sequence[Run], seconds: float) -> dict[str, Any]:
    git = facts["git"]
    state = "not a checkout"
    if git:
        state = git["commit"][:12] + (" with uncommitted changes" if git["dirty"] else "")
    told = {
        "fakedet": facts["fakedet"],
        "git": state,
        "packages": ", ".join(f"{name} {version}" for name, version in facts["packages"].items()),
        "machine": f"{facts['cpus']} CPUs, {facts['platform']}, Python {facts['python']}",
        "made": facts["started"],
        "trained on": ", ".join(sorted({name for one in read for name in _seen_by(one)})) or "no fakes",
        "time": f"{seconds:.1f} s for this page",
    }
    if runs:
        told["manifest (sha256)"] = runs[0].facts["manifest_sha256"]
        trained = {method: sum(run.facts["seconds"]["all"] for run in runs if run.method == method)
                   for method in dict.fromkeys(run.method for run in runs)}  # fmt: skip
        told["training"] = ", ".join(f"{method} {spent:.0f} s" for method, spent in trained.items())
    return told


def _caveats(read: list[Read]) -> list[str]:
    told = []
    for one in read:
        used = one.info.get("data_was_used_for")
        if used:
            told.append(f"{one.method}: these data were used for {used} it; its results flatter.")
        if not one.info.get("operating_point"):
            told.append(f"{one.method}: no operating point, so its scores are not calibrated.")
    return list(dict.fromkeys(told))


SHORTCUT = 0.7
"""AUC of a classifier that sees only headers, above which the reader is warned."""


def _shortcuts(content: Mapping[str, Any]) -> dict[str, Interval]:
    return {name: Interval.from_dict(entry["auc"]) for name, entry in content.items()}


def _told_by_headers(shortcuts: Mapping[str, Interval]) -> list[str]:
    told = [name for name, found in shortcuts.items() if found.value > SHORTCUT]
    if not told:
        return []
    return [f"Format, size and compression alone tell {', '.join(told)} (AUC above {SHORTCUT}): the detectors' numbers "
            "there may be this shortcut."]  # fmt: skip


def _row(one: Read) -> dict[str, Any]:
    point = one.info.get("operating_point") or {}
    return {
        "method": one.method, "seed": one.seed, "split": one.info.get("split"),
        "images": len(one.original), "views": one.frame["view"].nunique(),
        "threshold for reals called fake": point.get("rate"), "fitted on": point.get("split"),
        "checkpoint": one.info.get("checkpoint"), "file": str(one.path),
    }  # fmt: skip


def _run_row(run: Run, one: Read, unseen: Sequence[str]) -> dict[str, Any]:
    metrics = json.loads((one.path.parent / "metrics.json").read_text(encoding="utf-8"))
    # Of the comparison's unseen generators: stage 1, which saw no fakes, counts all of them in its own metrics.
    found = [metrics["per_generator"][name]["ap"]["value"] for name in unseen if name in metrics["per_generator"]]
    changed = [f"{key}={value}" for key, value in run.overrides.items() if not key.startswith(NOT_COMPARED)]
    return {
        "method": run.method, "seed": run.seed,
        "mAP unseen": round(sum(found) / len(found), 4) if found and None not in found else None,
        "validation": _rounded(run.facts.get("validation")), "kept epoch": run.facts["kept_epoch"],
        "minutes": _rounded(run.facts["seconds"]["all"] / 60), "parameters": run.facts["parameters"],
        "unreadable images": metrics["quarantined"]["n"], "changed": " ".join(changed), "folder": str(run.folder),
    }  # fmt: skip


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


# --- the runs of a sweep or study ----------------------------------------------------------------------

STUDY = "study.json"
"""In a study's folder: what its report says, and its jobs in the order of the sweep."""
ENDED = "jobs.jsonl"
"""In a multirun's folder: one line per job that has ended."""

# They name a run or its place, not what it does.
NOT_COMPARED = ("seed", "output_dir", "overwrite", "resume", "trace_cache", "threads", "logger", "study", "hydra")


@dataclass(frozen=True)
class Run:
    """One run's folder.

    Attributes:
        folder: of the run.
        method: its name in tables.
        given: its overrides, as they were given.
        seed: of the training.
        facts: run.json; empty for a run that has not finished.
        failure: why it failed; "" for a run that did not, was stopped or is under way.
        flags: of the command line that trains it, besides its overrides.
    """

    folder: Path
    method: str
    given: Sequence[str]
    seed: int
    facts: dict[str, Any]
    failure: str
    flags: Sequence[str] = ()

    @property
    def overrides(self) -> dict[str, str]:
        """Key → value of what it overrides."""
        return dict(str(item).lstrip("+~").partition("=")[::2] for item in self.given)


def ended_jobs(root: str | Path) -> list[dict[str, Any]]:
    """Read how the jobs of a multirun have ended so far; each job once."""
    try:
        lines = (Path(root) / ENDED).read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    rows = [json.loads(line) for line in lines if line.endswith("}")]
    return list({row["job"]: row for row in rows}.values())


def method_label(overrides: Mapping[str, str]) -> str:
    """Name a method by what sets it apart: an experiment or a model by its name alone, anything else by its key."""
    parts = [value.rpartition("/")[2] if key in ("experiment", "model") else f"{key}={value}"
             for key, value in overrides.items() if key != "seed"]  # fmt: skip
    return ", ".join(parts)


def compare_runs(config: DictConfig, overrides: list[str], command: list[str] | None = None) -> list[Report]:
    """Compare all finished runs below some folders, seeds of the same overrides taken together.

    A study's folder knows its methods, their order, its baseline, title and caveats. Each manifest of ``also`` that
    runs were scored on gets a report of its own, in on_NAME below the output folder.

    Args:
        config: of conf/compare.yaml.
        overrides: what the user changed.
        command: how to make the report again; None: `fakedet compare` with these overrides.

    Returns:
        The report on the runs' own test split, then one for each further manifest.

    Raises:
        UserError: there is no finished run, or they were evaluated on different data.
    """
    given = [config.runs] if isinstance(config.runs, str) else [str(item) for item in config.runs]
    study = (_json(Path(given[0]) / STUDY) if len(given) == 1 else None) or {}
    runs = _planned(Path(given[0]), study) if study else _found([Path(name) for name in given])
    failures = [line for run in runs if (line := _describe(run))]
    for line in failures:
        log.warning("%s", line)
    done = [run for run in runs if run.facts and (run.folder / "predictions.parquet").is_file()]
    if not done:
        raise UserError(f"runs={', '.join(given)}: there is no finished run with predictions.parquet below")
    config = config.copy()
    config.title = config.title or study.get("title") or "Sweep"
    baseline = config.baseline or study.get("baseline")
    title, folder = config.title, Path(config.output_dir)
    reports = []
    others = dict.fromkeys(
        path.parent.name for run in done for path in sorted(run.folder.glob("on_*/predictions.parquet"))
    )
    for place in ("", *others):
        scored = [run for run in done if not place or (run.folder / place / "run.json").is_file()]
        if not scored:
            continue
        config.baseline = baseline
        if place:
            config.title, config.output_dir, config.overwrite = (f"{title}: {place[3:]}", str(folder / place), True)
            if baseline not in (None, *(run.method for run in scored)):
                log.warning("no comparison on %s: the baseline '%s' has not been scored on it", place[3:], baseline)
                continue
        read = [_read(run, run.folder / place / "predictions.parquet") for run in scored]
        command = command or ["fakedet", "compare", *overrides]
        reports.append(
            write_report(read, config, command, scored, failures, study.get("caveats") or (), trained=not place)
        )
    return reports


def _planned(root: Path, study: Mapping[str, Any]) -> list[Run]:
    """Read the folders of a study's jobs, in the study's order, whether they have begun or not."""
    ended = {row["job"]: row["error"] for row in ended_jobs(root)}
    runs = []
    flags = ["--config-dir", study["config_dir"]] if study["config_dir"] else []
    for number, job in enumerate(study["jobs"]):
        folder = root / job["folder"]
        failure = (_json(folder / FAILURE) or {}).get("error") or ended.get(number) or ""
        facts = _json(folder / "run.json") or {}
        runs.append(Run(folder, job["method"], job["overrides"], job["seed"], facts, failure, flags))
    return runs


def _found(roots: Sequence[Path]) -> list[Run]:
    """Find the runs below some folders, name them by the overrides that differ, and sort them by name and seed."""
    found = []
    for root in roots:
        if not root.is_dir():
            raise UserError(f"runs={root}: there is no such folder")
        for path in sorted(root.rglob("config.yaml")):
            folder = path.parent
            # Stage 1 has no config of its own, and reports and evaluations have no model.
            if not (folder / "overrides.yaml").is_file() or "model" not in OmegaConf.load(path):
                continue
            facts = _json(folder / "run.json") or {}
            listed: Any = OmegaConf.to_container(OmegaConf.load(folder / "overrides.yaml"))
            failure = (_json(folder / FAILURE) or {}).get("error", "")
            run = Run(folder, "", listed, 0, facts, failure)
            found.append(replace(run, seed=int(facts.get("seed", run.overrides.get("seed", 0)))))
    keys = dict.fromkeys(key for run in found if run.facts for key in run.overrides if not key.startswith(NOT_COMPARED))
    differing = [key for key in keys if len({run.overrides.get(key) for run in found if run.facts}) > 1]
    named = []
    for run in found:
        label = method_label({key: run.overrides[key] for key in differing if key in run.overrides})
        named.append(replace(run, method=label or str(OmegaConf.load(run.folder / "config.yaml").name)))
    return sorted(named, key=lambda run: (run.method, run.seed))


def _json(path: Path) -> dict[str, Any] | None:
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content


def _read(run: Run, path: Path) -> Read:
    frame, info = read_predictions(path)
    return Read(run.method, run.seed, path, frame, info, read_pictures(path))


def _describe(run: Run) -> str:
    """Say what became of a run that did not end well, and how to run it alone; "" if it did."""
    if run.facts and not run.failure:
        return ""
    cause = f"failed: {run.failure}" if run.failure else "has not finished"
    again = f"fakedet resume run={shlex.quote(str(run.folder))}"
    if not (run.folder / "config.yaml").is_file():
        cause = cause if run.failure else "has not begun"
        again = f"fakedet train {shlex.join([*run.flags, *run.given, f'output_dir={run.folder}'])}"
    return f"{run.folder.name} {cause}. Alone: {again}"
