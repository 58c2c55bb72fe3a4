"""The hard supervised contrastive loss, a baseline."""

from __future__ import annotations

import torch
from torch import Tensor

from fakedet.losses.precision import full_precision


@full_precision
def supervised_contrastive_loss(z: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Compute L_out of Khosla et al. 2020, eq. 2, as the mean over the anchors that have a positive.

    L_out,i = −1/|P(i)| Σ_{p∈P(i)} log [ e^{z_i·z_p/τ} / Σ_{a≠i} e^{z_i·z_a/τ} ],
    P(i) the other rows of i's class. Eq. 2 sums over anchors; the mean keeps λ independent of the batch size.

    Args:
        z: (M, D) projections, L2-normalised by the caller.
        labels: (M,) integer class of each row.
        temperature: τ > 0.

    Returns:
        A scalar, float32 or float64 as ``z``; 0 that keeps its graph where no anchor has a positive.

    Raises:
        ValueError: not one label a row.
    """
    if labels.shape != z.shape[:1]:
        raise ValueError(f"supervised_contrastive_loss got {len(z)} rows and labels {tuple(labels.shape)}")
    itself = torch.eye(len(z), dtype=torch.bool, device=z.device)
    positive = (labels[:, None] == labels[None, :]) & ~itself
    count = positive.sum(dim=1)
    has_positive = count > 0
    if not bool(has_positive.any()):
        return z.sum() * 0.0
    similarity = ((z @ z.T) / temperature).masked_fill(itself, float("-inf"))
    log_probability = similarity - torch.logsumexp(similarity, dim=1, keepdim=True)
    summed = log_probability.masked_fill(~positive, 0.0).sum(dim=1)
    return -(summed[has_positive] / count[has_positive]).mean()
