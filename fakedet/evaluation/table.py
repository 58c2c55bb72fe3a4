"""The comparison as a table: for the console, for Markdown and for spreadsheets."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from rich.table import Table

from fakedet.evaluation.comparison import Comparison
from fakedet.metrics.bootstrap import Interval

MEAN_NAMES = {"map_seen": "mean, seen", "map_unseen": "mean, unseen", "map": "mean, all"}


@dataclass(frozen=True)
class Row:
    """One row: a generator or a mean."""

    name: str
    key: str
    section: str
    """"seen", "unseen" or "mean"."""
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
        if not all(math.isnan(cell.value) for cell in values[key].values()):
            listed.append(Row(name, key, "mean", "", values[key]))
    return listed


def console_table(comparison: Comparison, title: str) -> Table:
    """Lay the APs out for a terminal, value above interval."""
    table = Table(title=title, title_justify="left", caption_justify="left", pad_edge=False)
    table.add_column("generator", no_wrap=True)
    for method in comparison.methods:
        table.add_column(method, justify="right", no_wrap=True)
    section = ""
    for row in rows(comparison):
        if section and row.section != section:
            table.add_section()
        section = row.section
        mark = "" if row.section == "mean" else f"\n[dim]{row.section}, {row.counts}[/dim]"
        table.add_row(row.name + mark, *(_two_lines(row.cells[method]) for method in comparison.methods))
    table.caption = "AP with 95 % interval (bootstrap over photographs and seeds); means over generators"
    return table


def write_csv(comparison: Comparison, path: Path) -> None:
    """Write one line a generator, method and metric."""
    lines = [
        {"metric": metric, "name": row.key, "section": row.section, "counts": row.counts, "method": method,
         "value": cell.value, "low": cell.low, "high": cell.high}
        for metric in comparison.values
        for row in rows(comparison, metric)
        for method, cell in row.cells.items()
    ]  # fmt: skip
    pd.DataFrame(lines).to_csv(path, index=False)


def markdown(comparison: Comparison, metric: str = "ap") -> str:
    """Write the table in Markdown."""
    lines = [
        "| generator | " + " | ".join(comparison.methods) + " |",
        "|---|" + "---|" * len(comparison.methods),
    ]
    for row in rows(comparison, metric):
        name = f"**{row.name}**" if row.section == "mean" else f"{row.name} ({row.section}, {row.counts})"
        lines.append(
            f"| {name} | " + " | ".join(text(row.cells[method]) for method in comparison.methods) + " |"
        )
    return "\n".join(lines) + "\n"


def text(cell: Interval) -> str:
    """Write ``0.83 [0.78, 0.88]``."""
    if math.isnan(cell.value):
        return "–"
    return f"{cell.value:.2f} [{cell.low:.2f}, {cell.high:.2f}]"


def _two_lines(cell: Interval) -> str:
    if math.isnan(cell.value):
        return "–"
    return f"{cell.value:.2f}\n[dim]{cell.low:.2f}–{cell.high:.2f}[/dim]"
