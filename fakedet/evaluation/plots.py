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
                (line,) = axes.plot(rows["epoch"] + 1, rows[key], label=_plain(name), color=_colour(number),
                                    marker=_marker(number), markersize=3, linewidth=1.5)  # fmt: skip
                handles.setdefault(name, line)
                drawn = True
        _dress(axes, title, "epoch", "", grid="both")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if not drawn:
            axes.text(0.5, 0.5, "not logged", ha="center", va="center", transform=axes.transAxes)
    if len(runs) > 1:
        _legend(figure, list(handles.values()))
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
    named = [_plain(f"{name}{_known(name, label, seen)} (n={len(logits)})") for name, label, logits in groups]
    axes.set_yticks(range(len(groups)), named)
    axes.set_ylim(len(groups) - 0.9, -1.0)
    axes.axvline(0, color="#777777", linewidth=0.9, linestyle=":")
    _dress(axes, "logits: grey real, orange fake, bar median",
           "logit (further right: more like a fake)", "")  # fmt: skip
    return save(figure, path)


def plot_embedding(
    embedding: NDArray[np.float64],
    labels: NDArray[np.int64],
    generators: Sequence[str],
    seen: set[str],
    path: Path,
) -> Path:
    """Draw embeddings on their first two principal components.

    Args:
        embedding: (N, D), any N and D >= 1; rows that are not finite are left out and counted in the title.
        labels: (N,) 0 real, 1 fake.
        generators: name of each row.
        seen: generators seen in training; the fakes of others are drawn as crosses.
        path: the PNG.
    """
    kept = np.isfinite(embedding).all(axis=1)
    real, names = np.asarray(labels)[kept] == 0, np.asarray(generators, dtype=object)[kept]
    places, share = _principal(np.asarray(embedding, dtype=np.float64)[kept])
    figure = new_figure(WIDTH, 5.0)
    axes = figure.subplots()
    axes.scatter(places[real, 0], places[real, 1], s=14, color=REAL_COLOUR, alpha=0.4, linewidths=0,
                 label=f"real (n={real.sum()})")  # fmt: skip
    for number, name in enumerate(sorted(set(names[~real]))):
        rows, known = ~real & (names == name), name in seen
        # A cross has no inside, so it is told from later rounds of the palette by "+" instead.
        marker = _marker(number) if known else ("x", "+")[number // len(PALETTE) % 2]
        axes.scatter(places[rows, 0], places[rows, 1], s=16 if known else 24, marker=marker, alpha=0.75,
                     color=_colour(number), linewidths=0 if known else 1.1,
                     label=_plain(f"{name}{_known(name, 1, seen)} (n={rows.sum()})"))  # fmt: skip
    lost = f", without {int((~kept).sum())} that are not finite" if not kept.all() else ""
    _dress(axes, f"embeddings of {kept.sum()} test images{lost}", f"component 1 ({share[0]:.0%} of variance)",
           f"component 2 ({share[1]:.0%})", grid="both")  # fmt: skip
    _legend(figure, axes.get_legend_handles_labels()[0])
    return save(figure, path)


def plot_intervals(
    rows: Mapping[str, Mapping[str, Mapping[str, Any]]],
    title: str,
    path: Path,
    sections: Mapping[str, str] | None = None,
) -> Path:
    """Draw values with their intervals, a row a generator and a colour a method.

    Args:
        rows: generator → method → {"value", "low", "high"}, None where undefined.
        title: above the figure.
        path: the PNG.
        sections: of the rows ("seen", "unseen", "mean"); a stronger line parts them.
    """
    methods = list(next(iter(rows.values()))) if rows else []
    figure = new_figure(WIDTH, 1.2 + len(rows) * max(0.36, 0.13 * len(methods)))
    axes = figure.subplots()
    handles = [axes.plot([], [], _marker(i) + "-", color=_colour(i), markersize=5, label=_plain(method))[0]
               for i, method in enumerate(methods)]  # fmt: skip
    for number, method in enumerate(methods):
        offset = (number - (len(methods) - 1) / 2) * 0.8 / len(methods)
        for place, values in enumerate(rows.values()):
            entry = values[method]
            if entry["value"] is None:
                continue
            at = place + offset
            if entry["low"] is not None:
                axes.plot([entry["low"], entry["high"]], [at, at], color=_colour(number), linewidth=1.6)
            axes.plot(entry["value"], at, _marker(number), color=_colour(number), markersize=5)
    section = [(sections or {}).get(name, "") for name in rows]
    shown = [
        name + (", unseen" if part == "unseen" else "") for name, part in zip(rows, section, strict=True)
    ]
    axes.set_yticks(range(len(rows)), [_plain(name) for name in shown])
    axes.set_ylim(max(len(rows), 1) - 0.5, -0.5)
    for border in range(1, len(rows)):
        parted = section[border] != section[border - 1]
        axes.axhline(border - 0.5, color="#888888" if parted else "#DDDDDD", linewidth=1 if parted else 0.6)
    axes.axvline(0.5, color="#777777", linewidth=0.9, linestyle=":")
    _dress(axes, title, "", "")
    _legend(figure, handles)
    return save(figure, path)


def _principal(embedding: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Give (N, 2) places on the first two components and the share of variance of each."""
    if not len(embedding):
        return np.zeros((0, 2)), np.zeros(2)
    centred = embedding - embedding.mean(axis=0)
    left, singular, _ = np.linalg.svd(centred, full_matrices=False)
    places, share = np.zeros((len(embedding), 2)), np.zeros(2)
    width = min(2, len(singular))
    places[:, :width] = left[:, :width] * singular[:width]
    share[:width] = singular[:width] ** 2 / max(float((singular**2).sum()), 1e-300)
    return places, share


def _score_groups(frame: pd.DataFrame) -> list[tuple[str, int, NDArray[np.float64]]]:
    return [
        (str(name), label, rows["logit"].to_numpy(dtype=np.float64))
        for label in (0, 1)
        for name, rows in frame[frame["label"] == label].groupby("generator", sort=True)
    ]


def _colour(number: int) -> str:
    return PALETTE[number % len(PALETTE)]


def _marker(number: int) -> str:
    return MARKERS[number // len(PALETTE) % len(MARKERS)]


def _known(name: str, label: int, seen: set[str] | None) -> str:
    return ", unseen" if label == 1 and seen is not None and name not in seen else ""


def _plain(name: str) -> str:
    """Keep matplotlib from reading a name as mathematics, or hiding it for a leading underscore."""
    return (" " if name.startswith("_") else "") + name.replace("$", r"\$")


def _legend(figure: Figure, handles: Sequence[Any]) -> None:
    """Put the legend below, where long names do not narrow the axes."""
    if handles:
        longest = max(len(str(handle.get_label())) for handle in handles)
        columns = max(1, min(len(handles), 100 // (longest + 6)))
        figure.legend(handles=handles, fontsize=8, frameon=False, loc="outside lower center", ncols=columns)


def _dress(axes: Axes, title: str, x: str, y: str, grid: str = "x") -> None:
    axes.set_title(_plain(title), fontsize=10, loc="left")
    axes.set_xlabel(x, fontsize=9)
    axes.set_ylabel(y, fontsize=9)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis=grid, color="#E8E8E8", linewidth=0.6)  # type: ignore[arg-type]
    axes.set_axisbelow(True)
