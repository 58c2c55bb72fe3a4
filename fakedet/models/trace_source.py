"""The frozen source of stage 2."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class TraceSource(nn.Module):
    """Give the natural traces of images from a trained stage 1 that never changes again.

    Args:
        encoder: stage 1's encoder.
        head: stage 1's homogeneous projection head.
    """

    def __init__(self, encoder: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.encoder, self.head = encoder, head
        self.requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> TraceSource:
        """Stay in evaluation mode: batch statistics of a frozen source must not drift."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Map float RGB (N, 3, H, W) in [0, 1] to normalised traces (N, D)."""
        traces: Tensor = self.head(self.encoder(images))
        return traces
