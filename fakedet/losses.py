"""Losses: pure functions of tensors, each also an ``nn.Module`` that a config can name (``model/loss``).

A contrastive loss of a method is called as ``loss(z, labels, traces)``, :class:`ContrastiveLoss`. A loss of your own is
any ``nn.Module`` with that call; name it as ``model.loss._target_``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, Protocol, TypeGuard, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

P = ParamSpec("P")
T = TypeVar("T")


class ContrastiveLoss(Protocol):
    """What ``model.loss`` must offer."""

    def __call__(self, z: Tensor, labels: Tensor, traces: Tensor | None) -> Tensor | Mapping[str, Tensor]:
        """Compute the loss of one global batch.

        Args:
            z: (M, D) float32 projections, L2-normalised.
            labels: (M,) 0 = real, 1 = fake.
            traces: (M, D) natural traces of the same images from stage 1, L2-normalised; None outside stage 2.

        Returns:
            A scalar, or named scalars, which are added up and logged as ``train/loss_<name>``.
        """
        ...


def full_precision(loss: Callable[P, T]) -> Callable[P, T]:
    """Run a loss outside autocast, on floating inputs of one dtype that is float32 or wider.

    Autocast would compute the products of float32 rows in bfloat16, whose error of 0.4 % of a cosine is multiplied by
    1/τ in an exponent. Integer and None arguments pass as they are.
    """

    @functools.wraps(loss)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        floating = [value for value in (*args, *kwargs.values()) if _is_floating(value)]
        if not floating:
            raise TypeError(f"{loss.__name__} needs at least one floating tensor")
        dtype = functools.reduce(torch.promote_types, (value.dtype for value in floating), torch.float32)
        with torch.autocast(floating[0].device.type, enabled=False):
            wide_args: Any = [value.to(dtype) if _is_floating(value) else value for value in args]
            wide_kwargs: Any = {key: value.to(dtype) if _is_floating(value) else value for key, value in kwargs.items()}
            return loss(*wide_args, **wide_kwargs)

    return run


def _is_floating(value: object) -> TypeGuard[Tensor]:
    return isinstance(value, Tensor) and value.is_floating_point()


# --- stage 1: real photographs alone --------------------------------------------------------------------


@full_precision
def heterogeneous_loss(b: Tensor, temperature: float) -> Tensor:
    """Compute NT-Xent over two views of each image (Chen et al. 2020, eq. 1); L_het of docs/method.md.

    L_het = −mean over i of log [ e^{b_i·b_i'/τ} / Σ_{k≠i} e^{b_i·b_k/τ} ], i' the other view of i's image.

    Args:
        b: (2N, D) projections, L2-normalised; rows i and i + N are the two views of one image.
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
    """Pull all reals together and away from what is not a natural trace; L_hom of docs/method.md.

    L_hom = −mean_{i, j≠i} log [ e^{a_i·a_j/τ} / (e^{a_i·a_j/τ} + Σ_k e^{a_i·b_k/τ} + Σ_p e^{a_i·a_p/τ}) ]

    Our reading of Liang et al. (AAAI 2025); the sum over destroyed copies p is ours.

    Args:
        a: (M, D) homogeneous projections of reals, L2-normalised.
        b: (K, D) heterogeneous projections, L2-normalised.
        destroyed: (P, D) homogeneous projections of trace-destroyed copies, L2-normalised; None for none.
        temperature: τ > 0.

    Returns:
        A scalar, float32 or float64 as the input; 0, with its graph, where there is no pair of reals or no negative,
        since every log-ratio is then log 1.
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


@torch.no_grad()
@full_precision
def collapse_statistics(a: Tensor) -> dict[str, Tensor]:
    """Measure how far L2-normalised projections have collapsed; without gradients.

    Args:
        a: (M, D), L2-normalised.

    Returns:
        Scalars ``mean_cosine`` among different rows, in [-1, 1]; 1 is total collapse.
        ``std`` per dimension, averaged over dimensions; 0 is total collapse, 1/√D an even spread.
        ``effective_rank``, in [1, min(M, D)]: exp of the entropy of the normalised singular values (Roy and Vetterli
        2007). The rows are not centred, so that a collapse to one point shows as 1.
        With fewer than two rows all are NaN.
    """
    rows = len(a)
    if rows < 2:
        undefined = a.new_tensor(float("nan"))
        return {"mean_cosine": undefined, "std": undefined, "effective_rank": undefined}
    total = a.sum(dim=0)
    mean_cosine = (total @ total - (a * a).sum()) / (rows * (rows - 1))
    singular = torch.linalg.svdvals(a)
    entropy = torch.special.entr(singular / singular.sum()).sum()
    return {"mean_cosine": mean_cosine, "std": a.std(dim=0).mean(), "effective_rank": entropy.exp()}


# --- stage 2: reals and fakes ---------------------------------------------------------------------------


@full_precision
def real_rows_loss(z_real: Tensor, t: Tensor, z_fake: Tensor, temperature: float, weight_temperature: float) -> Tensor:
    """Compute L_R: each real is pulled to all real traces, softly weighted, against the batch's fakes.

    L_R = −mean over i of Σ_j w_ij log [ e^{c_ij} / (e^{c_ij} + e^{n_i}) ], with c_ij = z_i·t_j/τ,
    n_i = logsumexp over fakes f of z_i·z_f/τ and w_i· = softmax_j(t_i·t_j/τ_w), which includes j = i.
    Docs/method.md; our reading of Liang et al. (AAAI 2025).

    Args:
        z_real: (R, D) projections of the reals, L2-normalised.
        t: (R, D) traces of the same reals, L2-normalised.
        z_fake: (F, D) projections of the fakes, L2-normalised.
        temperature: τ > 0.
        weight_temperature: τ_w > 0.

    Returns:
        A scalar; 0, with its graph, without reals or without fakes: n_i = −∞ makes each log-ratio log 1.
    """
    if len(z_real) == 0 or len(z_fake) == 0:
        return (z_real.sum() + z_fake.sum()) * 0.0
    positive = (z_real @ t.T) / temperature
    negative = torch.logsumexp((z_real @ z_fake.T) / temperature, dim=1, keepdim=True)
    weights = torch.softmax((t @ t.T) / weight_temperature, dim=1)
    # log(e^c / (e^c + e^n)) = log sigmoid(c − n), which neither overflows nor rounds to zero.
    return -(weights * F.logsigmoid(positive - negative)).sum(dim=1).mean()


@full_precision
def fake_rows_loss(z_fake: Tensor, t_fake: Tensor, t: Tensor, temperature: float) -> Tensor:
    """Compute L_F: each fake is pushed from the real traces, the more the less real stage 1 finds it.

    L_F = mean over i, j of v_i · τ · softplus(z_i·t_j/τ), v_i = 1 − mean_j max(0, t_i·t_j), t_i the fake's own trace.
    There is no fake–fake term: fakes of different generators need not cluster.

    Args:
        z_fake: (F, D) projections of the fakes, L2-normalised.
        t_fake: (F, D) traces of the same fakes, L2-normalised.
        t: (R, D) traces of the batch's reals, L2-normalised.
        temperature: τ > 0.

    Returns:
        A scalar; 0, with its graph, without fakes or without reals.
    """
    if len(z_fake) == 0 or len(t) == 0:
        return z_fake.sum() * 0.0
    unreal = 1.0 - (t_fake @ t.T).clamp(min=0.0).mean(dim=1, keepdim=True)
    pull = -F.logsigmoid(-(z_fake @ t.T) / temperature)  # softplus, exact for large arguments too
    return (unreal * pull * temperature).mean()


@full_precision
def supervised_contrastive_loss(z: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Compute L_out of Khosla et al. 2020, eq. 2, as the mean over the anchors that have a positive.

    L_out,i = −1/|P(i)| Σ_{p∈P(i)} log [ e^{z_i·z_p/τ} / Σ_{a≠i} e^{z_i·z_a/τ} ], P(i) the other rows of i's class.
    Eq. 2 sums over anchors; the mean keeps its weight independent of the batch size.

    Args:
        z: (M, D) projections, L2-normalised.
        labels: (M,) integer class of each row.
        temperature: τ > 0.

    Returns:
        A scalar, float32 or float64 as ``z``; 0, with its graph, where no anchor has a positive.

    Raises:
        ValueError: not one label per row.
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


# --- what a config names --------------------------------------------------------------------------------


class NTXent(nn.Module):
    """:func:`heterogeneous_loss` of temperature τ > 0 for ``model/loss=nt_xent``."""

    def __init__(self, temperature: float = 0.2) -> None:
        super().__init__()
        self.temperature = temperature

    def forward(self, z: Tensor, labels: Tensor | None = None, traces: Tensor | None = None) -> Tensor:
        """Compute the loss of (2N, D) projections, two views of each image; labels and traces are not used."""
        return heterogeneous_loss(z, self.temperature)


class SoftContrastive(nn.Module):
    """The soft contrastive loss of stage 2 for ``model/loss=soft_contrastive``: L_R + L_F.

    ``temperature`` is τ > 0, ``weight_temperature`` τ_w > 0 of the soft positives' weights.
    """

    def __init__(self, temperature: float = 0.2, weight_temperature: float = 0.2) -> None:
        super().__init__()
        self.temperature, self.weight_temperature = temperature, weight_temperature

    def forward(self, z: Tensor, labels: Tensor, traces: Tensor | None) -> dict[str, Tensor]:
        """Compute ``real`` (:func:`real_rows_loss`) and ``fake`` (:func:`fake_rows_loss`) of (M, D) projections.

        Raises:
            ValueError: no traces; only stage 2 has them.
        """
        if traces is None:
            raise ValueError("the soft contrastive loss needs natural traces, which only model=ntf has")
        real = labels == 0
        t = traces[real]
        return {
            "real": real_rows_loss(z[real], t, z[~real], self.temperature, self.weight_temperature),
            "fake": fake_rows_loss(z[~real], traces[~real], t, self.temperature),
        }


class SupCon(nn.Module):
    """:func:`supervised_contrastive_loss` of temperature τ > 0 over real and fake for ``model/loss=supcon``."""

    def __init__(self, temperature: float = 0.1) -> None:
        super().__init__()
        self.temperature = temperature

    def forward(self, z: Tensor, labels: Tensor, traces: Tensor | None = None) -> Tensor:
        """Compute the loss of (M, D) projections with labels (M,); traces are not used."""
        return supervised_contrastive_loss(z, labels, self.temperature)


class ExtendedSupCon(nn.Module):
    """The supervised contrastive loss with the natural traces of the batch's reals as further rows of the class real.

    It stands for the "extended supervised contrastive" loss that the paper's first version names, whose equation is not
    public to us: this is our reading, hard where :class:`SoftContrastive` is soft.
    """

    def __init__(self, temperature: float = 0.1) -> None:
        super().__init__()
        self.temperature = temperature

    def forward(self, z: Tensor, labels: Tensor, traces: Tensor | None = None) -> Tensor:
        """Compute the loss of (M, D) projections with labels (M,) and, where there are any, traces (M, D)."""
        if traces is not None:
            reals = labels == 0
            z = torch.cat([z, traces[reals].to(z.dtype)])
            labels = torch.cat([labels, labels[reals]])
        return supervised_contrastive_loss(z, labels, self.temperature)
