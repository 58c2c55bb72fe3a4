"""Figures of runs and comparisons: curves, scores, intervals, embedding map, calibration, robustness."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import precision_recall_curve, roc_curve

from fakedet.evaluation.predictions import MAP
from fakedet.metrics.bootstrap import Interval
from fakedet.metrics.calibration import BINS, balanced_weights, bin_of, calibration_error
from fakedet.pages import MARKERS, PALETTE, REAL_COLOUR, WIDTH, new_figure, save

PANELS_A_ROW = 3

Values = Mapping[str, Mapping[str, Any]]


def plot_curves(runs: Mapping[str, pd.DataFrame], path: Path) -> Path:
    """Draw training loss and validation mAP by epoch, a line per run: columns epoch, train/loss, val/map (if any)."""
    wanted = [("train/loss", "training loss"), ("val/map", "validation mAP")]
    figure = new_figure(WIDTH, 3.2)
    handles: dict[str, Any] = {}
    for axes, (key, title) in zip(figure.subplots(1, 2), wanted, strict=True):
        for number, (name, table) in enumerate(runs.items()):
            if key in table and table[key].notna().any():
                rows = table[["epoch", key]].dropna()
                (line,) = axes.plot(rows["epoch"] + 1, rows[key], label=plain(name), color=colour_of(number),
                                    marker=marker_of(number), markersize=3, linewidth=1.5)  # fmt: skip
                handles.setdefault(name, line)
        dress(axes, title, "epoch", "", grid="both")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if not axes.lines:
            axes.text(0.5, 0.5, "not logged", ha="center", va="center", transform=axes.transAxes)
    if len(runs) > 1:
        add_legend(figure, list(handles.values()))
    return save(figure, path)


def plot_scores(frame: pd.DataFrame, path: Path, seen: set[str] | None = None) -> Path:
    """Draw a histogram of logits for the reals of each collection and the fakes of each generator.

    ``seen`` are the generators seen in training; None where nobody knows.
    """
    groups = [
        (str(name), label, rows["logit"].to_numpy(dtype=np.float64))
        for label in (0, 1)
        for name, rows in frame[frame["label"] == label].groupby("generator", sort=True)
    ]
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
            axes.stairs(row - 0.85 * counts / counts.max(), edges, baseline=row, fill=True, color=colour, alpha=0.75)
            axes.plot([np.median(logits)] * 2, [row, row - 0.85], color="black", linewidth=1.4)
    named = [plain(f"{name}{known(name, label, seen)} (n={len(logits)})") for name, label, logits in groups]
    axes.set_yticks(range(len(groups)), named)
    axes.set_ylim(len(groups) - 0.9, -1.0)
    axes.axvline(0, color="#777777", linewidth=0.9, linestyle=":")
    dress(axes, "logits: grey real, orange fake, bar median", "logit (further right: more like a fake)", "")
    return save(figure, path)


def colour_of(number: int) -> str:
    """Return the colour of the n-th line or point."""
    return PALETTE[number % len(PALETTE)]


def marker_of(number: int) -> str:
    """Return the marker of the n-th line or point; it changes where the colours repeat."""
    return MARKERS[number // len(PALETTE) % len(MARKERS)]


def known(name: str, label: int, seen: set[str] | None) -> str:
    """Return ", unseen" for a generator that was not trained on, else ""."""
    return ", unseen" if label == 1 and seen is not None and name not in seen else ""


def plain(name: str) -> str:
    """Escape a name: matplotlib reads $ as mathematics and hides labels with a leading underscore."""
    return (" " if name.startswith("_") else "") + name.replace("$", r"\$")


def add_legend(figure: Figure, handles: Sequence[Any]) -> None:
    """Put the legend below the axes, where long names do not narrow them."""
    if handles:
        longest = max(len(str(handle.get_label())) for handle in handles)
        columns = max(1, min(len(handles), 100 // (longest + 6)))
        figure.legend(handles=handles, fontsize=8, frameon=False, loc="outside lower center", ncols=columns)


def dress(axes: Axes, title: str, x: str, y: str, grid: str = "x") -> None:
    """Set the title, labels, grid and type size of axes."""
    axes.set_title(plain(title), fontsize=10, loc="left")
    axes.set_xlabel(x, fontsize=9)
    axes.set_ylabel(y, fontsize=9)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis=grid, color="#E8E8E8", linewidth=0.6)  # type: ignore[arg-type]
    axes.set_axisbelow(True)


def plot_intervals(
    rows: Mapping[str, Values], title: str, path: Path, sections: Mapping[str, str] | None = None,
    chance: Mapping[str, float] | None = None,
) -> Path:  # fmt: skip
    """Draw values with their intervals, a row per generator; with more than six methods, a panel per generator.

    Args:
        rows: generator → method → {"value", "low", "high"}, None where undefined.
        sections: section of each row ("seen", "unseen", "mean"); a stronger line separates them.
        chance: value of a guess for each row, drawn as a grey tick; None: 0.5 for all, a dotted line.
    """
    methods, sections = list(next(iter(rows.values()))) if rows else [], sections or {}
    shown = {name: name + ", unseen" * (sections.get(name) == "unseen") for name in rows}
    if len(methods) > 6:  # in one row they could not be told apart
        return _panels(rows, methods, shown, title, path, chance)
    figure = new_figure(WIDTH, 1.2 + len(rows) * max(0.36, 0.13 * len(methods)))
    axes = figure.subplots()
    handles = [axes.plot([], [], marker_of(i) + "-", color=colour_of(i), markersize=5, label=plain(method))[0]
               for i, method in enumerate(methods)]  # fmt: skip
    for number, method in enumerate(methods):
        offset = (number - (len(methods) - 1) / 2) * 0.8 / len(methods)
        for place, values in enumerate(rows.values()):
            _draw(axes, values[method], place + offset, number)
    axes.set_yticks(range(len(rows)), [plain(name) for name in shown.values()])
    axes.set_ylim(max(len(rows), 1) - 0.5, -0.5)
    section = [sections.get(name, "") for name in rows]
    for border in range(1, len(rows)):
        parted = section[border] != section[border - 1]
        axes.axhline(border - 0.5, color="#888888" if parted else "#DDDDDD", linewidth=1 if parted else 0.6)
    for place, name in enumerate(rows):
        if chance is not None and name in chance:
            (tick,) = axes.plot([chance[name]] * 2, [place - 0.42, place + 0.42], color="#777777", linewidth=1.2,
                                linestyle=":", label="chance")  # fmt: skip
            handles = [handle for handle in handles if handle.get_label() != "chance"] + [tick]
    if chance is None:
        axes.axvline(0.5, color="#777777", linewidth=0.9, linestyle=":")
    dress(axes, title, "", "")
    add_legend(figure, handles)
    return save(figure, path)


def _panels(
    rows: Mapping[str, Values], methods: Sequence[str], shown: Mapping[str, str], title: str, path: Path,
    chance: Mapping[str, float] | None,
) -> Path:  # fmt: skip
    lines = -(-len(rows) // PANELS_A_ROW)
    figure = new_figure(1.4 * WIDTH, 0.5 + lines * (0.65 + 0.16 * len(methods)))
    grid = figure.subplots(lines, PANELS_A_ROW, sharex=True, sharey=True, squeeze=False)
    for axes in grid.flat[len(rows) :]:
        axes.set_visible(False)
    for place, (axes, (name, values)) in enumerate(zip(grid.flat, rows.items(), strict=False)):
        for number, method in enumerate(methods):
            _draw(axes, values[method], number, number)
        guess = 0.5 if chance is None else chance.get(name)
        if guess is not None:
            axes.axvline(guess, color="#777777", linewidth=1.2, linestyle=":")
        dress(axes, shown[name], "", "", grid="both")
        # Panels above a hidden one are the last of their column.
        axes.tick_params(labelbottom=place + PANELS_A_ROW >= len(rows))
    grid[0, 0].set_yticks(range(len(methods)), [plain(method) for method in methods])
    grid[0, 0].set_ylim(len(methods) - 0.5, -0.5)
    figure.suptitle(plain(title + "; dotted: chance"), fontsize=11, x=0.01, ha="left")
    return save(figure, path)


def _draw(axes: Axes, entry: Mapping[str, Any], at: float, number: int) -> None:
    if entry["value"] is None:
        return
    if entry["low"] is not None:
        axes.plot([entry["low"], entry["high"]], [at, at], color=colour_of(number), linewidth=1.6)
    axes.plot(entry["value"], at, marker_of(number), color=colour_of(number), markersize=5)


def plot_matrix(
    cells: Mapping[str, Mapping[str, Interval]], seen: Mapping[str, Collection[str]], title: str, path: Path
) -> Path:
    """Draw a value for each detector (row) and generator (column); frames mark what a detector was not trained on.

    Args:
        cells: generator → detector → value with its interval.
        seen: detector → generators whose fakes it was trained on.
    """
    generators, methods = list(cells), list(next(iter(cells.values())))
    values = np.array([[cells[generator][method].value for generator in generators] for method in methods])
    figure = new_figure(max(WIDTH, 1.8 + 1.0 * len(generators)), 1.5 + 0.5 * len(methods))
    axes = figure.subplots()
    # The colours diverge around 0.5; red ranks fakes below reals.
    axes.imshow(values, cmap="RdBu", vmin=0.0, vmax=1.0, aspect="auto")
    for row, method in enumerate(methods):
        for column, generator in enumerate(generators):
            cell = cells[generator][method]
            pale = 0.2 < cell.value < 0.8
            axes.text(column, row, cell.text().replace(" ", "\n", 1), ha="center", va="center", fontsize=7.5,
                      color="black" if pale or np.isnan(cell.value) else "white")  # fmt: skip
            if generator not in seen.get(method, ()):
                axes.add_patch(Rectangle((column - 0.47, row - 0.45), 0.94, 0.9, fill=False, linewidth=2.2))
    axes.set_xticks(range(len(generators)), [plain(name) for name in generators], rotation=20, ha="right")
    axes.set_yticks(range(len(methods)), [plain(name) for name in methods])
    dress(axes, title, "", "")
    axes.grid(visible=False)
    return save(figure, path)


def project(embedding: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Project (N, D) embeddings, any N and D >= 1, onto their first two principal components.

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


def draw_map(frame: pd.DataFrame, share: ArrayLike, seen: set[str], path: Path) -> Path:
    """Draw the images of a predictions frame that have a place on the embedding map (:data:`MAP`).

    ``share`` are the (2,) shares of variance; fakes of generators that are not among the ``seen`` are crosses.
    """
    mapped = frame[np.isfinite(frame[MAP]).all(axis=1)]
    x, y = mapped[MAP].to_numpy(dtype=np.float64).T
    real, names = mapped["label"].to_numpy() == 0, mapped["generator"].to_numpy(dtype=object)
    figure = new_figure(WIDTH, 5.0)
    axes = figure.subplots()
    axes.scatter(x[real], y[real], s=14, color=REAL_COLOUR, alpha=0.4, linewidths=0, label=f"real (n={real.sum()})")
    for number, name in enumerate(sorted(set(names[~real]))):
        rows, was_seen = ~real & (names == name), name in seen
        # Crosses have one form; "+" takes their place where the colours repeat.
        marker = marker_of(number) if was_seen else ("x", "+")[number // len(PALETTE) % 2]
        axes.scatter(x[rows], y[rows], s=16 if was_seen else 24, marker=marker, alpha=0.75, color=colour_of(number),
                     linewidths=0 if was_seen else 1.1,
                     label=plain(f"{name}{known(name, 1, seen)} (n={rows.sum()})"))  # fmt: skip
    first, second = np.asarray(share, dtype=np.float64)
    dress(axes, f"embeddings of {len(mapped)} test images", f"component 1 ({first:.0%} of variance)",
          f"component 2 ({second:.0%})", grid="both")  # fmt: skip
    add_legend(figure, axes.get_legend_handles_labels()[0])
    return save(figure, path)


def plot_reliability(frames: Mapping[str, pd.DataFrame], path: Path) -> Path:
    """Draw the share of fakes over the mean score of each bin, a line per method: columns label and score."""
    figure = new_figure(WIDTH, 4.6)
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color=REAL_COLOUR, linewidth=1, linestyle=":")
    for number, (method, frame) in enumerate(frames.items()):
        scores, labels = frame["score"].to_numpy(dtype=float), frame["label"].to_numpy()
        weights, bins = balanced_weights(labels), bin_of(scores)
        count = np.bincount(bins, minlength=BINS)
        total = np.bincount(bins, weights=weights, minlength=BINS)
        drawn = (count >= 5) & (total > 0)  # the share of fewer images means little
        mean = np.bincount(bins, weights=weights * scores, minlength=BINS)[drawn] / total[drawn]
        share = np.bincount(bins, weights=weights * labels, minlength=BINS)[drawn] / total[drawn]
        error = calibration_error(scores, labels)
        axes.plot(mean, share, color=colour_of(number), marker=marker_of(number), markersize=5,
                  label=f"{method} (ECE {error:.2f})")  # fmt: skip
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="score = P(fake)", ylabel="share of fakes")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper left", ncols=2, frameon=False)
    return save(figure, path)


def plot_curves_of_decision(frames: Mapping[str, pd.DataFrame], path: Path) -> Path:
    """Draw ROC and precision-recall curves over all generators, a line per method: columns label and logit."""
    figure = new_figure(2 * WIDTH, 4.6)
    roc, recall = figure.subplots(1, 2)
    roc.plot([0, 1], [0, 1], color=REAL_COLOUR, linewidth=1, linestyle=":")
    for number, (method, frame) in enumerate(frames.items()):
        labels, logits = frame["label"].to_numpy(), frame["logit"].to_numpy()
        if len(set(labels.tolist())) < 2:
            continue
        false, true, _ = roc_curve(labels, logits)
        roc.plot(false, true, color=colour_of(number), label=method)
        precise, found, _ = precision_recall_curve(labels, logits)
        recall.plot(found, precise, color=colour_of(number))
        recall.axhline(labels.mean(), color=REAL_COLOUR, linewidth=1, linestyle=":")
    roc.set(xlabel="share of reals called fake", ylabel="share of fakes called fake", xlim=(0, 1), ylim=(0, 1.01))
    recall.set(xlabel="share of fakes called fake (recall)", ylabel="share of fakes among those called so (precision)",
               xlim=(0, 1), ylim=(0, 1.01))  # fmt: skip
    for axes in (roc, recall):
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*roc.get_legend_handles_labels(), loc="outside upper left", ncols=4, frameon=False)
    return save(figure, path)


def plot_robustness(content: Mapping[str, Any], path: Path) -> Path:
    """Draw a panel per family of views with the content of robustness.json.

    The lines are mAP of seen and of unseen generators; of one class alone, its accuracy.
    """
    original = {key: entry["value"] for key, entry in content["original"].items() if entry["value"] is not None}
    words = {"map_seen": "seen generators", "map_unseen": "unseen generators"}
    measured = "mAP"
    if not words.keys() & original.keys():
        words, measured = {"acc_real": "reals called real", "acc_fake": "fakes called fake"}, "accuracy"
    families: dict[str, list[tuple[float, str]]] = {}
    for name in content:
        if "/" in name:
            family, severity = name.split("/")
            families.setdefault(family, []).append((float(severity), name))
    rows = max(1, math.ceil(len(families) / PANELS_A_ROW))
    figure = new_figure(12.0, 2.6 * rows + 0.6)
    panels = figure.subplots(rows, PANELS_A_ROW, sharey=True, squeeze=False).ravel()
    for panel, (family, views) in zip(panels, families.items(), strict=False):
        for (key, said), colour, marker in zip(words.items(), PALETTE, ("o", "s"), strict=False):
            if key not in original:
                continue
            entries = pd.DataFrame([content[name][key] for _, name in views])[["value", "low", "high"]]
            known = entries.astype(float).dropna(subset="value")
            panel.axhline(original[key], color=colour, linewidth=1, linestyle="--", alpha=0.7)
            panel.plot(known.index, known["value"], marker=marker, color=colour,
                       label=said, markersize=5)  # fmt: skip
            bounded = known.dropna(subset="low")
            panel.vlines(bounded.index, bounded["low"], bounded["high"], color=colour, alpha=0.6)
        panel.axhline(0.5, color=REAL_COLOUR, linewidth=0.8, linestyle=":")
        panel.set_title(family, loc="left", fontsize=10)
        panel.set_xticks(range(len(views)), [f"{severity:g}" for severity, _ in views])
        panel.spines[["top", "right"]].set_visible(False)
    for panel in panels[len(families) :]:
        panel.set_visible(False)
    for row in range(rows):
        panels[row * PANELS_A_ROW].set_ylabel(measured)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper left", ncols=2, frameon=False)
    return save(figure, path)


def read_curves(folder: Path) -> pd.DataFrame:
    """Read ``logs/metrics.csv`` of a run: a row per epoch, the mean of its steps; empty if nothing was logged."""
    path = folder / "logs" / "metrics.csv"
    if not path.is_file() or path.stat().st_size == 0:
        return pd.DataFrame()
    return pd.read_csv(path).drop(columns="step").groupby("epoch").mean().reset_index()
