"""What a detector decides: accuracies, detection at given false alarms, and how honest its probabilities are.

Every statistic is that of one generator's fakes and its real counterparts, with a bootstrap interval over the same
resamples of groups as AP's. All but the detection rates are sums over rows, so a resample is a product of the weights
of groups with sums of groups.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fakedet.metrics.bootstrap import Interval, percentile_interval, resample_weights, stratify_groups
from fakedet.metrics.bootstrap_table import group_names
from fakedet.metrics.calibration import BINS, bin_of
from fakedet.metrics.pairing import Counterparts, Pairs, column, real_counterparts
from fakedet.metrics.ranking import CHUNK_CELLS, rank, running_sum

DECISIONS = ("acc_real", "acc_fake", "ece", "brier", "tpr_at_1", "tpr_at_5")
RATES = (0.01, 0.05)

Floats = NDArray[np.float64]


def decision_statistics(
    frame: pd.DataFrame,
    probabilities: Floats | None,
    threshold: float | None,
    pairs: Pairs | None,
    n_resamples: int = 1000,
    seed: int = 0,
    known_reals: Any = None,
) -> dict[str, dict[str, Interval]]:
    """Measure the decisions on every generator of a predictions frame.

    * ``acc_real``, ``acc_fake``: shares of reals at or below, of fakes above the threshold.
    * ``ece``, ``brier``: expected calibration error over 15 equally wide bins, and Brier score, of the probabilities,
      reals and fakes weighing one half each.
    * ``tpr_at_1``, ``tpr_at_5``: share of fakes above the logit that at most 1 % (5 %) of this generator's reals
      reach; chosen on these very reals, so it says what could be reached and not what the shipped threshold does.

    Args:
        frame: one row an image: label, generator, logit and, where known, source and group.
        probabilities: (n,) calibrated; None: no ece and brier.
        threshold: of the logit; None: no accuracies.
        pairs: see :func:`fakedet.metrics.pairing.real_counterparts`.
        n_resamples: of the bootstrap.
        seed: of the bootstrap.
        known_reals: see :func:`fakedet.metrics.pairing.real_counterparts`.

    Returns:
        Generator → statistic → interval; NaN where a class is missing or the statistic was not asked for.
    """
    strata = stratify_groups(group_names(frame), frame["label"].to_numpy(), column(frame, "generator"))
    logits = frame["logit"].to_numpy(dtype=np.float64)
    cells = {
        name: _Cell(rows, logits, probabilities, threshold, strata.codes)
        for name, rows in real_counterparts(frame, pairs, known_reals).items()
    }
    one = np.ones((1, strata.n_groups), dtype=np.int32)
    points = {name: cell.statistics(one) for name, cell in cells.items()}
    samples: dict[str, list[Mapping[str, Floats]]] = {name: [] for name in cells}
    step = max(1, CHUNK_CELLS // max(1, len(frame)))
    for weights in resample_weights(strata, n_resamples, np.random.default_rng(seed), step):
        for name, cell in cells.items():
            samples[name].append(cell.statistics(weights))
    return {
        name: {
            key: percentile_interval(
                float(points[name][key][0]),
                np.concatenate([part[key] for part in samples[name]]) if samples[name] else np.zeros(0),
            )
            for key in DECISIONS
        }
        for name in cells
    }


class _Cell:
    """One generator's fakes and reals: sums by group, and the ranking of fakes among reals."""

    def __init__(
        self,
        rows: Counterparts,
        logits: Floats,
        probabilities: Floats | None,
        threshold: float | None,
        codes: NDArray[np.int64],
    ) -> None:
        order = rows.real_rows[np.argsort(-logits[rows.real_rows], kind="stable")]
        self.real_groups = codes[order]
        self.ranking = rank(-logits[rows.fake_rows], -logits[order])
        self.fake_groups = codes[rows.fake_rows[self.ranking.fake_order]]
        self.sums = []
        for label, own in ((0, rows.real_rows), (1, rows.fake_rows)):
            groups, inverse = np.unique(codes[own], return_inverse=True)
            table = _row_sums(
                label, logits[own], None if probabilities is None else probabilities[own], threshold
            )
            summed = np.zeros((len(groups), table.shape[1]))
            np.add.at(summed, inverse, table)
            self.sums.append((groups, summed))

    def statistics(self, weights: NDArray[np.int32]) -> dict[str, Floats]:
        """Give the (R,) statistics of (R, groups) weights."""
        parts = []
        for groups, summed in self.sums:
            total = weights.take(groups, axis=1).astype(np.float64) @ summed
            with np.errstate(divide="ignore", invalid="ignore"):
                parts.append(total[:, 1:] / total[:, :1])
        real, fake = parts
        found = {"acc_real": real[:, 0], "acc_fake": fake[:, 0], "brier": (real[:, 1] + fake[:, 1]) / 2}
        found["ece"] = np.abs((real[:, 2:] + fake[:, 2:]) / 2).sum(axis=1)
        return {**found, **self._detection(weights)}

    def _detection(self, weights: NDArray[np.int32]) -> dict[str, Floats]:
        reals = running_sum(weights.take(self.real_groups, axis=1))
        alarms = reals.take(self.ranking.reals_from, axis=1)
        fakes = weights.take(self.fake_groups, axis=1)
        found = {}
        for rate, key in zip(RATES, DECISIONS[-2:], strict=True):
            caught = np.einsum("rf,rf->r", fakes, alarms <= rate * reals[:, -1:], dtype=np.float64)
            with np.errstate(divide="ignore", invalid="ignore"):
                share = caught / fakes.sum(axis=1, dtype=np.float64)
            found[key] = np.where(reals[:, -1] > 0, share, np.nan)
        return found


def _row_sums(label: int, logits: Floats, probabilities: Floats | None, threshold: float | None) -> Floats:
    """Give (n, 3 + BINS) columns to be summed: 1, decided right, squared error, and p − y in its bin."""
    table = np.full((len(logits), 3 + BINS), np.nan)
    table[:, 0] = 1
    if threshold is not None:
        table[:, 1] = (logits > threshold) == (label == 1)
    if probabilities is not None:
        table[:, 2:] = 0
        table[:, 2] = (probabilities - label) ** 2
        table[np.arange(len(logits)), 3 + bin_of(probabilities)] = probabilities - label
    return table
