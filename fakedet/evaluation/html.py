"""Render a template into one HTML file that needs no network."""

from __future__ import annotations

import base64
import os
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup


@dataclass(frozen=True)
class Figure:
    """A picture with its caption."""

    path: Path
    caption: str

    @property
    def data(self) -> str:
        """The picture as a data URI."""
        return "data:image/png;base64," + base64.b64encode(self.path.read_bytes()).decode()


def render(package: str, template: str, path: Path, **context: Any) -> None:
    """Render a template of a package into a file, whole or not at all; whatever it shows is escaped.

    Args:
        package: such as "fakedet.evaluation".
        template: path inside it.
        path: the HTML file.
        **context: what the template shows; ``style`` is added, the style sheet of all our pages.
    """
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    text = files(package).joinpath(template).read_text(encoding="utf-8")
    style = files("fakedet.evaluation").joinpath("report/style.css").read_text(encoding="utf-8")
    content = environment.from_string(text).render(style=Markup(style), **context)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_text(content, encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
