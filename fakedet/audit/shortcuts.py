"""audit/shortcuts"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import fisher_exact
from sklearn.ensemble import ExtraTreesClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from fakedet.audit.checks import Finding
from fakedet.audit.features import Looks
from fakedet.metrics.bootstrap import Interval, percentile_interval, resample_weights, stratify_groups
from fakedet.metrics.pairing import Counterparts, real_counterparts
from fakedet.metrics.ranking import ranking_statistics

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
        facts: columns format, width, height, bytes, jpeg_quality, jpeg_tables; see :mod:`fakedet.audit.features`.
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
    value = float(ranking_statistics(labels, scores)[1][0])
    strata = stratify_groups(groups, labels, np.zeros(len(labels), dtype=np.int64))
    weights = next(resample_weights(strata, resamples, np.random.default_rng(0)))[:, strata.codes]
    return percentile_interval(value, ranking_statistics(labels, scores, weights)[1])


def _told_by(features: pd.DataFrame, labels: NDArray[np.int64]) -> str:
    """Name the single feature that separates the classes best, if it does by 0.1 or more."""
    best, name = 0.1, ""
    for column in features:
        if str(column).startswith("thumbnail"):
            return ""
        auc = float(ranking_statistics(labels, features[column].to_numpy())[1][0])
        if abs(auc - 0.5) > best:
            best, name = abs(auc - 0.5), f"{column} (AUC {max(auc, 1 - auc):.2f} alone)"
    return name


WARN = 0.7
"""AUC above which a shortcut is reported."""
LEAST_STRIPS = 0.1
"""Difference of the classes' shares of images with a strip below which nothing is said."""
SIDES = ("top", "bottom", "left", "right")
MATCH = "fakedet match data.manifest=MANIFEST output_dir=FOLDER, or data.match.size=PIXELS on the fly"


@dataclass(frozen=True)
class GeneratorAudit:
    """What can be told of one generator's fakes without any trace of it."""

    generator: str
    reals: list[str]
    rule: str
    """Why these reals; see :class:`fakedet.metrics.pairing.Counterparts`."""
    header: Shortcut
    content: Shortcut | None
    """None where pixels were not looked at."""
    strips: dict[str, tuple[float, float]]
    """Side → shares of reals and of fakes that have a strip of one colour there."""


def audit_generators(
    frame: pd.DataFrame, looks: Looks, pairs: Mapping[str, Any] | None, resamples: int = 500
) -> tuple[list[GeneratorAudit], list[Finding]]:
    """Audit every generator of the rows that were looked at against its reals.

    Args:
        frame: of the manifest.
        looks: at some of its rows.
        pairs: see :func:`fakedet.metrics.pairing.real_counterparts`.
        resamples: of the intervals.
    """
    readable = (looks.frame["problem"] == "").to_numpy()
    rows = frame.loc[looks.frame.index[readable]]
    reals = frame.loc[frame["label"] == 0, ["generator", "source"]]
    known = set(reals["generator"]) | set(reals["source"])
    audits, alone = [], []
    for name, counterparts in real_counterparts(rows, pairs, known).items():
        if not len(counterparts.real_rows):
            alone.append(name)
            continue
        audits.append(_audit(name, rows, looks, readable, counterparts, resamples))
    return audits, _alone(alone) + _findings(audits)


def _audit(
    name: str,
    rows: pd.DataFrame,
    looks: Looks,
    readable: np.ndarray,
    counterparts: Counterparts,
    resamples: int,
) -> GeneratorAudit:
    chosen = np.concatenate([counterparts.real_rows, counterparts.fake_rows])
    labels = rows["label"].to_numpy()[chosen].astype(np.int64)
    groups = rows["group"].to_numpy(object)[chosen]
    facts = looks.frame[readable].iloc[chosen]
    header = header_shortcut(facts, labels, groups, resamples)
    content, strips = None, {}
    if looks.content is not None:
        content = content_shortcut(looks.content[readable][chosen], labels, groups, resamples)
        strips = {side: _shares((facts[side] > 0).to_numpy(), labels) for side in SIDES}
    return GeneratorAudit(name, counterparts.reals, counterparts.rule, header, content, strips)


def _shares(has: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    return float(has[labels == 0].mean()), float(has[labels == 1].mean())


def _findings(audits: Sequence[GeneratorAudit]) -> list[Finding]:
    """Say what is much, one finding for all generators that it holds of."""
    headers = {a.generator: a.header for a in audits if a.header.auc.value > WARN}
    contents = {
        a.generator: a.content for a in audits if a.content is not None and a.content.auc.value > WARN
    }
    few = {a.generator: a.header for a in audits if math.isnan(a.header.auc.value)}
    findings = []
    if headers:
        by = _most_frequent([shortcut.told_by.split(" (")[0] for shortcut in headers.values()])
        findings.append(Finding(
            "problem" if any(shortcut.auc.low > WARN for shortcut in headers.values()) else "warning", "header",
            f"Format, size or compression tell the fakes of {_listed(headers)} from their reals"
            + (f", most often by {by}" if by else ""),
            "A detector can do as well on these without seeing a trace, and will learn to.", MATCH,
            _numbers(headers),
        ))  # fmt: skip
    if contents:
        findings.append(Finding(
            "warning", "content", f"Thumbnails and colours tell the fakes of {_listed(contents)} from their reals",
            "The two show different things, so a detector may learn subjects instead of traces.",
            "compare with reals of the same subjects: a source column, or data.pairs", _numbers(contents),
        ))  # fmt: skip
    if few:
        findings.append(Finding(
            "note", "few", f"Too few images for a shortcut AUC: {_listed(few)}",
            "Nothing can be said of their shortcuts.", "", _numbers(few),
        ))  # fmt: skip
    return findings + [found for side in SIDES if (found := _strip_finding(audits, side)) is not None]


def _strip_finding(audits: Sequence[GeneratorAudit], side: str) -> Finding | None:
    marked = {a.generator: a.strips[side] for a in audits if side in a.strips and _one_sided(a, side)}
    if not marked:
        return None
    listed = "; ".join(
        f"{name} ({fake:.0%} of fakes, {real:.0%} of reals)" for name, (real, fake) in marked.items()
    )
    return Finding(
        "warning", "strip", f"A strip of one colour at the {side} is more frequent in one class: {listed}",
        "A border, bar or caption that one class has gives it away.",
        "crop it off before indexing, or use centre crops that leave it out",
        {"side": side, "shares": {name: {"real": real, "fake": fake} for name, (real, fake) in marked.items()}},
    )  # fmt: skip


def _one_sided(audit: GeneratorAudit, side: str) -> bool:
    real, fake = audit.strips[side]
    n_real, n_fake = audit.header.n_real, audit.header.n_fake
    counts = [round(real * n_real), round(fake * n_fake)]
    table = [[counts[0], n_real - counts[0]], [counts[1], n_fake - counts[1]]]
    return abs(real - fake) >= LEAST_STRIPS and bool(fisher_exact(table).pvalue < 1e-3)


def _alone(names: Sequence[str]) -> list[Finding]:
    if not names:
        return []
    return [Finding(
        "problem", "counterpart", f"There are no reals to compare with: {', '.join(names)}",
        "Their AP is not defined.", "add reals, or name some with data.pairs", {"generators": list(names)},
    )]  # fmt: skip


def _listed(shortcuts: Mapping[str, Shortcut]) -> str:
    ranked = sorted(shortcuts.items(), key=lambda item: -item[1].auc.value)
    return "; ".join(
        f"{name} (AUC {shortcut.auc.text()}, {shortcut.n_real} real, {shortcut.n_fake} fake)"
        for name, shortcut in ranked
    )


def _numbers(shortcuts: Mapping[str, Shortcut]) -> dict[str, Any]:
    return {name: shortcut.auc.to_dict() for name, shortcut in shortcuts.items()}


def _most_frequent(names: Sequence[str]) -> str:
    known = [name for name in names if name]
    return max(known, key=known.count) if known else ""


def generator_dict(entry: GeneratorAudit) -> dict[str, Any]:
    """Give what was measured of one generator as JSON takes it."""
    return {
        "reals": entry.reals,
        "rule": entry.rule,
        "header": _shortcut(entry.header),
        "content": None if entry.content is None else _shortcut(entry.content),
        "strips": {side: {"real": real, "fake": fake} for side, (real, fake) in entry.strips.items()},
    }


def _shortcut(shortcut: Shortcut) -> dict[str, Any]:
    return {
        "auc": shortcut.auc.to_dict(), "n_real": shortcut.n_real, "n_fake": shortcut.n_fake,
        "told_by": shortcut.told_by,
    }  # fmt: skip
