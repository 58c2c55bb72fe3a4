"""Other scores that a run's predictions hold, in place of its logit."""

from __future__ import annotations

import numpy as np
import pandas as pd

from fakedet.errors import UserError, choose

SCORES = ("trace_distance", "both")


def rescored(frame: pd.DataFrame, score: str) -> pd.DataFrame:
    """Put another score where tables and curves look for the logit.

    Args:
        frame: a predictions frame.
        score: "trace_distance", or "both": the sum of logit and trace distance, each in its own standard
            deviations over all the images (no label is looked at).

    Raises:
        UserError: an unknown score, or a run whose method has no trace distance.
    """
    choose(score, SCORES, "study.derived.score")
    distance = frame["trace_distance"].to_numpy(dtype=np.float64)
    if not np.isfinite(distance).all():
        raise UserError(
            "study.derived: a method without traces has no trace distance; take one that starts from stage 1"
        )
    if score == "both":
        distance = _standard(frame["logit"].to_numpy(dtype=np.float64)) + _standard(distance)
    return frame.assign(logit=distance)


def _standard(values: np.ndarray) -> np.ndarray:
    return np.asarray((values - values.mean()) / max(float(values.std()), 1e-12))
