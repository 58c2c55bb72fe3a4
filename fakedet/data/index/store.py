"""What is known of every file of a folder, kept between runs: interrupted work goes on, unchanged files rest."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from fakedet.errors import UserError

VERSION = 1
"""Of the tables below and of what is read of a file; another version begins anew."""


class Facts(NamedTuple):
    """What is known of one file."""

    folder: str
    name: str
    bytes: int
    changed: int
    """Time of change in ns."""
    sha256: str
    format: str
    width: int
    height: int
    jpeg_quality: int
    jpeg_tables: str
    problem: str
    """Why it cannot be used; "" if it can."""


INTEGERS = ("bytes", "changed", "width", "height", "jpeg_quality")


class Store:
    """A SQLite file of facts; a context manager.

    SQLite, because two million rows need neither fit into memory nor be written anew when one changes, and a
    killed run leaves every committed row whole.

    Args:
        path: of the file; made where there is none.

    Raises:
        UserError: it cannot be written, or is another program's.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> Store:
        try:
            self._open()
        except sqlite3.DatabaseError as error:
            raise self._failed(error) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._base.commit()
        except sqlite3.DatabaseError as failure:
            if error is None:
                raise self._failed(failure) from failure
        finally:
            self._base.close()

    def known(self, folder: str) -> dict[str, tuple[int, int]]:
        """Give (bytes, time of change) of the files of a folder that were read before."""
        rows = self._base.execute("SELECT name, bytes, changed FROM files WHERE folder = ?", (folder,))
        return {name: (size, changed) for name, size, changed in rows}

    def forget(self, folder: str, names: list[str]) -> None:
        """Drop files that are no longer there."""
        self._run("DELETE FROM files WHERE folder = ? AND name = ?", [(folder, name) for name in names])

    def folders(self) -> list[str]:
        """List the folders of all files."""
        return [folder for (folder,) in self._base.execute("SELECT DISTINCT folder FROM files")]

    def forget_folder(self, folder: str) -> None:
        """Drop all files of a folder."""
        self._run("DELETE FROM files WHERE folder = ?", [(folder,)])

    def add(self, rows: list[Facts]) -> None:
        """Write facts down; they are safe when this returns."""
        self._run(f"INSERT OR REPLACE INTO files VALUES ({','.join('?' * len(Facts._fields))})", rows)
        try:
            self._base.commit()
        except sqlite3.DatabaseError as error:
            raise self._failed(error) from error

    def rows(self) -> Iterator[Facts]:
        """Yield all facts in the order of folders and names."""
        return map(Facts._make, self._base.execute("SELECT * FROM files ORDER BY folder, name"))

    def count(self) -> int:
        """Count the files."""
        return int(self._base.execute("SELECT count(*) FROM files").fetchone()[0])

    def counts(self) -> dict[str, int]:
        """Count the usable files of each folder."""
        query = "SELECT folder, count(*) FROM files WHERE problem = '' GROUP BY folder"
        return dict(self._base.execute(query))

    def copies(self) -> Iterator[list[tuple[str, str, str]]]:
        """Yield (sha256, folder, name) of the files that share their content, a content at a time."""
        query = """SELECT sha256, folder, name FROM files WHERE problem = '' AND sha256 IN
                   (SELECT sha256 FROM files WHERE problem = '' AND sha256 != '' GROUP BY sha256 HAVING count(*) > 1)
                   ORDER BY sha256, folder, name"""
        same: list[tuple[str, str, str]] = []
        for row in self._base.execute(query):
            if same and same[0][0] != row[0]:
                yield same
                same = []
            same.append(row)
        if same:
            yield same

    def _open(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._base = sqlite3.connect(self.path)
        # One process writes; cluster file systems are slow or wrong at anything finer.
        self._base.execute("PRAGMA locking_mode = EXCLUSIVE")
        with closing(self._base.execute("PRAGMA user_version")) as cursor:
            version = cursor.fetchone()[0]
        if version != VERSION:
            self._base.execute("DROP TABLE IF EXISTS files")
        columns = ", ".join(
            f"{name} {'INTEGER' if name in INTEGERS else 'TEXT'} NOT NULL" for name in Facts._fields
        )
        self._base.execute(
            f"CREATE TABLE IF NOT EXISTS files ({columns}, PRIMARY KEY (folder, name)) WITHOUT ROWID"
        )
        self._base.execute("CREATE INDEX IF NOT EXISTS by_content ON files (sha256)")
        self._base.execute(f"PRAGMA user_version = {VERSION}")
        self._base.commit()

    def _run(self, query: str, rows: Sequence[tuple[object, ...]]) -> None:
        try:
            self._base.executemany(query, rows)
        except sqlite3.DatabaseError as error:
            raise self._failed(error) from error

    def _failed(self, error: sqlite3.Error) -> UserError:
        return UserError(
            f"{self.path}: {error}; is the disk full or the folder read-only, is another `fakedet index` at "
            "work on it, or is the file no index of fakedet's? What was committed is kept; free space, or "
            "delete the file to begin anew"
        )
