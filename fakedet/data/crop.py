"""Crops: never a resize unless asked for by name, because resizing destroys traces."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from fakedet.errors import choose

POLICIES = ("crop", "multi-crop", "resize")


def random_crop(image: NDArray[np.uint8], size: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Cut a random square of ``size`` out of (H, W, 3); smaller images are padded by reflection first."""
    image = pad_to(image, size)
    top = int(rng.integers(image.shape[0] - size + 1))
    left = int(rng.integers(image.shape[1] - size + 1))
    return image[top : top + size, left : left + size]


def evaluation_views(image: NDArray[np.uint8], size: int, policy: str) -> list[NDArray[np.uint8]]:
    """Cut what evaluation sees of an image.

    Args:
        image: (H, W, 3) uint8.
        size: side of the views.
        policy: "crop": the centre; "multi-crop": the centre and the four corners; "resize": the shorter side
            resized to ``size`` (which destroys traces), then the centre.

    Raises:
        UserError: an unknown policy.
    """
    choose(policy, POLICIES, "data.eval_policy")
    if policy == "resize":
        scale = size / min(image.shape[:2])
        target = (max(size, round(image.shape[1] * scale)), max(size, round(image.shape[0] * scale)))
        kernel = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        image = np.asarray(cv2.resize(image, target, interpolation=kernel), dtype=np.uint8)
    image = pad_to(image, size)
    free = (image.shape[0] - size, image.shape[1] - size)
    corners = [(free[0] // 2, free[1] // 2)]
    if policy == "multi-crop":
        corners += [(0, 0), (0, free[1]), (free[0], 0), free]
    return [image[top : top + size, left : left + size] for top, left in corners]


def pad_to(image: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Pad (H, W, 3) by reflection, as often as it takes, until both sides are at least ``size``."""
    missing = [max(0, size - side) for side in image.shape[:2]]
    if not any(missing):
        return image
    before = [count // 2 for count in missing]
    widths = [(first, count - first) for first, count in zip(before, missing, strict=True)]
    # "symmetric" repeats the edge pixel, which works for an image of one pixel too.
    return np.pad(image, [*widths, (0, 0)], mode="symmetric")
