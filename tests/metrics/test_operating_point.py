"""Thresholds keep their promise and p-values are uniform on fresh reals."""

import json
import math

import numpy as np
import pytest
from scipy.stats import kstest

from fakedet.metrics.decisions import MOST_REFERENCES, OperatingPoint, fit_operating_point, threshold_at


def test_threshold_is_the_kth_highest_real() -> None:
    reals = np.arange(1.0, 100.0)  # n = 99: k / (n + 1) = 5 % for the fifth highest, 95
    assert threshold_at(reals, 0.05) == 95.0
    assert threshold_at(reals, 0.01) == 99.0
    assert threshold_at(reals, 0.009) == math.inf
    assert threshold_at([], 0.5) == math.inf


@pytest.mark.parametrize(("n", "rate"), [(19, 0.05), (40, 0.05), (40, 0.1), (300, 0.01)])
def test_fresh_reals_exceed_it_no_more_often_than_promised(n: int, rate: float) -> None:
    """Exact by hand: a fresh real exceeds the k-th highest of n with probability k / (n + 1)."""
    rng = np.random.default_rng(0)
    alarms = [rng.standard_cauchy(100) > threshold_at(rng.standard_cauchy(n), rate) for _ in range(4000)]
    expected = math.floor(rate * (n + 1) + 1e-9) / (n + 1)
    assert expected <= rate
    assert np.mean(alarms) == pytest.approx(expected, abs=0.004)


def fitted(rng: np.random.Generator, n: int, distance: bool, kind: str = "temperature") -> OperatingPoint:
    def draw(count: int, fake: bool) -> tuple[np.ndarray, np.ndarray]:
        logits = rng.normal(3.0 if fake else 0.0, 1.0, count)
        far = rng.gamma(4.0 if fake else 2.0, 1.0, count) + 0.5 * logits
        return logits, far if distance else np.full(count, np.nan)

    real, fake, train = draw(n, False), draw(n, True), draw(n, False)
    return fit_operating_point(
        np.r_[real[0], fake[0]], np.r_[real[1], fake[1]], np.repeat([0, 1], n), *train, 0.05, kind, "m", "val",
    )  # fmt: skip


@pytest.mark.parametrize("distance", [True, False])
def test_p_values_of_fresh_reals_are_uniform(distance: bool) -> None:
    """Over many fits: a single fit's p-values are uniform only on average over what it was fitted on."""
    rng, values = np.random.default_rng(1), []
    for _ in range(3000):
        point = fitted(rng, 99, distance, "none")
        assert point.reference is not None
        logit = rng.normal(0.0, 1.0, 1)
        far = rng.gamma(2.0, 1.0, 1) + 0.5 * logit if distance else np.full(1, np.nan)
        values.append(float(point.reference.p_values(logit, far)[0]))
    drawn = np.asarray(values)
    # p takes the values 1/100 ... 100/100; spread over its step it is uniform on (0, 1).
    assert kstest(drawn - rng.uniform(0, 0.01, len(drawn)), "uniform").pvalue > 1e-3
    for alpha in (0.01, 0.05, 0.1, 0.5):
        assert np.mean(drawn <= alpha) <= alpha + 3 * math.sqrt(alpha * (1 - alpha) / len(drawn))


def test_fakes_are_unusual_by_logit_or_by_distance() -> None:
    point = fitted(np.random.default_rng(2), 500, True)
    assert point.reference is not None
    unusual = point.reference.p_values([9.0, 0.0, 0.0], [2.0, 60.0, 2.0])
    assert unusual[0] == unusual[1] == pytest.approx(1 / 501)
    assert unusual[2] > 0.2


def test_it_survives_being_written_down() -> None:
    point = fitted(np.random.default_rng(3), 50, True)
    assert OperatingPoint.from_dict(json.loads(json.dumps(point.to_dict()))) == point


def test_without_fakes_there_is_a_threshold_and_no_calibration() -> None:
    rng = np.random.default_rng(4)
    point = fit_operating_point(rng.normal(size=60), np.full(60, np.nan), np.zeros(60, int), rng.normal(size=60),
                                np.full(60, np.nan), 0.05, "temperature", "m", "val")  # fmt: skip
    assert point.calibration.kind == "none"
    assert math.isfinite(point.threshold)
    assert any("not calibrated" in note for note in point.notes)
    few = fit_operating_point([0.0, 1.0], [np.nan] * 2, [0, 0], [0.0, 1.0], [np.nan] * 2, 0.05, "none", "m", "val")
    assert math.isinf(few.threshold)
    assert any("too few validation reals (2)" in note for note in few.notes)


def test_many_references_are_thinned() -> None:
    rng = np.random.default_rng(5)
    n = 3 * MOST_REFERENCES
    point = fit_operating_point(rng.normal(size=n), np.full(n, np.nan), np.zeros(n, int), rng.normal(size=9),
                                np.full(9, np.nan), 0.05, "none", "m", "val")  # fmt: skip
    assert point.reference is not None
    assert len(point.reference.scores) == MOST_REFERENCES
    fresh = point.reference.p_values(rng.normal(size=20_000), np.full(20_000, np.nan))
    assert kstest(fresh, "uniform").statistic < 0.02
