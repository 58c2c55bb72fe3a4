"""What a desk may say of an image: real, fake, or that it can't tell."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fakedet.metrics.operating_point import OperatingPoint

REAL, FAKE, UNKNOWN = "real", "fake", "can't tell"


@dataclass(frozen=True)
class Rules:
    """The errors that a desk accepts."""

    false_alarm: float
    """Share of real photographs that may be called fake."""
    miss: float
    """Share of fakes, of generators like those in validation, that may be called real."""


@dataclass(frozen=True)
class Statement:
    """What is said of one image."""

    verdict: str
    score: float
    """Calibrated P(fake), for as many reals as fakes."""
    p_value: float
    """How unusual the image is among held-out reals; NaN if the checkpoint has no reference."""
    stability: float
    """Share of altered copies and tiles that fall on the same side of the threshold as the image itself."""
    reason: str
    """Why it can't be told; "" otherwise."""


def state(
    point: OperatingPoint,
    rules: Rules,
    logit: float,
    distance: float,
    others: Mapping[str, float],
    doubts: list[str],
) -> Statement:
    """Say what the numbers allow.

    *Fake* needs a p-value among reals of at most ``false_alarm``, *real* a logit below all but ``miss`` of the
    validation fakes and no such p-value. Between the two, where both hold, where altered copies disagree, and
    where the image lies outside of what the detector was made for, it can't be told.

    Args:
        point: of the detector.
        rules: of the desk.
        logit: of the image.
        distance: of the image; NaN where the method has none.
        others: view → logit of altered copies and of the tiles' mean.
        doubts: why the image lies outside of what the detector was made for.
    """
    score = float(point.calibration([logit])[0])
    p_value = float(point.reference.p_values([logit], [distance])[0]) if point.reference else math.nan
    side = logit > point.threshold
    apart = [name for name, value in others.items() if (value > point.threshold) != side]
    stability = 1 - len(apart) / len(others) if others else math.nan
    unusual = p_value <= rules.false_alarm if not math.isnan(p_value) else logit > point.threshold
    low = logit <= point.lowest_fake(rules.miss)
    if doubts:
        reason = "; ".join(doubts)
    elif apart:
        reason = f"another answer for {', '.join(_in_words(name) for name in apart)}"
    elif unusual == low:
        reason = (
            "unlike the photographs and unlike the fakes that the detector was tested with"
            if unusual
            else "neither clearly like the photographs nor clearly like the fakes that the detector was tested with"
        )
    else:
        return Statement(FAKE if unusual else REAL, score, p_value, stability, "")
    return Statement(UNKNOWN, score, p_value, stability, reason)


def _in_words(view: str) -> str:
    """Say what was done to a copy."""
    family, _, severity = view.partition("/")
    if family == "jpeg":
        return f"a copy saved as JPEG of quality {severity}"
    if family == "resize":
        return f"a copy scaled by {severity}"
    return "the squares of the picture" if family == "tiles" else f"a copy altered by {view}"


def resolution(point: OperatingPoint) -> float:
    """Give the smallest p-value that the reference can show."""
    count = len(point.reference.scores) if point.reference else 0
    return float(1 / (count + 1)) if count else float(np.nan)
