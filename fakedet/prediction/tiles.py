"""Tiles: squares that a large image is looked at in."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fakedet.data.crop import pad_to

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Tiles:
    """Squares spread evenly over an image."""

    places: list[tuple[int, int]]
    """(top, left) of each."""
    crops: list[Pixels]
    shape: tuple[int, int]
    """Height and width of the (padded) image."""


def cut_tiles(image: Pixels, size: int, most: int) -> Tiles:
    """Cut at most ``most`` squares out of an image, evenly spread; all of it where so many suffice.

    Args:
        image: (H, W, 3).
        size: side of a square.
        most: at least 1.
    """
    image = pad_to(image, size, size)
    height, width = image.shape[:2]
    rows, columns = -(-height // size), -(-width // size)
    while rows * columns > most:
        # The side with the denser squares gives one up.
        if (rows / height > columns / width and rows > 1) or columns == 1:
            rows -= 1
        else:
            columns -= 1
    places = [(top, left) for top in _spread(height, size, rows) for left in _spread(width, size, columns)]
    crops = [image[top : top + size, left : left + size].copy() for top, left in places]
    return Tiles(places, crops, (height, width))


def _spread(side: int, size: int, count: int) -> list[int]:
    """Put a square into the middle of each of ``count`` equal parts of a side."""
    middles = [(number + 0.5) * side / count for number in range(count)]
    return [min(max(0, round(middle - size / 2)), side - size) for middle in middles]
