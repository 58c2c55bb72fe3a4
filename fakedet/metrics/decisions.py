"""Decisions: the operating point that turns logits into verdicts and p-values, and how good these are.

:func:`fit_operating_point` fits threshold, calibration and reference on validation data; checkpoints store it.
:func:`decision_statistics` measures accuracy, calibration error and detection rate of every generator.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from fakedet.metrics.bootstrap import (
    Interval,
    draw_families,
    mean_over_families,
    percentile_interval,
    resample_chunks,
    share_interval,
    stratify_groups,
)
from fakedet.metrics.calibration import BINS, Calibration, bin_of, fit_calibration
from fakedet.metrics.pairing import Counterparts, Pairs, column, group_cells, real_counterparts
from fakedet.metrics.ranking import rank, running_sum

DECISIONS = ("acc_real", "acc_fake", "ece", "brier", "tpr_at_1", "tpr_at_5")
RATES = {"tpr_at_1": 0.01, "tpr_at_5": 0.05}
PUBLISHED = "publication"  # the "split" of an operating point that a detector's authors chose
MOST_REFERENCES = 5000  # scores of reals kept in a checkpoint; p-values are then no finer than 1/5001

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Strata:
    """Which collection or family, and which group, each of n held-out images is of; every collection counts the same.

    An image of the collection c, one of K with n_c images each, weighs 1 / (K n_c). Images of one group (photograph or
    prompt) are not independent, so that these weights are worth 1 / Σ_g w_g² groups, w_g being the sum over a group
    (the effective sample size of Kish, Survey Sampling, 1965).
    """

    names: tuple[str, ...]  # of the collections or families
    cells: tuple[int, ...]  # (n,) number of each image's collection
    groups: tuple[int, ...]  # (n,) number of its group

    @classmethod
    def of(cls, names: ArrayLike, groups: ArrayLike) -> Strata:
        """Number (n,) names of collections and (n,) groups."""
        cells, known = pd.factorize(np.asarray(names, dtype=object), sort=True)
        numbers, _ = pd.factorize(np.asarray(groups, dtype=object))
        return cls(tuple(map(str, known)), tuple(map(int, cells)), tuple(map(int, numbers)))

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Strata:
        """Read plain values; ValueError if numbers are not those of names and groups."""
        found = cls(*(tuple(content[key]) for key in ("names", "cells", "groups")))
        n = len(found.cells)
        if len(found.groups) != n or {*found.cells} != {*range(len(found.names))} or not {*found.groups} <= {*range(n)}:
            raise ValueError("its collections do not fit its images")
        return found

    def weights(self) -> Floats:
        """Return the (n,) weights, of sum 1."""
        cells = np.asarray(self.cells)
        return np.asarray(1 / (len(self.names) * np.bincount(cells)[cells]), dtype=np.float64)

    def counts(self) -> Floats:
        """Return the (n,) weights, of the sum that they are worth in independent groups."""
        weights = self.weights()
        return np.asarray(weights / (np.bincount(np.asarray(self.groups), weights) ** 2).sum())


@dataclass(frozen=True)
class FalseAlarms:
    """The share of photographs called fake, of collections that were left out of training."""

    mean: Interval  # over the collections, each of which counts the same
    shares: dict[str, float]  # of each collection
    sizes: dict[str, int]  # number of its photographs

    def __str__(self) -> str:
        worst = max(self.shares, key=lambda name: self.shares[name], default="")
        numbers = self.mean.value, self.mean.low, self.mean.high, self.shares.get(worst, math.nan)
        value, low, high, most = map(percent, numbers)
        return (
            f"{value} % of photographs: mean over {len(self.shares)} collections left out of training, 95 % interval "
            f"{low} to {high} %; worst {worst} {most} % of {self.sizes.get(worst)}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that JSON can hold."""
        return {**vars(self), "mean": self.mean.to_dict()}

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> FalseAlarms:
        """Read what :meth:`to_dict` wrote."""
        return cls(Interval.from_dict(content["mean"]), dict(content["shares"]), dict(content["sizes"]))


def left_out_alarms(point: Mapping[str, Any] | None) -> str:
    """Tell the false alarms of an operating point that is given as plain values; "" where it has none."""
    return str(FalseAlarms.from_dict(point["left_out"])) if point and point.get("left_out") else ""


def percent(share: float) -> str:
    """Write a share in [0, 1] as a percentage, with two digits where it is small."""
    return f"{100 * share:.0f}" if share >= 0.0995 or not share else f"{100 * share:.2g}"


def false_alarms(called: ArrayLike, strata: Strata, n_resamples: int = 1000, seed: int = 0) -> FalseAlarms:
    """Measure how often the photographs of a collection are called fake, with the mean's interval over collections.

    A resample draws the groups of each collection, and collections, both with replacement.

    Args:
        called: (n,) whether each photograph is called fake, in the order of the strata.
        n_resamples: of the bootstrap, like ``seed``.
    """
    names = np.asarray(strata.names, dtype=object)[np.asarray(strata.cells)]
    frame = pd.DataFrame({"label": 0, "generator": names, "group": strata.groups})
    found = [row for row in accuracies(frame, {"": called}, n_resamples, seed).values() if row.name]
    shares = np.array([1 - row.points[""] for row in found])
    samples = 1 - np.stack([row.samples[""] for row in found], axis=1)
    means = mean_over_families(samples, draw_families(len(found), n_resamples, seed))
    return FalseAlarms(
        share_interval(float(shares.mean()), means, len(found)),
        {row.name: float(share) for row, share in zip(found, shares, strict=True)}, {row.name: row.n for row in found},
    )  # fmt: skip


@dataclass(frozen=True)
class Reference:
    """Held-out reals, among which a conformal p-value ranks an image.

    The score of an image is the larger of its standardised logit and its standardised trace distance. Centre and spread
    come from training reals, so that the score does not depend on the held-out reals, and
    p = (1 + #{reference scores >= its score}) / (n + 1) is valid: over fresh reals P(p <= α) <= α (Vovk et al.
    2005, chapter 2), whatever the detector, if they are drawn from the same distribution as the reference reals. With
    strata, numbers of scores are sums of :meth:`Strata.counts`, so that each collection counts the same.
    """

    centre: tuple[float, float]  # of logit and distance among training reals; NaN where the method has no distance
    spread: tuple[float, float]
    scores: tuple[float, ...]  # of the held-out reals, rising
    strata: Strata | None = None  # of the scores; None: all count the same

    def score(self, logits: ArrayLike, distances: ArrayLike) -> Floats:
        """Return the (n,) nonconformity scores of images."""
        parts = [
            (np.asarray(values, dtype=np.float64) - centre) / spread
            for values, centre, spread in zip((logits, distances), self.centre, self.spread, strict=True)
            if not math.isnan(centre)
        ]
        return np.asarray(np.maximum.reduce(parts), dtype=np.float64)

    def p_values(self, logits: ArrayLike, distances: ArrayLike) -> Floats:
        """Return the (n,) conformal p-values in (0, 1]; small = unusual among reals."""
        return self._among(self.score(logits, distances))

    @property
    def lowest(self) -> float:
        """The lowest p-value that there is."""
        return float(self._among(np.full(1, np.inf))[0])

    def _among(self, scores: Floats) -> Floats:
        known = np.asarray(self.scores)
        above = _from_each(np.ones(len(known)) if self.strata is None else self.strata.counts())
        return np.asarray((1.0 + above[np.searchsorted(known, scores, side="left")]) / (above[0] + 1.0))

    def false_alarms(self, rate: float) -> FalseAlarms | None:
        """Measure the reference reals whose p-value is at most ``rate``; None without strata."""
        return false_alarms(self._among(np.asarray(self.scores)) <= rate, self.strata) if self.strata else None


@dataclass(frozen=True)
class OperatingPoint:
    """What turns a detector's logits into verdicts, calibrated scores and p-values, and what it was fitted on.

    An image is called fake if its logit exceeds the threshold; ``rate`` is the share of reals that may be.
    """

    threshold: float
    rate: float
    calibration: Calibration
    reference: Reference | None
    n_real: int
    n_fake: int
    manifest: str  # SHA-256
    split: str
    notes: tuple[str, ...] = ()
    fakes: tuple[float, ...] = ()  # logits of the held-out fakes, usually of the training split's generators, rising
    families: Strata | None = None  # of the fakes, where families were left out of training
    left_out: FalseAlarms | None = None  # at the threshold, where collections were left out of training

    def lowest_fake(self, missed: float) -> float:
        """Return the logit below which a share of the held-out fakes lies; NaN without fakes.

        It bounds the share of missed fakes for these generators; for an unseen generator it promises nothing. Of a
        published detector it is the threshold.
        """
        if not self.fakes:
            return self.threshold if self.split == PUBLISHED else math.nan
        # As for the threshold: a fresh fake lies below the k-th lowest of n with probability k / (n + 1).
        return -threshold_at(-np.asarray(self.fakes), missed, self.families.counts() if self.families else None)

    def promise(self, false_alarm: float, miss: float) -> str:
        """Say how often `fakedet predict` is wrong if it may be at these rates, and about which images."""
        if self.split == PUBLISHED:
            return "; ".join(self.notes)
        if self.reference is None or (alarms := self.reference.false_alarms(false_alarm)) is None:
            return (
                f"about {100 * false_alarm:g} % of photographs like its {self.n_real} real validation images (the same "
                f"sources) are called fake, and about {100 * miss:g} % of fakes like its {self.n_fake} validation "
                "fakes are called real; nothing is promised for other photographs and generators"
            )
        missed = f"{100 * miss:g} % of fakes"
        if self.families:
            names = self.families.names
            missed += f" (mean over {len(names)} {'family' if len(names) == 1 else 'families'} left out of training)"
        return f"called fake: {alarms}. Called real: about {missed}"

    def calls(self, false_alarm: float, miss: float) -> tuple[float, Interval]:
        """Estimate the shares of fakes and of photographs that are called fake, of those that it was fitted on.

        Of fakes by the logit alone: copies and tiles that disagree make some of them undecided. With collections and
        families left out of training each of them counts the same, and the share of photographs has an interval over
        collections; without, it is the rate itself. NaN without fakes or a reference.
        """
        fakes, held = np.asarray(self.fakes, dtype=np.float64), self.reference
        unknown = Interval(math.nan, math.nan, math.nan)
        if held is None or not len(fakes):
            return math.nan, unknown
        known = held.false_alarms(false_alarm)
        alarms = known.mean if known else Interval(false_alarm, math.nan, math.nan)
        # The fakes' trace distances are not kept; their p-values need them where the method has any.
        by_logit = math.isnan(held.centre[1])
        called = held.p_values(fakes, fakes) <= false_alarm if by_logit else fakes > self.threshold
        called = called & (fakes > self.lowest_fake(miss))
        weights = self.families.weights() if self.families else np.full(len(fakes), 1 / len(fakes))
        return float(weights @ called), alarms

    def cost(self, false_alarm: float, miss: float, prior: float) -> str:
        """Say what to expect of 100 pictures, a share ``prior`` of which are fakes; "" where it cannot be estimated."""
        found, alarms = self.calls(false_alarm, miss)
        if math.isnan(found):
            return ""
        n_fake, n_real = 100 * prior, 100 * (1 - prior)
        true, false = n_fake * found, n_real * alarms.value
        told = (f"of 100 pictures with {n_fake:g} fakes among them, expect about {true + false:.1f} to look fake: "
                f"{true:.1f} of the {n_fake:g} fakes, and {false:.1f} photographs")  # fmt: skip
        if not math.isnan(alarms.low):
            told += f" (mean over collections, 95 % interval {n_real * alarms.low:.1f} to {n_real * alarms.high:.1f})"
        return f"{told}; where copies and tiles disagree, the verdict is undecided in place of fake"

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that JSON can hold: null for a missing distance and for an infinite threshold."""

        def finite(values: tuple[float, ...]) -> list[float | None]:
            return [value if math.isfinite(value) else None for value in values]

        held = self.reference
        reference = held and {
            "centre": finite(held.centre), "spread": finite(held.spread), "scores": list(held.scores),
            "strata": _plain(held.strata),
        }  # fmt: skip
        return {
            **vars(self), "threshold": finite((self.threshold,))[0], "calibration": self.calibration.to_dict(),
            "reference": reference, "notes": list(self.notes), "fakes": list(self.fakes),
            "families": _plain(self.families), "left_out": self.left_out and self.left_out.to_dict(),
        }  # fmt: skip

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> OperatingPoint:
        """Read what :meth:`to_dict` wrote."""

        def known(values: list[float | None], default: float) -> tuple[float, float]:
            first, second = (default if value is None else value for value in values)
            return first, second

        def strata(of: dict[str, Any], key: str, values: list[float]) -> Strata | None:
            if not of.get(key):
                return None
            if len((found := Strata.from_dict(of[key])).cells) != len(values):
                raise ValueError("its collections do not fit its images")
            return found

        given, fakes, alarms = content["reference"], content.get("fakes", ()), content.get("left_out")
        reference = given and Reference(
            known(given["centre"], math.nan), known(given["spread"], 1.0), tuple(given["scores"]),
            strata(given, "strata", given["scores"]),
        )  # fmt: skip
        threshold = math.inf if content["threshold"] is None else content["threshold"]
        return cls(
            threshold, content["rate"], Calibration.from_dict(content["calibration"]), reference,
            content["n_real"], content["n_fake"], content["manifest"], content["split"], tuple(content["notes"]),
            tuple(fakes), strata(content, "families", fakes), alarms and FalseAlarms.from_dict(alarms),
        )  # fmt: skip


def _plain(strata: Strata | None) -> dict[str, Any] | None:
    return {key: list(values) for key, values in vars(strata).items()} if strata else None


def _from_each(counts: Floats) -> Floats:
    """Return the (n + 1,) sums of (n,) counts from each place on."""
    return np.append(np.cumsum(counts[::-1])[::-1], 0.0)


def threshold_at(logits_of_reals: ArrayLike, rate: float, counts: ArrayLike | None = None) -> float:
    """Choose the lowest threshold that calls at most a share ``rate`` in (0, 1) of reals fake, from (n,) logits.

    The conformal choice: of n held-out reals at most ⌊rate · (n + 1)⌋ − 1 may lie above, so that a fresh real from the
    same distribution is called fake with a probability of at most ``rate``; the plain quantile would exceed it by up to
    1/n. With fewer than 1/rate − 1 reals nothing is called fake.

    ``counts`` (n,) are how many independent reals each stands for (:meth:`Strata.counts`), whose sum then takes the
    place of n: (1 + sum above) / (1 + sum) is at most ``rate``. None: each stands for itself.
    """
    values = np.asarray(logits_of_reals, dtype=np.float64)
    order = np.argsort(values, kind="stable")
    values, sums = values[order], _from_each((np.ones(len(values)) if counts is None else np.asarray(counts))[order])
    above = sums[np.searchsorted(values, values, side="right")]  # of ties none is above the others
    allowed = np.flatnonzero(1 + above <= rate * (sums[0] + 1) + 1e-9)
    return float(values[allowed[0]]) if len(allowed) else math.inf


def fit_operating_point(
    logits: ArrayLike, distances: ArrayLike, labels: ArrayLike, training_logits: ArrayLike,
    training_distances: ArrayLike, rate: float, kind: str, manifest: str, split: str, names: ArrayLike | None = None,
    groups: ArrayLike | None = None,
) -> OperatingPoint:  # fmt: skip
    """Fit threshold, calibration and reference on held-out images; ValueError without reals.

    Args:
        logits: (n,) of the validation split, of ``manifest`` (SHA-256) and ``split`` (its name), or of images each by
            a detector that was trained without its collection or family.
        distances: (n,) trace distances; NaN where the method has none.
        labels: (n,) 0 = real, 1 = fake; without fakes there is no calibration, whatever ``kind`` is.
        training_logits: (m,) of training reals, like ``training_distances``; without any there is no reference.
        rate: share of reals that may be called fake.
        names: (n,) of the collection or family that an image's detector was trained without, each of which then counts
            the same within its class, and (n,) ``groups``; None: every image counts the same.
    """
    values, far = np.asarray(logits, dtype=np.float64), np.asarray(distances, dtype=np.float64)
    label = np.asarray(labels)
    reals = label == 0
    if not reals.any():
        raise ValueError("an operating point needs reals")
    collections, families = (
        None if names is None or not own.any() else Strata.of(np.asarray(names)[own], np.asarray(groups)[own])
        for own in (reals, ~reals)
    )
    notes, calibration, weights = [], Calibration("none"), None
    if reals.all():
        notes.append("no fakes in the validation split: scores are not calibrated")
    else:
        if collections and families:
            weights = np.zeros(len(values))
            weights[reals], weights[~reals] = collections.weights() / 2, families.weights() / 2
        calibration = fit_calibration(values, label, kind, weights)
    counts = np.ones(int(reals.sum())) if collections is None else collections.counts()
    threshold = threshold_at(values[reals], rate, counts)
    if math.isinf(threshold):
        worth = "" if collections is None else f", worth {counts.sum():.0f} independent ones of each collection alike"
        notes.append(
            f"too few validation reals ({int(reals.sum())}{worth}) for a false-positive rate of {rate:g}, so this "
            f"detector calls nothing fake; {math.ceil(1 / rate) - 1} are needed"
        )
    reference = None
    logit, distance = np.asarray(training_logits), np.asarray(training_distances)
    if len(logit):
        centre = (float(np.mean(logit)), float(np.mean(distance)))
        stds = (float(np.std(logit)), float(np.std(distance)))
        # 1 where the standard deviation is 0 or undefined.
        first, second = (std if math.isfinite(std) and std > 0 else 1.0 for std in stds)
        reference = Reference(centre, (first, second), ())
        scores, strata = _thinned(reference.score(values[reals], far[reals]), collections)
        reference = replace(reference, scores=scores, strata=strata)
    return OperatingPoint(
        threshold, rate, calibration, reference, int(reals.sum()), int((~reals).sum()), manifest, split, tuple(notes),
        *_thinned(values[~reals], families),
        false_alarms(values[reals] > threshold, collections) if collections else None,
    )  # fmt: skip


def _thinned(values: Floats, strata: Strata | None) -> tuple[tuple[float, ...], Strata | None]:
    """Sort values and keep at most :data:`MOST_REFERENCES`, evenly spaced, of each collection as many."""
    cells = np.zeros(len(values), dtype=np.int64) if strata is None else np.asarray(strata.cells)
    order, kept = np.argsort(values, kind="stable"), np.zeros(len(values), dtype=bool)
    most = MOST_REFERENCES // max(1, len(np.unique(cells)))
    for cell in np.unique(cells):
        own = order[cells[order] == cell]
        kept[own[np.linspace(0, len(own) - 1, most).round().astype(int)] if len(own) > most else own] = True
    order = order[kept[order]]
    if strata is not None:
        strata = Strata.of(np.asarray(strata.names, dtype=object)[cells[order]], np.asarray(strata.groups)[order])
    return tuple(map(float, values[order])), strata


def decision_statistics(
    frame: pd.DataFrame, probabilities: Floats | None, threshold: float | None, pairs: Pairs | None,
    n_resamples: int = 1000, seed: int = 0, known_reals: Collection[str] | None = None,
) -> dict[str, dict[str, Interval]]:  # fmt: skip
    """Measure the decisions on every generator of a predictions frame.

    * ``acc_real``, ``acc_fake``: shares of reals at or below, of fakes above the threshold.
    * ``ece``, ``brier``: expected calibration error over 15 bins of equal width, and Brier score, of the
      probabilities, with weight one half for the reals and one half for the fakes.
    * ``tpr_at_1``, ``tpr_at_5``: share of fakes above the logit that at most 1 % (5 %) of this generator's reals
      reach. It is chosen on these very reals, so it says what could be reached, not what the stored threshold does.

    Args:
        frame: a row per image: label, generator, logit and, where known, source and group.
        probabilities: (n,) calibrated; None: no ece and brier.
        threshold: of the logit; None: no accuracies.
        pairs: as for :func:`fakedet.metrics.pairing.real_counterparts`, like ``known_reals``.
        n_resamples: of the bootstrap, like ``seed``.

    Returns:
        Generator → statistic → interval; NaN where a class is missing or the statistic was not asked for.
    """
    strata = stratify_groups(*group_cells(frame))
    logits = frame["logit"].to_numpy(dtype=np.float64)
    cells = {
        name: _Cell(rows, logits, probabilities, threshold, strata.codes)
        for name, rows in real_counterparts(frame, pairs, known_reals).items()
    }
    points = {name: cell.statistics(np.ones((1, sum(strata.sizes)), dtype=np.int32)) for name, cell in cells.items()}
    samples: dict[str, list[Mapping[str, Floats]]] = {name: [] for name in cells}
    for weights in resample_chunks(strata, n_resamples, seed):
        for name, cell in cells.items():
            samples[name].append(cell.statistics(weights))
    found: dict[str, dict[str, Interval]] = {name: {} for name in cells}
    for name, key in product(cells, DECISIONS):
        drawn = np.concatenate([np.zeros(0), *(part[key] for part in samples[name])])
        value = float(points[name][key][0])
        if key in ("acc_real", "acc_fake"):
            found[name][key] = share_interval(value, drawn, len(cells[name].sums[key == "acc_fake"][0]))
        else:
            found[name][key] = percentile_interval(value, drawn)
    return found


@dataclass(frozen=True)
class Accuracy:
    """The shares of one class's images that scorers classify correctly, on the data and on the same resamples."""

    label: int  # 0: reals, so that 1 - share are false alarms; 1: fakes, so that the share is detected
    name: str  # their collection or generator; "" for all of the class
    n: int
    n_groups: int
    points: dict[str, float]  # by scorer
    samples: dict[str, Floats]  # (R,) by scorer

    def interval(self, scorer: str) -> Interval:
        """Return a scorer's share with its 95 % interval."""
        return share_interval(self.points[scorer], self.samples[scorer], self.n_groups)


def accuracies(
    frame: pd.DataFrame, called_fake: Mapping[str, ArrayLike], n_resamples: int = 1000, seed: int = 0
) -> dict[str, Accuracy]:
    """Measure decisions on each collection of reals and each generator's fakes alone; one class is enough.

    Args:
        frame: a row per image: label, generator and, where known, group.
        called_fake: scorer → (n,) 1 where it called the image fake, 0 where real, NaN where it has no threshold.
        n_resamples: of the bootstrap, like ``seed``; the resamples are those of :func:`decision_statistics`.

    Returns:
        "reals", "fakes" (all images of the class), "real:NAME" and "fake:NAME" → their accuracy, NaN where the scorer
        has no threshold. Only classes, collections and generators that have images are there.
    """
    strata = stratify_groups(*group_cells(frame))
    labels, names = frame["label"].to_numpy(), column(frame, "generator")
    calls = np.stack([np.asarray(values, dtype=np.float64) for values in called_fake.values()], axis=1)
    right = np.where(labels[:, None] == 1, calls, 1 - calls)
    found, sums = {}, {}
    for label, kind in enumerate(("real", "fake")):
        of_class = labels == label
        for name in ["", *sorted(set(names[of_class]) - {""})] if of_class.any() else ():
            rows = np.flatnonzero(of_class & (names == name) if name else of_class)
            key = f"{kind}:{name}" if name else f"{kind}s"
            sums[key] = _summed(np.column_stack([np.ones(len(rows)), right[rows]]), strata.codes[rows])
            found[key] = Accuracy(label, name, len(rows), len(sums[key][0]), {}, {})
    drawn: dict[str, list[Floats]] = {key: [_shares(*own, None)] for key, own in sums.items()}
    for weights in resample_chunks(strata, n_resamples, seed):
        for key, own in sums.items():
            drawn[key].append(_shares(*own, weights))
    for key, parts in drawn.items():
        shares = np.concatenate(parts)
        for number, scorer in enumerate(called_fake):
            found[key].points[scorer] = float(shares[0, number])
            found[key].samples[scorer] = shares[1:, number]
    return found


def _summed(table: Floats, codes: NDArray[np.int64]) -> tuple[NDArray[np.int64], Floats]:
    """Sum the (n, columns) rows of each group; return the groups and (groups, columns)."""
    groups, inverse = np.unique(codes, return_inverse=True)
    summed = np.zeros((len(groups), table.shape[1]))
    np.add.at(summed, inverse, table)
    return groups, summed


def _shares(groups: NDArray[np.int64], summed: Floats, weights: NDArray[np.int32] | None) -> Floats:
    """Divide the (R, columns) sums under (R, all groups) weights, None: each group once, by the first column."""
    taken = np.ones((1, len(groups))) if weights is None else weights.take(groups, axis=1).astype(np.float64)
    total = taken @ summed
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(total[:, 1:] / total[:, :1])


class _Cell:
    """One generator's fakes and reals: sums by group, and the ranking of the fakes among the reals."""

    def __init__(
        self, rows: Counterparts, logits: Floats, probabilities: Floats | None, threshold: float | None,
        codes: NDArray[np.int64],
    ) -> None:  # fmt: skip
        order = rows.real_rows[np.argsort(-logits[rows.real_rows], kind="stable")]
        self.real_groups = codes[order]
        self.ranking = rank(-logits[rows.fake_rows], -logits[order])
        self.fake_groups = codes[rows.fake_rows[self.ranking.fake_order]]
        self.sums = []
        for label, own in ((0, rows.real_rows), (1, rows.fake_rows)):
            # Columns to be summed: 1, decided right, squared error, and p − y in its bin.
            table = np.full((len(own), 3 + BINS), np.nan)
            table[:, 0] = 1
            if threshold is not None:
                table[:, 1] = (logits[own] > threshold) == (label == 1)
            if probabilities is not None:
                p = probabilities[own]
                table[:, 2:] = 0
                table[:, 2] = (p - label) ** 2
                table[np.arange(len(own)), 3 + bin_of(p)] = p - label
            self.sums.append(_summed(table, codes[own]))

    def statistics(self, weights: NDArray[np.int32]) -> dict[str, Floats]:
        """Compute the (R,) statistics under (R, groups) weights."""
        real, fake = (_shares(*own, weights) for own in self.sums)
        found = {"acc_real": real[:, 0], "acc_fake": fake[:, 0], "brier": (real[:, 1] + fake[:, 1]) / 2}
        found["ece"] = np.abs((real[:, 2:] + fake[:, 2:]) / 2).sum(axis=1)
        reals = running_sum(weights.take(self.real_groups, axis=1))
        alarms = reals.take(self.ranking.reals_from, axis=1)
        fakes = weights.take(self.fake_groups, axis=1)
        for key, rate in RATES.items():
            caught = np.einsum("rf,rf->r", fakes, alarms <= rate * reals[:, -1:], dtype=np.float64)
            with np.errstate(divide="ignore", invalid="ignore"):
                share = caught / fakes.sum(axis=1, dtype=np.float64)
            found[key] = np.where(reals[:, -1] > 0, share, np.nan)
        return found
