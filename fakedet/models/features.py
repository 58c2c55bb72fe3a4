"""The feature cache: what a frozen backbone computes from an image is a fact, computed once.

One cache for a process, in memory, keyed by the image's content, the backbone's weights and its preprocessing; with the
environment variable FAKEDET_FEATURES=FILE also a SQLite file, which several processes and later runs share.
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import logging
import os
import sqlite3
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from fakedet.errors import UserError

log = logging.getLogger("fakedet")

VARIABLE = "FAKEDET_FEATURES"
"""Environment variable that names the file; unset: nothing is kept beyond the process."""
FORMAT = 3
"""To be raised where the same settings come to mean other features."""
CHECK = 4
"""Bytes of the checksum that each row of the file ends with."""


class FeatureCache:
    """Ask a frozen backbone once for each image that comes again.

    All backbones of a process with the same weights share the cache, so that the jobs of a study do. An image is its
    bytes: another crop, or one grey level of difference, is another image. Each backbone has a cache object of its own,
    which only keeps the backbone's fingerprint.
    """

    capacity: ClassVar[int] = 65_536
    """Images kept in memory, some 250 MB of features; the oldest are dropped first."""
    _known: ClassVar[dict[bytes, Tensor]] = {}
    _file: ClassVar[FeatureFile | None] = None

    def __init__(self) -> None:
        self._backbone: bytes | None = None

    def features(self, backbone: Any, image: Tensor) -> Tensor:
        """Compute or look up the features (D,) of an image (3, H, W), float, on the CPU.

        Args:
            backbone: see :func:`fingerprint`; its ``describe`` maps (1, 3, H, W) to (1, D).
            image: in [0, 1].
        """
        if self._backbone is None:
            self._backbone = fingerprint(backbone)
        content = hashlib.sha256(image.contiguous().view(-1).numpy().data)
        content.update(repr((self._backbone, tuple(image.shape))).encode())
        key = content.digest()
        found = self._known.get(key)
        if found is None:
            file = self._shared_file()
            found = file.get(self._backbone, key) if file else None
            if found is None:
                found = backbone.describe(image[None])[0].clone()
                if file:
                    file.put(self._backbone, key, found)
            while len(self._known) >= self.capacity:
                del self._known[next(iter(self._known))]
            self._known[key] = found
        return found

    def forget(self) -> None:
        """Note that the backbone has other weights now."""
        self._backbone = None

    @classmethod
    def clear(cls) -> None:
        """Empty this process's memory; the file stays."""
        cls._known.clear()

    @classmethod
    def _shared_file(cls) -> FeatureFile | None:
        name = os.environ.get(VARIABLE)
        if name and (cls._file is None or cls._file.path != Path(name)):
            cls._file = FeatureFile(Path(name))
            atexit.register(cls._file.flush)
        return cls._file if name else None


def fingerprint(backbone: Any) -> bytes:
    """Name a backbone by its layers, weights and preprocessing; 16 bytes.

    Args:
        backbone: an ``nn.Module`` with ``levels``, ``input_size`` and ``pool``.
    """
    digest = hashlib.blake2b(repr(backbone).encode(), digest_size=16)
    digest.update(repr([FORMAT, backbone.levels, backbone.input_size, backbone.pool]).encode())
    # Not state_dict(), which leaves out the buffers mean and std of the preprocessing.
    for name, value in (*backbone.named_parameters(), *backbone.named_buffers()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.digest()


class FeatureFile:
    """Keep float32 features by (backbone, image) in one SQLite file, which several processes may read and write.

    A file that breaks later costs a warning and not the run: it is left alone then.

    Args:
        path: of the file; made with its folders if it is not there.

    Raises:
        UserError: the file cannot be made, or is something else.
    """

    batch: ClassVar[int] = 256
    """New features are written that many at a time; what a killed process had not written is computed again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._waiting: list[tuple[bytes, bytes, bytes]] = []
        self._readable = self._writable = True
        self._execute(
            "CREATE TABLE IF NOT EXISTS features (net BLOB, image BLOB, value BLOB, PRIMARY KEY (net, image))"
        )

    def get(self, backbone: bytes, image: bytes) -> Tensor | None:
        """Return what any process has stored of an image, if one has and it is whole."""
        if not self._readable:
            return None
        try:
            rows = self._execute("SELECT value FROM features WHERE net = ? AND image = ?", [(backbone, image)])
        except UserError as error:
            self._give_up(error)
            self._readable = False
            return None
        row = rows[0][0] if rows else None
        if not isinstance(row, bytes) or len(row) <= CHECK:
            return None
        values, check = row[:-CHECK], row[-CHECK:]
        if zlib.crc32(values).to_bytes(CHECK, "little") != check or len(values) % 4:
            return None  # a bad disk has changed it
        return torch.from_numpy(np.frombuffer(values, dtype="<f4").copy())

    def put(self, backbone: bytes, image: bytes, features: Tensor) -> None:
        """Keep an image's features; they are written in batches."""
        values = features.numpy().astype("<f4").tobytes()
        self._waiting.append((backbone, image, values + zlib.crc32(values).to_bytes(CHECK, "little")))
        if len(self._waiting) >= self.batch:
            self.flush()

    def flush(self) -> None:
        """Write what waits."""
        rows, self._waiting = self._waiting, []
        if not rows or not self._writable:
            return
        try:
            # A row that was damaged is replaced.
            self._execute("INSERT OR REPLACE INTO features VALUES (?, ?, ?)", rows)
        except UserError as error:  # a full disk, say: what it holds can still be read
            self._give_up(error)

    def _give_up(self, error: UserError) -> None:
        if self._writable:
            log.warning("%s; features are no longer kept there", error)
        self._writable = False

    def _execute(self, statement: str, rows: Sequence[tuple[bytes, ...]] = ((),)) -> list[tuple[Any, ...]]:
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
