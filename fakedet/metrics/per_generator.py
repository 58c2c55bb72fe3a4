"""metrics/per_generator"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import pandas as pd

from fakedet.errors import UserError
from fakedet.metrics.bootstrap import (
    MEANS,
    METRICS,
    BootstrapTable,
    GeneratorSummary,
    Interval,
    bootstrap_statistics,
)
from fakedet.metrics.pairing import Pairs

__all__ = [
    "BootstrapTable",
    "GeneratorSummary",
    "bootstrap_statistics",
    "evaluate_frame",
    "paired_difference",
    "summary",
]


def evaluate_frame(
    frame: pd.DataFrame,
    pairs: Pairs | None,
    seen: Collection[str] | None,
    n_resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
    known_reals: Collection[str] | None = None,
) -> dict[str, Any]:
    """Measure a detector on every generator of a predictions frame.

    All intervals come from one bootstrap of whole groups, so that those of the means account for the reals
    that generators share.

    Args:
        frame: one row an image: label (0/1), generator, logit and, where known, source and group.
        pairs: see :func:`fakedet.metrics.pairing.real_counterparts`.
        seen: generators whose fakes the detector saw in training; None where nobody knows: "seen" is then
            null, and so are the means over the seen and the unseen.
        n_resamples: of the bootstrap; 0 for no intervals.
        seed: of the bootstrap.
        level: of the intervals, in (0, 1).
        known_reals: see :func:`fakedet.metrics.pairing.real_counterparts`.

    Returns:
        {"per_generator": {name: {"seen", "n_real", "n_fake", "n_groups", "reals", "rule", "ap", "auc"}},
        "map", "map_seen", "map_unseen", "mauc", "mauc_seen", "mauc_unseen"}: plain values with None for NaN.
        "ap" and "auc" are {"value", "low", "high"}; the means have "n_generators" and "left_out" (generators
        with one class only) besides.

    Raises:
        UserError: as :func:`bootstrap_statistics`.
    """
    if "logit" not in frame:
        raise UserError("predictions: no column 'logit'; a predictions file has label, generator and logit")
    table = bootstrap_statistics(
        frame, {"logit": frame["logit"].to_numpy()}, pairs, seen, n_resamples, seed, known_reals
    )
    return summary(table, "logit", level)


def summary(table: BootstrapTable, key: str, level: float = 0.95) -> dict[str, Any]:
    """Write one scorer of a table in the form of metrics.json (see :func:`evaluate_frame`)."""
    result: dict[str, Any] = {"per_generator": {}}
    for name, row in table.generators.items():
        result["per_generator"][name] = {
            "seen": row.seen,
            "n_real": row.n_real,
            "n_fake": row.n_fake,
            "n_groups": row.n_groups,
            "reals": list(row.reals),
            "rule": row.rule,
            **{metric: table.interval(key, metric, name, level).to_dict() for metric in METRICS},
        }
    for metric in METRICS:
        for name in MEANS:
            result[_mean_key(metric, name)] = {
                **table.interval(key, metric, name, level).to_dict(),
                "n_generators": len(table.members(name)),
                "left_out": table.left_out(name),
            }
    return result


def paired_difference(
    table: BootstrapTable, first: str, second: str, level: float = 0.95
) -> dict[str, dict[str, Interval]]:
    """Compare two scorers of a table, generator by generator and mean by mean, over the same resamples.

    Returns:
        metric ("ap", "auc") -> generator or mean ("map", "map_seen", "map_unseen") -> first − second, with
        its paired interval; NaN where undefined.
    """
    return {
        metric: {
            name: table.difference(first, second, metric, name, level) for name in (*table.generators, *MEANS)
        }
        for metric in METRICS
    }


def _mean_key(metric: str, name: str) -> str:
    # The mean of APs is "map", as everyone writes it; that of AUCs is "mauc".
    return name if metric == "ap" else name.replace("map", "mauc")
