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

from fakedet.metrics.bootstrap import Interval, percentile_interval, resample_chunks, share_interval, stratify_groups
from fakedet.metrics.calibration import BINS, Calibration, bin_of, fit_calibration
from fakedet.metrics.pairing import Counterparts, Pairs, column, group_cells, real_counterparts
from fakedet.metrics.ranking import rank, running_sum

DECISIONS = ("acc_real", "acc_fake", "ece", "brier", "tpr_at_1", "tpr_at_5")
RATES = {"tpr_at_1": 0.01, "tpr_at_5": 0.05}
MOST_REFERENCES = 5000  # scores of reals kept in a checkpoint; p-values are then no finer than 1/5001

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Reference:
    """Held-out reals, among which a conformal p-value ranks an image.

    The score of an image is the larger of its standardised logit and its standardised trace distance. Centre and spread
    come from training reals, so that the score does not depend on the held-out reals, and
    p = (1 + #{reference scores >= its score}) / (n + 1) is valid: over fresh reals P(p <= α) <= α (Vovk et al.
    2005, chapter 2), whatever the detector, if they are drawn from the same distribution as the reference reals.
    """

    centre: tuple[float, float]  # of logit and distance among training reals; NaN where the method has no distance
    spread: tuple[float, float]
    scores: tuple[float, ...]  # of the held-out reals, rising

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
        known = np.asarray(self.scores)
        at_least = len(known) - np.searchsorted(known, self.score(logits, distances), side="left")
        return np.asarray((1.0 + at_least) / (len(known) + 1.0), dtype=np.float64)


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
    fakes: tuple[float, ...] = ()  # logits of the validation fakes, usually of the training split's generators, rising

    def lowest_fake(self, missed: float) -> float:
        """Return the logit below which a share of the validation fakes lies; NaN without fakes.

        It bounds the share of missed fakes for these generators; for an unseen generator it promises nothing.
        """
        if not self.fakes:
            return math.nan
        # As for the threshold: a fresh fake lies below the k-th lowest of n with probability k / (n + 1).
        allowed = math.floor(missed * (len(self.fakes) + 1) + 1e-9)
        return -math.inf if allowed < 1 else self.fakes[allowed - 1]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that JSON can hold: null for a missing distance and for an infinite threshold."""

        def finite(values: tuple[float, ...]) -> list[float | None]:
            return [value if math.isfinite(value) else None for value in values]

        held = self.reference
        reference = held and {"centre": finite(held.centre), "spread": finite(held.spread), "scores": list(held.scores)}
        return {
            **vars(self), "threshold": finite((self.threshold,))[0], "calibration": self.calibration.to_dict(),
            "reference": reference, "notes": list(self.notes), "fakes": list(self.fakes),
        }  # fmt: skip

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> OperatingPoint:
        """Read what :meth:`to_dict` wrote."""

        def known(values: list[float | None], default: float) -> tuple[float, float]:
            first, second = (default if value is None else value for value in values)
            return first, second

        given = content["reference"]
        reference = given and Reference(
            known(given["centre"], math.nan), known(given["spread"], 1.0), tuple(given["scores"])
        )
        threshold = math.inf if content["threshold"] is None else content["threshold"]
        return cls(
            threshold, content["rate"], Calibration.from_dict(content["calibration"]), reference,
            content["n_real"], content["n_fake"], content["manifest"], content["split"], tuple(content["notes"]),
            tuple(content.get("fakes", ())),
        )  # fmt: skip


def threshold_at(logits_of_reals: ArrayLike, rate: float) -> float:
    """Choose the lowest threshold that calls at most a share ``rate`` in (0, 1) of reals fake, from (n,) logits.

    The conformal choice: of n held-out reals at most ⌊rate · (n + 1)⌋ − 1 may lie above, so that a fresh real from the
    same distribution is called fake with a probability of at most ``rate``; the plain quantile would exceed it by up to
    1/n. With fewer than 1/rate − 1 reals nothing is called fake.
    """
    values = np.sort(np.asarray(logits_of_reals, dtype=np.float64))
    allowed = math.floor(rate * (len(values) + 1) + 1e-9)
    # A fresh real exceeds the k-th highest of n with probability k / (n + 1).
    return math.inf if allowed < 1 else float(values[len(values) - allowed])


def fit_operating_point(
    logits: ArrayLike, distances: ArrayLike, labels: ArrayLike, training_logits: ArrayLike,
    training_distances: ArrayLike, rate: float, kind: str, manifest: str, split: str,
) -> OperatingPoint:  # fmt: skip
    """Fit threshold, calibration and reference on validation data; ValueError without reals.

    Args:
        logits: (n,) of the validation split, of ``manifest`` (SHA-256) and ``split`` (its name).
        distances: (n,) trace distances; NaN where the method has none.
        labels: (n,) 0 = real, 1 = fake; without fakes there is no calibration, whatever ``kind`` is.
        training_logits: (m,) of training reals, like ``training_distances``; without any there is no reference.
        rate: share of reals that may be called fake.
    """
    values, far = np.asarray(logits, dtype=np.float64), np.asarray(distances, dtype=np.float64)
    label = np.asarray(labels)
    reals = label == 0
    if not reals.any():
        raise ValueError("an operating point needs reals")
    notes, calibration = [], Calibration("none")
    if reals.all():
        notes.append("no fakes in the validation split: scores are not calibrated")
    else:
        calibration = fit_calibration(values, label, kind)
    threshold = threshold_at(values[reals], rate)
    if math.isinf(threshold):
        notes.append(
            f"too few validation reals ({int(reals.sum())}) for a false-positive rate of {rate:g}, so this detector "
            f"calls nothing fake; {math.ceil(1 / rate) - 1} are needed"
        )
    reference = None
    logit, distance = np.asarray(training_logits), np.asarray(training_distances)
    if len(logit):
        centre = (float(np.mean(logit)), float(np.mean(distance)))
        stds = (float(np.std(logit)), float(np.std(distance)))
        # 1 where the standard deviation is 0 or undefined.
        first, second = (std if math.isfinite(std) and std > 0 else 1.0 for std in stds)
        reference = Reference(centre, (first, second), ())
        reference = replace(reference, scores=_thinned(reference.score(values[reals], far[reals])))
    return OperatingPoint(threshold, rate, calibration, reference, int(reals.sum()), int((~reals).sum()),
                          manifest, split, tuple(notes), _thinned(values[~reals]))  # fmt: skip


def _thinned(values: Floats) -> tuple[float, ...]:
    """Sort values and keep at most :data:`MOST_REFERENCES`, evenly spaced."""
    values = np.sort(values)
    if len(values) > MOST_REFERENCES:
        values = values[np.linspace(0, len(values) - 1, MOST_REFERENCES).round().astype(int)]
    return tuple(map(float, values))


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
