"""The page that `fakedet predict report=FILE` writes: a summary, and a card for each picture, to show and to print."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import fields
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

import fakedet
from fakedet.cli.cards import Card, card_of, note_of, render, style, summary, suspicion
from fakedet.detector import HEATMAP_BYTES, Detector, Picture, Prediction, Rules, read_picture
from fakedet.utils import Bar, replacing

FIRST = 4  # pictures that are named at the top


class Settings(NamedTuple):
    """What a report is to hold."""

    cards: int  # pictures that get a card at most, the most suspicious ones
    heatmaps: int  # of these, the first that get a heatmap
    tiles: int  # squares of a heatmap at most
    prior: float  # share of fakes that the reader expects
    batch_size: int


def read_rows(path: Path) -> list[Prediction]:
    """Read the rows of a .csv or .jsonl file that `fakedet predict` wrote."""
    lines = io.StringIO(path.read_text(encoding="utf-8"), newline="")
    given = map(json.loads, lines) if path.suffix == ".jsonl" else csv.DictReader(lines)
    return [Prediction(**{one.name: _value(str(one.type), row[one.name]) for one in fields(Prediction)})
            for row in given]  # fmt: skip


def _value(kind: str, text: Any) -> Any:
    """Read a cell of a column, given the type of its field as it is written."""
    if text in ("", None):
        return math.nan if kind == "float" else "" if kind == "str" else None
    return float(text) if kind == "float" else int(text) if kind.startswith("int") else text


def write_folder_report(
    path: Path, rows: Sequence[Prediction], detector: Detector, rules: Rules, settings: Settings, shown: Bar
) -> None:
    """Write the page; pictures are read again, one at a time.

    Args:
        path: of the HTML file.
        rows: all predictions, in any order.
        detector, rules: that made them.
        settings: what it is to hold.
        shown: progress, by the cards that are written.
    """
    point = detector.require_operating_point()
    ordered = sorted(rows, key=suspicion)
    judged = [row for row in ordered if row.verdict is not None]
    data = detector.info.get("training_data") or {}
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(files("fakedet.cli").joinpath("folder_report.html").read_text(encoding="utf-8"))
    context = {
        "title": f"{len(rows)} {'file' if len(rows) == 1 else 'files'}, judged by fakedet",
        "made": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, fakedet {fakedet.__version__}",
        "summary": summary(row.verdict for row in rows), "note": note_of(detector),
        "first": [(Path(row.path).name, row) for row in judged[:FIRST]],
        "declared": sum(row.declares in ("generated", "edited") for row in rows),
        "promise": point.promise(rules.false_alarm, rules.miss),
        "cost": point.cost(rules.false_alarm, rules.miss, settings.prior),
        "generators": detector.generators, "sources": data.get("real") or [],
        "detector": detector.info["name"], "style": Markup(style()),
        "cards": (Markup(render([card])) for card in _cards(judged, detector, rules, settings, shown)),
        "more": len(judged) - min(len(judged), settings.cards), "left": [row for row in rows if row.verdict is None],
    }  # fmt: skip
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", errors="backslashreplace") as file:
        file.writelines(template.generate(context))


def _cards(
    rows: Sequence[Prediction], detector: Detector, rules: Rules, settings: Settings, shown: Bar
) -> Iterator[Card]:
    for number, row in enumerate(rows[: settings.cards]):
        picture, heatmap = read_picture(row.path, detector.memory_mb * 10**6, HEATMAP_BYTES), None
        if number < settings.heatmaps and picture.pixels is not None:
            ((_, heatmap),) = detector.examine([picture], rules, settings.batch_size, settings.tiles)
        yield card_of(row.path, picture if picture.pixels is not None else Picture(), row, heatmap, detector, rules)
        shown.show(number + 1)
