"""Heads on top of an embedding."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ProjectionHead(nn.Module):
    """Project embeddings onto the unit sphere: Linear, BatchNorm, ReLU, Linear, L2 normalisation."""

    def __init__(self, in_dim: int, hidden_dim: int, out_dim: int) -> None:
        super().__init__()
        self.out_dim = out_dim
        self.layers = nn.Sequential(
            nn.Linear(in_dim, hidden_dim, bias=False), nn.BatchNorm1d(hidden_dim), nn.ReLU(inplace=True),
            nn.Linear(hidden_dim, out_dim),
        )  # fmt: skip

    def forward(self, embedding: Tensor) -> Tensor:
        """Map (N, in_dim) to float32 rows (N, out_dim) of length one; a zero row stays zero."""
        return F.normalize(self.layers(embedding).float(), dim=1)


class Classifier(nn.Module):
    """One linear unit: the logit of being fake."""

    def __init__(self, in_dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(in_dim, 1)

    def forward(self, embedding: Tensor) -> Tensor:
        """Map (N, in_dim) to float32 logits (N,), also under autocast: bfloat16 logits tie and cost AP."""
        with torch.autocast(embedding.device.type, enabled=False):
            weight, bias = self.linear.weight.float(), self.linear.bias.float()
            return F.linear(embedding.float(), weight, bias).squeeze(1)
