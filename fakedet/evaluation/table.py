"""The comparison as a table: for the console, for Markdown and for spreadsheets."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from rich.table import Table
from rich.text import Text

from fakedet.evaluation.comparison import Comparison
from fakedet.metrics.bootstrap import Interval

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
    return _markdown(comparison, metric, comparison.methods, lambda row, method: text(row.cells[method]))


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
        lambda row, method: text(differences[row.key][method].interval, "+.3f"),
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


def text(cell: Interval, form: str = ".2f") -> str:
    """Write ``0.83 [0.78, 0.88]``, the value alone where it has no interval, and a dash where there is none.

    Args:
        cell: what to write.
        form: of each number; ``+.2f`` for differences.
    """
    if math.isnan(cell.value):
        return "–"
    if math.isnan(cell.low):
        return f"{cell.value:{form}}"
    return f"{cell.value:{form}} [{cell.low:{form}}, {cell.high:{form}}]"


def _two_lines(cell: Interval) -> Text:
    value, _, interval = text(cell).partition(" ")
    if not interval:
        return Text(value)
    return Text.assemble(value, "\n", (interval.strip("[]").replace(", ", "–"), "dim"))


def _escape(name: str) -> str:
    """Keep a name from ending its cell or starting a tag."""
    return name.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")
