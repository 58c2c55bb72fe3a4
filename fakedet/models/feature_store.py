"""A file of what frozen nets have said of images, shared by processes and runs."""

from __future__ import annotations

import logging
import os
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fakedet.errors import UserError

log = logging.getLogger("fakedet")

VARIABLE = "FAKEDET_FEATURES"
"""Environment variable that names the file; unset: nothing is kept beyond the process."""
BATCH = 256
"""New features are written that many at a time; what a killed process had not written is computed again."""


class FeatureStore:
    """Keep float32 features by (net, image) in one SQLite file, which several processes may read and write.

    Args:
        path: of the file; made with its folders if it is not there.

    A file that can no longer be written costs a warning and not the run: nothing more is kept then.

    Raises:
        UserError: the file cannot be made or read, or is something else.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._waiting: list[tuple[bytes, bytes, bytes]] = []
        self._broken = False
        self._do(
            "CREATE TABLE IF NOT EXISTS features (net BLOB, image BLOB, value BLOB, PRIMARY KEY (net, image))"
        )

    @classmethod
    def from_environment(cls) -> FeatureStore | None:
        """Open the file that FAKEDET_FEATURES names."""
        name = os.environ.get(VARIABLE)
        return cls(Path(name)) if name else None

    def of(self, net: bytes) -> Iterator[tuple[bytes, Tensor]]:
        """Give all that is known of a net: each image's key and features."""
        for image, value in self._do("SELECT image, value FROM features WHERE net = ?", [(net,)]):
            yield image, torch.from_numpy(np.frombuffer(value, dtype="<f4").copy())

    def put(self, net: bytes, image: bytes, features: Tensor) -> None:
        """Keep an image's features, sooner or later."""
        if self._broken:
            return
        self._waiting.append((net, image, features.numpy().astype("<f4").tobytes()))
        if len(self._waiting) >= BATCH:
            self.flush()

    def flush(self) -> None:
        """Write what waits."""
        rows, self._waiting = self._waiting, []
        if not rows:
            return
        try:
            self._do("INSERT OR IGNORE INTO features VALUES (?, ?, ?)", rows)
        except UserError as error:
            self._broken = True
            log.warning("%s; features are no longer kept there", error)

    def _do(
        self, statement: str, rows: Sequence[tuple[bytes, ...]] | None = None
    ) -> list[tuple[bytes, bytes]]:
        """Run a statement on a connection of its own: none is open when a process forks."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            connection = sqlite3.connect(self.path, timeout=60.0)
            try:
                with connection:
                    if rows is None:
                        connection.execute(statement)
                    elif statement.startswith("SELECT"):
                        return connection.execute(statement, rows[0]).fetchall()
                    else:
                        connection.executemany(statement, rows)
            finally:
                connection.close()
        except (OSError, sqlite3.Error) as error:
            raise UserError(
                f"{VARIABLE}={self.path}: cannot be used as a file of features ({error}); "
                "name another file, or unset it"
            ) from error
        return []
