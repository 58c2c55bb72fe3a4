"""Sources: where the bytes of an image come from: files below a folder, or shards."""

from __future__ import annotations

import hashlib
import logging
import os
import warnings
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
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
