"""Borders and caption strips: stretches of one colour along an edge of an image."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

TOLERANCE = 10
"""Levels by which pixels of one colour may differ; JPEG rings."""
OF_ONE_COLOUR = 0.9
"""Share of a line's pixels that must have its colour."""
MOST = 0.4
"""A strip is narrower than this share of the side; what is wider is a sky or a studio's backdrop."""
RINGING = 4
"""Lines over which JPEG smears the edge of a strip."""
LEAST = 3
"""Lines; fewer are an artefact of scaling."""


def strips(image: NDArray[np.uint8]) -> tuple[float, float, float, float]:
    """Measure the strips of one colour at the top, bottom, left and right.

    Args:
        image: (H, W, 3).

    Returns:
        Width of each as a share of the image's side; 0 where there is none.
    """
    down = _strip(image), _strip(image[::-1])
    across = image.transpose(1, 0, 2)
    return (*down, _strip(across), _strip(across[::-1]))


def _strip(image: NDArray[np.uint8]) -> float:
    """Measure the strip at the first lines of an image."""
    limit = int(len(image) * MOST)
    # Every fourth pixel says as much as all of them.
    lines = image[: limit + 1, :: max(1, image.shape[1] // 128)].astype(np.int16)
    if len(lines) <= LEAST:
        return 0.0
    colour = np.median(lines[:LEAST].reshape(-1, 3), axis=0)
    near = (np.abs(lines - colour) <= TOLERANCE).all(axis=2).mean(axis=1)
    width = int(np.argmin(near >= OF_ONE_COLOUR)) if (near < OF_ONE_COLOUR).any() else len(lines)
    # A strip ends at an edge of its own; where the picture fades into the colour there is none.
    if not LEAST <= width <= limit:
        return 0.0
    beyond = lines[min(width + RINGING, len(lines) - 1)]
    if np.abs(beyond - lines[width - 1]).mean() < 2 * TOLERANCE:
        return 0.0
    return width / len(image)
