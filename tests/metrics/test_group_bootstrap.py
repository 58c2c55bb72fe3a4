import json

import numpy as np
import pytest

from fakedet.metrics.bootstrap import percentile_interval, resample_weights, stratify_groups
from fakedet.metrics.ranking import ranking_statistics

GROUPS = np.array(["p1", "p1", "p2", "p2", "p3", "p4", "p5", "p5", "p6"])
LABELS = np.array([0, 1, 0, 1, 0, 0, 0, 1, 1])
GENERATORS = np.array(["real", "g", "real", "g", "real", "real", "real", "h", "h"])


def _weights(n_resamples=500, seed=0, chunk=None):
    strata = stratify_groups(GROUPS, LABELS, GENERATORS)
    parts = list(resample_weights(strata, n_resamples, np.random.default_rng(seed), chunk))
    return strata, np.concatenate(parts)


def test_groups_are_never_split():
    strata, weights = _weights()
    rows = weights[:, strata.codes]
    for name in set(GROUPS):
        own = rows[:, name == GROUPS]
        assert (own == own[:, :1]).all()
    assert (np.ptp(rows, axis=0) > 0).all()  # every group comes and goes


def test_strata_are_signatures_and_rare_ones_are_pooled():
    strata, weights = _weights()
    # {p1, p2} hold a real and a g, {p3, p4} a real only; p5 and p6 are alone with their make-up: pooled.
    assert sorted(strata.sizes) == [2, 2, 2]
    rows = weights[:, strata.codes]
    first = {name: rows[:, np.flatnonzero(name == GROUPS)[0]] for name in set(GROUPS)}
    for pair in (("p1", "p2"), ("p3", "p4"), ("p5", "p6")):
        assert (first[pair[0]] + first[pair[1]] == 2).all()


def test_draws_are_with_replacement_and_uniform():
    strata = stratify_groups(np.arange(20), np.zeros(20), np.full(20, "real"))
    weights = next(resample_weights(strata, 4000, np.random.default_rng(0)))
    assert (weights.sum(axis=1) == 20).all()
    assert np.abs(weights.mean(axis=0) - 1).max() < 0.08  # standard error 0.015
    assert weights.var() == pytest.approx(1 - 1 / 20, abs=0.03)  # of a binomial (20, 1/20)


def test_draws_do_not_depend_on_the_chunks_nor_on_the_order_of_the_rows():
    _, whole = _weights(101)
    _, chunked = _weights(101, chunk=7)
    np.testing.assert_array_equal(whole, chunked)
    order = np.random.default_rng(1).permutation(len(GROUPS))
    mixed = stratify_groups(GROUPS[order], LABELS[order], GENERATORS[order])
    again = next(resample_weights(mixed, 101, np.random.default_rng(0)))
    np.testing.assert_array_equal(
        whole[:, stratify_groups(GROUPS, LABELS, GENERATORS).codes[order]], again[:, mixed.codes]
    )


def test_no_rows_and_no_resamples():
    strata = stratify_groups([], [], [])
    assert next(resample_weights(strata, 3, np.random.default_rng(0))).shape == (3, 0)
    assert list(resample_weights(strata, 0, np.random.default_rng(0))) == []


def test_percentile_interval_leaves_nan_resamples_out():
    samples = np.concatenate([np.arange(101.0), np.full(100, np.nan)])
    interval = percentile_interval(50.0, samples, 0.9)
    assert (interval.value, interval.low, interval.high) == pytest.approx((50.0, 5.0, 95.0))


def test_interval_is_undefined_where_most_resamples_are():
    mostly = np.array([1.0, np.nan, np.nan])
    assert percentile_interval(1.0, mostly).to_dict() == {"value": 1.0, "low": None, "high": None}
    nothing = percentile_interval(np.nan, np.ones(5)).to_dict()
    assert nothing == {"value": None, "low": None, "high": None}
    assert percentile_interval(1.0, np.array([])).to_dict()["low"] is None
    json.dumps(nothing, allow_nan=False)


def test_level_outside_its_range_is_refused():
    with pytest.raises(ValueError, match="level 95"):
        percentile_interval(0.5, np.ones(3), 95)


def test_group_intervals_cover_the_truth_where_row_intervals_do_not():
    # A photo shifts the logits of its five crops together. True AUC: P(N(1, σ²) > N(0, σ²)), σ² = 2 + 0.25.
    from math import erf

    truth = 0.5 * (1 + erf(1 / np.sqrt(2 * 2.25) / np.sqrt(2)))
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 150)
    generators = np.where(labels == 1, "g", "real")
    photos = np.repeat(np.arange(60), 5)
    covered = {"photos": 0, "rows": 0}
    for _ in range(100):
        logits = labels + np.repeat(rng.normal(scale=np.sqrt(2), size=60), 5) + rng.normal(scale=0.5, size=300)
        for name, groups in (("photos", photos), ("rows", np.arange(300))):
            strata = stratify_groups(groups, labels, generators)
            weights = next(resample_weights(strata, 200, rng))
            auc = ranking_statistics(labels, logits, weights[:, strata.codes])[1]
            interval = percentile_interval(0.5, auc)
            covered[name] += interval.low <= truth <= interval.high
    assert 87 <= covered["photos"] <= 100  # 95 % of 100, less the known shortfall of thirty groups a class
    assert covered["rows"] < 75
