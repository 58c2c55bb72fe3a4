"""The soft contrastive loss of stage 2: reals are drawn to the traces, fakes pushed away."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fakedet.losses.precision import full_precision


class SoftContrastive(NamedTuple):
    """Both terms of the soft contrastive loss, apart."""

    real: Tensor
    fake: Tensor


def soft_contrastive_loss(
    z_real: Tensor,
    t_real: Tensor,
    z_fake: Tensor,
    t_fake: Tensor,
    temperature: float,
    weight_temperature: float,
    hard: bool = False,
) -> SoftContrastive:
    """Compute L_R and L_F of docs/method.md (our reading of Liang et al., AAAI 2025); their sum is the loss.

    Args:
        z_real: (R, D) projections of the reals; all rows are L2-normalised by the caller.
        t_real: (R, D) traces of the same reals from the frozen source.
        z_fake: (F, D) projections of the fakes.
        t_fake: (F, D) traces of the same fakes from the frozen source.
        temperature: τ > 0.
        weight_temperature: τ_w > 0 of the soft positives' weights.
        hard: give every real trace the same weight instead (an ablation).

    Returns:
        Both terms as scalars; each is 0 and keeps its graph in a batch without reals or without fakes.
    """
    return SoftContrastive(
        real_rows_loss(z_real, t_real, z_fake, temperature, weight_temperature, hard),
        fake_rows_loss(z_fake, t_fake, t_real, temperature),
    )


@full_precision
def real_rows_loss(
    z_real: Tensor,
    t: Tensor,
    z_fake: Tensor,
    temperature: float,
    weight_temperature: float,
    hard: bool = False,
) -> Tensor:
    """Compute L_R: each real is drawn to all real traces, softly weighted, against the batch's fakes.

    L_R = −mean over i of Σ_j w_ij log [ e^{c_ij} / (e^{c_ij} + e^{n_i}) ], with c_ij = z_i·t_j/τ,
    n_i = logsumexp over fakes f of z_i·z_f/τ and w_i· = softmax_j(t_i·t_j/τ_w), which includes j = i.

    Args:
        z_real: (R, D) projections of the reals.
        t: (R, D) traces of the same reals.
        z_fake: (F, D) projections of the fakes.
        temperature: τ > 0.
        weight_temperature: τ_w > 0.
        hard: w_ij = 1/R.

    Returns:
        A scalar; 0 that keeps its graph without reals, or without fakes: n_i = −∞ makes each log-ratio log 1.
    """
    if len(z_real) == 0 or len(z_fake) == 0:
        return (z_real.sum() + z_fake.sum()) * 0.0
    positive = (z_real @ t.T) / temperature
    negative = torch.logsumexp((z_real @ z_fake.T) / temperature, dim=1, keepdim=True)
    if hard:  # noqa: SIM108 - two formulas read better as two statements
        weights = torch.full_like(positive, 1.0 / len(t))
    else:
        weights = torch.softmax((t @ t.T) / weight_temperature, dim=1)
    # log(e^c / (e^c + e^n)) = log sigmoid(c − n), which neither overflows nor rounds to zero.
    return -(weights * F.logsigmoid(positive - negative)).sum(dim=1).mean()


@full_precision
def fake_rows_loss(z_fake: Tensor, t_fake: Tensor, t: Tensor, temperature: float) -> Tensor:
    """Compute L_F: each fake is pushed from the real traces in the degree that the source finds it unreal.

    L_F = mean over i, j of v_i · τ · softplus(z_i·t_j/τ), v_i = 1 − mean_j max(0, t_i·t_j), t_i the fake's
    own trace. There is no fake–fake term: fakes of different generators need not cluster.

    Args:
        z_fake: (F, D) projections of the fakes.
        t_fake: (F, D) traces of the same fakes.
        t: (R, D) traces of the batch's reals.
        temperature: τ > 0.

    Returns:
        A scalar; 0 that keeps its graph without fakes or without reals.
    """
    if len(z_fake) == 0 or len(t) == 0:
        return z_fake.sum() * 0.0
    unreal = 1.0 - (t_fake @ t.T).clamp(min=0.0).mean(dim=1, keepdim=True)
    pull = -F.logsigmoid(-(z_fake @ t.T) / temperature)  # softplus, exact for large arguments too
    return (unreal * pull * temperature).mean()
