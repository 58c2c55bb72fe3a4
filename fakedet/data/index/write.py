"""Write a manifest as parquet, a piece at a time, whole or not at all."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from fakedet.errors import UserError

ROWS = 1 << 16
"""Of a piece in memory."""
NAMES = pa.dictionary(pa.int32(), pa.string())
SCHEMA = pa.schema([
    ("path", pa.string()), ("label", pa.int8()), ("generator", NAMES), ("source", NAMES), ("split", NAMES),
    ("group", pa.string()), ("width", pa.int32()), ("height", pa.int32()), ("format", NAMES),
    ("jpeg_quality", pa.int16()), ("jpeg_tables", NAMES), ("bytes", pa.int64()), ("sha256", pa.string()),
])  # fmt: skip


def write_manifest(path: Path, rows: Iterable[tuple[Any, ...]], facts: dict[bytes, bytes]) -> int:
    """Write rows in the order of :data:`SCHEMA`; a manifest that is there stays whole until the end.

    Returns:
        The number of rows.

    Raises:
        UserError: the disk is full or the folder cannot be written.
    """
    written, source = 0, iter(rows)
    with replacing(path) as temporary, pq.ParquetWriter(temporary, SCHEMA.with_metadata(facts)) as writer:
        while piece := list(islice(source, ROWS)):
            arrays = [
                pa.array(column, field.type)
                for column, field in zip(zip(*piece, strict=True), SCHEMA, strict=True)
            ]
            writer.write_table(pa.Table.from_arrays(arrays, schema=SCHEMA))
            written += len(piece)
    return written


def write_rejected(path: Path, rows: Iterable[tuple[str, str]]) -> None:
    """Write (path, reason) of what was left out as CSV; no file where there is nothing.

    Raises:
        UserError: as :func:`write_manifest`.
    """
    listed = list(rows)
    if not listed:
        path.unlink(missing_ok=True)  # of an earlier run
        return
    # Names that are not UTF-8 are shown with their bytes escaped.
    with (
        replacing(path) as temporary,
        open(temporary, "w", newline="", encoding="utf-8", errors="backslashreplace") as file,
    ):
        writer = csv.writer(file)
        writer.writerow(("path", "reason"))
        writer.writerows(listed)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary name beside ``path`` that takes its place at the end, and leaves nothing on failure.

    Raises:
        UserError: the disk is full or the folder cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        kept = "; the one that was there is unchanged" if path.exists() else ""
        raise UserError(f"{path} cannot be written: {error.strerror or error}{kept}") from error
    finally:
        temporary.unlink(missing_ok=True)
