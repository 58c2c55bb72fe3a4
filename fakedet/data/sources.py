"""data/sources"""

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
from fakedet.data.manifest import Manifest
from fakedet.data.match import Matcher
from fakedet.errors import UserError

INDEX = "index.json"
"""The file that makes a folder one of litdata's."""


class Source(Protocol):
    """Gives the bytes of images; may be sent to worker processes."""

    def read(self, row: int) -> bytes:
        """Read the bytes of a row of the manifest.

        Raises:
            DecodeError: they cannot be read.
        """


class FileSource:
    """Read files below a root.

    Args:
        root: the folder.
        paths: of every row, relative to it.
    """

    def __init__(self, root: Path, paths: list[str]) -> None:
        self.root = root
        # Arrow: a list of Python strings would be copied into every worker, page by page, as it is read.
        self.paths = pa.array(paths, pa.large_string())

    def read(self, row: int) -> bytes:
        """Read the file of a row."""
        return read_bytes(self.root / self.paths[row].as_py())


class ShardSource:
    """Read images out of shards that ``fakedet shard`` wrote, by litdata.

    Args:
        location: folder, or URL that litdata understands (s3://, gs://, hf://, ...).
        positions: place of every row in the shards.
        sizes: bytes of every row.
        first: SHA-256 of row 0, by which shards of another manifest are told.
        cache: folder for shards that are not local; None: litdata's own.
    """

    def __init__(
        self,
        location: str,
        positions: NDArray[np.int64],
        sizes: NDArray[np.int64],
        first: str,
        cache: str | None = None,
    ) -> None:
        self.location, self.positions, self.sizes = location, positions, sizes
        self.first, self.cache = first, cache
        self._opened: Any = None
        self._process = 0

    def read(self, row: int) -> bytes:
        """Read the bytes of a row; opens the shards at the first."""
        # What was opened before a fork belongs to the parent.
        if self._opened is None or self._process != os.getpid():
            self._opened, self._process = open_shards(self.location, self.cache), os.getpid()
            self._check()
        data = self._bytes(row)
        # A wrong image would be trained on under this row's label.
        if len(data) != self.sizes[row]:
            raise DecodeError(f"its shard holds {len(data)} bytes in its place instead of {self.sizes[row]}")
        return data

    def _check(self) -> None:
        try:
            same = hashlib.sha256(self._bytes(0)).hexdigest() == self.first
        except DecodeError:
            return  # of a damaged shard nothing can be told; its rows say so themselves
        if not same:
            self._opened = None
            raise UserError(
                f"{self.location}: these are the shards of another manifest; take the manifest.parquet that lies "
                "beside them, or pass data.root=FOLDER of its own shards"
            )

    def _bytes(self, row: int) -> bytes:
        try:
            return bytes(self._opened[int(self.positions[row])])
        except Exception as error:  # litdata and the store's client raise all sorts of things
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise DecodeError(f"its shard cannot be read: {reason}") from None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}


class MatchedSource:
    """Match what another source gives; see :mod:`fakedet.data.match`.

    Args:
        source: gives the bytes.
        matcher: matches them.
        paths: of every row; the matcher's choices depend on them.
    """

    def __init__(self, source: Source, matcher: Matcher, paths: list[str]) -> None:
        self.source, self.matcher = source, matcher
        self.paths = pa.array(paths, pa.large_string())

    def read(self, row: int) -> bytes:
        """Read and match the image of a row."""
        return self.matcher(self.source.read(row), self.paths[row].as_py())


def make_source(manifest: Manifest, matcher: Matcher | None = None, cache: str | None = None) -> Source:
    """Give the source of a manifest's images."""
    paths = manifest.frame["path"].tolist()
    source: Source
    if manifest.shards is None:
        source = FileSource(manifest.root, paths)
    else:
        assert manifest.digests is not None
        source = ShardSource(
            manifest.shards, manifest.fact("position"), manifest.fact("bytes"), manifest.digests[0], cache
        )
    return source if matcher is None else MatchedSource(source, matcher, paths)


def open_shards(location: str, cache: str | None) -> Any:
    """Open shards for random access.

    Raises:
        UserError: litdata is not installed, or there are no shards.
    """
    litdata = import_litdata()
    if "://" not in location and not (Path(location.removeprefix("local:")) / INDEX).is_file():
        raise UserError(
            f"{location}: there are no shards here ({INDEX} is missing); write them with fakedet shard"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # An image is wanted, not all that lie beside it in its shard.
        return litdata.StreamingDataset(location, cache_dir=cache, batch_decode=False)


def import_litdata() -> Any:
    """Import litdata, which few need and which takes a second.

    Raises:
        UserError: it is not installed.
    """
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
