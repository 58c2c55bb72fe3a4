"""The frozen source of stage 2, and a memory for what it has said."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


class TraceSource(nn.Module):
    """Give the natural traces of images from a trained stage 1 that never changes again.

    Holds copies, so that freezing them does not freeze the modules that were passed.

    Args:
        encoder: stage 1's encoder.
        head: stage 1's homogeneous projection head.
    """

    def __init__(self, encoder: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.encoder, self.head = copy.deepcopy(encoder), copy.deepcopy(head)
        self.requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> TraceSource:
        """Stay in evaluation mode whatever ``mode`` is: a frozen source's batch statistics must not drift."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Map float RGB (N, 3, H, W) in [0, 1] to L2-normalised traces (N, D), without gradients."""
        traces: Tensor = self.head(self.encoder(images))
        return traces


class TraceMemory:
    """Ask a frozen source once for each image, where an image looks the same each time.

    Args:
        source: maps images to traces and never changes.
    """

    def __init__(self, source: TraceSource) -> None:
        self._source = source
        self._traces: dict[int, Tensor] = {}

    def __call__(self, images: Tensor, ids: Tensor) -> Tensor:
        """Give the traces (N, D) of images (N, 3, H, W) whose rows in the manifest are ``ids`` (N,)."""
        rows = ids.tolist()
        # The whole batch if any is new: rows must not depend on which others were known, or a resumed run,
        # which begins with an empty memory, could differ in its last bits.
        if not all(row in self._traces for row in rows):
            self._traces |= dict(zip(rows, self._source(images), strict=True))
        return torch.stack([self._traces[row] for row in rows])
