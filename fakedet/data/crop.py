"""Crops: how a square of the wanted size is taken out of an image, never by resizing unless asked."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from fakedet.errors import choose

POLICIES = {"crop": 1, "multi-crop": 5, "resize": 1}
"""Evaluation policies and how many views of an image each gives."""

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
    image = pad_to(image, height, width)
    top = int(rng.integers(image.shape[0] - height + 1))
    left = int(rng.integers(image.shape[1] - width + 1))
    return image[top : top + height, left : left + width]


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
    image = pad_to(image, size, size)
    bottom, right = image.shape[0] - size, image.shape[1] - size
    corners = [(bottom // 2, right // 2)]
    if policy == "multi-crop":
        corners += [(0, 0), (0, right), (bottom, 0), (bottom, right)]
    return [image[top : top + size, left : left + size] for top, left in corners]


def pad_to(image: Pixels, height: int, width: int) -> Pixels:
    """Pad an image on all sides alike, by reflection, to at least the given size.

    Images of any size will do: where one reflection is not enough it is repeated, and a single row or column
    is replicated.
    """
    missing = [max(0, wanted - have) for wanted, have in zip((height, width), image.shape[:2], strict=True)]
    if not any(missing):
        return image
    return np.pad(image, [(m // 2, m - m // 2) for m in missing] + [(0, 0)], mode="reflect")


def _resize_shorter_side(image: Pixels, size: int) -> Pixels:
    height, width = image.shape[:2]
    scale = size / min(height, width)
    target = (max(size, round(width * scale)), max(size, round(height * scale)))
    interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    return cv2.resize(image, target, interpolation=interpolation).astype(np.uint8, copy=False)
