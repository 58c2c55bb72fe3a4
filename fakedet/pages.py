"""What reports share: rendering an HTML page from a template, and the look of figures."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from fakedet.utils import replacing

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Okabe and Ito's colours, which colour-blind readers can tell apart, without the yellow, too light for lines."""
MARKERS = ("o", "s", "^", "D")
"""One for each round of the palette, since the seventh line repeats the first colour."""
REAL_COLOUR = "#4D4D4D"
WIDTH = 6.4
"""Inches; two figures fit side by side in a report of 1200 px, and one is readable at 400 px."""


@dataclass(frozen=True)
class Drawing:
    """A picture with its caption."""

    path: Path
    caption: str

    @property
    def data(self) -> str:
        """The picture as a data URI."""
        return "data:image/png;base64," + base64.b64encode(self.path.read_bytes()).decode()


def render(package: str, template: str, path: Path, **context: Any) -> None:
    """Render a template, a path inside a package, and ``style``, the common style sheet, into an HTML file.

    The file is written whole or not at all; all values of the context are escaped.
    """
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    text = files(package).joinpath(template).read_text(encoding="utf-8")
    style = files("fakedet.evaluation").joinpath("report/style.css").read_text(encoding="utf-8")
    content = environment.from_string(text).render(style=Markup(style), **context)
    with replacing(path) as temporary:
        temporary.write_text(content, encoding="utf-8")


def new_figure(width: float, height: float) -> Figure:
    """Make a figure of this size in inches outside of pyplot's registry, which would keep it alive."""
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def save(figure: Figure, path: Path) -> Path:
    """Write a figure as PNG and return its path."""
    figure.savefig(path, dpi=200)
    return path
