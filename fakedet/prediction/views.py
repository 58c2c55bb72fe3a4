"""What is looked at of one image: the crops of the detector's own policy, altered copies, and tiles."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from fakedet.data.crop import evaluation_views, pad_to

Pixels = NDArray[np.uint8]


def _jpeg(quality: int) -> Callable[[Pixels], Pixels]:
    def compress(image: Pixels) -> Pixels:
        data = cv2.imencode(
            ".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality]
        )[1]
        return np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR_RGB), dtype=np.uint8)

    return compress


def _scaled(factor: float) -> Callable[[Pixels], Pixels]:
    def scale(image: Pixels) -> Pixels:
        height, width = (max(1, round(side * factor)) for side in image.shape[:2])
        way = cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC
        return cv2.resize(image, (width, height), interpolation=way).astype(np.uint8, copy=False)

    return scale


ALTERED: dict[str, Callable[[Pixels], Pixels]] = {
    "jpeg80": _jpeg(80), "jpeg60": _jpeg(60), "half": _scaled(0.5), "smaller": _scaled(0.75), "larger": _scaled(1.25),
}  # fmt: skip
"""Copies such as a phone or a website makes."""


@dataclass(frozen=True)
class Tiles:
    """Squares spread evenly over an image."""

    places: list[tuple[int, int]]
    """(top, left) of each."""
    crops: list[Pixels]
    shape: tuple[int, int]
    """Height and width of the (padded) image."""


def cut_tiles(image: Pixels, size: int, most: int) -> Tiles:
    """Cut at most ``most`` squares out of an image, evenly spread from edge to edge.

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
    places = [(top, left) for top in _spread(height - size, rows) for left in _spread(width - size, columns)]
    crops = [image[top : top + size, left : left + size] for top, left in places]
    return Tiles(places, crops, (height, width))


def _spread(room: int, count: int) -> list[int]:
    if count == 1:
        return [room // 2]
    return [round(room * number / (count - 1)) for number in range(count)]


def policy_views(image: Pixels, size: int, policy: str, name: str) -> list[Pixels]:
    """Take the crops that the detector was fitted on, of the image or of an altered copy of it."""
    return evaluation_views(image if name == "original" else ALTERED[name](image), size, policy)
