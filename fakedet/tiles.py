"""Squares spread over an image, and the picture of their scores."""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw, ImageFont

from fakedet.data.transforms import pad_to

Pixels: TypeAlias = NDArray[np.uint8]

SIDE = 1600  # pixels: longer side of a heatmap at most
GRID = 256  # points of the smoothed map along the longer side
COLOURS = np.array([[20, 60, 255], [255, 255, 255], [255, 30, 20]])  # of the scores 0, 0.5 and 1
OPAQUE = 0.4  # of the colours over the picture
FAINT = 0.15  # where no square was scored


class Tiles(NamedTuple):
    """Squares of an image."""

    places: list[tuple[int, int]]  # (top, left) of each, in the image, padded if it is smaller than a square
    crops: list[Pixels]


def cut_tiles(image: Pixels, size: int, most: int, overlap: bool = False) -> Tiles:
    """Cut at most ``most`` (>= 1) squares out of an image, evenly spread; they cover all of it if that many suffice.

    The image (H, W, 3) is padded by reflection if smaller than a square of ``size`` pixels. With ``overlap``, squares
    reach from edge to edge, and overlap by half if that many suffice.
    """
    height, width = (max(size, side) for side in image.shape[:2])
    rows, columns = (1 + -(-(side - size) * 2 // size) if overlap else -(-side // size) for side in (height, width))
    while rows * columns > most:
        # Take one from the side along which the squares are denser.
        if (rows / height > columns / width and rows > 1) or columns == 1:
            rows -= 1
        else:
            columns -= 1

    def starts(side: int, count: int) -> list[int]:
        if overlap and count > 1:
            return [round(number * (side - size) / (count - 1)) for number in range(count)]
        middles = [(number + 0.5) * side / count for number in range(count)]
        return [min(max(0, round(middle - size / 2)), side - size) for middle in middles]

    places = [(top, left) for top in starts(height, rows) for left in starts(width, columns)]
    crops = [pad_to(image[top : top + size, left : left + size], size, size).copy() for top, left in places]
    return Tiles(places, crops)


def smooth(shape: tuple[int, int], tiles: Tiles, scores: ArrayLike) -> NDArray[np.float64]:
    """Spread the scores (n,) of tiles over an image of ``shape`` (H, W): a map of at most ``GRID`` points a side.

    Each point has the mean of all scores, weighed by a Gaussian of the distance to the tiles' middles, which is as wide
    as a tile or as the gap between two.
    """
    size = tiles.crops[0].shape[0]
    (height, width), values = shape, np.asarray(scores, dtype=float)
    weights, counts = [], []
    for side, starts in zip(shape, np.array(tiles.places, dtype=float).T, strict=True):
        points = max(1, round(GRID * side / max(height, width)))
        middles = starts + size / 2 - max(0, size - side) / 2  # padding lies all around
        apart = np.diff(np.unique(starts))
        spread = max(size / 4, apart.max() / 2 if len(apart) else size / 2)
        at = (np.arange(points) + 0.5) * side / points
        distance = (at[None] - middles[:, None]) / spread
        # Relative to the nearest tile, for far from all of them every weight is 0 in floating point.
        weights.append(np.exp(-0.5 * (distance**2 - (distance**2).min(axis=0))))
        counts.append(points)
    rows, columns = weights
    total = np.einsum("ty,tx->yx", rows, columns)
    spread_out: NDArray[np.float64] = np.einsum("t,ty,tx->yx", values, rows, columns) / total
    return spread_out


def draw_heatmap(image: Pixels, tiles: Tiles, scores: ArrayLike, verdict: str) -> Pixels:
    """Draw the scores (n,), P(fake) of each tile, over an image (H, W, 3) uint8 in grey, with a legend below it.

    Blue is real, red is fake, white is in between. They are scores of separate squares, spread smoothly
    (:func:`smooth`), and no explanation of the verdict.

    Returns:
        RGB, uint8, of a longer side of at most ``SIDE`` pixels, and below it a strip with a scale, the verdict, and how
        much of the picture was looked at.
    """
    height, width = image.shape[:2]
    scale = min(1.0, SIDE / max(height, width))
    drawn = [max(1, round(side * scale)) for side in (width, height)]
    small = cv2.resize(image, drawn, interpolation=cv2.INTER_AREA)
    mean = np.clip(smooth((height, width), tiles, scores), 0, 1)
    stops = [0.0, 0.5, 1.0]
    colours = np.stack([np.interp(mean, stops, channel) for channel in COLOURS.T], axis=-1).astype(np.uint8)
    over = cv2.resize(colours, drawn, interpolation=cv2.INTER_LINEAR)
    grey = cv2.cvtColor(cv2.cvtColor(small, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)  # so that all colour is a score
    size = tiles.crops[0].shape[0]
    seen = np.zeros((GRID, GRID), bool)  # share of the picture that a tile covers, on a grid
    at_y, at_x = ((np.arange(GRID) + 0.5) * side / GRID for side in (height, width))
    for top, left in tiles.places:
        y, x = (start - max(0, size - side) / 2 for start, side in ((top, height), (left, width)))
        seen |= ((at_y >= y) & (at_y < y + size))[:, None] & ((at_x >= x) & (at_x < x + size))[None]
    count = f"{len(tiles.places)} squares" if len(tiles.places) > 1 else "one square"
    told = f"{count} of {size} pixels, {100 * seen.mean():.0f} % of the picture"
    told += ", smoothed" + (", and fainter over what lies between" if not seen.all() else "")
    opaque = cv2.resize(np.where(seen, OPAQUE, FAINT), drawn, interpolation=cv2.INTER_LINEAR)[..., None]
    mixed = (grey * (1 - opaque) + over * opaque).astype(np.uint8)
    lines = [f"Verdict: {verdict}.", f"Colours: scores of {told}. They do not explain the verdict."]
    return np.concatenate([mixed, _legend(drawn[0], lines)])


def _legend(width: int, lines: list[str]) -> Pixels:
    """Draw a scale from real to fake and lines of text, broken to the width, on white."""
    size = int(np.clip(width / 45, 12, 36))
    font, margin = ImageFont.load_default(size), size // 2
    shown = []
    for line in lines:
        part = ""
        for word in line.split():
            if part and font.getlength(f"{part} {word}") > width - 2 * margin:
                shown.append(part)
                part = word
            else:
                part = f"{part} {word}".strip()
        shown.append(part)
    strip = Image.new("RGB", (width, margin * 2 + round(1.5 * size * (len(shown) + 1))), "white")
    pen = ImageDraw.Draw(strip)
    ends = [font.getlength(word) for word in ("real ", " fake")]
    left, right = margin + ends[0], min(width - margin - ends[1], margin + ends[0] + 12 * size)
    pen.text((margin, margin), "real", "black", font)
    for x in range(int(left), int(right)):
        place = (x - left) / max(1.0, right - left)
        colour = tuple(int(np.interp(place, [0, 0.5, 1], channel)) for channel in COLOURS.T)
        pen.line([(x, margin), (x, margin + size)], colour)
    pen.text((right, margin), " fake", "black", font)
    for number, line in enumerate(shown, start=1):
        pen.text((margin, margin + round(1.5 * size * number)), line, "black", font)
    return np.asarray(strip)
