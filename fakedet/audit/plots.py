"""Figures of an audit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from fakedet.audit.content import WARN, GeneratorAudit
from fakedet.audit.shortcut import Shortcut
from fakedet.evaluation.plots import PALETTE, REAL_COLOUR, WIDTH, new_figure, save

FAKE_COLOUR = PALETTE[1]
MOST_POINTS = 4000


def plot_shortcuts(audits: Sequence[GeneratorAudit], path: Path) -> Path:
    """Draw each generator's header and content AUC with their intervals."""
    figure = new_figure(WIDTH, 1.4 + 0.34 * len(audits))
    axes = figure.subplots()
    rows = np.arange(len(audits))[::-1]
    _points(
        axes, [audit.header for audit in audits], rows + 0.12, PALETTE[0], "o", "format, size, compression"
    )
    if all(audit.content is not None for audit in audits):
        contents = [audit.content for audit in audits if audit.content is not None]
        _points(axes, contents, rows - 0.12, PALETTE[4], "s", "thumbnail and colours")
    axes.axvline(0.5, color=REAL_COLOUR, linewidth=1)
    axes.axvline(WARN, color=FAKE_COLOUR, linewidth=1, linestyle="--")
    axes.set_yticks(rows, [f"{audit.generator}" for audit in audits])
    axes.set_xlim(0.2, 1.02)
    axes.set_xlabel("AUC without seeing a trace (0.5 is chance, dashed is the warning)")
    axes.grid(axis="x", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper left", ncols=2, frameon=False)
    return save(figure, path)


def plot_headers(facts: pd.DataFrame, labels: np.ndarray, path: Path) -> Path:
    """Draw formats, sizes, JPEG qualities and bytes per pixel of reals and of fakes.

    Args:
        facts: see :class:`fakedet.audit.looks.Looks`, readable rows only.
        labels: (n,) 0 = real, 1 = fake.
        path: the PNG.
    """
    figure = new_figure(2 * WIDTH, 5.6)
    formats, sizes, qualities, densities = figure.subplots(2, 2).ravel()
    kinds = facts["format"].value_counts().index[:6].tolist()
    for label, name, colour in ((0, "real", REAL_COLOUR), (1, "fake", FAKE_COLOUR)):
        own = facts[labels == label]
        shares = [float((own["format"] == kind).mean()) if len(own) else 0.0 for kind in kinds]
        formats.bar(np.arange(len(kinds)) + 0.2 * (2 * label - 1), shares, 0.4, color=colour, label=name)
        shown = own.sample(min(len(own), MOST_POINTS), random_state=0)
        sizes.plot(shown["width"], shown["height"], "o" if label else "s", color=colour, alpha=0.35,
                   markersize=6 - 2 * label, markeredgewidth=0)  # fmt: skip
        jpeg = own.loc[own["jpeg_quality"] > 0, "jpeg_quality"]
        _histogram(qualities, jpeg.to_numpy(), np.arange(0.5, 101.5, 2), colour)
        pixels = (own["width"] * own["height"]).clip(lower=1)
        _histogram(
            densities,
            np.log2((own["bytes"] / pixels).to_numpy(dtype=float).clip(1e-3)),
            np.linspace(-6, 4, 60),
            colour,
        )
    formats.set_xticks(range(len(kinds)), kinds)
    titles = ("format", "width × height, pixels", "JPEG quality", "log2 of bytes per pixel")
    for axes, title in zip((formats, sizes, qualities, densities), titles, strict=True):
        axes.set_title(title, loc="left", fontsize=10)
        axes.set_ylabel("" if axes is sizes else "share of the class")
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*formats.get_legend_handles_labels(), loc="outside upper right", ncols=2, frameon=False)
    return save(figure, path)


def _points(
    axes: Axes, shortcuts: Sequence[Shortcut], rows: np.ndarray, colour: str, marker: str, name: str
) -> None:
    values = np.array([shortcut.auc.value for shortcut in shortcuts])
    lows = np.array([shortcut.auc.low for shortcut in shortcuts])
    highs = np.array([shortcut.auc.high for shortcut in shortcuts])
    axes.hlines(rows, lows, highs, color=colour, linewidth=2, alpha=0.6)
    axes.plot(values, rows, marker, color=colour, label=name, markersize=6)


def _histogram(axes: Axes, values: np.ndarray, edges: np.ndarray, colour: str) -> None:
    if len(values):
        counts, _ = np.histogram(values, edges)
        axes.stairs(counts / len(values), edges, color=colour, fill=True, alpha=0.35)
        axes.stairs(counts / len(values), edges, color=colour)
