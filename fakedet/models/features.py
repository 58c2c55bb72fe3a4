"""models/features"""

from __future__ import annotations

import atexit
import contextlib
import functools
import hashlib
import logging
import os
import sqlite3
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fakedet.errors import UserError

log = logging.getLogger("fakedet")

VARIABLE = "FAKEDET_FEATURES"
"""Environment variable that names the file; unset: nothing is kept beyond the process."""
BATCH = 256
"""New features are written that many at a time; what a killed process had not written is computed again."""


CHECK = 4
"""Bytes of the checksum that each row ends with."""


class FeatureStore:
    """Keep float32 features by (net, image) in one SQLite file, which several processes may read and write.

    Args:
        path: of the file; made with its folders if it is not there.

    A file that breaks later costs a warning and not the run: it is left alone then.

    Raises:
        UserError: the file cannot be made or is something else.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._waiting: list[tuple[bytes, bytes, bytes]] = []
        self._readable = self._writable = True
        self._do(
            "CREATE TABLE IF NOT EXISTS features (net BLOB, image BLOB, value BLOB, PRIMARY KEY (net, image))"
        )

    @classmethod
    def from_environment(cls) -> FeatureStore | None:
        """Open the file that FAKEDET_FEATURES names."""
        name = os.environ.get(VARIABLE)
        return cls(Path(name)) if name else None

    def get(self, net: bytes, image: bytes) -> Tensor | None:
        """Give what any process has stored of an image, if one has and it is whole."""
        if not self._readable:
            return None
        try:
            rows = self._do("SELECT value FROM features WHERE net = ? AND image = ?", [(net, image)])
        except UserError as error:
            self._give_up(error)
            self._readable = False
            return None
        return _unpack(rows[0][0]) if rows else None

    def put(self, net: bytes, image: bytes, features: Tensor) -> None:
        """Keep an image's features, sooner or later."""
        self._waiting.append((net, image, _pack(features)))
        if len(self._waiting) >= BATCH:
            self.flush()

    def flush(self) -> None:
        """Write what waits."""
        rows, self._waiting = self._waiting, []
        if not rows or not self._writable:
            return
        try:
            # A row that was damaged is replaced.
            self._do("INSERT OR REPLACE INTO features VALUES (?, ?, ?)", rows)
        except UserError as error:  # a full disk, say: what it holds can still be read
            self._give_up(error)

    def _give_up(self, error: UserError) -> None:
        """Write no more, and say so once."""
        if self._writable:
            log.warning("%s; features are no longer kept there", error)
        self._writable = False

    def _do(self, statement: str, rows: Sequence[tuple[bytes, ...]] = ((),)) -> list[tuple[Any, ...]]:
        """Run a statement on a connection of its own: none is open when a process forks."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.closing(sqlite3.connect(self.path, timeout=60.0)) as connection, connection:
                return [found for row in rows for found in connection.execute(statement, row)]
        except (OSError, sqlite3.Error) as error:
            raise UserError(
                f"{VARIABLE}={self.path}: cannot be used as a file of features ({error}); "
                "name another file, or unset it"
            ) from error


def _pack(features: Tensor) -> bytes:
    values = features.numpy().astype("<f4").tobytes()
    return values + zlib.crc32(values).to_bytes(CHECK, "little")


def _unpack(row: Any) -> Tensor | None:
    """Read a row; None where a bad disk or a stranger has changed it."""
    if not isinstance(row, bytes) or len(row) <= CHECK:
        return None
    values, check = row[:-CHECK], row[-CHECK:]
    if zlib.crc32(values).to_bytes(CHECK, "little") != check or len(values) % 4:
        return None
    return torch.from_numpy(np.frombuffer(values, dtype="<f4").copy())


IMAGES_KEPT = 65_536
"""Images remembered by a process; some 250 MB of features. The oldest are forgotten first."""
FORMAT = 2
"""Of what is remembered; to be raised where the same settings come to mean other features."""

_known: dict[bytes, Tensor] = {}


class FeatureMemory:
    """Ask a frozen net once for each image that comes again.

    All nets of a process with the same weights share what they said, so that the jobs of a study do; with a
    :class:`FeatureStore`, other processes too. An image is its bytes: another crop, or one grey level of
    difference, is another image.
    """

    def __init__(self) -> None:
        self._name: bytes | None = None

    def features(self, net: Any, image: Tensor) -> Tensor:
        """Give the features (D,) of an image (3, H, W) on the CPU.

        Args:
            net: has ``describe``, which maps (1, 3, H, W) to (1, D), ``levels``, ``input_size``
                and ``pool``.
            image: float.
        """
        if self._name is None:
            self._name = fingerprint(net)
        content = hashlib.sha256(image.contiguous().view(-1).numpy().data)
        content.update(repr((self._name, tuple(image.shape))).encode())
        key = content.digest()
        known = _known.get(key)
        if known is None:
            known = self._ask(net, image, self._name, key)
            while len(_known) >= IMAGES_KEPT:
                del _known[next(iter(_known))]
            _known[key] = known
        return known

    @staticmethod
    def _ask(net: Any, image: Tensor, name: bytes, key: bytes) -> Tensor:
        store = _open_store()
        stored = store.get(name, key) if store else None
        if stored is not None:
            return stored
        features: Tensor = net.describe(image[None])[0].clone()
        if store:
            store.put(name, key, features)
        return features

    def forget(self) -> None:
        """Say that the net has other weights now."""
        self._name = None


@functools.cache
def _open_store() -> FeatureStore | None:
    """Open this process's file of features, if it has one; what waits is written at the latest when it ends."""
    store = FeatureStore.from_environment()
    if store is not None:
        atexit.register(store.flush)
    return store


def fingerprint(net: Any) -> bytes:
    """Name weights and settings; 16 bytes."""
    digest = hashlib.blake2b(repr(net).encode(), digest_size=16)
    digest.update(repr([FORMAT, net.levels, net.input_size, (), net.pool]).encode())
    # Not state_dict(): mean and std of what the trunk sees are buffers that it leaves out.
    for name, value in (*net.named_parameters(), *net.named_buffers()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.digest()
