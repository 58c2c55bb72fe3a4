"""Figures, drawn without global state and saved as PNG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

# Okabe and Ito's palette without its yellow, which is too light for lines: told apart by colour-blind readers.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
# Seventh and later things repeat the colours, so each round has a marker of its own.
MARKERS = ("o", "s", "^", "D")
REAL_COLOUR = "#4D4D4D"
DPI = 200
# Inches; two stand side by side in a report of 1200 px, and at 400 px one can still be read.
WIDTH = 6.4


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
    figure = new_figure(WIDTH, 3.2)
    handles: dict[str, Any] = {}
    for axes, (key, title) in zip(figure.subplots(1, 2), wanted, strict=True):
        drawn = False
        for number, (name, table) in enumerate(runs.items()):
            if key in table and table[key].notna().any():
                rows = table[["epoch", key]].dropna()
                (line,) = axes.plot(rows["epoch"] + 1, rows[key], label=plain(name), color=colour_of(number),
                                    marker=marker_of(number), markersize=3, linewidth=1.5)  # fmt: skip
                handles.setdefault(name, line)
                drawn = True
        dress(axes, title, "epoch", "", grid="both")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if not drawn:
            axes.text(0.5, 0.5, "not logged", ha="center", va="center", transform=axes.transAxes)
    if len(runs) > 1:
        add_legend(figure, list(handles.values()))
    return save(figure, path)


def plot_scores(frame: pd.DataFrame, path: Path, seen: set[str] | None = None) -> Path:
    """Draw a histogram of logits for the reals of each collection and the fakes of each generator.

    Args:
        frame: a predictions frame.
        path: the PNG.
        seen: generators seen in training; None where nobody knows.
    """
    groups = _score_groups(frame)
    finite = [logits[np.isfinite(logits)] for _, _, logits in groups]
    everything = np.concatenate([*finite, np.zeros(0)])
    low, high = np.percentile(everything, [0.2, 99.8]) if len(everything) else (-1.0, 1.0)
    edges = np.linspace(low, max(high, low + 1e-6), 49)
    figure = new_figure(WIDTH, 1.0 + 0.42 * len(groups))
    axes = figure.subplots()
    for row, ((_, label, _), logits) in enumerate(zip(groups, finite, strict=True)):
        if len(logits):
            counts, _ = np.histogram(np.clip(logits, edges[0], edges[-1]), edges)
            colour = REAL_COLOUR if label == 0 else PALETTE[1]
            axes.stairs(
                row - 0.85 * counts / counts.max(), edges, baseline=row, fill=True, color=colour, alpha=0.75
            )
            axes.plot([np.median(logits)] * 2, [row, row - 0.85], color="black", linewidth=1.4)
    named = [plain(f"{name}{known(name, label, seen)} (n={len(logits)})") for name, label, logits in groups]
    axes.set_yticks(range(len(groups)), named)
    axes.set_ylim(len(groups) - 0.9, -1.0)
    axes.axvline(0, color="#777777", linewidth=0.9, linestyle=":")
    dress(axes, "logits: grey real, orange fake, bar median",
           "logit (further right: more like a fake)", "")  # fmt: skip
    return save(figure, path)


def _score_groups(frame: pd.DataFrame) -> list[tuple[str, int, NDArray[np.float64]]]:
    return [
        (str(name), label, rows["logit"].to_numpy(dtype=np.float64))
        for label in (0, 1)
        for name, rows in frame[frame["label"] == label].groupby("generator", sort=True)
    ]


def colour_of(number: int) -> str:
    """Give the colour of the n-th thing."""
    return PALETTE[number % len(PALETTE)]


def marker_of(number: int) -> str:
    """Give the marker of the n-th thing."""
    return MARKERS[number // len(PALETTE) % len(MARKERS)]


def known(name: str, label: int, seen: set[str] | None) -> str:
    """Say ", unseen" of a generator that was not trained on."""
    return ", unseen" if label == 1 and seen is not None and name not in seen else ""


def plain(name: str) -> str:
    """Keep matplotlib from reading a name as mathematics, or hiding it for a leading underscore."""
    return (" " if name.startswith("_") else "") + name.replace("$", r"\$")


def add_legend(figure: Figure, handles: Sequence[Any]) -> None:
    """Put the legend below, where long names do not narrow the axes."""
    if handles:
        longest = max(len(str(handle.get_label())) for handle in handles)
        columns = max(1, min(len(handles), 100 // (longest + 6)))
        figure.legend(handles=handles, fontsize=8, frameon=False, loc="outside lower center", ncols=columns)


def dress(axes: Axes, title: str, x: str, y: str, grid: str = "x") -> None:
    """Give axes their title, labels, grid and small type."""
    axes.set_title(plain(title), fontsize=10, loc="left")
    axes.set_xlabel(x, fontsize=9)
    axes.set_ylabel(y, fontsize=9)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis=grid, color="#E8E8E8", linewidth=0.6)  # type: ignore[arg-type]
    axes.set_axisbelow(True)
