"""How well a small classifier tells fakes from reals by what has nothing to do with being fake."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.ensemble import ExtraTreesClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from fakedet.metrics.bootstrap import Interval, percentile_interval, resample_weights, stratify_groups
from fakedet.metrics.ranking import ranking_statistics, roc_auc

FOLDS = 5
TREES = 60
COMMON = 12
"""Formats and JPEG tables that have a feature of their own; rarer ones share one."""
LEAST = 4
"""Images of each class below which no AUC is given."""


@dataclass(frozen=True)
class Shortcut:
    """AUC of a classifier that sees no trace of a generator."""

    auc: Interval
    n_real: int
    n_fake: int
    told_by: str
    """The feature that tells most by itself, with its AUC; "" if none does."""


def header_features(facts: pd.DataFrame) -> pd.DataFrame:
    """Make features of format, size and compression.

    Args:
        facts: columns format, width, height, bytes, jpeg_quality, jpeg_tables; see :mod:`fakedet.audit.looks`.
    """
    pixels = (facts["width"] * facts["height"]).clip(lower=1).to_numpy(dtype=float)
    features = {
        "width": facts["width"],
        "height": facts["height"],
        "aspect": facts["width"] / facts["height"].clip(lower=1),
        "pixels": pixels,
        "bytes": facts["bytes"],
        "bytes per pixel": facts["bytes"] / pixels,
        "JPEG quality": facts["jpeg_quality"],
    }
    table = pd.DataFrame({name: np.asarray(values, dtype=float) for name, values in features.items()})
    for column, name in (("format", "format"), ("jpeg_tables", "JPEG tables")):
        values = facts[column].reset_index(drop=True)
        for value in values.value_counts().index[:COMMON]:
            if value:
                table[f"{name} {value}"] = (values == value).astype(float)
    return table


def header_shortcut(
    facts: pd.DataFrame, labels: NDArray[np.int64], groups: NDArray[np.object_], resamples: int = 500
) -> Shortcut:
    """Measure what header facts give away about one generator against its reals; see :func:`measure`."""
    forest = ExtraTreesClassifier(
        TREES, min_samples_leaf=2, max_features=None, class_weight="balanced", random_state=0
    )
    return measure(header_features(facts), labels, groups, forest, resamples)


def content_shortcut(
    content: NDArray[np.float32], labels: NDArray[np.int64], groups: NDArray[np.object_], resamples: int = 500
) -> Shortcut:
    """Measure what a thumbnail and colours give away; see :func:`measure`."""
    linear = make_pipeline(
        StandardScaler(), LogisticRegression(C=0.01, class_weight="balanced", max_iter=2000)
    )
    names = [f"thumbnail {number}" for number in range(content.shape[1])]
    return measure(pd.DataFrame(content, columns=names), labels, groups, linear, resamples)


def measure(
    features: pd.DataFrame,
    labels: NDArray[np.int64],
    groups: NDArray[np.object_],
    classifier: object,
    resamples: int,
) -> Shortcut:
    """Take the AUC of a classifier's scores under cross-validation by groups.

    Siblings never stand on both sides of a fold. The interval is a bootstrap over groups of the scores; it
    does not hold what other folds would have changed.

    Args:
        features: (n, d).
        labels: (n,) 0 = real, 1 = fake.
        groups: (n,) names of photographs or prompts.
        classifier: of scikit-learn, with predict_proba.
        resamples: of the bootstrap.

    Returns:
        NaN for the AUC where a class has fewer than :data:`LEAST` images or lies in one group.
    """
    n_real, n_fake = int((labels == 0).sum()), int((labels == 1).sum())
    groups_of = [len(set(groups[labels == label])) for label in (0, 1)]
    if min(n_real, n_fake) < LEAST or min(groups_of) < 2:
        return Shortcut(Interval(float("nan"), float("nan"), float("nan")), n_real, n_fake, "")
    scores = _out_of_fold(features.to_numpy(), labels, groups, classifier, min(FOLDS, *groups_of))
    known = ~np.isnan(scores)
    auc = _interval(scores[known], labels[known], groups[known], resamples)
    return Shortcut(auc, n_real, n_fake, _told_by(features, labels))


def _out_of_fold(
    features: NDArray[np.float64],
    labels: NDArray[np.int64],
    groups: NDArray[np.object_],
    classifier: object,
    folds: int,
) -> NDArray[np.float64]:
    scores = np.full(len(labels), np.nan)
    with warnings.catch_warnings():
        # A class with fewer groups than folds is missing from some; those rows have no score.
        warnings.simplefilter("ignore", UserWarning)
        division = list(
            StratifiedGroupKFold(folds, shuffle=True, random_state=0).split(features, labels, groups)
        )
    for train, test in division:
        if len(set(labels[train])) == 2:
            fitted = classifier.fit(features[train], labels[train])  # type: ignore[attr-defined]
            scores[test] = fitted.predict_proba(features[test])[:, 1]
    return scores


def _interval(
    scores: NDArray[np.float64], labels: NDArray[np.int64], groups: NDArray[np.object_], resamples: int
) -> Interval:
    value = roc_auc(labels, scores)
    strata = stratify_groups(groups, labels, np.zeros(len(labels), dtype=np.int64))
    weights = next(resample_weights(strata, resamples, np.random.default_rng(0)))[:, strata.codes]
    return percentile_interval(value, ranking_statistics(labels, scores, weights)[1])


def _told_by(features: pd.DataFrame, labels: NDArray[np.int64]) -> str:
    """Name the single feature that separates the classes best, if it does by 0.1 or more."""
    best, name = 0.1, ""
    for column in features:
        if str(column).startswith("thumbnail"):
            return ""
        auc = roc_auc(labels, features[column].to_numpy())
        if abs(auc - 0.5) > best:
            best, name = abs(auc - 0.5), f"{column} (AUC {max(auc, 1 - auc):.2f} alone)"
    return name
