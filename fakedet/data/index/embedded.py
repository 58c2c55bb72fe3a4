"""Parquet files that hold the images themselves, as Hugging Face and Community Forensics publish them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq

from fakedet.data.decode import DecodeError
from fakedet.data.header import parse_header
from fakedet.data.index.write import replacing
from fakedet.data.layouts.base import SPLITS
from fakedet.errors import UserError

IMAGE = ("image_data", "image", "bytes")
NAMES = ("model_name", "generator", "model")
LABELS = {"0": 0, "1": 1, "real": 0, "fake": 1, "false": 0, "true": 1}
BATCH = 64
"""Rows in memory at a time."""
EXTENSIONS = {
    "JPEG": "jpg",
    "MPO": "jpg",
    "PNG": "png",
    "WEBP": "webp",
    "BMP": "bmp",
    "TIFF": "tif",
    "GIF": "gif",
}


def holds_images(path: Path) -> bool:
    """Say whether a parquet file has a column of image bytes."""
    try:
        return _image_column(pq.read_schema(path)) is not None
    except (pa.ArrowInvalid, OSError):
        return False


def parquets(source: Path, deep: bool = False) -> list[Path]:
    """List the parquet files that hold images.

    Args:
        source: a file or a folder.
        deep: look at all depths; else in the folder and its ``data/``, where Hugging Face puts them.
    """
    if source.is_file():
        files = [source] if source.suffix == ".parquet" else []
    elif deep:
        files = sorted(source.rglob("*.parquet"))
    else:
        files = sorted([*source.glob("*.parquet"), *source.glob("data/*.parquet")])
    return [path for path in files if holds_images(path)]


def extract(
    files: list[Path], folder: Path, seen: Callable[[int], None] = lambda count: None
) -> dict[str, str]:
    """Write the images of parquet files, byte for byte, to ``<folder>/[split/]<generator>/{real,fake}/``.

    A file of the same name and size is not written again, so interrupted work goes on.

    Args:
        files: from :func:`parquets`.
        folder: where the images go.
        seen: called with the number of rows done.

    Returns:
        "file row" → reason, of rows without an image or a label.

    Raises:
        UserError: a file is damaged or lacks the columns; the disk is full.
    """
    failed, done = {}, 0
    for path in files:
        for number, row in _rows(path):
            where, data = _target(path, number, row)
            if isinstance(where, str):
                failed[f"{path.name} row {number}"] = where
            else:
                _write(folder / where, data)
            done += 1
            seen(done)
    return failed


def _rows(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    schema = pq.read_schema(path)
    image = _image_column(schema)
    if "label" not in schema.names:
        raise UserError(
            f"{path}: there is no column 'label' beside '{image}'; it has {', '.join(schema.names)}"
        )
    wanted = [name for name in (image, "label", *NAMES, "real_source", "split") if name in schema.names]
    number = 0
    try:
        for batch in pq.ParquetFile(path).iter_batches(BATCH, columns=wanted):
            for row in batch.to_pylist():
                yield number, {**row, "image": row[image]}
                number += 1
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{path}: damaged after row {number}: {error}") from error


def _target(path: Path, number: int, row: Mapping[str, Any]) -> tuple[Path | str, bytes]:
    """Give where a row's image goes, or why it goes nowhere."""
    label = LABELS.get(str(row["label"]).strip().lower())
    if label is None:
        return f"label {row['label']!r} is neither 0 (real) nor 1 (fake)", b""
    image = row["image"]
    data = image.get("bytes") if isinstance(image, Mapping) else image
    if not isinstance(data, bytes):
        return "no image bytes", b""
    try:
        extension = EXTENSIONS.get(parse_header(data).format, "png")
    except DecodeError as error:
        return error.reason, b""
    name = next((str(row[key]) for key in NAMES if row.get(key)), ("real", "fake")[label])
    if label == 0 and row.get("real_source"):
        name = str(row["real_source"])
    split = SPLITS.get(str(row.get("split", "")).lower(), "") or SPLITS.get(
        path.name.split("-")[0].lower(), ""
    )
    # Files of one name may lie in several folders.
    mark = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:6]
    file = f"{path.stem}_{mark}_{number:08d}.{extension}"
    return Path(split, quote(name, safe=" +=,@") or "unknown", ("real", "fake")[label], file), data


def _write(path: Path, data: bytes) -> None:
    try:
        if path.stat().st_size == len(data):
            return
    except OSError:
        pass
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def _image_column(schema: pa.Schema) -> str | None:
    for name in IMAGE:
        if name in schema.names:
            kind = schema.field(name).type
            if pa.types.is_struct(kind):
                return name if kind.get_field_index("bytes") >= 0 else None
            if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
                return name
    return None
