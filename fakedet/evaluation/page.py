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
        runs: one mapping a run for the provenance table, all with the same keys.
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
        page=page,
        comparison=page.comparison,
        tables=[("AP", rows(page.comparison, "ap")), ("AUC", rows(page.comparison, "auc"))],
        text=text,
        exceeds=_exceeds(page.comparison),
    )
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(content, encoding="utf-8")
    os.replace(temporary, path)


def _exceeds(comparison: Comparison) -> dict[tuple[str, str, str], str]:
    """Mark the cells whose difference to the baseline exceeds its interval: above or below."""
    marks = {}
    for metric, by_name in comparison.differences.items():
        for name, by_method in by_name.items():
            for method, difference in by_method.items():
                if difference.exceeds:
                    way = "above" if difference.interval.value > 0 else "below"
                    marks[(metric.upper(), name, method)] = way
    return marks
