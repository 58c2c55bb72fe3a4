"""Thresholds keep their promise and p-values are uniform on fresh reals."""

import json
import math

import numpy as np
import pytest
from scipy.stats import kstest

from fakedet.metrics.bootstrap import draw_families, resample_weights, stratify_groups
from fakedet.metrics.calibration import fit_calibration
from fakedet.metrics.decisions import (
    MOST_REFERENCES,
    OperatingPoint,
    Strata,
    false_alarms,
    fit_operating_point,
    threshold_at,
)


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


# --- collections and families left out of training -------------------------------------------------

SIZES = {"real_a": 90, "real_b": 9, "real_c": 30, "gan": 70, "ldm": 12}


def left_out(seed: int = 6) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Logits with ties, labels, names and groups of two images each; `real_b` looks like fakes."""
    rng = np.random.default_rng(seed)
    names = np.repeat(np.array([*SIZES], dtype=object), [*SIZES.values()])
    labels = np.isin(names, ["gan", "ldm"]).astype(int)
    logits = np.round(rng.normal(size=len(names)) + 2.5 * labels + 1.5 * (names == "real_b"), 1)
    return logits, labels, names, np.array([f"{name}{number // 2}" for number, name in enumerate(names)], dtype=object)


def worth(names: np.ndarray, groups: np.ndarray) -> float:
    """Give Kish's effective number of groups, row by row."""
    sums: dict[str, float] = {}
    for name, group in zip(names, groups, strict=True):
        sums[group] = sums.get(group, 0) + 1 / (len(set(names)) * list(names).count(name))
    return 1 / sum(weight**2 for weight in sums.values())


def mean_share(hits: np.ndarray, names: np.ndarray) -> float:
    return float(np.mean([hits[names == name].mean() for name in sorted(set(names))]))


def fit_left_out(kind: str = "temperature", rate: float = 0.1) -> OperatingPoint:
    logits, labels, names, groups = left_out()
    nothing = np.full(len(logits), np.nan)
    return fit_operating_point(logits, nothing, labels, np.arange(9.0), nothing[:9], rate, kind, "m", "folds", names,
                               groups)  # fmt: skip


@pytest.mark.parametrize("rate", [0.05, 0.1, 0.3])
def test_every_collection_counts_the_same_in_the_threshold(rate: float) -> None:
    logits, _, names, groups = (values[left_out()[1] == 0] for values in left_out())
    n = worth(names, groups)
    kept = [t for t in np.unique(logits) if 1 + n * mean_share(logits > t, names) <= rate * (n + 1)]
    point = fit_left_out(rate=rate)
    assert point.threshold == kept[0]
    assert point.left_out is not None
    assert point.left_out.mean.value == pytest.approx(mean_share(logits > point.threshold, names))
    assert point.left_out.mean.value < rate
    assert point.left_out.shares == {
        name: pytest.approx((logits[names == name] > point.threshold).mean()) for name in ("real_a", "real_b", "real_c")
    }
    assert threshold_at(logits, rate) != point.threshold, "counted by photographs, real_b says little"


def test_one_collection_of_independent_photographs_is_the_plain_rule() -> None:
    logits = np.random.default_rng(7).normal(size=300)
    counts = Strata.of(["camera"] * 300, np.arange(300)).counts()
    for rate in (0.003, 0.05, 0.2):
        assert threshold_at(logits, rate, counts) == threshold_at(logits, rate)


def test_p_values_and_lowest_fakes_weigh_collections_and_families_alike() -> None:
    logits, labels, names, groups = left_out()
    point, reals, fakes = fit_left_out(), labels == 0, labels == 1
    assert point.reference is not None
    n = worth(names[reals], groups[reals])
    tried = np.arange(-3.05, 5, 0.2)  # between the logits, which have one digit
    expected = [(1 + n * mean_share(logits[reals] >= t, names[reals])) / (n + 1) for t in tried]
    np.testing.assert_allclose(point.reference.p_values(tried, np.full(len(tried), np.nan)), expected, rtol=1e-9)
    assert point.reference.lowest == pytest.approx(1 / (n + 1))
    assert (point.reference.p_values(tried, np.full(len(tried), np.nan)) <= 0.1).tolist() == (
        tried > point.threshold
    ).tolist()
    n = worth(names[fakes], groups[fakes])
    for missed in (0.05, 0.1, 0.4):
        kept = [t for t in np.unique(logits[fakes])
                if 1 + n * mean_share(logits[fakes] < t, names[fakes]) <= missed * (n + 1)]  # fmt: skip
        assert point.lowest_fake(missed) == (kept[-1] if kept else -math.inf)
    promised = point.promise(0.3, 0.05)
    alarms = point.reference.false_alarms(0.3)
    assert alarms is not None
    assert alarms.mean.value == pytest.approx(
        mean_share(logits[reals] > fit_left_out(rate=0.3).threshold, names[reals])
    )
    assert promised.startswith(f"called fake: {100 * alarms.mean.value:.0f} % of photographs: mean over 3 collections ")
    assert promised.endswith("% of 9. Called real: about 5 % of fakes (mean over 2 families left out of training)")


def test_calibration_weighs_each_collection_and_family_alike_and_each_class_one_half() -> None:
    """Rows repeated until all collections of a class are of one size say the same; isotonic, which smooths nothing."""
    logits, labels, names, _ = left_out()
    times = [(630 if label == 0 else 420) // SIZES[name] for name, label in zip(names, labels, strict=True)]
    assert {SIZES[name] * count for name, count in zip(names, times, strict=True)} == {630, 420}
    expected = fit_calibration(np.repeat(logits, times), np.repeat(labels, times), "isotonic")
    found = fit_left_out("isotonic").calibration
    tried = np.linspace(-3, 5, 41)
    np.testing.assert_allclose(found(tried), expected(tried), atol=1e-9)
    assert abs(found(tried) - fit_calibration(logits, labels, "isotonic")(tried)).max() > 0.05


def test_the_interval_of_false_alarms_follows_a_loop_over_collections_and_groups() -> None:
    logits, labels, names, groups = (values[left_out()[1] == 0] for values in left_out())
    called, resamples = logits > 1, 200
    found = false_alarms(called, Strata.of(names, groups), resamples, 3)
    strata = stratify_groups(groups, labels, names)
    drawn = next(resample_weights(strata, resamples, np.random.default_rng(3)))[:, strata.codes]
    collections, families = sorted(set(names)), draw_families(3, resamples, 3)
    means = []
    for r in range(resamples):
        each = [np.repeat(called[names == name], drawn[r][names == name]).mean() for name in collections]
        means.append(np.mean([share for share, times in zip(each, families[r], strict=True) for _ in range(times)]))
    assert (found.mean.low, found.mean.high) == pytest.approx(np.percentile(means, [2.5, 97.5]), abs=1e-9)
    assert found.mean.value == pytest.approx(mean_share(called, names))
    assert found.sizes == {name: SIZES[name] for name in collections}
    assert "; worst real_b " in str(found)
    none = false_alarms(np.zeros(len(called)), Strata.of(names, groups), 50)
    assert none.mean.low == 0 < none.mean.high, (
        "three collections without a false alarm do not show that there are none"
    )


def test_collections_survive_being_written_down_and_many_images_are_thinned() -> None:
    written = json.loads(json.dumps(fit_left_out().to_dict()))
    assert OperatingPoint.from_dict(written).to_dict() == fit_left_out().to_dict()
    rng, n = np.random.default_rng(8), 4 * MOST_REFERENCES
    names = np.where(np.arange(n) < 100, "small", "large").astype(object)
    nothing, logits = np.full(n, np.nan), rng.normal(size=n)
    point = fit_operating_point(logits, nothing, np.zeros(n, int), logits[:9], nothing[:9], 0.05, "none", "m", "folds",
                                names, np.arange(n))  # fmt: skip
    assert point.reference is not None
    assert point.reference.strata is not None
    assert len(point.reference.scores) == MOST_REFERENCES // 2 + 100
    tried = rng.normal(size=500)
    expected = [mean_share(logits >= t, names) for t in tried]
    np.testing.assert_allclose(point.reference.p_values(tried, nothing[:500]), expected, atol=0.01)


def test_the_cost_of_errors_is_counted_picture_by_picture() -> None:
    rng = np.random.default_rng(0)
    logits, labels = np.concatenate([rng.normal(-2, 1, 300), rng.normal(1, 2, 200)]), np.repeat([0, 1], [300, 200])
    none = np.full(500, np.nan)
    names = np.concatenate([rng.choice(["a", "b"], 300, p=[0.8, 0.2]), rng.choice(["x", "y"], 200, p=[0.7, 0.3])])
    point = fit_operating_point(logits, none, labels, rng.normal(-3, 1, 50), np.full(50, np.nan), 0.05, "temperature",
                                "", "left out", names, np.arange(500).astype(str))  # fmt: skip
    assert point.reference is not None
    called = {name: [] for name in "abxy"}
    for logit, name in zip(logits, names, strict=True):
        p_value = point.reference.p_values([logit], [np.nan])[0]
        called[name].append(p_value <= 0.05 and (name in "ab" or logit > point.lowest_fake(0.05)))
    share = {name: np.mean(own) for name, own in called.items()}
    found, alarms = point.calls(0.05, 0.05)
    assert found == pytest.approx((share["x"] + share["y"]) / 2)
    assert alarms.value == pytest.approx((share["a"] + share["b"]) / 2)
    told = point.cost(0.05, 0.05, 0.2)
    false, true = 80 * alarms.value, 20 * found
    assert told.startswith(f"of 100 pictures with 20 fakes among them, expect about {false + true:.1f} to look fake")
    assert f"fake: {true:.1f} of the 20 fakes, and {false:.1f} photographs" in told
    assert f"interval {80 * alarms.low:.1f} to {80 * alarms.high:.1f})" in told
    alike = fit_operating_point(
        logits, none, labels, rng.normal(-3, 1, 50), np.full(50, np.nan), 0.05, "none", "", "val"
    )
    assert alike.calls(0.05, 0.05)[1].value == 0.05, "the rate itself, for photographs like these"
    without = fit_operating_point(logits[:300], none[:300], labels[:300], [], [], 0.05, "none", "", "val")
    assert without.cost(0.05, 0.05, 0.05) == ""
