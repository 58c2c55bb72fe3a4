"""Decisions against naive loops over rows, on the data and on each resample."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest
from sklearn.metrics import roc_curve

from fakedet.metrics.bootstrap import resample_weights, share_interval, stratify_groups
from fakedet.metrics.calibration import brier_score, calibration_error
from fakedet.metrics.decisions import DECISIONS, accuracies, decision_statistics


def made(seed: int = 0, n: int = 120) -> tuple[pd.DataFrame, np.ndarray]:
    rng = np.random.default_rng(seed)
    generators = np.array(["photos"] * (n // 2) + ["a"] * (n // 4) + ["b"] * (n // 4))
    labels = (generators != "photos").astype(int)
    logits = np.round(rng.normal(labels * 1.5, 1.0), 1)  # ties
    frame = pd.DataFrame({"label": labels, "generator": generators, "source": "", "logit": logits,
                          "group": [f"g{code}" for code in rng.integers(0, 40, n)]})  # fmt: skip
    return frame, 1 / (1 + np.exp(-logits))


def naive(frame: pd.DataFrame, p: np.ndarray, name: str, threshold: float, rows: np.ndarray) -> dict[str, float]:
    """Repeat rows as often as they were drawn and count."""
    own = rows[np.isin(frame["generator"].to_numpy()[rows], ["photos", name])]
    label, logit, score = frame["label"].to_numpy()[own], frame["logit"].to_numpy()[own], p[own]
    reals, fakes = logit[label == 0], logit[label == 1]
    found = {
        "acc_real": np.mean([x <= threshold for x in reals]), "acc_fake": np.mean([x > threshold for x in fakes]),
        "ece": calibration_error(score, label), "brier": brier_score(score, label),
    }  # fmt: skip
    fpr, tpr, _ = roc_curve(label, logit, drop_intermediate=False)
    found["tpr_at_1"] = tpr[fpr <= 0.01].max()
    found["tpr_at_5"] = tpr[fpr <= 0.05].max()
    return {key: float(value) for key, value in found.items()}


def test_values_equal_naive_loops() -> None:
    frame, p = made()
    found = decision_statistics(frame, p, 0.7, None, n_resamples=0)
    for name in ("a", "b"):
        expected = naive(frame, p, name, 0.7, np.arange(len(frame)))
        assert {key: found[name][key].value for key in DECISIONS} == pytest.approx(expected, abs=1e-12)


def test_intervals_are_percentiles_of_naive_resamples() -> None:
    frame, p = made(1)
    found = decision_statistics(frame, p, 0.7, None, n_resamples=60, seed=5)
    strata = stratify_groups(frame["group"], frame["label"], frame["generator"])
    weights = next(resample_weights(strata, 60, np.random.default_rng(5)))[:, strata.codes]
    for name in ("a", "b"):
        draws = [naive(frame, p, name, 0.7, np.repeat(np.arange(len(frame)), row)) for row in weights]
        for key in DECISIONS:
            low, high = np.quantile([draw[key] for draw in draws], [0.025, 0.975])
            assert (found[name][key].low, found[name][key].high) == pytest.approx((low, high), abs=1e-12), key


def test_what_was_not_asked_for_and_a_missing_class_are_nan() -> None:
    frame, p = made()
    found = decision_statistics(frame, None, None, None, n_resamples=10)["a"]
    assert np.isnan([found[key].value for key in ("acc_real", "acc_fake", "ece", "brier")]).all()
    assert found["tpr_at_5"].value > 0
    fakes = frame[frame["label"] == 1].reset_index(drop=True)
    lonely = decision_statistics(fakes, p[frame["label"] == 1], 0.0, None, n_resamples=10)["a"]
    assert np.isnan(lonely["tpr_at_1"].value)
    assert np.isnan(lonely["acc_real"].value)
    assert lonely["acc_fake"].value > 0.5


def test_each_class_alone_gives_its_accuracy_and_interval() -> None:
    frame, _ = made(2)
    frame.loc[:20, "generator"] = "faces"  # a second collection of reals
    calls = (frame["logit"] > 0.7).astype(float).to_numpy()
    for only in ({0}, {1}, {0, 1}):
        own = frame[frame["label"].isin(only)].reset_index(drop=True)
        called = calls[frame["label"].isin(only)]
        found = accuracies(own, {"m": called, "none": np.full(len(own), np.nan)}, 40, seed=5)
        strata = stratify_groups(own["group"], own["label"], own["generator"])
        weights = next(resample_weights(strata, 40, np.random.default_rng(5)))[:, strata.codes]
        right = np.where(own["label"] == 1, called, 1 - called)
        for label, kind, names in ((0, "real", ["faces", "photos"]), (1, "fake", ["a", "b"])):
            cells = {f"{kind}:{name}": own["generator"] == name for name in names} | {f"{kind}s": own["label"] == label}
            assert (set(cells) <= set(found)) == (label in only)
            for key, rows in cells.items() if label in only else ():
                draws = [right[np.repeat(np.arange(len(own)), row * rows)].mean() for row in weights]
                assert (found[key].n, found[key].n_groups) == (rows.sum(), own.loc[rows, "group"].nunique())
                expected = (right[rows].mean(), *np.quantile(draws, [0.025, 0.975]))
                assert vars(found[key].interval("m")).values() == pytest.approx(expected) or 1.0 in expected
                assert np.isnan(found[key].interval("none").value)


@pytest.mark.parametrize("n", [1, 7, 36])
@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_a_share_that_all_resamples_agree_on_has_the_exact_binomial_interval(n: int, value: float) -> None:
    n = 2 * n
    expected = binomtest(round(n * value), n).proportion_ci(method="exact")
    found = share_interval(value, np.full(100, value), n)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
