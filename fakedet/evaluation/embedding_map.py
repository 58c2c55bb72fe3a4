"""The embedding map: where reals and each generator's fakes lie on two principal components."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fakedet.evaluation.plots import (
    PALETTE,
    REAL_COLOUR,
    WIDTH,
    add_legend,
    colour_of,
    dress,
    known,
    marker_of,
    new_figure,
    plain,
    save,
)


def project(embedding: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Project embeddings on their first two principal components.

    Args:
        embedding: (N, D), any N and D >= 1.

    Returns:
        (N, 2) places, NaN for rows that are not finite, and the (2,) shares of variance.
    """
    given = np.asarray(embedding, dtype=np.float64)
    kept = np.isfinite(given).all(axis=1)
    places, share = np.full((len(given), 2), np.nan), np.zeros(2)
    if not kept.any():
        return places, share
    left, singular, _ = np.linalg.svd(given[kept] - given[kept].mean(axis=0), full_matrices=False)
    width = min(2, len(singular))
    places[kept] = 0.0
    places[kept, :width] = left[:, :width] * singular[:width]
    share[:width] = singular[:width] ** 2 / max(float((singular**2).sum()), 1e-300)
    return places, share


def plot_map(
    places: NDArray[np.float64],
    share: ArrayLike,
    labels: ArrayLike,
    generators: Sequence[str],
    seen: set[str],
    path: Path,
) -> Path:
    """Draw places on the first two principal components.

    Args:
        places: (N, 2) from :func:`project`; rows that are not finite are left out and counted in the title.
        share: (2,) of variance.
        labels: (N,) 0 real, 1 fake.
        generators: name of each row.
        seen: generators seen in training; the fakes of others are drawn as crosses.
        path: the PNG.
    """
    kept = np.isfinite(places).all(axis=1)
    real, names = np.asarray(labels)[kept] == 0, np.asarray(generators, dtype=object)[kept]
    x, y = np.asarray(places, dtype=np.float64)[kept].T
    figure = new_figure(WIDTH, 5.0)
    axes = figure.subplots()
    axes.scatter(
        x[real], y[real], s=14, color=REAL_COLOUR, alpha=0.4, linewidths=0, label=f"real (n={real.sum()})"
    )
    for number, name in enumerate(sorted(set(names[~real]))):
        rows, was_seen = ~real & (names == name), name in seen
        # A cross has no inside, so it is told from later rounds of the palette by "+" instead.
        marker = marker_of(number) if was_seen else ("x", "+")[number // len(PALETTE) % 2]
        axes.scatter(x[rows], y[rows], s=16 if was_seen else 24, marker=marker, alpha=0.75, color=colour_of(number),
                     linewidths=0 if was_seen else 1.1,
                     label=plain(f"{name}{known(name, 1, seen)} (n={rows.sum()})"))  # fmt: skip
    lost = f", without {int((~kept).sum())} that are not finite" if not kept.all() else ""
    first, second = np.asarray(share, dtype=np.float64)
    dress(axes, f"embeddings of {kept.sum()} test images{lost}", f"component 1 ({first:.0%} of variance)",
          f"component 2 ({second:.0%})", grid="both")  # fmt: skip
    add_legend(figure, axes.get_legend_handles_labels()[0])
    return save(figure, path)
