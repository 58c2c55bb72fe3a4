"""A matrix of detectors and generators, as a picture."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
from matplotlib.patches import Rectangle

from fakedet.evaluation.plots import WIDTH, dress, new_figure, plain, save
from fakedet.metrics.bootstrap import Interval


def plot_matrix(
    cells: Mapping[str, Mapping[str, Interval]], seen: Mapping[str, Collection[str]], title: str, path: Path
) -> Path:
    """Draw a value for each detector (row) and generator (column); frames mark what a detector never saw.

    Args:
        cells: generator → detector → value with its interval, which the cell tells too.
        seen: detector → generators whose fakes it was trained on.
        title: above the figure.
        path: the PNG.
    """
    generators, methods = list(cells), list(next(iter(cells.values())))
    values = np.array([[cells[generator][method].value for generator in generators] for method in methods])
    figure = new_figure(max(WIDTH, 1.8 + 1.0 * len(generators)), 1.5 + 0.5 * len(methods))
    axes = figure.subplots()
    # Diverging around a guess: red ranks fakes below reals.
    axes.imshow(values, cmap="RdBu", vmin=0.0, vmax=1.0, aspect="auto")
    for row, method in enumerate(methods):
        for column, generator in enumerate(generators):
            cell = cells[generator][method]
            pale = 0.2 < cell.value < 0.8
            words = "–" if np.isnan(cell.value) else f"{cell.value:.2f}\n[{cell.low:.2f}, {cell.high:.2f}]"
            axes.text(column, row, words, ha="center", va="center", fontsize=7.5,
                      color="black" if pale or np.isnan(cell.value) else "white")  # fmt: skip
            if generator not in seen.get(method, ()):
                box = Rectangle((column - 0.47, row - 0.45), 0.94, 0.9, fill=False, linewidth=2.2)
                axes.add_patch(box)
    axes.set_xticks(range(len(generators)), [plain(name) for name in generators], rotation=20, ha="right")
    axes.set_yticks(range(len(methods)), [plain(name) for name in methods])
    dress(axes, title, "", "")
    axes.grid(visible=False)
    return save(figure, path)
