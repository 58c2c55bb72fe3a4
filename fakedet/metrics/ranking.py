"""Exact AP and AUC of one ranking under many weightings of its rows.

Sorting is what costs in a bootstrap, so the fakes are ranked among the reals once (:func:`rank`), and each of the
thousands of weightings then takes a few cumulative sums.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

CHUNK_CELLS = 1_000_000  # weights held at a time: 8 MB per array in float64


@dataclass(frozen=True)
class Ranking:
    """The (F,) rank of each fake of a generator among the other fakes and among the reals, by one scorer."""

    fake_order: NDArray[np.int64]  # positions of the fakes by falling logit
    tie_end: NDArray[np.int64] | None  # rank of the last fake with the same logit; None where no two fakes are tied
    reals_from: NDArray[np.int64]  # number of reals whose logit is at least the fake's
    reals_above: NDArray[np.int64] | None  # number of those whose logit is greater; None where none is tied with a fake


def descending(logits: ArrayLike) -> NDArray[np.float64]:
    """Return the negated logits (float64), which rise where the logits fall; ValueError if some are NaN."""
    keys = -np.asarray(logits, dtype=np.float64)
    if missing := int(np.isnan(keys).sum()):
        raise ValueError(f"{missing} of {keys.size} logits are NaN and cannot be ranked")
    return keys


def rank(fake_keys: NDArray[np.float64], sorted_real_keys: NDArray[np.float64]) -> Ranking:
    """Rank fakes among reals by negated logits (see :func:`descending`): (F,) in any order, and (N,) rising."""
    order = np.argsort(fake_keys, kind="stable")
    keys = fake_keys[order]
    tie_end = np.searchsorted(keys, keys, side="right") - 1
    reals_from = np.searchsorted(sorted_real_keys, keys, side="right")
    reals_above = np.searchsorted(sorted_real_keys, keys, side="left")
    return Ranking(
        order, None if np.array_equal(tie_end, np.arange(len(keys))) else tie_end,
        reals_from, None if np.array_equal(reals_from, reals_above) else reals_above,
    )  # fmt: skip


def running_sum(real_weights: NDArray[Any]) -> NDArray[Any]:
    """Sum the weights of the reals from the highest logit down: (R, N) -> (R, N + 1), first column 0."""
    rows, count = real_weights.shape
    total = np.zeros((rows, count + 1), dtype=real_weights.dtype)
    # int32 stays int32: numpy would widen it to int64, and the gathers that follow are limited by memory.
    np.cumsum(real_weights, axis=1, dtype=real_weights.dtype, out=total[:, 1:])
    return total


def weighted_statistics(
    ranking: Ranking, fake_weights: NDArray[Any], real_sums: NDArray[Any]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Compute (R,) AP and AUC for R weightings of one ranking; NaN where the weights of either class sum to 0.

    Args:
        ranking: of F fakes among N reals.
        fake_weights: (R, F) weights >= 0 in the order of ``ranking.fake_order``; float64 or int32.
        real_sums: (R, N + 1) of the same type, from :func:`running_sum`.
    """
    fakes = fake_weights.sum(axis=1, dtype=np.float64)
    reals = real_sums[:, -1].astype(np.float64)
    hits = np.cumsum(fake_weights, axis=1, dtype=fake_weights.dtype)
    if ranking.tie_end is not None:
        hits = hits.take(ranking.tie_end, axis=1)
    alarms = real_sums.take(ranking.reals_from, axis=1)
    called = hits + alarms
    called += called == 0  # nothing is called fake yet, so the row's own weight is 0 and any divisor will do
    gained = np.einsum("rf,rf->r", fake_weights, hits / called)
    # The weight of the reals at or above each fake and that of those above it, averaged: a tie counts one half.
    lost = np.einsum("rf,rf->r", fake_weights, alarms, dtype=np.float64)
    if ranking.reals_above is not None:
        above = real_sums.take(ranking.reals_above, axis=1)
        lost = (lost + np.einsum("rf,rf->r", fake_weights, above, dtype=np.float64)) / 2
    absent = (fakes == 0) | (reals == 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(absent, np.nan, gained / fakes), np.where(absent, np.nan, 1.0 - lost / (fakes * reals))


def ranking_statistics(
    labels: ArrayLike, logits: ArrayLike, weights: ArrayLike | None = None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Compute AP and AUC of the same rows under R weightings, sorting once and R in chunks.

    AP is Σ_n (R_n − R_{n−1}) P_n as in scikit-learn, equal logits being one threshold. AUC is the probability that a
    fake scores above a real, a tie counting one half.

    Args:
        labels: (n,) 0 = real, 1 = fake.
        logits: (n,) any real number or ±inf; higher = more likely fake.
        weights: (R, n) weights >= 0, in a bootstrap counts; None: one weighting of ones.

    Returns:
        (R,) AP and (R,) AUC, in [0, 1]; NaN where either class is absent or its weights sum to 0.

    Raises:
        ValueError: shapes differ, a logit is NaN, a label is not 0 or 1, a weight is negative or not finite.
    """
    label, keys = np.asarray(labels), descending(logits)
    weight = np.ones((1, label.size)) if weights is None else np.asarray(weights)
    if label.ndim != 1 or keys.shape != label.shape or weight.ndim != 2 or weight.shape[1] != len(label):
        shapes = f"labels {label.shape}, logits {keys.shape} and weights {weight.shape}"
        raise ValueError(f"{shapes} do not fit: (n,), (n,) and (R, n) are wanted")
    if not np.isin(label, (0, 1)).all():
        raise ValueError("labels must be 0 (real) or 1 (fake)")
    if not (np.isfinite(weight).all() and (weight >= 0).all()):
        raise ValueError("weights must be finite and not negative")
    fakes, reals = np.flatnonzero(label == 1), np.flatnonzero(label == 0)
    reals = reals[np.argsort(keys[reals], kind="stable")]
    ranking = rank(keys[fakes], keys[reals])
    fakes = fakes[ranking.fake_order]
    ap, auc = np.empty(len(weight)), np.empty(len(weight))
    step = max(1, CHUNK_CELLS // max(1, len(label)))
    for start in range(0, len(weight), step):
        part = np.asarray(weight[start : start + step], dtype=np.float64)
        rows = slice(start, start + len(part))
        ap[rows], auc[rows] = weighted_statistics(ranking, part[:, fakes], running_sum(part[:, reals]))
    return ap, auc


def mean_of_defined(values: Sequence[float]) -> float:
    """Return the plain mean of the values that are not NaN; NaN where there are none."""
    defined = [value for value in values if not np.isnan(value)]
    return float(np.mean(defined)) if defined else float("nan")
