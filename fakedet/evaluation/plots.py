"""Figures of runs and comparisons: curves, scores, intervals, embedding map, calibration, robustness."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import cycle
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
from fakedet.pages import PALETTE, REAL_COLOUR, TYPE, WIDTH, new_figure, plain, save

MARKERS = ("o", "s", "^", "D")  # of methods: one for each round of the palette, where its colours repeat
# Of generators: Tol's muted colours; no two of the first 99 share colour and marker.
GENERATOR_COLOURS = ("#CC6677", "#332288", "#999933", "#117733", "#88CCEE", "#882255", "#44AA99", "#AA4499", "#DDAA33")
GENERATOR_MARKERS = ("s", "^", "D", "v", "P", "X", "*", "p", "<", ">", "h")
PANELS_A_ROW = 2
CELLS = 50  # of a line of a name across a figure
LINE = 0.16  # inches

Values = Mapping[str, Mapping[str, Any]]


def plot_curves(runs: Mapping[str, pd.DataFrame], path: Path) -> Path:
    """Draw training loss and validation mAP by epoch, a line per run: columns epoch, train/loss, val/map (if any)."""
    wanted = [("train/loss", "training loss"), ("val/map", "validation mAP")]
    figure = new_figure(WIDTH, 2.0)
    handles: dict[str, Any] = {}
    for axes, (key, title) in zip(figure.subplots(1, 2), wanted, strict=True):
        for number, (name, table) in enumerate(runs.items()):
            if key in table and table[key].notna().any():
                rows = table[["epoch", key]].dropna()
                (line,) = axes.plot(rows["epoch"] + 1, rows[key], markersize=3, linewidth=1.5, **_style(number))
                line.set_label(plain(name, CELLS))
                handles.setdefault(name, line)
        dress(axes, title, "epoch", "", grid="both")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if not axes.lines:
            axes.text(0.5, 0.5, "not logged", ha="center", va="center", transform=axes.transAxes)
    if len(runs) > 1:
        add_legend(figure, list(handles.values()))
    return save(figure, path)


def plot_scores(frame: pd.DataFrame, path: Path, seen: set[str] | None = None) -> Path:
    """Draw a histogram of logits for each collection and generator; ``seen``: in training, None where nobody knows."""
    groups = [
        (str(name), label, own["logit"].to_numpy(dtype=np.float64))
        for label in (0, 1)
        for name, own in frame[frame["label"] == label].groupby("generator", sort=True)
    ]
    styles = styles_of(name for name, label, _ in groups if label)
    everything = frame["logit"].to_numpy(dtype=np.float64)
    everything = everything[np.isfinite(everything)]
    low, high = np.percentile(everything, [0.2, 99.8]) if len(everything) else (-1.0, 1.0)
    edges = np.linspace(low, max(high, low + 1e-6), 49)
    names = [plain(f"{name}{known(name, label, seen)} (n={len(logits)})", CELLS) for name, label, logits in groups]
    figure = new_figure(WIDTH, 1.0 + sum(LINE * text.count("\n") + 0.7 for text in names))
    axes, foot = figure.subplots(), 0.0
    for text, (name, label, logits) in zip(names, groups, strict=True):
        style = styles[name] if label else (REAL_COLOUR, "o")
        foot = _write_name(axes, foot, text, style) + 0.45
        if len(finite := logits[np.isfinite(logits)]):
            counts, _ = np.histogram(np.clip(finite, edges[0], edges[-1]), edges)
            axes.stairs(foot - 0.4 * counts / counts.max(), edges, baseline=foot, fill=True, color=style[0], alpha=0.8)
            axes.plot([np.median(finite)] * 2, [foot, foot - 0.4], color="black", linewidth=1.4)
        foot += 0.06
    axes.set_ylim(foot, 0)
    axes.set_yticks([])
    axes.axvline(0, color="#777777", linewidth=0.9, linestyle=":")
    dress(axes, "", "logit (further right: more like a fake)", "")
    return save(figure, path)


def styles_of(generators: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Return colour and marker of each generator, the same in all figures of the same generators."""
    return dict(zip(sorted(set(generators)), zip(cycle(GENERATOR_COLOURS), cycle(GENERATOR_MARKERS)), strict=False))


def _write_name(axes: Axes, at: float, text: str, style: tuple[str, str] | None) -> float:
    """Write a row's name, with its generator's marker, from ``at`` inches down; returns where it ends."""
    across = axes.get_yaxis_transform()  # x in shares of the axes
    if style is not None:
        axes.plot([0.02], [at + 0.6 * LINE], style[1], color=style[0], markersize=7, transform=across, clip_on=False)
    axes.text(0.06 if style else 0.01, at + 0.02, text, fontsize=TYPE, va="top", transform=across, linespacing=1.15)
    return at + LINE * (text.count("\n") + 1) + 0.03


def _style(number: int) -> dict[str, Any]:
    """Return colour and marker of the n-th method."""
    return {"color": PALETTE[number % len(PALETTE)], "marker": MARKERS[number // len(PALETTE) % len(MARKERS)]}


def known(name: str, label: int, seen: set[str] | None) -> str:
    """Return ", unseen" for a generator that was not trained on, else ""."""
    return ", unseen" if label == 1 and seen is not None and name not in seen else ""


def add_legend(figure: Figure, handles: Sequence[Any]) -> None:
    """Put the legend below the axes, where long names do not narrow them, and make the figure as much taller."""
    if handles:
        labels = [str(handle.get_label()).split("\n") for handle in handles]
        columns = max(1, min(len(handles), CELLS // (max(len(line) for lines in labels for line in lines) + 5)))
        rows = [max(map(len, labels[place : place + columns])) for place in range(0, len(labels), columns)]
        figure.set_figheight(figure.get_figheight() + 0.1 + sum(LINE * lines + 0.03 for lines in rows))
        figure.legend(handles=handles, fontsize=TYPE, frameon=False, loc="outside lower center", ncols=columns)


def dress(axes: Axes, title: str, x: str, y: str, grid: str = "x") -> None:
    """Set the title, labels, grid and type size of axes."""
    axes.set_title(title, fontsize=TYPE + 1, loc="left")
    axes.set_xlabel(x, fontsize=TYPE)
    axes.set_ylabel(y, fontsize=TYPE)
    axes.tick_params(labelsize=TYPE)
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
    styles = styles_of(name for name in rows if sections.get(name) not in ("mean", "all", "real"))
    if len(methods) > 6:  # in one row they could not be told apart
        return _panels(rows, methods, shown, title, path, chance, styles)
    names = {name: plain(text, CELLS) for name, text in shown.items()}
    height = sum(LINE * (text.count("\n") + 1) + 0.13 * len(methods) + 0.15 for text in names.values())
    figure = new_figure(WIDTH, height + 0.5)
    axes, foot, before = figure.subplots(), 0.0, ""
    handles = [axes.plot([], [], markersize=5, label=plain(method, CELLS), **_style(number))[0]
               for number, method in enumerate(methods)]  # fmt: skip
    for name, values in rows.items():
        if foot:
            parted = sections.get(name, "") != before
            axes.axhline(foot, color="#777777" if parted else "#DDDDDD", linewidth=1.2 if parted else 0.6)
        top, before = _write_name(axes, foot, names[name], styles.get(name)), sections.get(name, "")
        foot = top + 0.13 * len(methods) + 0.12
        for number, method in enumerate(methods):
            _draw(axes, values[method], top + 0.07 + 0.13 * number, number)
        if (guess := 0.5 if chance is None else chance.get(name)) is not None:
            style: dict[str, Any] = {"color": "#555555", "linewidth": 1.2, "linestyle": ":", "label": "chance"}
            handles[len(methods) :] = axes.plot([guess] * 2, [top, foot - 0.06], **style)
    axes.set_ylim(max(foot, 1), 0)
    axes.set_yticks([])
    dress(axes, plain(title, CELLS), "", "")
    add_legend(figure, handles)
    return save(figure, path)


def _panels(
    rows: Mapping[str, Values], methods: Sequence[str], shown: Mapping[str, str], title: str, path: Path,
    chance: Mapping[str, float] | None, styles: Mapping[str, tuple[str, str]],
) -> Path:  # fmt: skip
    lines = -(-len(rows) // PANELS_A_ROW)
    figure = new_figure(1.4 * WIDTH, 0.5 + lines * (0.65 + 0.16 * len(methods)))
    grid = figure.subplots(lines, PANELS_A_ROW, sharex=True, sharey=True, squeeze=False)
    for axes in grid.flat[len(rows) :]:
        axes.set_visible(False)
    for place, (axes, (name, values)) in enumerate(zip(grid.flat, rows.items(), strict=False)):
        for number, method in enumerate(methods):
            _draw(axes, values[method], number, number)
        if (guess := 0.5 if chance is None else chance.get(name)) is not None:
            axes.axvline(guess, color="#777777", linewidth=1.2, linestyle=":")
        dress(axes, "   " * (name in styles) + plain(shown[name], 28), "", "", grid="both")
        if name in styles:
            above = 1 + (0.14 + LINE * axes.get_title(loc="left").count("\n")) / (0.16 * len(methods))
            axes.plot([0.02], [above], styles[name][1], color=styles[name][0], transform=axes.transAxes, clip_on=False)
        # Panels above a hidden one are the last of their column.
        axes.tick_params(labelbottom=place + PANELS_A_ROW >= len(rows))
    grid[0, 0].set_yticks(range(len(methods)), [plain(method, 24) for method in methods])
    grid[0, 0].set_ylim(len(methods) - 0.5, -0.5)
    figure.suptitle(plain(title + "; dotted: chance"), fontsize=TYPE + 1, x=0.01, ha="left")
    return save(figure, path)


def _draw(axes: Axes, entry: Mapping[str, Any], at: float, number: int) -> None:
    if entry["value"] is None:
        return
    if entry["low"] is not None:
        axes.plot([entry["low"], entry["high"]], [at, at], color=_style(number)["color"], linewidth=1.6)
    axes.plot(entry["value"], at, linestyle="", markersize=5, **_style(number))


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
    columns, names = [plain(name, 12) for name in generators], [plain(name, 20) for name in methods]
    head = 0.7 + LINE * max((text.count("\n") for text in columns), default=0)
    height = head + sum(max(0.45, LINE * (text.count("\n") + 1.5)) for text in names)
    figure = new_figure(max(WIDTH, 1.7 + 0.95 * len(generators)), height)
    axes = figure.subplots()
    # The colours diverge around 0.5; red ranks fakes below reals.
    axes.imshow(values, cmap="RdBu", vmin=0.0, vmax=1.0, aspect="auto")
    for row, method in enumerate(methods):
        for column, generator in enumerate(generators):
            cell = cells[generator][method]
            ink = "black" if 0.2 < cell.value < 0.8 or np.isnan(cell.value) else "white"
            text = cell.text().replace(" ", "\n", 1)
            axes.text(column, row, text, ha="center", va="center", fontsize=TYPE, color=ink)
            if generator not in seen.get(method, ()):
                axes.add_patch(Rectangle((column - 0.47, row - 0.45), 0.94, 0.9, fill=False, linewidth=2.2))
    axes.set_xticks(range(len(generators)), columns)
    axes.set_yticks(range(len(methods)), names)
    dress(axes, plain(title), "", "")
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
    """Draw images at their places (:data:`MAP`), hollow for fakes not ``seen``; ``share``: (2,) of variance."""
    styles = styles_of(frame.loc[frame["label"] == 1, "generator"])
    mapped = frame[np.isfinite(frame[MAP]).all(axis=1)]
    x, y = mapped[MAP].to_numpy(dtype=np.float64).T
    real, names = mapped["label"].to_numpy() == 0, mapped["generator"].to_numpy(dtype=object)
    figure = new_figure(WIDTH, 3.4)
    axes = figure.subplots()
    axes.scatter(x[real], y[real], s=14, color=REAL_COLOUR, alpha=0.35, linewidths=0, label=f"real (n={real.sum()})")
    for name in sorted(set(names[~real])):
        rows, (colour, marker) = ~real & (names == name), styles[name]
        axes.scatter(x[rows], y[rows], s=22, marker=marker, alpha=0.75, edgecolors=colour, linewidths=0.9,
                     facecolors=colour if name in seen else "none",
                     label=plain(f"{name}{known(name, 1, seen)} (n={rows.sum()})", CELLS))  # fmt: skip
    first, second = np.asarray(share, dtype=np.float64)
    dress(axes, "", f"component 1 ({first:.0%} of variance)", f"component 2 ({second:.0%})", grid="both")
    add_legend(figure, axes.get_legend_handles_labels()[0])
    return save(figure, path)


def plot_reliability(frames: Mapping[str, pd.DataFrame], path: Path) -> Path:
    """Draw the share of fakes over the mean score of each bin, a line per method: columns label and score."""
    figure = new_figure(WIDTH, 3.4)
    axes, handles = figure.subplots(), []
    axes.plot([0, 1], [0, 1], color=REAL_COLOUR, linewidth=1, linestyle=":")
    for number, (method, frame) in enumerate(frames.items()):
        scores, labels = frame["score"].to_numpy(dtype=float), frame["label"].to_numpy()
        weights, bins = balanced_weights(labels), bin_of(scores)
        total, scored, fakes = (np.bincount(bins, weights=one, minlength=BINS)
                                for one in (weights, weights * scores, weights * labels))  # fmt: skip
        drawn = (np.bincount(bins, minlength=BINS) >= 5) & (total > 0)  # the share of fewer images means little
        label = plain(f"{method} (ECE {calibration_error(scores, labels):.2f})", CELLS)
        mean, share = scored[drawn] / total[drawn], fakes[drawn] / total[drawn]
        handles += axes.plot(mean, share, markersize=5, label=label, **_style(number))
    axes.set(xlim=(0, 1), ylim=(0, 1))
    dress(axes, "", "score = P(fake)", "share of fakes", grid="both")
    add_legend(figure, handles)
    return save(figure, path)


def plot_curves_of_decision(frames: Mapping[str, pd.DataFrame], path: Path) -> Path:
    """Draw ROC and precision-recall curves over all generators, a line per method: columns label and logit."""
    figure = new_figure(WIDTH, 6.4)
    roc, recall = figure.subplots(2, 1)
    roc.plot([0, 1], [0, 1], color=REAL_COLOUR, linewidth=1, linestyle=":")
    handles = []
    for number, (method, frame) in enumerate(frames.items()):
        labels, logits = frame["label"].to_numpy(), frame["logit"].to_numpy()
        if len(set(labels.tolist())) < 2:
            continue
        (false, true, _), (precise, found, _) = roc_curve(labels, logits), precision_recall_curve(labels, logits)
        colour = _style(number)["color"]
        handles += roc.plot(false, true, color=colour, label=plain(method, CELLS))
        recall.plot(found, precise, color=colour)
        recall.axhline(labels.mean(), color=REAL_COLOUR, linewidth=1, linestyle=":")
    for axes in (roc, recall):
        axes.set(xlim=(0, 1), ylim=(0, 1.01))
    dress(roc, "ROC", "share of reals called fake", "share of fakes called fake", grid="both")
    words = ("precision and recall", "share of fakes called fake (recall)", "fakes among\nthose called fake")
    dress(recall, *words, grid="both")
    add_legend(figure, handles)
    return save(figure, path)


def plot_robustness(content: Mapping[str, Any], path: Path) -> Path:
    """Draw robustness.json's content, a panel per family of views: mAP of seen and unseen generators, else accuracy."""
    original = {key: entry["value"] for key, entry in content["original"].items() if entry["value"] is not None}
    words, measured = {"map_seen": "seen generators", "map_unseen": "unseen generators"}, "mAP"
    if not words.keys() & original.keys():
        words, measured = {"acc_real": "reals called real", "acc_fake": "fakes called fake"}, "accuracy"
    families: dict[str, list[tuple[float, str]]] = {}
    for name in [name for name in content if "/" in name]:
        family, severity = name.split("/")
        families.setdefault(family, []).append((float(severity), name))
    rows = max(1, math.ceil(len(families) / PANELS_A_ROW))
    figure = new_figure(WIDTH, 1.9 * rows)
    panels = figure.subplots(rows, PANELS_A_ROW, sharey=True, squeeze=False).ravel()
    for panel, (family, views) in zip(panels, families.items(), strict=False):
        for (key, said), colour, marker in zip(words.items(), PALETTE, ("o", "s"), strict=False):
            if key not in original:
                continue
            entries = pd.DataFrame([content[name][key] for _, name in views])[["value", "low", "high"]]
            known = entries.astype(float).dropna(subset="value")
            panel.axhline(original[key], color=colour, linewidth=1, linestyle="--", alpha=0.7)
            panel.plot(known.index, known["value"], marker=marker, color=colour, label=said, markersize=5)
            bounded = known.dropna(subset="low")
            panel.vlines(bounded.index, bounded["low"], bounded["high"], color=colour, alpha=0.6)
        panel.axhline(0.5, color=REAL_COLOUR, linewidth=0.8, linestyle=":")
        panel.set_xticks(range(len(views)), [f"{severity:g}" for severity, _ in views])
        dress(panel, family, "", "", grid="y")
    for panel in panels[len(families) :]:
        panel.set_visible(False)
    for row in range(rows):
        panels[row * PANELS_A_ROW].set_ylabel(measured, fontsize=TYPE)
    add_legend(figure, panels[0].get_legend_handles_labels()[0])
    return save(figure, path)


def read_curves(folder: Path) -> pd.DataFrame:
    """Read ``logs/metrics.csv`` of a run: a row per epoch, the mean of its steps; empty if nothing was logged."""
    path = folder / "logs" / "metrics.csv"
    if not path.is_file() or path.stat().st_size == 0:
        return pd.DataFrame()
    return pd.read_csv(path).drop(columns="step").groupby("epoch").mean().reset_index()
