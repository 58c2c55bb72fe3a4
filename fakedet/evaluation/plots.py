"""Figures, drawn without global state and saved as PNG."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

# Okabe and Ito's palette: told apart by colour-blind readers too.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6BB1", "#7F7F7F")
REAL_COLOUR = "#4D4D4D"
DPI = 160


def new_figure(width: float, height: float) -> Figure:
    """Make a figure of this size in inches that no global registry knows of."""
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def save(figure: Figure, path: Path) -> Path:
    """Write a figure as PNG."""
    figure.savefig(path, dpi=DPI)
    return path


def plot_curves(runs: Mapping[str, pd.DataFrame], path: Path) -> Path:
    """Draw training loss and validation mAP by epoch, a line a run.

    Args:
        runs: by name: columns epoch, train/loss, val/map as far as there are any.
        path: the PNG.
    """
    wanted = [("train/loss", "training loss"), ("val/map", "validation mAP")]
    figure = new_figure(7.6, 3.2)
    for axes, (key, title) in zip(np.atleast_1d(figure.subplots(1, 2)), wanted, strict=True):
        drawn = False
        for number, (name, table) in enumerate(runs.items()):
            if key in table and table[key].notna().any():
                rows = table[["epoch", key]].dropna()
                axes.plot(rows["epoch"] + 1, rows[key], label=name, color=PALETTE[number % len(PALETTE)],
                          marker="o", markersize=3, linewidth=1.5)  # fmt: skip
                drawn = True
        _dress(axes, title, "epoch", "")
        if drawn and len(runs) > 1:
            axes.legend(fontsize=7, frameon=False)
        elif not drawn:
            axes.text(0.5, 0.5, "not logged", ha="center", va="center", transform=axes.transAxes)
    return save(figure, path)


def plot_scores(frame: pd.DataFrame, path: Path) -> Path:
    """Draw how logits spread: reals first, then each generator, with median, quartiles and 5–95 %.

    Args:
        frame: a predictions frame.
        path: the PNG.
    """
    groups = _score_groups(frame)
    figure = new_figure(8, 0.8 + 0.36 * len(groups))
    axes = figure.subplots()
    for row, (_, label, logits) in enumerate(groups):
        colour = REAL_COLOUR if label == 0 else PALETTE[1]
        low, first, middle, third, high = np.percentile(logits, [5, 25, 50, 75, 95])
        axes.plot([low, high], [row, row], color=colour, linewidth=1)
        axes.plot([first, third], [row, row], color=colour, linewidth=6, solid_capstyle="butt", alpha=0.6)
        axes.plot(middle, row, "|", color="black", markersize=11)
    axes.set_yticks(
        range(len(groups)), [f"{name} (n={len(logits)})" for name, _, logits in groups], fontsize=8
    )
    axes.invert_yaxis()
    axes.axvline(0, color="#999999", linewidth=0.8, linestyle=":")
    _dress(axes, "logits: 5–95 %, quartiles, median; grey real, orange fake", "logit (right: more fake)", "")
    return save(figure, path)


def plot_embedding(
    embedding: NDArray[np.float64],
    labels: NDArray[np.int64],
    generators: list[str],
    seen: set[str],
    path: Path,
) -> Path:
    """Draw embeddings on their first two principal components.

    Args:
        embedding: (N, D).
        labels: (N,) 0 real, 1 fake.
        generators: name of each row.
        seen: generators seen in training; the fakes of others are drawn as crosses.
        path: the PNG.
    """
    centred = embedding - embedding.mean(axis=0)
    _, singular, axes_ = np.linalg.svd(centred, full_matrices=False)
    places = centred @ axes_[:2].T
    if places.shape[1] < 2:
        places = np.column_stack([places, np.zeros(len(places))])
    share = singular**2 / max(float((singular**2).sum()), 1e-12)
    figure = new_figure(6.6, 4)
    axes = figure.subplots()
    names = np.asarray(generators, dtype=object)
    real = labels == 0
    axes.scatter(
        places[real, 0],
        places[real, 1],
        s=14,
        color=REAL_COLOUR,
        alpha=0.45,
        label=f"real (n={real.sum()})",
        linewidths=0,
    )
    for number, name in enumerate(sorted(set(names[~real]))):
        rows = ~real & (names == name)
        known = name in seen
        axes.scatter(places[rows, 0], places[rows, 1], s=16 if known else 22, marker="o" if known else "x", alpha=0.7,
                     color=PALETTE[number % len(PALETTE)], linewidths=0 if known else 1,
                     label=f"{name}{'' if known else ', unseen'} (n={rows.sum()})")  # fmt: skip
    shown = [f"{value:.0%}" for value in share[:2]]
    _dress(axes, "embeddings of test images", f"component 1 ({shown[0]} of variance)",
           f"component 2 ({shown[1] if len(shown) > 1 else '0%'})")  # fmt: skip
    axes.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return save(figure, path)


def plot_intervals(rows: Mapping[str, Mapping[str, Mapping[str, Any]]], title: str, path: Path) -> Path:
    """Draw values with their intervals, a row a generator and a colour a method.

    Args:
        rows: generator → method → {"value", "low", "high"}, None where undefined.
        title: above the figure.
        path: the PNG.
    """
    methods = list(next(iter(rows.values()))) if rows else []
    figure = new_figure(8.5, 1.0 + 0.13 * len(rows) * max(3, len(methods)))
    axes = figure.subplots()
    for number, method in enumerate(methods):
        offset = (number - (len(methods) - 1) / 2) * 0.8 / max(1, len(methods))
        for place, values in enumerate(rows.values()):
            entry = values[method]
            if entry["value"] is None:
                continue
            colour, at = PALETTE[number % len(PALETTE)], place + offset
            if entry["low"] is not None:
                axes.plot([entry["low"], entry["high"]], [at, at], color=colour, linewidth=1.6)
            axes.plot(
                entry["value"], at, "o", color=colour, markersize=4, label=method if place == 0 else None
            )
    axes.set_yticks(range(len(rows)), list(rows), fontsize=8)
    axes.invert_yaxis()
    for border in range(1, len(rows)):
        axes.axhline(border - 0.5, color="#DDDDDD", linewidth=0.6)
    axes.axvline(0.5, color="#999999", linewidth=0.8, linestyle=":")
    _dress(axes, title, "", "")
    handles = [axes.plot([], [], "o-", color=PALETTE[number % len(PALETTE)], markersize=4, label=method)[0]
               for number, method in enumerate(methods)]  # fmt: skip
    axes.legend(handles=handles, fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return save(figure, path)


def _score_groups(frame: pd.DataFrame) -> list[tuple[str, int, NDArray[np.float64]]]:
    return [
        (str(name), label, rows["logit"].to_numpy(dtype=np.float64))
        for label in (0, 1)
        for name, rows in frame[frame["label"] == label].groupby("generator", sort=True)
    ]


def _dress(axes: Axes, title: str, x: str, y: str) -> None:
    axes.set_title(title, fontsize=10, loc="left")
    axes.set_xlabel(x, fontsize=9)
    axes.set_ylabel(y, fontsize=9)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", color="#EEEEEE", linewidth=0.6)
    axes.set_axisbelow(True)
