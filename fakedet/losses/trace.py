"""Losses of stage 1, learned from real images alone."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fakedet.losses.precision import full_precision


@full_precision
def heterogeneous_loss(b: Tensor, temperature: float) -> Tensor:
    """Compute NT-Xent over two views of each image (Chen et al. 2020, eq. 1); L_het of docs/method.md.

    L_het = −mean over i of log [ e^{b_i·b_i'/τ} / Σ_{k≠i} e^{b_i·b_k/τ} ], i' the other view of i's image.

    Args:
        b: (2N, D) heterogeneous projections, L2-normalised by the caller; rows i and i + N are the two views
            of one image.
        temperature: τ > 0.

    Returns:
        The mean over all 2N anchors: a scalar, float32 or float64 as the input; 0 for N = 0.

    Raises:
        ValueError: an odd number of rows.
    """
    rows = len(b)
    if rows % 2:
        raise ValueError(f"heterogeneous_loss needs two views of each image, got {rows} rows")
    if rows == 0:
        return b.sum() * 0.0
    similarity = (b @ b.T) / temperature
    similarity = similarity.masked_fill(torch.eye(rows, dtype=torch.bool, device=b.device), float("-inf"))
    positive = torch.arange(rows, device=b.device).roll(rows // 2)
    return F.cross_entropy(similarity, positive)


@full_precision
def homogeneous_loss(a: Tensor, b: Tensor, destroyed: Tensor | None, temperature: float) -> Tensor:
    """Draw all reals together and away from what is not a natural trace; L_hom of docs/method.md.

    L_hom = −mean_{i, j≠i} log [ e^{a_i·a_j/τ} / (e^{a_i·a_j/τ} + Σ_k e^{a_i·b_k/τ} + Σ_p e^{a_i·a_p/τ}) ]

    Our reading of Liang et al. (AAAI 2025); the sum over destroyed copies p is ours.

    Args:
        a: (M, D) homogeneous projections of reals, L2-normalised by the caller.
        b: (K, D) heterogeneous projections, normalised likewise.
        destroyed: (P, D) homogeneous projections of trace-destroyed copies, normalised; None for none.
        temperature: τ > 0.

    Returns:
        A scalar, float32 or float64 as the input; 0 that keeps its graph where there is no pair of reals or
        no negative, since every log-ratio is then log 1.
    """
    negatives = b if destroyed is None else torch.cat([b, destroyed])
    if len(a) < 2 or len(negatives) == 0:
        return (a.sum() + negatives.sum()) * 0.0
    negative = torch.logsumexp((a @ negatives.T) / temperature, dim=1, keepdim=True)
    positive = (a @ a.T) / temperature
    # −log(e^p / (e^p + e^n)) = −log sigmoid(p − n), which neither overflows nor rounds to zero.
    terms = -F.logsigmoid(positive - negative)
    others = ~torch.eye(len(a), dtype=torch.bool, device=a.device)
    return terms[others].mean()
