"""What a report shows besides its tables: figures, the most confident errors, where each file is from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd

from fakedet.evaluation.comparison import Comparison
from fakedet.evaluation.confident_errors import confident_errors
from fakedet.evaluation.html import Figure
from fakedet.evaluation.intervals import plot_intervals
from fakedet.evaluation.page import Gallery, Shown
from fakedet.evaluation.plots import plot_scores
from fakedet.evaluation.predictions import MAP
from fakedet.evaluation.reliability import plot_curves_of_decision, plot_reliability
from fakedet.evaluation.robustness_plot import plot_robustness
from fakedet.evaluation.table import rows
from fakedet.runs.figures import draw_map
from fakedet.runs.report_files import Read
from fakedet.runs.robustness import measure as measure_robustness


def figures(
    folder: Path, comparison: Comparison, first: dict[str, Read], pairs: Any, seen: list[str],
    bootstrap: dict[str, int], reals: set[str],
) -> list[Figure]:  # fmt: skip
    """Draw the figures of all methods, then those of each.

    Args:
        folder: for the PNGs.
        comparison: of the files.
        first: the first file of each method.
        pairs: generator → its reals.
        seen: generators that were trained on.
        bootstrap: resamples and seed.
        reals: names of real collections.
    """
    listed = {
        row.name: {name: cell.to_dict() for name, cell in row.cells.items()} for row in rows(comparison)
    }
    sections = {row.name: row.section for row in rows(comparison)}
    shown = {method: first[method].original for method in comparison.methods}
    drawn = [
        Figure(plot_intervals(listed, "AP with 95 % intervals", folder / "ap.png", sections=sections,
        chance={row.name: comparison.chance(row.key) for row in rows(comparison)}),
               "AP per generator and means; dotted: chance, the share of fakes"),
        Figure(plot_curves_of_decision(shown, folder / "roc_pr.png"),
               "ROC and precision-recall of all fakes against all reals of the file; first seed of each method"),
        Figure(plot_reliability(shown, folder / "reliability.png"),
               "Reliability of the calibrated scores, reals and fakes weighing one half each: on the diagonal, of "
               "images scored 0.8 four in five are fakes"),
    ]  # fmt: skip
    for number, (method, one) in enumerate(first.items()):
        drawn.append(Figure(plot_scores(one.original, folder / f"scores_{number}.png", seen=set(seen)),
                            f"{method}: logits of reals and of each generator's fakes"))  # fmt: skip
        share = one.identity.get("map_share")
        if share and set(MAP) <= set(one.original) and one.original[MAP].notna().any(axis=None):
            drawn.append(Figure(draw_map(one.original, share, set(seen), folder / f"map_{number}.png"),
                                f"{method}: test images on the two main directions of its embedding"))  # fmt: skip
        if one.frame["view"].nunique() > 1:
            content, _ = measure_robustness(one.frame, pairs, seen, bootstrap, reals)
            drawn.append(Figure(plot_robustness(content, folder / f"robustness_{number}.png"),
                                f"{method}: mAP of degraded images; dashed: as they are"))  # fmt: skip
    return drawn


def galleries(first: dict[str, Read]) -> list[Gallery]:
    """Show the small pictures that each method's file carries, reals taken for fakes first."""
    found = []
    for method, one in first.items():
        held = one.original[one.original["path"].isin(one.pictures)]
        alarms, misses = confident_errors(held, None, len(held))
        for title, table in (("reals that look most fake", alarms), ("fakes that look most real", misses)):
            if len(table):
                pictures = [
                    Shown(one.pictures[str(row["path"])], _caption(row)) for _, row in table.iterrows()
                ]
                found.append(Gallery(f"{method}: {title}", pictures))
    return found


def provenance_of(read: list[Read]) -> dict[str, str]:
    """Write down all that is known of each file's run, but for the scores that its operating point keeps."""
    told = {}
    for one in read:
        identity = dict(one.identity)
        if isinstance(identity.get("operating_point"), dict):
            identity["operating_point"] = {
                key: value
                for key, value in identity["operating_point"].items()
                if not isinstance(value, dict | list)
            }
        told[f"{one.method}, seed {one.seed}: {one.path}"] = json.dumps(
            identity, indent=2, ensure_ascii=False
        )
    return told


def _caption(row: pd.Series[Any]) -> str:
    score = f", score {row['score']:.2f}" if "score" in row and row["score"] == row["score"] else ""
    return f"{row['generator']}{score}, logit {row['logit']:.1f}: {row['path']}"
