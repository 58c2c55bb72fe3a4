"""Sources: where the bytes of an image come from: files below a folder, shards, or rows of parquet files."""

from __future__ import annotations

import hashlib
import logging
import os
import threading
import warnings
from collections import OrderedDict
from pathlib import Path
from typing import Any, Protocol

import fsspec
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from fakedet.data.decode import DecodeError, read_bytes
from fakedet.errors import UserError, one_line

INDEX = "index.json"  # The file that every folder of litdata shards holds


class Source(Protocol):
    """Anything that returns the bytes of an image by its row in the manifest; pickled into worker processes."""

    def read(self, row: int) -> bytes:
        """Return the bytes of an image file; after a DecodeError training and evaluation go on without the image."""


class FileSource:
    """Files below a folder, the ``root``, to which the path of every row is relative."""

    def __init__(self, root: Path, paths: list[str]) -> None:
        self.root = root
        # Arrow: a list of Python strings would be copied into every worker, page by page, as it is read.
        self.paths = pa.array(paths, pa.large_string())

    def read(self, row: int) -> bytes:
        """Return the bytes of a row's file."""
        return read_bytes(self.root / self.paths[row].as_py())


class ShardSource:
    """Shards that ``fakedet shard`` wrote, read with litdata.

    Args:
        location: folder, or a URL that litdata understands (s3://, gs://, hf://, ...).
        positions, sizes: (n,) place of every row in the shards, and its number of bytes.
        first: SHA-256 of row 0, by which shards of another manifest are recognised.
        cache: folder for shards that are fetched from an object store; None: litdata's own.
    """

    def __init__(
        self, location: str, positions: NDArray[np.int64], sizes: NDArray[np.int64], first: str, cache: str | None
    ) -> None:
        self.location, self.cache, self.first = location, cache, first
        self.positions, self.sizes = positions, sizes
        self._opened: Any = None
        self._process = 0

    def read(self, row: int) -> bytes:
        """Return the bytes of a row; the first call opens the shards.

        A DecodeError if the row's shard is missing or damaged, a UserError if litdata is not installed or these are not
        the shards of this manifest.
        """
        # What was opened before a fork belongs to the parent process.
        if self._opened is None or self._process != os.getpid():
            self._open()
        data = self._bytes(row)
        # A wrong image would be trained on under this row's label.
        if len(data) != self.sizes[row]:
            raise DecodeError(f"its shard holds {len(data)} bytes in its place instead of {self.sizes[row]}")
        return data

    def _open(self) -> None:
        litdata = import_litdata()
        folder = Path(self.location.removeprefix("local:"))
        if "://" not in self.location and not (folder / INDEX).is_file():
            raise UserError(
                f"{self.location}: there are no shards here ({INDEX} is missing); write them with fakedet shard"
            )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # Unpacking a whole shard would pay only if its images were read one after the other.
            self._opened = litdata.StreamingDataset(self.location, cache_dir=self.cache, batch_decode=False)
        self._process = os.getpid()
        try:
            same = hashlib.sha256(self._bytes(0)).hexdigest() == self.first
        except DecodeError:
            return  # a damaged shard; its rows are reported when they are read
        if not same:
            self._opened = None
            raise UserError(
                f"{self.location}: these are the shards of another manifest; take the manifest.parquet that lies "
                "beside them, or pass data.root=FOLDER of its own shards"
            )

    def _bytes(self, row: int) -> bytes:
        try:
            return bytes(self._opened[int(self.positions[row])])
        except Exception as error:  # litdata and the store's client raise errors of many types
            raise DecodeError(f"its shard cannot be read: {one_line(error)[:200]}") from None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}


class ParquetSource:
    """Images that lie inside parquet files, local or behind any URL that fsspec opens (hf://, s3://, gs://, ...).

    A file is read a row group at a time; the groups read last stay in memory, as many as ``most`` bytes hold.

    Args:
        location: folder or URL that the files' names are relative to.
        paths: (n,) FILE.parquet/.../ROW.ENDING of every row of the manifest, as ``fakedet index extract=false`` writes.
        columns: file → its column of images: bytes, or a structure with the member bytes.
        sizes: (n,) number of bytes of every row.
        most: see above; of each process that reads.
    """

    def __init__(
        self, location: str, paths: list[str], columns: dict[str, str], sizes: NDArray[np.int64], most: int = 1 << 29
    ) -> None:
        found = pd.Series(paths, dtype=object).str.extract(r"^(.*?\.parquet)/(?:.*/)?(\d+)\.\w+$")
        self.files, self.columns, self.sizes, self.most = sorted(columns), columns, sizes, most
        self.location = location.rstrip("/")
        self.file = pd.Categorical(found[0], self.files).codes.astype(np.int64)
        if (self.file < 0).any():
            raise UserError(f"{paths[int(np.argmin(self.file))]}: the manifest names no row of a parquet file for it; "
                            "index the files anew with extract=false")  # fmt: skip
        self.number = found[1].to_numpy().astype(np.int64)
        self._forget()

    def _forget(self) -> None:
        self._opened: dict[int, tuple[Any, NDArray[np.int64]]] = {}
        self._groups: OrderedDict[tuple[int, int], Any] = OrderedDict()
        self._process, self._lock = os.getpid(), threading.Lock()  # images may be read by threads

    def row_groups(self) -> NDArray[np.int64]:
        """Number the (n,) row groups that the rows are in, by which training shuffles within a few at a time.

        It reads the end of every file; a UserError if one is not there.
        """
        groups, first = np.zeros(len(self.number), dtype=np.int64), 0
        for file in range(len(self.files)):
            try:
                _, starts = self._open(file)
            except DecodeError as error:
                raise UserError(f"data.root={self.location}: {self.files[file]}: {error.reason}") from error
            own = self.file == file
            groups[own] = first + np.searchsorted(starts, self.number[own], side="right") - 1
            first += len(starts) - 1
        return groups

    def read(self, row: int) -> bytes:
        """Return the bytes of a row; a DecodeError if its file is missing, damaged, or another one than was indexed."""
        file, number = int(self.file[row]), int(self.number[row])
        if self._process != os.getpid():  # what was opened before a fork belongs to the parent process
            self._forget()
        with self._lock:
            opened, starts = self._open(file)
            if number >= starts[-1]:
                raise DecodeError(f"its parquet file has only {starts[-1]} rows")
            group = int(np.searchsorted(starts, number, side="right")) - 1
            column = self._group(file, group, opened)
        data = column[number - int(starts[group])].as_py()
        data = data.get("bytes") if isinstance(data, dict) else data
        if not isinstance(data, bytes) or len(data) != self.sizes[row]:
            held = f"{len(data)} bytes" if isinstance(data, bytes) else "no bytes"
            raise DecodeError(f"its parquet file holds {held} in its place instead of {self.sizes[row]} bytes")
        return data

    def _open(self, file: int) -> tuple[Any, NDArray[np.int64]]:
        """Open a file, and count the rows before each of its row groups, and all of them."""
        if file not in self._opened:
            place = f"{self.location}/{self.files[file]}"
            try:
                source: Any = fsspec.open(place, "rb").open() if "://" in place else place
                opened = pq.ParquetFile(source, memory_map=isinstance(source, str))
            except Exception as error:  # a store's client raises errors of many types
                raise DecodeError(f"its parquet file cannot be read: {one_line(error)[:200]}") from None
            counts = [opened.metadata.row_group(number).num_rows for number in range(opened.num_row_groups)]
            self._opened[file] = opened, np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        return self._opened[file]

    def _group(self, file: int, group: int, opened: Any) -> Any:
        key = (file, group)
        if key not in self._groups:
            column = self.columns[self.files[file]]
            try:
                self._groups[key] = opened.read_row_group(group, columns=[column]).column(0)
            except Exception as error:
                raise DecodeError(f"its parquet file cannot be read: {one_line(error)[:200]}") from None
            while len(self._groups) > 1 and sum(one.nbytes for one in self._groups.values()) > self.most:
                self._groups.popitem(last=False)
        self._groups.move_to_end(key)
        return self._groups[key]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": {}, "_groups": OrderedDict(), "_lock": None, "_process": 0}


def import_litdata() -> Any:
    """Import litdata, which few users need and which takes a second; a UserError says how to install it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import litdata
            import litdata.streaming
    except ImportError as error:
        raise UserError(
            f'shards are read and written by litdata, which cannot be imported ({error}); pip install "fakedet[shards]"'
        ) from error
    logging.getLogger("litdata").setLevel(logging.ERROR)
    return litdata
