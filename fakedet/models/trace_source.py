"""The frozen source of stage 2, and a memory for what it has said."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from fakedet.models.frozen import FrozenTrunk


class TraceSource(nn.Module):
    """Give the natural traces of images from a trained stage 1 that never changes again, unless it is told to learn.

    Holds copies, so that freezing them does not freeze the modules that were passed.

    Args:
        encoder: stage 1's encoder.
        head: stage 1's homogeneous projection head.
    """

    def __init__(self, encoder: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.encoder, self.head = copy.deepcopy(encoder), copy.deepcopy(head)
        self.learns = False
        self.requires_grad_(False)
        self.train(False)

    def let_learn(self) -> None:
        """Train it along with the detector (ablation); a frozen trunk in it stays as it is."""
        self.learns = True
        self.requires_grad_(True)
        for module in self.modules():
            if isinstance(module, FrozenTrunk):
                module.requires_grad_(False)
        self.train(True)

    def train(self, mode: bool = True) -> TraceSource:
        """Stay in evaluation mode whatever ``mode`` is: a frozen source's batch statistics must not drift."""
        return super().train(mode and self.learns)

    def forward(self, images: Tensor) -> Tensor:
        """Map float RGB (N, 3, H, W) in [0, 1] to L2-normalised traces (N, D), without gradients if it is frozen."""
        with torch.set_grad_enabled(self.learns and torch.is_grad_enabled()):
            traces: Tensor = self.head(self.encoder(images))
        return traces


def share_trunk(source: TraceSource, encoder: nn.Module) -> None:
    """Let a source over the same frozen trunk as the detector's encoder use that one: in memory and in files once.

    Args:
        source: its encoder's trunk is replaced, where it has one that says the same.
        encoder: the detector's.
    """
    own, other = getattr(source.encoder, "trunk", None), getattr(encoder, "trunk", None)
    if isinstance(own, FrozenTrunk) and isinstance(other, FrozenTrunk) and own.says_the_same(other):
        source.encoder.trunk = other


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
