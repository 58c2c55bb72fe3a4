"""AP and AUC per generator, their means and intervals, against scikit-learn on resampled rows."""

import json

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from fakedet.errors import UserError
from fakedet.metrics.bootstrap import resample_weights, stratify_groups
from fakedet.metrics.per_generator import bootstrap_statistics, evaluate_frame

SEEN = ["ldm", "adm"]
MEANS = ("map", "map_seen", "map_unseen", "mauc", "mauc_seen", "mauc_unseen")


def _frame(seed=0, photos=24):
    """Every photo has a real crop; some have fakes of ldm and adm; gan has reals and photos of its own."""
    rng = np.random.default_rng(seed)
    rows = []
    for photo in range(photos):
        rows.append((0, "real_coco", f"photo{photo}"))
        rows.extend((1, name, f"photo{photo}") for name in ("ldm", "adm") if rng.random() < 0.7)
        if photo % 2:
            rows.extend([(0, "gan", f"class{photo}"), (1, "gan", f"prompt{photo}")])
    frame = pd.DataFrame(rows, columns=["label", "generator", "group"])
    frame["source"] = np.where(frame["generator"] == "gan", "gan", "coco")
    frame["logit"] = np.round(rng.normal(size=len(frame)) + frame["label"], 1)  # ties
    frame.insert(0, "id", range(len(frame)))
    return frame


def _reals(frame, name):
    return (frame["label"] == 0) & (frame["generator"] == ("gan" if name == "gan" else "real_coco"))


def _naive(frame, name, weights, metric):
    fakes = (frame["label"] == 1) & (frame["generator"] == name)
    kept = (fakes | _reals(frame, name)).to_numpy()
    labels, logits = frame["label"].to_numpy()[kept], frame["logit"].to_numpy()[kept]
    return metric(labels, logits, sample_weight=weights[kept])


def test_values_are_those_of_scikit_learn():
    frame = _frame()
    result = evaluate_frame(frame, None, SEEN, n_resamples=20)
    assert set(result) == {
        "per_generator",
        "matched_by",
        *MEANS,
        *(f"mauc_matched{of}" for of in ("", "_seen", "_unseen")),
    }
    assert list(result["per_generator"]) == ["adm", "gan", "ldm"]
    ones = np.ones(len(frame))
    for name, row in result["per_generator"].items():
        fakes = frame[(frame["label"] == 1) & (frame["generator"] == name)]
        reals = frame[_reals(frame, name)]
        assert (row["n_fake"], row["n_real"]) == (len(fakes), len(reals))
        assert row["n_groups"] == len({*fakes["group"], *reals["group"]})
        assert row["reals"] == (["gan"] if name == "gan" else ["real_coco"])
        assert row["rule"] == ("generator" if name == "gan" else "source")
        assert row["seen"] is (name in SEEN)
        assert row["ap"]["value"] == pytest.approx(_naive(frame, name, ones, average_precision_score), abs=1e-12)
        assert row["auc"]["value"] == pytest.approx(_naive(frame, name, ones, roc_auc_score), abs=1e-12)
        for metric in ("ap", "auc"):
            assert row[metric]["low"] <= row[metric]["value"] <= row[metric]["high"]
    for metric in ("ap", "auc"):
        value = {name: row[metric]["value"] for name, row in result["per_generator"].items()}
        assert result[f"m{metric}"]["value"] == pytest.approx(np.mean(list(value.values())))
        assert result[f"m{metric}_seen"]["value"] == pytest.approx((value["ldm"] + value["adm"]) / 2)
        assert result[f"m{metric}_unseen"]["value"] == pytest.approx(value["gan"])
    assert [result[name]["n_generators"] for name in MEANS] == [3, 2, 1, 3, 2, 1]


@pytest.mark.parametrize("metric", ["ap", "auc"])
def test_resamples_and_intervals_are_those_of_a_naive_loop(metric):
    frame = _frame()
    table = bootstrap_statistics(frame, {"a": frame["logit"]}, None, SEEN, n_resamples=40, seed=5)
    strata = stratify_groups(frame["group"], frame["label"], frame["generator"])
    weights = next(resample_weights(strata, 40, np.random.default_rng(5)))[:, strata.codes]
    oracle = average_precision_score if metric == "ap" else roc_auc_score
    naive = {name: np.array([_naive(frame, name, row, oracle) for row in weights]) for name in table.generators}
    for name, samples in naive.items():
        np.testing.assert_allclose(table.samples("a", metric, name), samples, atol=1e-12)
        assert samples.std() > 0.01
    mean = np.mean([naive["adm"], naive["gan"], naive["ldm"]], axis=0)
    np.testing.assert_allclose(table.samples("a", metric, "map"), mean, atol=1e-12)
    np.testing.assert_allclose(table.samples("a", metric, "map_seen"), (naive["adm"] + naive["ldm"]) / 2, atol=1e-12)
    np.testing.assert_allclose(table.samples("a", metric, "map_unseen"), naive["gan"], atol=1e-12)
    result = getattr(table.result("a", 0.9).means["all"], metric)
    assert (result.low, result.high) == pytest.approx(tuple(np.quantile(mean, [0.05, 0.95])))


def test_resamples_of_many_rows_are_drawn_in_chunks_and_are_the_same():
    """About 5,000 rows make chunks of about 200 resamples."""
    frame = _frame(photos=1500)
    assert 4000 < len(frame) < 5500
    table = bootstrap_statistics(frame, {"a": frame["logit"]}, None, SEEN, n_resamples=500)
    strata = stratify_groups(frame["group"], frame["label"], frame["generator"])
    weights = next(resample_weights(strata, 500, np.random.default_rng(0)))[:, strata.codes]
    samples = table.samples("a", "ap", "ldm")
    for row in (0, 150, 249, 250, 251, 350, 499):
        expected = _naive(frame, "ldm", weights[row], average_precision_score)
        assert samples[row] == pytest.approx(expected, abs=1e-12)


def test_the_order_of_the_rows_does_not_matter_and_the_seed_does():
    frame = _frame()
    result = evaluate_frame(frame, None, SEEN, n_resamples=50)
    mixed = evaluate_frame(frame.sample(frac=1, random_state=0), None, SEEN, n_resamples=50)
    for name in MEANS:
        for part in ("value", "low", "high"):
            assert mixed[name][part] == pytest.approx(result[name][part], abs=1e-12)
    assert evaluate_frame(frame, None, SEEN, n_resamples=50, seed=1)["map"]["low"] != result["map"]["low"]


def test_rows_without_a_group_are_groups_of_their_own():
    frame = _frame()
    alone = evaluate_frame(frame.assign(group=""), None, None, n_resamples=50)
    named = frame.assign(group=[f"\0{number}" for number in frame["id"]])
    assert evaluate_frame(named, None, None, n_resamples=50) == alone
    assert evaluate_frame(frame.drop(columns="group"), None, None, n_resamples=50) == alone
    assert alone["per_generator"]["gan"]["n_groups"] == 24


def test_shared_reals_widen_the_interval_of_the_mean():
    # Four generators with the same few reals: their APs rise and fall together, and the mean hardly averages.
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"label": np.repeat([0, 1], [20, 800])})
    frame["generator"] = ["real"] * 20 + [f"g{i % 4}" for i in range(800)]
    frame["logit"] = rng.normal(size=820) + frame["label"]
    table = bootstrap_statistics(frame, {"a": frame["logit"]}, None, None, n_resamples=300)
    each = np.mean([table.samples("a", "auc", f"g{i}").std() for i in range(4)])
    assert table.samples("a", "auc", "map").std() > 0.85 * each  # independent ones would give half


def test_a_generator_without_reals_is_null_and_named():
    frame = _frame()
    pairs = {"gan": "real_ffhq"}
    result = evaluate_frame(frame, pairs, SEEN, n_resamples=20, known_reals=["real_ffhq"])
    row = result["per_generator"]["gan"]
    assert (row["n_real"], row["reals"], row["rule"]) == (0, [], "pairs")
    assert row["ap"] == row["auc"] == {"value": None, "low": None, "high": None}
    assert (result["map"]["left_out"], result["map"]["n_generators"]) == (["gan"], 2)
    assert result["map_seen"]["left_out"] == []
    assert result["map"]["value"] == pytest.approx(result["map_seen"]["value"])
    assert result["map"]["low"] == result["map_seen"]["low"]
    assert result["mauc_unseen"] == {
        "value": None, "low": None, "high": None, "n_generators": 0, "left_out": ["gan"],
    }  # fmt: skip
    json.dumps(result, allow_nan=False)


def test_unknown_seen_generators_give_null():
    result = evaluate_frame(_frame(), None, None, n_resamples=20)
    assert {row["seen"] for row in result["per_generator"].values()} == {None}
    assert result["map"]["n_generators"] == 3
    for name in ("map_seen", "map_unseen", "mauc_seen", "mauc_unseen"):
        assert result[name]["value"] is None
        assert result[name]["n_generators"] == 0


@pytest.mark.parametrize("label", [0, 1])
def test_one_class_only_and_no_rows_at_all(label):
    frame = _frame()
    result = evaluate_frame(frame[frame["label"] == label], None, SEEN, n_resamples=10)
    assert list(result["per_generator"]) == (["adm", "gan", "ldm"] if label else [])
    assert result["map"]["value"] is None
    nothing = evaluate_frame(frame[:0], None, SEEN, n_resamples=10)
    assert nothing["per_generator"] == {}
    json.dumps([result, nothing], allow_nan=False)


def test_without_resamples_there_are_values_and_no_intervals():
    result = evaluate_frame(_frame(), None, SEEN, n_resamples=0)
    assert result["map"]["value"] == evaluate_frame(_frame(), None, SEEN, n_resamples=5)["map"]["value"]
    assert result["map"]["low"] is None


def test_paired_differences_use_the_same_resamples():
    frame = _frame()
    better = frame["logit"] + 0.3 * frame["label"]
    logits = {"base": frame["logit"].to_numpy(), "better": better.to_numpy(), "copy": frame["logit"] * 2}
    table = bootstrap_statistics(frame, logits, None, SEEN, n_resamples=200)
    alone = bootstrap_statistics(frame, {"x": better}, None, SEEN, n_resamples=200)
    np.testing.assert_array_equal(table.samples("better", "ap", "map"), alone.samples("x", "ap", "map"))
    same = table.difference("copy", "base", "ap", "map_unseen")
    assert (same.value, same.low, same.high) == (0, 0, 0)
    gain = table.difference("better", "base", "auc", "map")
    assert gain.value == pytest.approx(table.value("better", "auc", "map") - table.value("base", "auc", "map"))
    paired = table.samples("better", "auc", "map") - table.samples("base", "auc", "map")
    assert (gain.low, gain.high) == pytest.approx(tuple(np.quantile(paired, [0.025, 0.975])))
    one = table.interval("base", "auc", "map")
    assert 0 < gain.low < gain.high
    assert gain.high - gain.low < 0.5 * (one.high - one.low)


def test_means_are_undefined_in_resamples_that_lose_a_generator():
    # h has a single fake in a group of a make-up of its own, pooled with another such group.
    frame = pd.DataFrame(
        {
            "label": [0] * 6 + [1] * 6 + [1, 1],
            "generator": ["real"] * 6 + ["g"] * 6 + ["h", "k"],
            "logit": np.arange(14.0) % 5,
        }
    )
    table = bootstrap_statistics(frame, {"a": frame["logit"]}, None, None, n_resamples=200)
    lost = np.isnan(table.samples("a", "ap", "h")) | np.isnan(table.samples("a", "ap", "k"))
    assert 0.3 < lost.mean() < 0.7
    np.testing.assert_array_equal(np.isnan(table.samples("a", "ap", "map")), lost)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.drop(columns="logit"), "no column 'logit'"),
        (lambda f: f.drop(columns="generator"), "no column.*generator"),
        (lambda f: f.assign(label=2), "labels are 0"),
        (lambda f: f.assign(logit=[np.nan, np.nan, *f["logit"][2:]]), "2 of .* logits are NaN"),
        (lambda f: f.assign(view=["original", *["jpeg90"] * (len(f) - 1)]), "several views"),
        (lambda f: f.assign(generator="map"), "named .'map'."),
    ],
)
def test_frames_that_cannot_be_measured_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        evaluate_frame(change(_frame()), None, None, n_resamples=2)


def test_logits_of_another_length_and_unknown_names_are_refused():
    frame = _frame()
    with pytest.raises(UserError, match=r"'short'.*shape"):
        bootstrap_statistics(frame, {"short": frame["logit"][:-1]}, None, None, 2)
    table = bootstrap_statistics(frame, {"a": frame["logit"]}, None, None, 2)
    for arguments in (("b", "ap", "map"), ("a", "app", "map"), ("a", "ap", "maps")):
        with pytest.raises(UserError, match="is not known"):
            table.value(*arguments)


@pytest.mark.slow
def test_a_hundred_thousand_rows_take_seconds():
    import time

    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"label": np.tile([0, 1], 50_000)})
    frame["generator"] = np.where(frame["label"] == 1, [f"g{i // 5000}" for i in range(100_000)], "real")
    frame["logit"] = rng.normal(size=100_000)
    start = time.perf_counter()
    evaluate_frame(frame, None, None, n_resamples=1000)
    assert time.perf_counter() - start < 60  # 2 s on an idle core
