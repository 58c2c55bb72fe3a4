"""Calibration and its errors against scikit-learn and closed forms."""

import numpy as np
import pytest
import scipy.special
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss

from fakedet.metrics.calibration import (
    BINS,
    Calibration,
    balanced_weights,
    brier_score,
    calibration_error,
    fit_calibration,
)


def sample(seed: int, n: int = 4000, scale: float = 0.2, shift: float = 7.0) -> tuple[np.ndarray, np.ndarray]:
    """Draw labels whose true log-odds (for balanced classes) are ``scale · logit + shift``, in odd units."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, n)
    odds = rng.normal(2.0 * (2 * labels - 1), 2.0)  # two Gaussians ±2 of variance 4: log-odds = their value
    return (odds - shift) / scale, labels


def test_true_scale_and_shift_are_found() -> None:
    logits, labels = sample(0, 40_000)
    found = fit_calibration(logits, labels)
    assert found.scale == pytest.approx(0.2, rel=0.05)
    assert found.shift == pytest.approx(7.0, rel=0.05)
    fresh, truth = sample(1, 40_000)
    assert calibration_error(found(fresh), truth) < 0.02
    assert calibration_error(scipy.special.expit(fresh), truth) > 0.2


def test_fit_equals_a_weighted_logistic_regression() -> None:
    logits, labels = sample(2, 500)
    keep = (labels == 0) | (np.arange(500) % 4 == 0)  # unbalanced
    logits, labels = logits[keep], labels[keep]
    units = (logits - np.median(logits)) / logits.std()
    # A soft target t is a row of label 1 that weighs t and one of label 0 that weighs 1 - t.
    real, fake = (labels == 0).sum(), (labels == 1).sum()
    targets = np.where(labels == 1, (fake + 1) / (fake + 2), 1 / (real + 2))
    weights = balanced_weights(labels)
    oracle = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000)
    oracle.fit(np.r_[units, units][:, None], np.repeat([1, 0], len(units)),
               sample_weight=np.r_[weights * targets, weights * (1 - targets)])  # fmt: skip
    expected = oracle.predict_proba(units[:, None])[:, 1]
    np.testing.assert_allclose(fit_calibration(logits, labels)(logits), expected, atol=2e-4)


def test_balance_of_the_data_does_not_matter() -> None:
    logits, labels = sample(3, 20_000)
    keep = (labels == 0) | (np.arange(len(labels)) % 10 == 0)
    whole, thinned = fit_calibration(logits, labels), fit_calibration(logits[keep], labels[keep])
    np.testing.assert_allclose(whole(logits), thinned(logits), atol=0.05)


def test_separated_classes_stay_finite() -> None:
    found = fit_calibration(np.array([-1.0, -2, -3, 1, 2, 3]), np.array([0, 0, 0, 1, 1, 1]))
    assert np.isfinite([found.scale, found.shift]).all()
    # Three rows of a class show no more than 4/5.
    assert 0.5 < found([1.0])[0] < found([3.0])[0] < 0.95
    assert found([-3.0, -1.0]) == pytest.approx(1 - found([3.0, 1.0]))


def test_isotonic_is_monotone_and_calibrated() -> None:
    logits, labels = sample(4, 20_000)
    found = fit_calibration(logits, labels, "isotonic")
    grid = found(np.linspace(logits.min() - 9, logits.max() + 9, 500))
    assert (np.diff(grid) >= 0).all()
    assert calibration_error(found(sample(5, 20_000)[0]), sample(5, 20_000)[1]) < 0.03
    again = Calibration.from_dict(found.to_dict())
    np.testing.assert_array_equal(again(logits), found(logits))


def test_errors_equal_naive_loops() -> None:
    rng = np.random.default_rng(0)
    p, y = rng.uniform(0, 1, 300), (rng.uniform(0, 1, 300) < 0.3).astype(int)
    p[:3] = (0.0, 1.0, 1 / BINS)
    w = balanced_weights(y)
    assert w.sum() == pytest.approx(1)
    naive = 0.0
    for index in range(BINS):
        low, high = index / BINS, (index + 1) / BINS
        inside = [i for i in range(300) if low <= p[i] < high or (index == BINS - 1 and p[i] == 1.0)]
        naive += abs(sum(w[i] * (p[i] - y[i]) for i in inside))
    assert calibration_error(p, y) == pytest.approx(naive, abs=1e-12)
    assert brier_score(p, y) == pytest.approx(brier_score_loss(y, p, sample_weight=w), abs=1e-12)


@pytest.mark.parametrize("labels", [[0, 0], [1, 1]])
def test_one_class_is_refused(labels: list[int]) -> None:
    with pytest.raises(ValueError, match="reals and fakes"):
        fit_calibration([0.0, 1.0], labels)
