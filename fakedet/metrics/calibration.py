"""Calibration of logits to P(fake), and the errors of probabilities: expected calibration error and Brier score."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.special
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize
from sklearn.isotonic import IsotonicRegression

BINS = 15  # of equal width, of the expected calibration error
KINDS = ("temperature", "isotonic", "none")


@dataclass(frozen=True)
class Calibration:
    """A map from logits to P(fake), assuming as many reals as fakes; its kind is one of :data:`KINDS`.

    "temperature" is P = sigmoid(scale · logit + shift), "isotonic" interpolates between knots (logits, probabilities).
    """

    kind: str
    scale: float = 1.0
    shift: float = 0.0
    knots: tuple[tuple[float, ...], tuple[float, ...]] = ((), ())

    def __call__(self, logits: ArrayLike) -> NDArray[np.float64]:
        """Return the (n,) P(fake) of (n,) logits."""
        values = np.asarray(logits, dtype=np.float64)
        if self.kind == "isotonic":
            return np.interp(values, *self.knots)
        return np.asarray(scipy.special.expit(self.scale * values + self.shift), dtype=np.float64)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that JSON can hold."""
        return {**vars(self), "knots": [list(part) for part in self.knots]}

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Calibration:
        """Read what :meth:`to_dict` wrote."""
        first, second = map(tuple, content["knots"])
        return cls(content["kind"], content["scale"], content["shift"], (first, second))


def balanced_weights(labels: ArrayLike) -> NDArray[np.float64]:
    """Return (n,) weights under which each class weighs one half: the share of fakes in a test set is arbitrary."""
    label = np.asarray(labels)
    counts = np.bincount(label, minlength=2)
    return np.where(label == 1, 0.5 / max(1, counts[1]), 0.5 / max(1, counts[0]))


def fit_calibration(
    logits: ArrayLike, labels: ArrayLike, kind: str = "temperature", weights: ArrayLike | None = None
) -> Calibration:
    """Fit a calibration of a kind on (n,) held-out rows, label 0 = real, 1 = fake, weight one half for each class.

    Within a class every row weighs the same, or as (n,) ``weights`` say.

    "temperature" is Platt's scaling (Platt 1999, section 2): a temperature and a shift by maximum likelihood, with
    his smoothed targets. The shift is needed because balanced training batches do not centre the logits.

    Raises:
        ValueError: one class only, or a kind not in :data:`KINDS`.
    """
    values, label = np.asarray(logits, dtype=np.float64), np.asarray(labels)
    if set(np.unique(label)) != {0, 1}:
        raise ValueError("a calibration needs reals and fakes")
    weights = balanced_weights(label) if weights is None else np.asarray(weights, dtype=np.float64)
    if kind == "none":
        return Calibration("none")
    if kind == "isotonic":
        fitted = IsotonicRegression(y_min=0.0, y_max=1.0, out_of_bounds="clip").fit(values, label, weights)
        knots = (tuple(map(float, fitted.X_thresholds_)), tuple(map(float, fitted.y_thresholds_)))
        return Calibration("isotonic", knots=knots)
    if kind != "temperature":
        raise ValueError(f"calibration '{kind}': one of {', '.join(KINDS)}")
    # In units of the logits' own spread, so that the start is sensible whatever their scale.
    centre, spread = float(np.median(values)), float(values.std()) or 1.0
    units = (values - centre) / spread
    # Platt's targets: n rows of a class do not show more certainty than (n + 1) / (n + 2).
    counts = np.bincount(label, minlength=2)
    targets = np.where(label == 1, (counts[1] + 1) / (counts[1] + 2), 1 / (counts[0] + 2))

    def loss(parameters: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        odds = parameters[0] * units + parameters[1]
        slope = weights * (scipy.special.expit(odds) - targets)
        value = weights @ (np.logaddexp(0, odds) - targets * odds)
        return float(value), np.array([slope @ units, slope.sum()])

    found = minimize(loss, np.array([1.0, 0.0]), jac=True, method="L-BFGS-B", bounds=[(1e-6, None), (None, None)])
    scale = float(found.x[0]) / spread
    return Calibration("temperature", scale, float(found.x[1]) - scale * centre)


def calibration_error(probabilities: ArrayLike, labels: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Compute the expected calibration error Σ_b |Σ_{i∈b} w_i (p_i − y_i)| over :data:`BINS` bins of equal width.

    All are (n,): probabilities in [0, 1], labels 0 or 1, weights of sum 1 (None: weight one half for each class).
    """
    p, y = np.asarray(probabilities, dtype=np.float64), np.asarray(labels, dtype=np.float64)
    w = balanced_weights(labels) if weights is None else np.asarray(weights, dtype=np.float64)
    return float(np.abs(np.bincount(bin_of(p), weights=w * (p - y), minlength=BINS)).sum())


def brier_score(probabilities: ArrayLike, labels: ArrayLike) -> float:
    """Compute the Brier score Σ w_i (p_i − y_i)², with weight one half for each class."""
    p, y = np.asarray(probabilities, dtype=np.float64), np.asarray(labels, dtype=np.float64)
    return float((balanced_weights(labels) * (p - y) ** 2).sum())


def bin_of(probabilities: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the (n,) bin of each probability."""
    return np.minimum((probabilities * BINS).astype(np.int64), BINS - 1)
