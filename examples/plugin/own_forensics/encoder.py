"""An encoder of one's own: second differences, and how strong they are."""

import torch
from torch import Tensor, nn


class DifferenceEncoder(nn.Module):
    """Embed images by the mean absolute second differences of their colours, through one layer.

    Args:
        width: dimension of the embedding.
    """

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.layer = nn.Sequential(nn.Linear(6, width), nn.ReLU())
        self.embedding_dim = width

    def forward(self, images: Tensor) -> Tensor:
        """Embed float RGB (N, 3, H, W) in [0, 1] as (N, width)."""
        across = images.diff(n=2, dim=-1).abs().mean(dim=(2, 3))
        down = images.diff(n=2, dim=-2).abs().mean(dim=(2, 3))
        return self.layer(torch.cat([across, down], dim=1) * 10)
