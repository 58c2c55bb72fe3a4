"""The most confident errors: reals that look most like fakes, and fakes that look most like reals."""

from __future__ import annotations

import pandas as pd


def confident_errors(
    frame: pd.DataFrame, threshold: float | None, count: int
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Choose the reals of highest and the fakes of lowest logit, at most one of each group.

    Args:
        frame: of predictions, one view.
        threshold: images on the right side of it are no errors; None: whatever is most wrong is shown.
        count: at most so many of each.

    Returns:
        Reals taken for fakes and fakes taken for reals, most confident first.
    """
    return _worst(frame[frame["label"] == 0], threshold, count, 1), _worst(
        frame[frame["label"] == 1], threshold, count, -1
    )


def _worst(rows: pd.DataFrame, threshold: float | None, count: int, sign: int) -> pd.DataFrame:
    if threshold is not None:
        wrong = rows["logit"] > threshold if sign > 0 else rows["logit"] <= threshold
        rows = rows[wrong]
    # Ties by path, so that the same predictions show the same pictures.
    rows = rows.assign(_order=-sign * rows["logit"]).sort_values(["_order", "path"], kind="stable")
    group = (
        rows["group"].where(rows["group"].astype(str) != "", rows["path"])
        if "group" in rows
        else rows["path"]
    )
    return rows[~group.duplicated()].head(count).drop(columns="_order")
