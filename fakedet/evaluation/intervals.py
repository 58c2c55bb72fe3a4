"""Values with their intervals as a picture: generators by methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from fakedet.evaluation.plots import WIDTH, add_legend, colour_of, dress, marker_of, new_figure, plain, save

# More methods than this stand below each other in a panel a generator: side by side in a row, none could be made out.
AT_MOST_TOGETHER = 6
PANELS_A_ROW = 3

Values = Mapping[str, Mapping[str, Any]]


def plot_intervals(
    rows: Mapping[str, Values],
    title: str,
    path: Path,
    sections: Mapping[str, str] | None = None,
    chance: Mapping[str, float] | None = None,
) -> Path:
    """Draw values with their intervals, a row a generator and a colour a method; many methods get a panel a generator.

    Args:
        rows: generator → method → {"value", "low", "high"}, None where undefined.
        title: above the figure.
        path: the PNG.
        sections: of the rows ("seen", "unseen", "mean"); a stronger line parts them.
        chance: of each row, marked by a grey tick; None: 0.5 for all, a dotted line.
    """
    methods = list(next(iter(rows.values()))) if rows else []
    shown = {name: name + (", unseen" if (sections or {}).get(name) == "unseen" else "") for name in rows}
    if len(methods) > AT_MOST_TOGETHER:
        return _panels(rows, methods, shown, title, path, chance)
    return _together(rows, methods, shown, title, path, sections or {}, chance)


def _together(
    rows: Mapping[str, Values], methods: Sequence[str], shown: Mapping[str, str], title: str, path: Path,
    sections: Mapping[str, str], chance: Mapping[str, float] | None,
) -> Path:  # fmt: skip
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
    for place, axes in enumerate(grid.flat):
        if place >= len(rows):
            axes.set_visible(False)
            continue
        name, values = list(rows.items())[place]
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
    """Draw one value and its interval in the colour and with the marker of the n-th method."""
    if entry["value"] is None:
        return
    if entry["low"] is not None:
        axes.plot([entry["low"], entry["high"]], [at, at], color=colour_of(number), linewidth=1.6)
    axes.plot(entry["value"], at, marker_of(number), color=colour_of(number), markersize=5)
