"""The bootstrap over families, groups and seeds, against a loop that repeats rows literally."""

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from fakedet.errors import UserError
from fakedet.evaluation.families import MEAN, WORST, compare_families
from fakedet.metrics.bootstrap import draw_families, resample_weights, stratify_groups
from fakedet.metrics.families import bootstrap_families

FAMILIES = ("adm", "gan", "ldm")
METHODS = {"bce": 0.8, "ntf": 1.3}
SEEDS = (0, 1, 4)
R = 40


def _predictions(content: bool = False):
    """Three families: prompts shared by two of them, photographs by all, faces that are no counterparts."""
    predictions = {}
    for number, family in enumerate(FAMILIES):
        rng = np.random.default_rng(number)
        reals = [(f"real/{i}.png", 0, "photos", "scenes" if i % 4 else "faces", f"photo{i // 2}") for i in range(40)]
        fakes = [(f"{family}/{i}.png", 1, f"{family}-{i % 2}", "scenes",
                  f"prompt{i // 3}" if family != "gan" else f"class{i}") for i in range(24)]  # fmt: skip
        others = [(f"other/{i}.png", 1, "other", "scenes", f"other{i}") for i in range(5)]
        frame = pd.DataFrame([*reals, *fakes, *others], columns=["path", "label", "generator", "source", "group"])
        frame["family"] = ["photos"] * 40 + [family] * 24 + ["other"] * 5
        if content:
            frame["content"] = list(np.random.default_rng(7).normal(size=(len(frame), 4)).astype(np.float32))
        for method, strength in METHODS.items():
            for seed in SEEDS:
                logit = np.round(rng.normal(size=len(frame)) + (strength + 0.4 * number) * frame["label"], 1)
                shuffled = frame.assign(logit=logit).sample(frac=1, random_state=seed)  # a run's order says nothing
                predictions[method, family, seed] = shuffled.reset_index(drop=True)
    return predictions


def _by_hand(predictions, metric, resamples, seed):
    """(R, F) of each method and seed, from rows repeated as often as their groups were drawn."""
    kept = {}
    for family in FAMILIES:
        frame = predictions["bce", family, SEEDS[0]]
        kept[family] = frame[(frame["family"] == family) | ((frame["label"] == 0) & (frame["source"] == "scenes"))]
    rows = pd.concat([frame.assign(cell=family) for family, frame in kept.items()])
    strata = stratify_groups(rows["group"], rows["label"], rows["cell"])
    drawn = next(resample_weights(strata, resamples, np.random.default_rng(seed)))
    times = dict(zip(rows["group"], drawn.T[strata.codes], strict=True))
    found = {}
    for (method, family, number), frame in predictions.items():
        own = frame.set_index("path").loc[kept[family]["path"]]
        for r in range(resamples):
            repeated = own.loc[own.index.repeat([times[group][r] for group in own["group"]])]
            found[method, family, number, r] = metric(repeated["label"], repeated["logit"])
    return found


@pytest.mark.parametrize(("name", "metric"), [("auc", roc_auc_score), ("ap", average_precision_score)])
def test_intervals_follow_a_loop_over_the_same_draws(name, metric):
    predictions = _predictions()
    comparison = compare_families(predictions, "bce", R, seed=3)
    by_hand = _by_hand(predictions, metric, R, 3)
    families = draw_families(len(FAMILIES), R, 3)
    seeds = np.random.default_rng([3, len(SEEDS)]).integers(len(SEEDS), size=(R, len(SEEDS)))
    means, lowest = {}, {}
    for method in METHODS:
        for r in range(R):
            each = [np.mean([by_hand[method, family, SEEDS[i], r] for i in seeds[r]]) for family in FAMILIES]
            drawn = [each[place] for place, times in enumerate(families[r]) for _ in range(times)]
            assert len(drawn) == len(FAMILIES)
            means[method, r], lowest[method, r] = np.mean(drawn), min(each)
    for row, samples in ((MEAN, means), (WORST, lowest)):
        for method in METHODS:
            interval = comparison.values[name][row][method]
            expected = np.percentile([samples[method, r] for r in range(R)], [2.5, 97.5])
            assert (interval.low, interval.high) == pytest.approx(expected, abs=1e-9)
        gap = comparison.differences[name][row]["ntf"]
        differences = np.array([samples["ntf", r] - samples["bce", r] for r in range(R)])
        assert (gap.interval.low, gap.interval.high) == pytest.approx(np.percentile(differences, [2.5, 97.5]), abs=1e-9)
        beyond = min((differences <= 0).sum(), (differences >= 0).sum())
        assert gap.p == pytest.approx(min(1.0, 2 * (beyond + 1) / (R + 1)))


def test_values_are_means_over_seeds_and_families_of_scikit_learn_s_auc():
    predictions = _predictions()
    comparison = compare_families(predictions, "bce", 20)
    by_family = {}
    for family in FAMILIES:
        aucs = []
        for seed in SEEDS:
            frame = predictions["ntf", family, seed]
            own = frame[(frame["family"] == family) | ((frame["label"] == 0) & (frame["source"] == "scenes"))]
            aucs.append(roc_auc_score(own["label"], own["logit"]))
        by_family[family] = np.mean(aucs)
        assert comparison.values["auc"][family]["ntf"].value == pytest.approx(by_family[family], abs=1e-12)
    assert comparison.values["auc"][MEAN]["ntf"].value == pytest.approx(np.mean(list(by_family.values())), abs=1e-12)
    assert comparison.values["auc"][WORST]["ntf"].value == pytest.approx(min(by_family.values()), abs=1e-12)
    assert comparison.worst["auc"]["ntf"] == min(by_family, key=lambda family: by_family[family])
    assert comparison.families["ldm"].n_real == 30
    assert comparison.families["ldm"].reals == ["photos:scenes"]


def test_a_photograph_of_all_families_is_drawn_once_for_all():
    """With logits that are the same in all families, and fakes that none of them repeats, resamples are the same."""
    reals = [(f"real/{i}.png", 0, "photos", f"photo{i}", float(np.sin(i))) for i in range(30)]
    frames, logits = {}, {}
    for family in FAMILIES:
        fakes = [(f"{family}/{i}.png", 1, family, "one prompt", 0.3) for i in range(10)]
        frames[family] = pd.DataFrame([*reals, *fakes], columns=["path", "label", "generator", "group", "logit"])
        frames[family]["family"] = frames[family]["generator"]
        logits[family] = {"a": frames[family]["logit"].to_numpy()}
    table = bootstrap_families(frames, logits, 50, 0)
    samples = np.stack([table.samples("a", "auc", family) for family in FAMILIES])
    assert np.ptp(samples[0]) > 0.1
    np.testing.assert_array_equal(samples, np.repeat(samples[:1], 3, axis=0))


def test_families_are_drawn_with_replacement():
    drawn = draw_families(11, 4000, 0)
    assert (drawn.sum(axis=1) == 11).all()
    assert np.abs(drawn.mean(axis=0) - 1).max() < 0.08
    assert drawn.var() == pytest.approx(1 - 1 / 11, abs=0.03)  # of a binomial (11, 1/11)


def test_the_same_method_twice_differs_by_exactly_nothing():
    predictions = _predictions(content=True)
    predictions |= {("copy", family, seed): frame for (method, family, seed), frame in predictions.items()
                    if method == "bce"}  # fmt: skip
    comparison = compare_families(predictions, "bce", 30)
    assert comparison.matched_by == "features"
    for metric in ("auc", "auc_matched"):
        gap = comparison.differences[metric][MEAN]["copy"]
        assert (gap.interval.value, gap.interval.low, gap.interval.high) == (0, 0, 0)
        assert not gap.exceeds


def test_a_run_that_is_missing_leaves_its_seed_out_and_is_named():
    predictions = _predictions()
    del predictions["ntf", "gan", 4]
    comparison = compare_families(predictions, "bce", 20)
    assert comparison.seeds == {"bce": [0, 1, 4], "ntf": [0, 1]}
    assert "ntf, seed 4, is left out: no run without gan." in comparison.notes
    assert any("over the seeds that both have (0, 1)" in note for note in comparison.notes)
    for seed in (0, 1):
        del predictions["ntf", "adm", seed]
    with pytest.raises(UserError, match="ntf: no seed has run on all 3 families"):
        compare_families(predictions, "bce", 20)


def test_what_cannot_be_compared_is_refused():
    predictions = _predictions()
    with pytest.raises(UserError, match="baseline=bse"):
        compare_families(predictions, "bse", 20)
    frame = predictions["bce", "gan", 0]
    predictions["bce", "gan", 0] = frame.drop(columns="family")
    with pytest.raises(UserError, match=r"bce, seed 0, without gan: .* no column family"):
        compare_families(predictions, "bce", 20)
    named = {key: one for key, one in _predictions().items() if key[1] != "gan"}
    named |= {(method, "gen", seed): frame for method in METHODS for seed in SEEDS}
    with pytest.raises(UserError, match="family 'gen': there are no fakes"):
        compare_families(named, "bce", 20)
