"""The AUC among images of the same content, against loops written out and detectors whose knowledge is known."""

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from fakedet.metrics.bootstrap import Interval, resample_weights, stratify_groups
from fakedet.metrics.matched import compress_content, content_note, content_pairs, matched_auc
from fakedet.metrics.per_generator import evaluate_frame


def _images(n=90, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(2, size=n)
    groups = np.array([f"{label}:{i // 3}" for i, label in enumerate(labels)])
    return rng.normal(size=(n, 5)), labels, groups, np.round(rng.normal(size=n) + labels, 1)


def _naive_pairs(content, labels, groups, k):
    """Of each image, sort all others that are no siblings by cosine."""
    found = set()
    for i in range(len(labels)):
        others = [j for j in range(len(labels)) if (labels[j], groups[j]) != (labels[i], groups[i])]
        cosine = {j: content[i] @ content[j] / np.linalg.norm(content[i]) / np.linalg.norm(content[j]) for j in others}
        for j in sorted(others, key=lambda j: -cosine[j])[:k]:
            if labels[i] != labels[j]:
                found.add((i, j) if labels[i] else (j, i))
    return sorted(found)


def test_pairs_are_those_of_a_loop_over_all_images():
    content, labels, groups, _ = _images()
    assert content_pairs(content, labels, groups, 4).tolist() == [list(pair) for pair in _naive_pairs(
        content, labels, groups, 4)]  # fmt: skip
    content[3] = np.nan
    assert 3 not in content_pairs(content, labels, groups, 4)
    assert content_pairs(content[:1], labels[:1], groups[:1]).shape == (0, 2)


def test_the_value_is_that_of_rows_repeated_literally():
    content, labels, groups, logits = _images()
    pairs = content_pairs(content, labels, groups, 4)
    rng = np.random.default_rng(1)
    weights = rng.integers(3, size=(6, len(labels)))
    scores = np.stack([logits, rng.normal(size=len(labels))], axis=1)
    found = matched_auc(pairs, scores, weights)
    for row, weight in enumerate(weights):
        for scorer in range(2):
            wins = [(scores[i, scorer] > scores[j, scorer]) + 0.5 * (scores[i, scorer] == scores[j, scorer])
                    for i, j in pairs for _ in range(weight[i]) for _ in range(weight[j])]  # fmt: skip
            assert found[row, scorer] == pytest.approx(np.mean(wins), abs=1e-12)
    everything = np.array([(i, j) for i in np.flatnonzero(labels) for j in np.flatnonzero(labels == 0)])
    assert matched_auc(everything, logits)[0] == pytest.approx(roc_auc_score(labels, logits))
    assert np.isnan(matched_auc(pairs, logits, np.zeros((1, len(labels))))).all()


def _topics(n=1500, topics=30, seed=0):
    """Images of topics, of which some are mostly faked: content tells the classes, and so does a trace."""
    rng = np.random.default_rng(seed)
    centres, share = rng.normal(size=(topics, 32)), 1 / (1 + np.exp(-3 * rng.normal(size=topics)))
    topic = rng.integers(topics, size=n)
    labels = (rng.random(n) < share[topic]).astype(int)
    content = list(compress_content(centres[topic] + 0.3 * rng.normal(size=(n, 32))))
    names = np.where(labels == 1, "gan", "photo")
    frame = pd.DataFrame({"label": labels, "generator": names, "group": np.arange(n).astype(str), "content": content})
    of_content = np.log(share / (1 - share))[topic] + 0.5 * np.stack(content)[:, 0]
    return frame, of_content, 2.0 * labels + rng.normal(size=n)


def test_a_detector_of_content_is_at_chance_and_one_of_traces_is_not():
    frame, of_content, of_trace = _topics()
    content, trace = (
        evaluate_frame(frame.assign(logit=logit), None, None, 200) for logit in (of_content, of_trace + of_content / 4)
    )
    assert content["matched_by"] == "features"
    assert content["mauc"]["value"] > 0.85
    assert abs(content["mauc_matched"]["value"] - 0.5) < 0.05
    assert content["mauc_matched"]["low"] < 0.5 < content["mauc_matched"]["high"]
    assert trace["mauc_matched"]["value"] > 0.85
    told = [content_note(*(Interval.from_dict(one[key]) for key in ("mauc", "mauc_matched")), "features")
            for one in (content, trace)]  # fmt: skip
    assert told[0].startswith("what it tells apart is mostly content")
    assert not told[1]


def test_intervals_are_over_groups():
    frame, _, trace = _topics(300, 10)
    frame = frame.assign(logit=trace, group=[f"g{i // 2}" for i in range(len(frame))])
    found = evaluate_frame(frame, None, None, 60, seed=5)["per_generator"]["gan"]
    strata = stratify_groups(frame["group"], frame["label"], frame["generator"])
    weights = next(resample_weights(strata, 60, np.random.default_rng(5)))[:, strata.codes]
    pairs = content_pairs(np.stack(frame["content"].tolist()), frame["label"], frame["group"])
    samples = matched_auc(pairs, frame["logit"], weights)
    assert [found["auc_matched"][key] for key in ("low", "high")] == pytest.approx(np.quantile(samples, [0.025, 0.975]))
    assert found["n_matched"] == len(set(pairs[:, 0]))


def test_without_features_content_is_the_source():
    rng = np.random.default_rng(0)
    n = 400
    frame = pd.DataFrame({
        "label": rng.integers(2, size=n), "source": rng.choice(["faces", "scenes"], size=n),
        "group": np.arange(n).astype(str),
    })  # fmt: skip
    frame["generator"] = np.where(frame["label"] == 1, "gan", "photo")
    frame["logit"] = rng.normal(size=n) + frame["label"]
    frame.loc[(frame["label"] == 0) & (frame["source"] == "faces"), "logit"] -= 3  # which makes the plain AUC higher
    found = evaluate_frame(frame, None, None, 20)
    expected, fakes = 0.0, frame["label"].sum()
    for _, own in frame.groupby("source"):
        expected += own["label"].sum() / fakes * roc_auc_score(own["label"], own["logit"])
    assert found["matched_by"] == "source"
    assert found["mauc_matched"]["value"] == pytest.approx(expected, abs=1e-12)
    assert found["mauc_matched"]["value"] != pytest.approx(found["mauc"]["value"], abs=1e-3)
    nothing = evaluate_frame(frame.drop(columns="source"), None, None, 20)
    assert nothing["matched_by"] is None
    assert nothing["mauc_matched"]["value"] is None


def test_short_embeddings_keep_the_cosines():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(200, 20)) @ rng.normal(size=(20, 300)) + 5
    short = compress_content(features, 24).astype(float)
    rows = (features - features.mean(0)) / features.std(0)
    rows, short = (one / np.linalg.norm(one, axis=1, keepdims=True) for one in (rows, short))
    assert short.shape == (200, 24)
    np.testing.assert_allclose(short @ short.T, rows @ rows.T, atol=1e-4)
