"""Writing shards: a manifest's images in a few large files, for object stores and many nodes."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import warnings
from collections import Counter, deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fakedet.data.datamodule import DataModule
from fakedet.data.dataset import cores
from fakedet.data.decode import DecodeError, Header, parse_header
from fakedet.data.index import SCHEMA, write_rejected
from fakedet.data.manifest_table import COLUMNS, SHARDS_KEY
from fakedet.data.sources import INDEX, import_litdata
from fakedet.errors import UserError
from fakedet.utils import bar

SHARDS = pa.schema([*SCHEMA, ("shard", pa.int32()), ("position", pa.int64())])


@dataclass(frozen=True)
class Sharded:
    """What was written."""

    folder: Path
    rows: int
    shards: int
    bytes: int
    lost: Counter[tuple[str, str]]  # Number of images left out, by (class, generator)


def shard_manifest(datamodule: DataModule, output_dir: str | Path, overwrite: bool, shard_mb: float) -> Sharded:
    """Write a manifest's images into shards, bytes unchanged (or matched, if the data module matches).

    Everything is written beside the folder and takes its place at the end: a kill or a full disk leaves what was there.
    ``overwrite`` replaces a folder of shards; ``shard_mb`` is the size of a shard in MB of 10^6 bytes. A UserError if
    the manifest, the folder or a setting is wrong, or the disk is full.
    """
    if shard_mb <= 0:
        raise UserError(f"shard_mb={shard_mb}: must be above 0")
    import_litdata()
    frame = datamodule.manifest.frame
    folder, place = Path(output_dir).absolute(), f"output_dir={output_dir}"
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{place} is a file; name a folder")
    if folder.is_dir() and any(folder.iterdir()):
        if not overwrite:
            raise UserError(f"{place} is not empty; name another one, or pass overwrite=true to replace it")
        if not (folder / INDEX).is_file():
            raise UserError(f"{place} holds no shards; only shards are replaced by overwrite=true")
    temporary, old = (folder.with_name(f".{folder.name}.{os.getpid()}.{end}") for end in ("tmp", "old"))
    rejected: list[tuple[str, str]] = []
    try:
        _write(datamodule, temporary, int(shard_mb * 1e6), rejected)
        write_rejected(temporary / "rejected.csv", rejected)
        sizes = [path.stat().st_size for path in temporary.glob("*.bin")]
        if folder.exists():
            os.rename(folder, old)
        try:
            os.rename(temporary, folder)
        except OSError:
            if old.exists():
                os.rename(old, folder)
            raise
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        why = error.strerror or error
        raise UserError(f"{place} cannot be written: {why}; what was there is unchanged") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    left = frame[frame["path"].isin([path for path, _ in rejected])]
    lost = Counter(zip(left["label"].map({0: "real", 1: "fake"}), left["generator"], strict=True))
    return Sharded(folder, len(frame) - len(rejected), len(sizes), sum(sizes), lost)


def _write(datamodule: DataModule, folder: Path, size: int, rejected: list[tuple[str, str]]) -> None:
    """Write shards and manifest.parquet into a new folder; threads read ahead."""

    def read(row: int) -> tuple[bytes, Header] | str:
        try:
            data = datamodule.read_bytes(row)
            return data, parse_header(data)
        except DecodeError as error:
            return error.reason

    folder.mkdir(parents=True)
    frame, threads = datamodule.manifest.frame, 4 * cores()
    # Rows of one stratum lie together: a shard then serves one stratum, and is done with when that has passed.
    order = frame.sort_values(["split", "label", "generator", "source", "path"], kind="stable").index.tolist()
    described = frame[list(COLUMNS)].to_numpy(object)  # by id, which is the position
    rows: list[tuple[Any, ...]] = []
    ahead: deque[Future[tuple[bytes, Header] | str]] = deque()
    todo = iter(order)
    with (
        warnings.catch_warnings(action="ignore"), bar("writing shards", len(order)) as shown,
        ThreadPoolExecutor(threads) as pool,
    ):  # fmt: skip
        cache = import_litdata().streaming.Cache(str(folder), chunk_bytes=size)
        for number, row in enumerate(order, start=1):
            ahead.extend(pool.submit(read, later) for later in islice(todo, 4 * threads - len(ahead)))
            found = ahead.popleft().result()
            if isinstance(found, str):
                rejected.append((str(frame.at[row, "path"]), found))
            else:
                data, header = found
                cache[len(rows)] = data
                facts = (header.width, header.height, header.format, header.jpeg_quality, header.jpeg_tables)
                rows.append((*described[row], *facts, len(data), hashlib.sha256(data).hexdigest()))
            shown.show(number)
        if not rows:
            raise UserError(f"none of the {len(frame)} images can be read; the first: {', '.join(rejected[0])}")
        cache.done()
        cache.merge()
    chunks = json.loads((folder / INDEX).read_text(encoding="utf-8"))["chunks"]
    shard = np.repeat(np.arange(len(chunks)), [chunk["chunk_size"] for chunk in chunks])
    columns = [*zip(*rows, strict=True), shard, np.arange(len(rows))]
    arrays = [pa.array(column, field.type) for column, field in zip(columns, SHARDS, strict=True)]
    table = pa.Table.from_arrays(arrays, schema=SHARDS.with_metadata({SHARDS_KEY: b"."}))
    pq.write_table(table, folder / "manifest.parquet")
