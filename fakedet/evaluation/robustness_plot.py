"""mAP over the severities of each degradation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fakedet.evaluation.plots import PALETTE, REAL_COLOUR, new_figure, save

LINES = (
    ("map_seen", "seen generators", PALETTE[0], "o"),
    ("map_unseen", "unseen generators", PALETTE[1], "s"),
)
COLUMNS = 3


def plot_robustness(content: Mapping[str, Any], path: Path) -> Path:
    """Draw one panel a family: mAP of seen and of unseen generators with 95 % intervals.

    Args:
        content: of robustness.json: view → mean → {"value", "low", "high"}.
        path: the PNG.
    """
    families: dict[str, list[tuple[float, str]]] = {}
    for name in content:
        if "/" in name:
            family, severity = name.split("/")
            families.setdefault(family, []).append((float(severity), name))
    rows = max(1, math.ceil(len(families) / COLUMNS))
    figure = new_figure(12.0, 2.6 * rows + 0.6)
    panels = figure.subplots(rows, COLUMNS, sharey=True, squeeze=False).ravel()
    for panel, (family, views) in zip(panels, families.items(), strict=False):
        places = range(len(views))
        for key, label, colour, marker in LINES:
            original = content["original"][key]["value"]
            if original is None:
                continue
            entries = [content[name][key] for _, name in views]
            known = [
                (at, entry) for at, entry in zip(places, entries, strict=True) if entry["value"] is not None
            ]
            panel.axhline(original, color=colour, linewidth=1, linestyle="--", alpha=0.7)
            panel.plot([at for at, _ in known], [entry["value"] for _, entry in known], marker=marker, color=colour,
                       label=label, markersize=5)  # fmt: skip
            bounded = [(at, entry) for at, entry in known if entry["low"] is not None]
            panel.vlines([at for at, _ in bounded], [entry["low"] for _, entry in bounded],
                         [entry["high"] for _, entry in bounded], color=colour, alpha=0.6)  # fmt: skip
        panel.axhline(0.5, color=REAL_COLOUR, linewidth=0.8, linestyle=":")
        panel.set_title(family, loc="left", fontsize=10)
        panel.set_xticks(list(places), [f"{severity:g}" for severity, _ in views])
        panel.spines[["top", "right"]].set_visible(False)
    for panel in panels[len(families) :]:
        panel.set_visible(False)
    for row in range(rows):
        panels[row * COLUMNS].set_ylabel("mAP")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper left", ncols=2, frameon=False)
    return save(figure, path)
