"""Shortcuts: how well a small classifier tells a generator's fakes from their reals without seeing any trace of it.

One classifier sees the header (format, size, compression), another a thumbnail and colour histograms. Both are scored
under cross-validation by groups. Training and evaluation call :func:`header_audit` and :func:`describe_training`.
"""

from __future__ import annotations

import logging
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
from fakedet.audit.features import Looks, look, sample_rows
from fakedet.data.datamodule import DataModule
from fakedet.metrics.bootstrap import Interval, percentile_interval, resample_weights, stratify_groups
from fakedet.metrics.pairing import Pairs, real_counterparts
from fakedet.metrics.ranking import ranking_statistics

log = logging.getLogger("fakedet")

LEAST = 4  # images of each class below which no AUC is given
WARN = 0.7  # AUC above which a shortcut is reported
QUICK = 300  # images per cell whose headers training and evaluation look at
SIDES = ("top", "bottom", "left", "right")


@dataclass(frozen=True)
class Shortcut:
    """AUC of a classifier that sees no trace of a generator."""

    auc: Interval
    n_real: int
    n_fake: int
    told_by: str  # the single feature that separates the classes best, with its AUC; "" if none does

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {**vars(self), "auc": self.auc.to_dict()}


@dataclass(frozen=True)
class GeneratorAudit:
    """What separates one generator's fakes from their reals, other than its traces."""

    generator: str
    reals: list[str]
    rule: str
    header: Shortcut
    content: Shortcut | None  # None where pixels were not looked at
    strips: dict[str, tuple[float, float]]  # side → shares of reals and of fakes that have a strip of one colour there

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "reals": self.reals, "rule": self.rule, "header": self.header.to_dict(),
            "content": self.content and self.content.to_dict(),
            "strips": {side: {"real": real, "fake": fake} for side, (real, fake) in self.strips.items()},
        }  # fmt: skip


def header_shortcut(
    facts: pd.DataFrame, labels: NDArray[np.int64], groups: NDArray[np.object_], resamples: int = 500
) -> Shortcut:
    """Measure how well header facts separate one generator from its reals; see :func:`measure`."""
    forest = ExtraTreesClassifier(60, min_samples_leaf=2, max_features=None, class_weight="balanced", random_state=0)
    return measure(header_features(facts), labels, groups, forest, resamples)


def content_shortcut(
    content: NDArray[np.float32], labels: NDArray[np.int64], groups: NDArray[np.object_], resamples: int = 500
) -> Shortcut:
    """Measure how well a thumbnail and colours separate the classes; see :func:`measure`."""
    linear = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, class_weight="balanced", max_iter=2000))
    names = [f"thumbnail {number}" for number in range(content.shape[1])]
    return measure(pd.DataFrame(content, columns=names), labels, groups, linear, resamples)


def header_features(facts: pd.DataFrame) -> pd.DataFrame:
    """Make features of format, size and compression, from the frame of :class:`fakedet.audit.features.Looks`."""
    pixels = (facts["width"] * facts["height"]).clip(lower=1).to_numpy(dtype=float)
    features = {
        "width": facts["width"], "height": facts["height"], "aspect": facts["width"] / facts["height"].clip(lower=1),
        "pixels": pixels, "bytes": facts["bytes"], "bytes per pixel": facts["bytes"] / pixels,
        "JPEG quality": facts["jpeg_quality"],
    }  # fmt: skip
    table = pd.DataFrame({name: np.asarray(values, dtype=float) for name, values in features.items()})
    for column, name in (("format", "format"), ("jpeg_tables", "JPEG tables")):
        values = facts[column].reset_index(drop=True)
        for value in values.value_counts().index[:12]:  # rarer ones share the absence of all these
            if value:
                table[f"{name} {value}"] = (values == value).astype(float)
    return table


def measure(
    features: pd.DataFrame, labels: NDArray[np.int64], groups: NDArray[np.object_], classifier: Any, resamples: int
) -> Shortcut:
    """Compute the AUC of a classifier's scores under cross-validation by groups, all of a group in the same fold.

    The interval is a bootstrap of the scores over groups; it does not cover how much other folds would change them. The
    AUC is NaN where a class has fewer than :data:`LEAST` images or only one group.

    Args:
        features: (n, d), with (n,) labels, 0 = real, 1 = fake, and (n,) groups, names of photographs or prompts.
        classifier: of scikit-learn, with predict_proba.
        resamples: of the bootstrap.
    """
    n_real, n_fake = int((labels == 0).sum()), int((labels == 1).sum())
    groups_of = [len(set(groups[labels == label])) for label in (0, 1)]
    if min(n_real, n_fake) < LEAST or min(groups_of) < 2:
        return Shortcut(Interval(math.nan, math.nan, math.nan), n_real, n_fake, "")
    values = features.to_numpy()
    scores = np.full(len(labels), np.nan)
    with warnings.catch_warnings():
        # A class with fewer groups than folds is absent from some; those rows get no score.
        warnings.simplefilter("ignore", UserWarning)
        division = StratifiedGroupKFold(min(5, *groups_of), shuffle=True, random_state=0)
        folds = list(division.split(values, labels, groups))
    for train, test in folds:
        if len(set(labels[train])) == 2:
            scores[test] = classifier.fit(values[train], labels[train]).predict_proba(values[test])[:, 1]
    known = ~np.isnan(scores)
    scores, label, group = scores[known], labels[known], groups[known]
    strata = stratify_groups(group, label, np.zeros(len(label), dtype=np.int64))
    weights = next(resample_weights(strata, resamples, np.random.default_rng(0)))[:, strata.codes]
    auc = float(ranking_statistics(label, scores)[1][0])
    interval = percentile_interval(auc, ranking_statistics(label, scores, weights)[1])
    # The single feature that separates the classes best, if its AUC differs from 0.5 by more than 0.1.
    best, told_by = 0.1, ""
    for column in (name for name in features if not str(name).startswith("thumbnail")):
        alone = float(ranking_statistics(labels, features[column].to_numpy())[1][0])
        if abs(alone - 0.5) > best:
            best, told_by = abs(alone - 0.5), f"{column} (AUC {max(alone, 1 - alone):.2f} alone)"
    return Shortcut(interval, n_real, n_fake, told_by)


def audit_generators(
    frame: pd.DataFrame, looks: Looks, pairs: Pairs | None, resamples: int = 500
) -> tuple[list[GeneratorAudit], list[Finding]]:
    """Measure the shortcuts of every generator of a manifest's frame on the rows that were looked at.

    For ``pairs`` see :func:`fakedet.metrics.pairing.real_counterparts`; the intervals take so many ``resamples``.
    """
    readable = (looks.frame["problem"] == "").to_numpy()
    facts = looks.frame[readable]
    rows = frame.loc[facts.index]
    reals = frame.loc[frame["label"] == 0, ["generator", "source"]]
    known = set(reals["generator"]) | set(reals["source"])
    audits, alone = [], []
    for name, counterparts in real_counterparts(rows, pairs, known).items():
        if not len(counterparts.real_rows):
            alone.append(name)
            continue
        chosen = np.concatenate([counterparts.real_rows, counterparts.fake_rows])
        labels = rows["label"].to_numpy()[chosen].astype(np.int64)
        groups = rows["group"].to_numpy(object)[chosen]
        header = header_shortcut(facts.iloc[chosen], labels, groups, resamples)
        content, strips = None, {}
        if looks.content is not None:
            content = content_shortcut(looks.content[readable][chosen], labels, groups, resamples)
            for side in SIDES:
                has = (facts[side].to_numpy()[chosen] > 0).astype(float)
                strips[side] = float(has[labels == 0].mean()), float(has[labels == 1].mean())
        audits.append(GeneratorAudit(name, counterparts.reals, counterparts.rule, header, content, strips))
    findings = _findings(audits)
    if alone:
        findings.insert(0, Finding(
            "problem", "counterpart", f"There are no reals to compare with: {', '.join(alone)}",
            "Their AP is not defined.", "add reals, or name some with data.pairs", {"generators": alone},
        ))  # fmt: skip
    return audits, findings


def _findings(audits: Sequence[GeneratorAudit]) -> list[Finding]:
    """Report the shortcuts above their limits, each in one finding for all generators concerned."""
    headers = {a.generator: a.header for a in audits if a.header.auc.value > WARN}
    contents = {a.generator: a.content for a in audits if a.content is not None and a.content.auc.value > WARN}
    few = {a.generator: a.header for a in audits if math.isnan(a.header.auc.value)}
    findings = []
    if headers:
        told = [shortcut.told_by.split(" (")[0] for shortcut in headers.values() if shortcut.told_by]
        by = f", most often by {max(told, key=told.count)}" if told else ""
        sure = any(shortcut.auc.low > WARN for shortcut in headers.values())
        findings.append(Finding(
            "problem" if sure else "warning", "header",
            f"Format, size or compression tell the fakes of {_listed(headers)} from their reals{by}",
            "A detector can do as well on these without seeing a trace, and will learn to.",
            "fakedet match data.manifest=MANIFEST output_dir=FOLDER, or data.match.size=PIXELS on the fly",
            _numbers(headers),
        ))  # fmt: skip
    if contents:
        findings.append(Finding(
            "warning", "content", f"Thumbnails and colours tell the fakes of {_listed(contents)} from their reals",
            "The classes show different things, so a detector may learn subjects instead of traces.",
            "compare with reals of the same subjects: a source column, or data.pairs", _numbers(contents),
        ))  # fmt: skip
    if few:
        findings.append(Finding(
            "note", "few", f"Too few images for a shortcut AUC: {_listed(few)}",
            "Nothing can be said about their shortcuts.", "", _numbers(few),
        ))  # fmt: skip
    for side in SIDES:
        if marked := {a.generator: a.strips[side] for a in audits if side in a.strips and _one_sided(a, side)}:
            each = (f"{name} ({fake:.0%} of fakes, {real:.0%} of reals)" for name, (real, fake) in marked.items())
            shares = {name: {"real": real, "fake": fake} for name, (real, fake) in marked.items()}
            findings.append(Finding(
                "warning", "strip",
                f"A strip of one colour at the {side} is more frequent in one class: {'; '.join(each)}",
                "A border, bar or caption in one class gives it away.",
                "crop it off before indexing, or use centre crops that leave it out",
                {"side": side, "shares": shares},
            ))  # fmt: skip
    return findings


def _one_sided(audit: GeneratorAudit, side: str) -> bool:
    (real, fake), header = audit.strips[side], audit.header
    table = [[have := round(share * n), n - have] for share, n in ((real, header.n_real), (fake, header.n_fake))]
    return abs(real - fake) >= 0.1 and bool(fisher_exact(table).pvalue < 1e-3)


def _listed(shortcuts: Mapping[str, Shortcut]) -> str:
    ranked = sorted(shortcuts.items(), key=lambda item: -item[1].auc.value)
    return "; ".join(f"{name} (AUC {s.auc.text()}, {s.n_real} real, {s.n_fake} fake)" for name, s in ranked)


def _numbers(shortcuts: Mapping[str, Shortcut]) -> dict[str, Any]:
    return {name: shortcut.auc.to_dict() for name, shortcut in shortcuts.items()}


# Results of :func:`header_audit`: stage 1 and the method after it look at the same data and warn once.
_MEASURED: dict[tuple[Any, ...], dict[str, Any]] = {}


def header_audit(datamodule: DataModule, split: str) -> dict[str, Any]:
    """Measure a split's header shortcuts on at most :data:`QUICK` images per cell, and warn where they are large.

    Returns:
        Generator → what :meth:`Shortcut.to_dict` gives, for metrics.json; empty for a split of one class.
    """
    key = (datamodule.manifest.sha256, split, datamodule.held_out, str(datamodule.pairs))
    if key in _MEASURED:
        return _MEASURED[key]
    rows = datamodule.manifest.rows(split)
    if set(rows["label"]) != {0, 1}:
        return {}
    looks = look(sample_rows(rows, QUICK), datamodule.read_bytes, pixels=False)
    bad = looks.problems
    if len(bad) > datamodule.max_quarantine * len(looks.frame):
        # The run will fail for these; say so before hours are spent.
        log.warning(
            "%d of %d images looked at in the split '%s' cannot be used, the first: %s: %s; a run fails above "
            "data.max_quarantine=%s of a split", len(bad), len(looks.frame), split,
            datamodule.manifest.frame.loc[bad.index[0], "path"], bad.iloc[0], datamodule.max_quarantine,
        )  # fmt: skip
    audits, _ = audit_generators(rows, looks, datamodule.pairs, resamples=300)
    told = {entry.generator: entry.header for entry in audits}
    # With fewer images of a class than 20, a shortcut is stored but not warned about.
    loud = {name: s for name, s in told.items() if s.auc.value > WARN and min(s.n_real, s.n_fake) >= 20}
    if loud:
        name, worst = max(loud.items(), key=lambda item: item[1].auc.value)
        log.warning(
            "shortcut in the split '%s': format, size or compression alone tell %d of %d generators from their reals "
            "(most: %s, AUC %s, %d real, %d fake); see fakedet audit%s",
            split, len(loud), len(told), name, worst.auc.text(), worst.n_real, worst.n_fake,
            "" if datamodule.matcher else " and fakedet match; where its reals are of another kind, data.pairs",
        )  # fmt: skip
    _MEASURED[key] = {name: shortcut.to_dict() for name, shortcut in told.items()}
    return _MEASURED[key]


def describe_training(datamodule: DataModule) -> dict[str, Any]:
    """Describe the training images: manifest, counts per generator, percentiles of a sample's sizes and qualities."""
    rows = datamodule.manifest.rows("train")
    counts = {
        kind: {str(name): int(n) for name, n in rows.loc[rows["label"] == label, "generator"].value_counts().items()}
        for label, kind in ((0, "real"), (1, "fake"))
    }
    facts = look(sample_rows(rows, QUICK), datamodule.read_bytes, pixels=False).frame
    facts = facts[facts["problem"] == ""]
    jpeg = facts.loc[facts["jpeg_quality"] > 0, "jpeg_quality"]

    def percentiles(values: pd.Series) -> list[float] | None:
        return [float(value) for value in values.quantile([0.05, 0.5, 0.95])] if len(values) else None

    return {
        "manifest": datamodule.manifest.path.name, **counts,
        "jpeg_share": float((facts["jpeg_quality"] > 0).mean()) if len(facts) else None,
        "jpeg_quality": percentiles(jpeg), "shorter_side": percentiles(facts[["width", "height"]].min(axis=1)),
    }  # fmt: skip
