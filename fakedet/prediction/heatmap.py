"""Where in a picture the tiles look fake: their scores, laid over it."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from fakedet.prediction.tiles import Tiles

OPACITY = 0.45


def overlay(image: NDArray[np.uint8], tiles: Tiles, scores: ArrayLike) -> NDArray[np.uint8]:
    """Lay the scores of tiles over an image: blue is real, red is fake, white is in between.

    Each pixel shows the mean score of the tiles that cover it; pixels that no tile covers stay as they are. These are
    the scores of separate squares, not an explanation of the verdict.

    Args:
        image: (H, W, 3).
        tiles: cut out of it.
        scores: (n,) P(fake) of each tile.

    Returns:
        (H, W, 3) uint8.
    """
    total, count = np.zeros(tiles.shape), np.zeros(tiles.shape)
    for (top, left), crop, score in zip(
        tiles.places, tiles.crops, np.asarray(scores, dtype=float), strict=True
    ):
        total[top : top + crop.shape[0], left : left + crop.shape[1]] += score
        count[top : top + crop.shape[0], left : left + crop.shape[1]] += 1
    # An image smaller than a tile was padded on all sides alike.
    top, left = ((side - own) // 2 for side, own in zip(tiles.shape, image.shape[:2], strict=True))
    part = np.s_[top : top + image.shape[0], left : left + image.shape[1]]
    covered = count[part] > 0
    mean = np.where(covered, total[part] / np.maximum(1, count[part]), 0.5)
    red, blue = np.clip(2 * mean, 0, 1), np.clip(2 - 2 * mean, 0, 1)
    colours = 255 * np.stack([red, np.minimum(red, blue), blue], axis=-1)
    mixed = np.where(covered[..., None], (1 - OPACITY) * image + OPACITY * colours, image)
    return np.asarray(cv2.convertScaleAbs(mixed), dtype=np.uint8)
