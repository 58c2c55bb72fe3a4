"""The predictions file: one row an image and view, from which every table regenerates."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from fakedet.errors import UserError

METADATA_KEY = b"fakedet"
SCHEMA = {
    "id": "int64", "path": "str", "label": "int8", "generator": "str", "source": "str", "group": "str",
    "split": "str", "view": "str", "crop": "str", "logit": "float64", "score": "float64",
    "trace_distance": "float64",
}  # fmt: skip
NEEDED = ("path", "label", "generator", "logit")


def write_predictions(frame: pd.DataFrame, path: str | Path, identity: dict[str, Any]) -> None:
    """Write a predictions frame with the run's identity in its metadata, whole or not at all."""
    path = Path(path)
    table = pa.Table.from_pandas(frame[list(SCHEMA)].astype(SCHEMA), preserve_index=False)
    metadata = {**(table.schema.metadata or {}), METADATA_KEY: json.dumps(identity).encode()}
    temporary = path.with_name(f".{path.name}.tmp")
    pq.write_table(table.replace_schema_metadata(metadata), temporary)
    os.replace(temporary, path)


def read_predictions(path: str | Path) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Read a predictions file and the identity of the run that wrote it.

    Raises:
        UserError: not there, not parquet, columns missing, labels other than 0 and 1, or logits that are NaN.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"there is no predictions file {path}; `fakedet evaluate` writes one")
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path} is not a parquet file: {' '.join(str(error).split())[:200]}") from error
    frame = table.to_pandas()
    missing = [name for name in NEEDED if name not in frame]
    if missing:
        raise UserError(f"{path}: not a predictions file, it has no column {', '.join(missing)}")
    if not frame["label"].isin([0, 1]).all():
        raise UserError(
            f"{path}: labels must be 0 (real) or 1 (fake), found {sorted(set(frame['label']))[:5]}"
        )
    nan = frame["logit"].isna()
    if nan.any():
        first = ", ".join(frame.loc[nan, "path"].head(3))
        raise UserError(f"{path}: {int(nan.sum())} of {len(frame)} logits are NaN, first: {first}")
    identity = json.loads((table.schema.metadata or {}).get(METADATA_KEY, b"{}"))
    return frame, identity
