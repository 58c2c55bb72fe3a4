"""Read a manifest's table, CSV or parquet, told apart by content."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from fakedet.errors import UserError

ROOT_KEY = b"fakedet.root"
"""Metadata of a parquet manifest: the folder that its paths are relative to, itself relative to its own."""
SHARDS_KEY = b"fakedet.shards"
"""Metadata of a parquet manifest whose images lie in shards: their folder, relative to its own."""
REPEATING = ["generator", "source", "split", "group"]
"""Columns whose few values are read once each, as categories."""


def read_table(path: Path) -> pa.Table:
    """Read a table; every value of a CSV stays the text that it is.

    pandas would read a generator called "NA" or "null" as missing, and a group "007" as a number.

    Raises:
        UserError: no file, an empty one, or one that is no such table.
    """
    data = _bytes(path)
    if not data.strip():
        raise UserError(f"{path}: the file is empty")
    if data[:4] == b"PAR1":
        try:
            table = pq.read_table(pa.BufferReader(data), read_dictionary=REPEATING)
            table.validate(full=True)  # text that is no UTF-8, say
        except Exception as error:  # pyarrow raises all sorts of things on damaged files
            raise UserError(f"{path}: a damaged parquet file: {_short(error)}") from error
        # What pandas adds for the index of a frame that was filtered or sorted is no column of the user's.
        return table.drop_columns([name for name in table.column_names if name.startswith("__index_level_")])
    if b"\0" in data:
        raise UserError(f"{path} is neither a parquet nor a CSV table: it holds binary data")
    return _csv(data, path)


def _bytes(path: Path) -> bytes:
    if path.is_dir():
        raise UserError(f"data.manifest={path}: this is a folder; give the table in it")
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"data.manifest={path}: there is no such file") from None
    except OSError as error:
        raise UserError(f"data.manifest={path}: cannot be read: {error.strerror}") from error


def _csv(data: bytes, path: Path) -> pa.Table:
    try:
        with warnings.catch_warnings():
            # Rows with more values than the header has names: pandas would warn and drop them.
            warnings.simplefilter("error", pd.errors.ParserWarning)
            table = pd.read_csv(
                io.BytesIO(data), dtype=str, keep_default_na=False, index_col=False, encoding="utf-8-sig"
            )
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: {_short(error)}") from error
    except (pd.errors.ParserError, pd.errors.ParserWarning, ValueError) as error:
        raise UserError(f"{path} is not a well-formed CSV table: {_short(error)}") from error
    columns = [pa.array(table.iloc[:, i]) for i in range(table.shape[1])]
    return pa.table(columns, names=[str(column).strip() for column in table.columns])


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
