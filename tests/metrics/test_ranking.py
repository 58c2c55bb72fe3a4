"""AP and AUC against scikit-learn and torchmetrics."""

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score
from torchmetrics.classification import BinaryAveragePrecision

from fakedet.metrics.ranking import ranking_statistics


def average_precision(labels, logits, weights=None) -> float:
    return float(ranking_statistics(labels, logits, None if weights is None else [weights])[0][0])


def roc_auc(labels, logits, weights=None) -> float:
    return float(ranking_statistics(labels, logits, None if weights is None else [weights])[1][0])


def _rows(seed, n=300, levels=None):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, n)
    logits = rng.normal(size=n) * 3 + labels
    if levels is not None:
        logits = np.round(logits * levels) / levels
    return labels, logits, rng.exponential(size=n) * (rng.random(n) > 0.2)


@pytest.mark.parametrize("levels", [None, 4, 1, 0.2])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_agrees_with_scikit_learn(levels, weighted, seed):
    labels, logits, weights = _rows(seed, levels=levels)
    given = weights if weighted else None
    expected = average_precision_score(labels, logits, sample_weight=given)
    assert average_precision(labels, logits, given) == pytest.approx(expected, abs=1e-12)
    assert roc_auc(labels, logits, given) == pytest.approx(
        roc_auc_score(labels, logits, sample_weight=given), abs=1e-12
    )


def test_all_logits_equal_is_prevalence_and_a_half():
    labels = np.array([1, 0, 0, 0])
    assert average_precision(labels, np.zeros(4)) == 0.25
    assert roc_auc(labels, np.zeros(4)) == 0.5


def test_agrees_with_torchmetrics():
    labels, logits, _ = _rows(3, levels=5)
    # Probabilities in (0, 1) in the order of the logits, so that torchmetrics adds no sigmoid of its own.
    probabilities = torch.sigmoid(torch.from_numpy(logits))
    oracle = BinaryAveragePrecision(thresholds=None)
    oracle.update(probabilities, torch.from_numpy(labels))
    assert average_precision(labels, logits) == pytest.approx(float(oracle.compute()), abs=1e-6)


def test_tells_logits_apart_that_a_float32_sigmoid_cannot():
    labels, logits = np.array([0, 1, 0, 1]), np.array([20.0, 30.0, 40.0, 50.0])
    assert len(set(torch.sigmoid(torch.tensor(logits, dtype=torch.float32)).tolist())) == 1
    assert average_precision(labels, logits) == pytest.approx((1 + 2 / 3) / 2)


def test_infinite_logits_rank_at_the_ends():
    labels = np.array([1, 0, 1, 0, 1, 0])
    logits = np.array([np.inf, np.inf, 1.0, 0.0, -np.inf, -np.inf])
    finite = np.clip(logits, -100, 100)
    assert average_precision(labels, logits) == pytest.approx(average_precision_score(labels, finite))
    assert roc_auc(labels, logits) == pytest.approx(roc_auc_score(labels, finite))


@pytest.mark.parametrize("labels", [[0, 0], [1, 1], []])
def test_one_class_is_nan(labels):
    logits = np.arange(len(labels), dtype=float)
    assert np.isnan(average_precision(labels, logits))
    assert np.isnan(roc_auc(labels, logits))


def test_a_class_that_weighs_nothing_is_nan():
    assert np.isnan(average_precision([0, 1, 1], [0.0, 1.0, 2.0], [0.0, 1.0, 1.0]))
    assert np.isnan(roc_auc([0, 1, 1], [0.0, 1.0, 2.0], [1.0, 0.0, 0.0]))


def test_nan_logits_are_refused_with_their_number():
    with pytest.raises(ValueError, match="2 of 4 logits are NaN"):
        average_precision([0, 1, 0, 1], [np.nan, 1.0, np.nan, 2.0])


@pytest.mark.parametrize(
    ("labels", "weights", "message"),
    [([0, 1], [1.0, -1.0], "not negative"), ([0, 2], None, "0 .real. or 1"), ([0, 1, 1], None, "do not fit")],
)
def test_bad_rows_are_refused(labels, weights, message):
    with pytest.raises(ValueError, match=message):
        average_precision(labels, [0.0, 1.0], weights)


def test_many_weightings_are_each_as_alone():
    """100,000 rows are weighted ten at a time: 23 weightings make three chunks."""
    n = 100_000
    labels, logits, _ = _rows(5, n=n, levels=20)
    weights = np.random.default_rng(0).integers(0, 3, size=(23, n), dtype=np.int8)
    ap, auc = ranking_statistics(labels, logits, weights)
    for row in (0, 9, 10, 19, 20, 22):
        repeated = np.repeat(np.arange(n), weights[row])  # a weight of 2 is a row that stands twice
        assert ap[row] == pytest.approx(average_precision_score(labels[repeated], logits[repeated]))
        assert auc[row] == pytest.approx(roc_auc_score(labels[repeated], logits[repeated]))
    assert len(set(ap)) == 23
