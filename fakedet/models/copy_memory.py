"""A memory for trace-destroyed copies that are the same in every epoch."""

from __future__ import annotations

import torch
from torch import Tensor

from fakedet.models.destroyer import TraceDestroyer

CAPACITY = 512 * 2**20
"""Bytes of pixels kept."""


class CopyMemory:
    """Make the copy of an image that looks the same each time, with draws that are its own, once.

    A copy does not depend on its batch and is in steps of 1/255, so that what is kept, in bytes, is the copy.

    Args:
        destroyer: makes the copies.
        capacity: in bytes; what came first stays.
    """

    def __init__(self, destroyer: TraceDestroyer, capacity: int = CAPACITY) -> None:
        self._destroyer, self._left = destroyer, capacity
        self._kept: dict[int, Tensor] = {}

    def __call__(self, images: Tensor, ids: Tensor, draws: Tensor) -> Tensor:
        """Give the copies (N, 3, H, W) of images (N, 3, H, W) in [0, 1], rows ``ids`` (N,) of the manifest."""
        rows = ids.tolist()
        new = [index for index, row in enumerate(rows) if row not in self._kept]
        copies = torch.empty_like(images)
        if new:
            copies[new] = self._destroyer(images[new], draws=draws[new])
        for index, row in enumerate(rows):
            if row in self._kept:
                copies[index] = self._kept[row].to(images.device).float().div(255.0)
        for index in new:
            self._keep(rows[index], copies[index])
        return copies

    def _keep(self, row: int, copy: Tensor) -> None:
        if copy.numel() <= self._left and row not in self._kept:
            self._kept[row] = copy.float().mul(255.0).round().byte().cpu()
            self._left -= copy.numel()
