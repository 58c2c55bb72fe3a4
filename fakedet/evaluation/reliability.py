"""Is a score of 0.8 right four times in five, and how do detections trade against false alarms?"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.metrics import precision_recall_curve, roc_curve

from fakedet.evaluation.plots import MARKERS, PALETTE, REAL_COLOUR, WIDTH, new_figure, save
from fakedet.metrics.calibration import BINS, balanced_weights, bin_of, calibration_error

LEAST_IN_BIN = 5
"""Images below which a bin is not drawn."""


def plot_reliability(frames: Mapping[str, pd.DataFrame], path: Path) -> Path:
    """Draw the share of fakes over the mean score of each bin, a line a method.

    Args:
        frames: by method: label and score.
        path: the PNG.
    """
    figure = new_figure(WIDTH, 4.6)
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color=REAL_COLOUR, linewidth=1, linestyle=":")
    for number, (method, frame) in enumerate(frames.items()):
        scores, labels = frame["score"].to_numpy(dtype=float), frame["label"].to_numpy()
        weights, bins = balanced_weights(labels), bin_of(scores)
        count = np.bincount(bins, minlength=BINS)
        total = np.bincount(bins, weights=weights, minlength=BINS)
        drawn = (count >= LEAST_IN_BIN) & (total > 0)
        mean = np.bincount(bins, weights=weights * scores, minlength=BINS)[drawn] / total[drawn]
        share = np.bincount(bins, weights=weights * labels, minlength=BINS)[drawn] / total[drawn]
        error = calibration_error(scores, labels)
        marker = MARKERS[number // len(PALETTE) % len(MARKERS)]
        axes.plot(mean, share, color=PALETTE[number % len(PALETTE)], marker=marker, markersize=5,
                  label=f"{method} (ECE {error:.2f})")  # fmt: skip
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="score = P(fake)", ylabel="share of fakes")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper left", ncols=2, frameon=False)
    return save(figure, path)


def plot_curves_of_decision(frames: Mapping[str, pd.DataFrame], path: Path) -> Path:
    """Draw ROC and precision-recall curves over all generators, a line a method.

    Args:
        frames: by method: label and logit.
        path: the PNG.
    """
    figure = new_figure(2 * WIDTH, 4.6)
    roc, recall = figure.subplots(1, 2)
    roc.plot([0, 1], [0, 1], color=REAL_COLOUR, linewidth=1, linestyle=":")
    for number, (method, frame) in enumerate(frames.items()):
        labels, logits = frame["label"].to_numpy(), frame["logit"].to_numpy()
        if len(set(labels.tolist())) < 2:
            continue
        colour = PALETTE[number % len(PALETTE)]
        false, true, _ = roc_curve(labels, logits)
        roc.plot(false, true, color=colour, label=method)
        precise, found, _ = precision_recall_curve(labels, logits)
        recall.plot(found, precise, color=colour)
        recall.axhline(labels.mean(), color=REAL_COLOUR, linewidth=1, linestyle=":")
    roc.set(
        xlabel="share of reals called fake", ylabel="share of fakes called fake", xlim=(0, 1), ylim=(0, 1.01)
    )
    recall.set(xlabel="share of fakes called fake (recall)", ylabel="share of fakes among those called so (precision)",
               xlim=(0, 1), ylim=(0, 1.01))  # fmt: skip
    for axes in (roc, recall):
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*roc.get_legend_handles_labels(), loc="outside upper left", ncols=4, frameon=False)
    return save(figure, path)
