"""A contrastive loss of one's own."""

import torch.nn.functional as F
from torch import Tensor, nn


class PrototypeLoss(nn.Module):
    """Pull reals to the mean of the batch's real traces, and push fakes below a cosine of ``margin``.

    Args:
        margin: in [-1, 1].
    """

    def __init__(self, margin: float = 0.0) -> None:
        super().__init__()
        self.margin = margin

    def forward(self, z: Tensor, labels: Tensor, traces: Tensor | None) -> dict[str, Tensor]:
        """Compute both terms of (M, D) projections, labels (M,) and traces (M, D)."""
        points = z if traces is None else traces
        prototype = F.normalize(points[labels == 0].mean(dim=0), dim=0)
        cosine = z @ prototype
        return {
            "pull": (1 - cosine[labels == 0]).mean(),
            "push": F.relu(cosine[labels == 1] - self.margin).mean(),
        }
