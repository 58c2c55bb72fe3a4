"""Rebuild tables, figures and the page from predictions files alone: what ``fakedet report`` does."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from fakedet.errors import UserError, nearest
from fakedet.evaluation.comparison import Comparison, compare
from fakedet.evaluation.page import Page, write_page
from fakedet.evaluation.table import write_csv, write_markdown
from fakedet.evaluation.verdict import verdict
from fakedet.metrics.bootstrap import Interval
from fakedet.runs.checks import check_config
from fakedet.runs.folder import open_folder, provenance, write_config, write_json
from fakedet.runs.report_figures import figures, galleries, provenance_of
from fakedet.runs.report_files import Read, read_files

log = logging.getLogger("fakedet")


def report(config: DictConfig, overrides: list[str]) -> tuple[Comparison, Path]:
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
    return write(read, config, ["fakedet", "report", *overrides])


def write(
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
