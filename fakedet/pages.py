"""What reports share: rendering an HTML page from a template, and the look of figures."""

from __future__ import annotations

import base64
import logging
import re
import unicodedata
import warnings
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import cv2
import matplotlib.colors as mcolors
import numpy as np
from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, findSystemFonts, fontManager, get_font
from matplotlib.text import Text
from numpy.typing import NDArray
from PIL import Image

from fakedet.utils import replacing

log = logging.getLogger("fakedet")

# Of methods: Okabe and Ito's colours, which colour-blind readers can tell apart, without the yellow: it is too light.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
REAL_COLOUR, FAKE_COLOUR = "#4D4D4D", "#D55E00"
WIDTH = 4.0  # inches of a figure: on a page of 400 pixels an inch has 88, and type of 9 points 11 pixels
DPI = 220
TYPE = 9  # points


@dataclass(frozen=True)
class Drawing:
    """A picture with its caption."""

    path: Path
    caption: str

    @property
    def data(self) -> str:
        """The picture as a data URI."""
        return "data:image/png;base64," + base64.b64encode(self.path.read_bytes()).decode()

    @property
    def width(self) -> int:
        """Pixels of a page below which its type is too small."""
        with Image.open(self.path) as image:
            return round(image.width * 88 / DPI)


def render(package: str, template: str, path: Path, **context: Any) -> None:
    """Render a template, a path inside a package, into an HTML file with the common frame and style sheet.

    The template extends "page.html", which shows ``title``. The file is written whole or not at all; all values of the
    context are escaped.
    """
    common = files("fakedet.evaluation").joinpath("report")
    own = files(package).joinpath(template)
    environment = Environment(
        loader=FunctionLoader(lambda name: (common / name if name == "page.html" else own).read_text(encoding="utf-8")),
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    style = Markup((common / "style.css").read_text(encoding="utf-8"))
    content = environment.get_template(template).render(style=style, **context)
    with replacing(path) as temporary:
        temporary.write_text(content, encoding="utf-8")


def new_figure(width: float, height: float) -> Figure:
    """Make a figure of this size in inches outside of pyplot's registry, which would keep it alive."""
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def save(figure: Figure, path: Path) -> Path:
    """Write a figure as PNG and return its path; names have passed :func:`plain`, and are drawn in any script."""
    painted = []
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")
        figure.draw_without_rendering()  # makes the texts of the ticks
        for text in figure.findobj(lambda one: isinstance(one, Text) and one.get_visible()):
            assert isinstance(text, Text)
            if families := _families(text.get_text()):
                text.set_fontfamily([*text.get_fontfamily(), *families])
            elif _missing(text.get_text()):
                painted.append((text, [round(255 * part) for part in mcolors.to_rgb(text.get_color())]))
                text.set_alpha(0)  # it keeps its place
        figure.savefig(path)
    if painted:
        pixels = np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()  # type: ignore[attr-defined]
        for text, colour in painted:
            _paint(pixels, text, colour)
        Image.fromarray(pixels).save(path)
    return path


def plain(name: str, width: int | None = None) -> str:
    """Prepare a name for a figure: signs that no font has spelled out, matplotlib's markup escaped, lines broken.

    Args:
        name: in any script.
        width: cells of a line, of which a Chinese sign takes two; lines end after a space, comma, hyphen or the like
            where they can. None: one line.
    """
    name = _spell("".join(" " if unicodedata.category(sign) in ("Cc", "Zl", "Zp") else sign for sign in name))
    lines = [""]
    for part in re.findall(r"[^ _/,=+-]*[ _/,=+-]?", name):
        for piece in [part] if width is None or _cells(part) <= width else part:
            if width is not None and _cells(lines[-1] + piece.rstrip()) > width:
                lines.append("")
            lines[-1] += piece
    text = "\n".join(line.rstrip() for line in lines).replace("$", r"\$")
    return " " + text if text.startswith("_") else text  # matplotlib hides labels with a leading underscore


def _cells(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(sign) in "WF" else 1 for sign in text)


def _missing(text: str) -> set[str]:
    """Return the signs of a text that the font of figures does not have."""
    return set() if text.isascii() else {sign for sign in text if not sign.isspace() and ord(sign) not in _charmap()}


@cache
def _charmap(path: str | None = None) -> frozenset[int]:
    try:
        return frozenset(get_font(path or findfont("DejaVu Sans")).get_charmap())
    except (RuntimeError, OSError):
        return frozenset()


@cache
def _installed() -> list[tuple[str, str]]:
    """List family and path of the upright fonts of this machine, those without serifs first."""
    found = {}
    for path in sorted({*findSystemFonts(), *(entry.fname for entry in fontManager.ttflist)}):
        try:
            font = get_font(path)
        except (RuntimeError, OSError):
            continue
        # Last Resort draws boxes; fonts of coloured bitmaps cannot be scaled.
        if font.style_name in ("Regular", "Book", "Medium") and not re.search("Last Resort|Color", font.family_name):
            found[font.family_name] = path
    return sorted(found.items(), key=lambda item: "Sans" not in item[0])


@cache
def _families(text: str) -> tuple[str, ...]:
    """Return the installed families that together have the signs that figures' font lacks; () if there are none."""
    missing, families = {ord(sign) for sign in _missing(text)}, []
    ranked = sorted(_installed(), key=lambda item: -len(missing & _charmap(item[1]))) if missing else []
    for family, path in ranked:
        if missing & _charmap(path):
            missing -= _charmap(path)
            families.append(family)
            if path not in {entry.fname for entry in fontManager.ttflist}:  # installed since matplotlib listed them
                fontManager.addfont(path)
    return () if missing else tuple(families)


@cache
def _spell(name: str) -> str:
    """Spell out, by their names in Unicode, the signs that no font here has; say so once for each script."""
    told = ""
    for sign in name:
        if not _missing(sign) or _families(sign) or _paints(sign):
            told += sign
        elif unicodedata.category(sign) != "Cf" and not unicodedata.name(sign, "").startswith("VARIATION"):
            told = _spelled(told, sign)
            known = unicodedata.category(sign)[0] in "LMN"
            _warn(unicodedata.name(sign, "unknown").split()[0].capitalize() if known else "emoji or other")
    return told


@cache
def _warn(script: str) -> None:
    log.warning("figures: no font here has %s signs, so names are spelled out in Latin ones; install a font that has "
                "them, such as Noto (Debian: fonts-noto)", script)  # fmt: skip


def _spelled(before: str, sign: str) -> str:
    words = unicodedata.name(sign, f"U+{ord(sign):04X}").lower()
    if "ideograph" in words:
        return f"{before}[U+{ord(sign):X}]"
    sound = re.sub(r".*(letter|syllable|character|sign|digit) (sara )?(?=.)", "", words).split()[0]
    if unicodedata.category(sign)[0] not in "LMN":
        return f"{before}[{words}]"
    # Consonants of Indian scripts are named with the vowel "a", which a following sign replaces.
    if "vowel sign" in words or "virama" in words:
        return before.removesuffix("a") + ("" if "virama" in words else sound)
    return before + ("m" if sound in ("anusvara", "candrabindu") else sound)


@cache
def _paints(sign: str) -> bool:
    """Whether OpenCV's own font, which has Chinese, Japanese and Korean, has a sign; it draws "?" where it has not."""
    return hasattr(cv2, "FontFace") and not np.array_equal(_stamp(sign), _stamp("?"))


def _stamp(sign: str) -> NDArray[np.uint8]:
    stamp = np.zeros((40, 40), np.uint8)
    cv2.putText(stamp, sign, (4, 30), (255,), cv2.FontFace("uni"), 24)  # type: ignore[call-overload]
    return stamp


def _paint(pixels: NDArray[np.uint8], text: Text, colour: list[int]) -> None:
    """Draw a text with OpenCV's font where matplotlib left room for it; pixels are (H, W, 3)."""
    face, size = cv2.FontFace("uni"), round(float(text.get_fontsize()) * DPI / 72)
    box, lines = text.get_window_extent(), text.get_text().replace(r"\$", "$").split("\n")
    for number, line in enumerate(lines):
        width = cv2.getTextSize((0, 0), line, (0, 0), face, size)[2]
        sides = {"left": box.x0, "right": box.x1 - width}
        left = sides.get(text.get_horizontalalignment(), (box.x0 + box.x1 - width) / 2)
        foot = len(pixels) - box.y1 + box.height * (number + 0.8) / len(lines)
        cv2.putText(pixels, line, (round(left), round(foot)), colour, face, size)  # type: ignore[call-overload]
