"""The frozen source of stage 2."""

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
