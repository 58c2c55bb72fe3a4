"""The HTML report: one file that needs no network."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fakedet.evaluation.comparison import Comparison
from fakedet.evaluation.html import Figure, render
from fakedet.evaluation.table import rows, text
from fakedet.evaluation.verdict import verdict
from fakedet.metrics.bootstrap import Interval


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
    figures: Sequence[Figure]
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
        text=text,
        probability=_probability,
    )


def _probability(p: float) -> str:
    if p != p:
        return ""
    return "p < 0.01" if p < 0.01 else f"p = {p:.2f}"
