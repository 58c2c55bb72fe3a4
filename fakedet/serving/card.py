"""What the page says of one picture, in words."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

import cv2
import numpy as np
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from numpy.typing import NDArray

from fakedet.prediction.desk import FAKE, REAL, UNKNOWN, Rules

# Longer side of a shown picture, in pixels.
SIDE = 640
KINDS = {REAL: "real", FAKE: "fake", UNKNOWN: "unknown"}


@dataclass(frozen=True)
class Shown:
    """A picture as the page shows it."""

    data: str
    """Data URI."""
    caption: str


@dataclass(frozen=True)
class Card:
    """What is said of one picture."""

    name: str
    verdict: str
    sentence: str
    pictures: Sequence[Shown] = field(default_factory=list)
    facts: Sequence[tuple[str, str, str]] = field(default_factory=list)
    """(name, value, what it means)."""

    @property
    def kind(self) -> str:
        """The class of its style."""
        return KINDS.get(self.verdict, "none")


def make_card(name: str, row: Mapping[str, Any], rules: Rules, pictures: Sequence[Shown]) -> Card:
    """Put an examiner's row into words.

    Args:
        name: of the file, as its owner knows it.
        row: of :class:`fakedet.prediction.examiner.Examiner`.
        rules: of the desk.
        pictures: to show.
    """
    if row.get("error"):
        return Card(name, "no answer", f"This file could not be looked at: {row['error']}.")
    return Card(name, row["verdict"], _sentence(row, rules), pictures, _facts(row))


def refusal(name: str, why: str) -> Card:
    """Say why nothing was looked at."""
    return Card(name, "no answer", why)


def to_html(cards: Sequence[Card]) -> str:
    """Render cards; whatever they show is escaped."""
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    here = files("fakedet.serving")
    template = environment.from_string(here.joinpath("card.html").read_text(encoding="utf-8"))
    return template.render(cards=cards, style=Markup(here.joinpath("card.css").read_text(encoding="utf-8")))


def shown(image: NDArray[np.uint8], caption: str) -> Shown:
    """Shrink an image (H, W, 3) for the page."""
    scale = min(1.0, SIDE / max(image.shape[:2]))
    size = [max(1, round(side * scale)) for side in image.shape[1::-1]]
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    _, data = cv2.imencode(".jpg", cv2.cvtColor(small, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 85])
    return Shown("data:image/jpeg;base64," + base64.b64encode(data.tobytes()).decode(), caption)


def _sentence(row: Mapping[str, Any], rules: Rules) -> str:
    if row["verdict"] == FAKE:
        return (
            "Of photographs like those the detector was checked on, at most "
            f"{100 * rules.false_alarm:g} in 100 look this unusual to it. That is a reason to ask where the "
            "picture is from, not a proof."
        )
    if row["verdict"] == REAL:
        return (
            "It looks like a photograph to the detector. Of fakes by generators it knows, at most "
            f"{100 * rules.miss:g} in 100 get this answer; of fakes by others, more may."
        )
    return f"The detector cannot tell: {row['reason']}."


def _facts(row: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    quality = f", quality {row['jpeg_quality']}" if row.get("jpeg_quality") else ""
    facts = [
        ("score", _number(row["score"]), "P(fake), if reals and fakes were equally likely"),
        ("p-value", _number(row["p_value"], ".3f"), "share of known photographs at least this unusual"),
        ("stability", _number(row["stability"], ".0%"), "share of re-saved and rescaled copies that agree"),
        ("file", f"{row['width']} × {row['height']}, {row['format']}{quality}", ""),
    ]
    return [fact for fact in facts if fact[1]]


def _number(value: float | None, form: str = ".2f") -> str:
    return "" if value is None or math.isnan(value) else format(value, form)
