"""Decoded pictures that come again, kept by the process that reads them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

CAPACITY = 512 * 2**20
"""Bytes of pixels kept for a loader."""


class PictureMemory:
    """Keep the pixels of rows until the memory is full: a small set is decoded once, a large one as ever.

    What came first stays. Epochs are drawn anew each time, so that dropping the oldest would keep no more of a set that
    does not fit, and cost as much.

    Args:
        capacity: in bytes; 0: nothing is kept.
    """

    def __init__(self, capacity: int = CAPACITY) -> None:
        self.left = capacity
        self._pixels: dict[int, NDArray[np.uint8]] = {}

    def get(self, row: int) -> NDArray[np.uint8] | None:
        """Give a copy of a row's pixels, which may be written to, if they are kept."""
        kept = self._pixels.get(row)
        return None if kept is None else kept.copy()

    def keep(self, row: int, pixels: NDArray[np.uint8]) -> None:
        """Keep a copy of a row's pixels if there is room."""
        if pixels.nbytes <= self.left and row not in self._pixels:
            self._pixels[row] = pixels.copy()
            self.left -= pixels.nbytes
