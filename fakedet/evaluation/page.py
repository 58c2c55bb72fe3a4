"""The HTML report: one file that needs no network."""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from fakedet.evaluation.comparison import Comparison
from fakedet.evaluation.table import rows, text
from fakedet.evaluation.verdict import verdict


@dataclass(frozen=True)
class Figure:
    """A picture with its caption."""

    path: Path
    caption: str

    @property
    def data(self) -> str:
        """The picture as a data URI."""
        return "data:image/png;base64," + base64.b64encode(self.path.read_bytes()).decode()


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
    """

    title: str
    comparison: Comparison
    figures: Sequence[Figure]
    runs: Sequence[Mapping[str, Any]]
    facts: Mapping[str, Any]
    command: str
    caveats: Sequence[str] = field(default_factory=list)
    failures: Sequence[str] = field(default_factory=list)


def write_page(page: Page, path: Path) -> None:
    """Render a page into one self-contained HTML file; whatever it shows is escaped."""
    template = files("fakedet.evaluation").joinpath("report/report.html").read_text(encoding="utf-8")
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    content = environment.from_string(template).render(
        verdict=verdict(page.comparison),
        page=page,
        comparison=page.comparison,
        tables=[(metric.upper(), metric, rows(page.comparison, metric)) for metric in page.comparison.values],
        columns=list(dict.fromkeys(name for run in page.runs for name in run)),
        text=text,
        probability=_probability,
    )
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_text(content, encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _probability(p: float) -> str:
    if p != p:
        return ""
    return "p < 0.01" if p < 0.01 else f"p = {p:.2f}"
