"""Read the curves that a run logged."""

from __future__ import annotations

from pathlib import Path

import pandas as pd


def read_curves(folder: Path) -> pd.DataFrame:
    """Read ``logs/metrics.csv`` of a run: one row an epoch, one column a logged value.

    Steps within an epoch are averaged; an empty frame where nothing was logged.
    """
    path = folder / "logs" / "metrics.csv"
    if not path.is_file() or path.stat().st_size == 0:
        return pd.DataFrame()
    table = pd.read_csv(path)
    return table.drop(columns="step").groupby("epoch").mean().reset_index()
