"""How numbers are worded on the console."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def interval(value: Mapping[str, float | None]) -> str:
    """Write a value with its 95 % interval, such as ``0.831 [0.790, 0.866]``."""
    if value["value"] is None:
        return "not defined"
    text = f"{value['value']:.3f}"
    if value["low"] is not None and value["high"] is not None:
        text += f" [{value['low']:.3f}, {value['high']:.3f}]"
    return text


def means_of(metrics: Mapping[str, Any]) -> dict[str, str]:
    """Word the means of metrics.json over seen, unseen and all generators."""
    return {
        f"mean, {words}": f"AP {interval(metrics[f'map{kind}'])}  AUC {interval(metrics[f'mauc{kind}'])}"
        for kind, words in (("_seen", "seen"), ("_unseen", "unseen"), ("", "all"))
    }
