"""Crops: how a square of the wanted size is taken out of an image, never by resizing unless asked."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from fakedet.errors import choose

POLICIES = {"crop": 1, "multi-crop": 5, "resize": 1}
"""Evaluation policies and how many views of an image each gives."""

LONGEST = 16
"""Times the shorter side that the longer one may measure when an image is resized: an image of one row would
grow to gigabytes. The centre is all that is looked at."""

Pixels = NDArray[np.uint8]


def random_crop(image: Pixels, height: int, width: int, rng: np.random.Generator) -> Pixels:
    """Take a crop at a uniformly random place; smaller images are padded by reflection.

    Args:
        image: (H, W, 3).
        height: of the crop.
        width: of the crop.
        rng: gives the place.

    Returns:
        (height, width, 3), a view of ``image`` where nothing was padded.
    """
    top = int(rng.integers(max(image.shape[0] - height, 0) + 1))
    left = int(rng.integers(max(image.shape[1] - width, 0) + 1))
    return _cut(image, top, left, height, width)


def evaluation_views(image: Pixels, size: int, policy: str) -> list[Pixels]:
    """Take the crops that an evaluation policy asks for; they depend on nothing but the image.

    * ``crop``: the centre.
    * ``multi-crop``: the centre and the four corners; scores are averaged over them.
    * ``resize``: the shorter side is resized to ``size``, then the centre. This destroys the traces that a
      detector looks for; it is here to compare with detectors that were evaluated so.

    Args:
        image: (H, W, 3).
        size: side of the square.
        policy: a key of :data:`POLICIES`.

    Returns:
        ``POLICIES[policy]`` arrays (size, size, 3).

    Raises:
        UserError: no such policy.
    """
    choose(policy, POLICIES, "data.eval_policy")
    if policy == "resize":
        image = _resize_shorter_side(image, size)
    bottom, right = (max(side - size, 0) for side in image.shape[:2])
    corners = [(bottom // 2, right // 2)]
    if policy == "multi-crop":
        corners += [(0, 0), (0, right), (bottom, 0), (bottom, right)]
    return [_cut(image, top, left, size, size) for top, left in corners]


def pad_to(image: Pixels, height: int, width: int) -> Pixels:
    """Pad an image on all sides alike, by reflection, to at least the given size.

    Images of any size will do: where one reflection is not enough it is repeated, and a single row or column
    is replicated.
    """
    missing = [max(0, wanted - have) for wanted, have in zip((height, width), image.shape[:2], strict=True)]
    if not any(missing):
        return image
    return np.pad(image, [(m // 2, m - m // 2) for m in missing] + [(0, 0)], mode="reflect")


def _cut(image: Pixels, top: int, left: int, height: int, width: int) -> Pixels:
    """Cut first and pad what is left: padded as a whole, one row of a million pixels would be a hundred."""
    return pad_to(image[top : top + height, left : left + width], height, width)


def _resize_shorter_side(image: Pixels, size: int) -> Pixels:
    most = LONGEST * min(image.shape[:2])
    top, left = (max(side - most, 0) // 2 for side in image.shape[:2])
    image = image[top : top + most, left : left + most]
    height, width = image.shape[:2]
    scale = size / min(height, width)
    target = (max(size, round(width * scale)), max(size, round(height * scale)))
    interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    return cv2.resize(image, target, interpolation=interpolation).astype(np.uint8, copy=False)
