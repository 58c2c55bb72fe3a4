"""Cards: the answer about an image in words and pictures, on the page of `fakedet serve`, and in a report of many.

card.html and card.css say what a card looks like, folder_report.html what `fakedet predict report=FILE` writes: a
summary, and a card for each picture, to show and to print. The templates escape all that they show.
"""

from __future__ import annotations

import base64
import csv
import io
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields
from datetime import UTC, datetime
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import cv2
from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup

import fakedet
from fakedet.detector import (
    FAKE,
    HEATMAP_BYTES,
    REAL,
    UNDECIDED,
    Detector,
    Picture,
    Pixels,
    Prediction,
    Rules,
    read_picture,
)
from fakedet.provenance import WORDS
from fakedet.shipped import SHIPPED
from fakedet.utils import Bar, replacing

NOT_LOOKED_AT = "not looked at"  # stands for the verdict of a file without one
ORDER = (FAKE, UNDECIDED, REAL, NOT_LOOKED_AT)  # of lists: what to look at first
MADE_BY = "fakedet predict"  # names the maker of a report, inside of it
FORMULA = re.compile(r"(?=('*)[=+\-@\t\r])")  # how a cell begins that a spreadsheet would run
FIRST = 4  # pictures that are named at the top of a report
SIDE = 640  # pixels: longer side of the pictures on a card
SIMULATED = "Demonstration: this detector knows simulated fakes only; its answers say nothing about real cases."


class Card(NamedTuple):
    """The answer about one file."""

    name: str  # of the file, as its owner knows it
    sentence: str
    verdict: str = NOT_LOOKED_AT
    note: str = ""  # what to know before the verdict is read
    origin: str = ""  # what the file says of its own origin
    pictures: Sequence[dict[str, str]] = ()  # data (a URI) and caption of each
    facts: Sequence[tuple[str, str, str]] = ()  # (name, value, what it means)
    suspicion: tuple[float, float, float] = (ORDER.index(NOT_LOOKED_AT), 0.0, 0.0)  # lists of cards rise by it

    @property
    def kind(self) -> str:
        """The class of its style."""
        return "none" if self.verdict == NOT_LOOKED_AT else self.verdict


def card_of(
    name: str, picture: Picture, prediction: Prediction, heatmap: Pixels | None, detector: Detector, rules: Rules
) -> Card:
    """Put a prediction into words, beside the picture that it is about and its heatmap, if there is one.

    A file without a verdict gets a card that says why.
    """
    note, origin = note_of(detector), prediction.provenance
    if prediction.verdict is None:
        return Card(name, f"This file was not looked at: {prediction.error}.", note=note, origin=origin)
    sentence = {
        FAKE: f"To the detector {prediction.reason}. That is a reason to ask where the image is from, not a proof.",
        REAL: f"To the detector {prediction.reason}. Of fakes by generators that it does not know, more may get this "
              "answer.",
        UNDECIDED: f"The detector cannot decide: {prediction.reason}.",
    }[prediction.verdict]  # fmt: skip
    pictures = [] if picture.pixels is None else [_shown(picture.pixels, f"the image {name}", "the image")]
    if heatmap is not None:
        caption = "scores of squares: blue real, red fake, white between"
        pictures.append(_shown(heatmap, caption, caption))
    facts = [
        ("score", prediction.score, ".2f", "P(fake), if real and fake images were equally likely"),
        ("p-value", prediction.p_value, ".3f", "share of known photographs at least this unusual"),
        ("stability", prediction.stability, ".0%", "share of copies, tiles or frames that agree with it"),
    ]
    told = [(key, format(value, form), means) for key, value, form, means in facts if not math.isnan(value)]
    quality = f", quality {prediction.jpeg_quality}" if prediction.jpeg_quality else ""
    size = f"{prediction.width} × {prediction.height}, {prediction.format or 'pixels'}{quality}"
    told.append(("file", size, f"SHA-256 {prediction.sha256}" if prediction.sha256 else ""))
    return Card(name, sentence, prediction.verdict, note, origin, pictures, told, suspicion(prediction))


def note_of(detector: Detector) -> str:
    """Say what the reader must know before any verdict of a detector; "" of most."""
    return SIMULATED if detector.path == SHIPPED["demo"] else ""


def name_of(detector: Detector) -> str:
    """Name a detector as users do: one that comes with fakedet by its name, another as its training was called."""
    return next((name for name, file in SHIPPED.items() if file == detector.path), str(detector.info["name"]))


def suspicion(prediction: Prediction) -> tuple[float, float, float]:
    """Give the key that sorts predictions by suspicion, most suspicious first: verdict, then p-value, then score.

    Of files of one verdict those are first that say of themselves that AI made or changed them.
    """
    values = (prediction.p_value, -prediction.score)
    p_value, score = (1.0 if math.isnan(value) else value for value in values)
    p_value = 0.0 if prediction.declares in WORDS else p_value
    return ORDER.index(prediction.verdict or NOT_LOOKED_AT), p_value, score


def summary(verdicts: Iterable[str | None]) -> str:
    """Count verdicts in a line, as in "12 files: 2 fake, 3 undecided, 6 real, 1 not looked at"; None: not looked at."""
    counts = Counter(verdict or NOT_LOOKED_AT for verdict in verdicts)
    total = counts.total()
    listed = ", ".join(f"{counts[verdict]} {verdict}" for verdict in ORDER if counts[verdict])
    return f"{total} {'file' if total == 1 else 'files'}" + (f": {listed}" if listed else "")


def render(cards: Iterable[Card]) -> str:
    """Write cards as HTML, in their order; the page that they go into has the rules of :func:`style`."""
    return _template("card.html").render(cards=list(cards))


def style() -> str:
    """Give the style of cards, light and dark."""
    return _text("card.css")


@cache
def _template(name: str) -> Template:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(_text(name))


def _text(name: str) -> str:
    return files("fakedet.cli").joinpath(name).read_text(encoding="utf-8")


def _shown(image: Pixels, alternative: str, caption: str) -> dict[str, str]:
    """Shrink an image (H, W, 3) for a card."""
    scale = min(1.0, SIDE / max(image.shape[:2]))
    size = [max(1, round(side * scale)) for side in image.shape[1::-1]]
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    _, data = cv2.imencode(".jpg", cv2.cvtColor(small, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 85])
    uri = "data:image/jpeg;base64," + base64.b64encode(data.tobytes()).decode()
    return {"data": uri, "alternative": alternative, "caption": caption}


class ReportSettings(NamedTuple):
    """What a report is to hold."""

    cards: int  # pictures that get a card at most, the most suspicious ones
    heatmaps: int  # of these, the first that get a heatmap
    tiles: int  # squares of a heatmap at most
    prior: float  # share of fakes that the reader expects
    batch_size: int


def read_rows(path: Path) -> list[Prediction]:
    """Read the rows of a .csv or .jsonl file that `fakedet predict` wrote."""
    lines = io.StringIO(path.read_text(encoding="utf-8"), newline="")
    table = ({key: unguarded(text or "") for key, text in row.items()} for row in csv.DictReader(lines))
    given = map(json.loads, lines) if path.suffix == ".jsonl" else table
    return [Prediction(**{one.name: _value(str(one.type), row[one.name]) for one in fields(Prediction)})
            for row in given]  # fmt: skip


def guarded(text: str) -> str:
    """Write a text as a cell of a CSV file: an apostrophe before what a spreadsheet would run as a formula."""
    return f"'{text}" if FORMULA.match(text) else text


def unguarded(cell: str) -> str:
    """Read what :func:`guarded` wrote."""
    return cell[1:] if cell.startswith("'") and FORMULA.match(cell) else cell


def _value(kind: str, text: Any) -> Any:
    """Read a cell of a column, given the type of its field as it is written."""
    if text in ("", None):
        return math.nan if kind == "float" else "" if kind == "str" else None
    return float(text) if kind == "float" else int(text) if kind.startswith("int") else text


def write_folder_report(
    path: Path, rows: Sequence[Prediction], detector: Detector, rules: Rules, settings: ReportSettings, shown: Bar
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
    judged, others = ([row for row in ordered if (row.verdict is None) is left] for left in (False, True))
    data = detector.info.get("training_data") or {}
    context = {
        "title": f"{len(rows)} {'file' if len(rows) == 1 else 'files'}, judged by fakedet",
        "made": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, fakedet {fakedet.__version__}",
        "summary": summary(row.verdict for row in rows), "note": note_of(detector),
        "first": [(number, Path(row.path).name, row) for number, row in enumerate(judged[:FIRST], start=1)
                  if row.verdict != REAL or row.declares in ("generated", "edited")],
        "rules": rules, "prior": settings.prior, "made_by": MADE_BY,
        "begins": float(point.calibration([point.threshold])[0]) if math.isfinite(point.threshold) else None,
        "declared": sum(row.declares in ("generated", "edited") for row in rows),
        "promise": point.promise(rules.false_alarm, rules.miss),
        "cost": point.cost(rules.false_alarm, rules.miss, settings.prior),
        "generators": detector.generators, "sources": data.get("real") or [],
        "detector": name_of(detector),
        "style": Markup(style()),
        "cards": (Markup(render([card])) for card in _cards_of(judged, detector, rules, settings, shown)),
        "more": len(judged) - min(len(judged), settings.cards),
        "left": [row for row in others if str(row.error).startswith(NOT_LOOKED_AT)],
        "unread": [row for row in others if not str(row.error).startswith(NOT_LOOKED_AT)],
    }  # fmt: skip
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", errors="backslashreplace") as file:
        file.writelines(_template("folder_report.html").generate(context))


def _cards_of(
    rows: Sequence[Prediction], detector: Detector, rules: Rules, settings: ReportSettings, shown: Bar
) -> Iterator[Card]:
    for number, row in enumerate(rows[: settings.cards]):
        picture, heatmap = read_picture(row.path, detector.memory_mb * 10**6, HEATMAP_BYTES), None
        is_same = picture.pixels is not None and picture.sha256 == row.sha256
        if number < settings.heatmaps and is_same:
            ((_, heatmap),) = detector.examine([picture], rules, settings.batch_size, settings.tiles)
        card = card_of(row.path, picture if is_same else Picture(), row, heatmap, detector, rules)
        if row.sha256 and not is_same:
            told = "The file has gone or has changed since it was judged; the answer is of what was there before."
            card = card._replace(note=f"{card.note} {told}".strip())
        yield card
        shown.show(number + 1)
