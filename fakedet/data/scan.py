"""data/scan"""

from __future__ import annotations

import hashlib
import os
import sqlite3
import stat
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from fakedet.data.decode import DecodeError, Header, jpeg_ends, parse_header, read_bytes
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


EXTENSIONS = frozenset(
    f".{name}"
    for name in (
        "jpg",
        "jpeg",
        "jpe",
        "jfif",
        "png",
        "webp",
        "bmp",
        "tif",
        "tiff",
        "gif",
        "ppm",
        "pgm",
        "avif",
    )
)
"""Names that end so are taken for images; what they are is told by their content."""


@dataclass
class Listing:
    """The images of one folder."""

    folder: str
    """Relative to the root, with slashes; "" for the root itself."""
    images: list[tuple[str, int, int]] = field(default_factory=list)
    """(name, bytes, time of change in ns)."""
    problems: list[tuple[str, str]] = field(default_factory=list)
    """(name, reason): what looks like an image and cannot be one; "" names the folder itself."""
    others: Counter[str] = field(default_factory=Counter)
    """Files with names of other kinds: how many of which ending."""


def walk(root: Path) -> Iterator[Listing]:
    """List every folder below a root that holds files, following links, each folder once.

    Names that begin with a dot are left aside: they are thumbnails and notes that operating systems leave.

    Args:
        root: an absolute path.

    Yields:
        One listing a folder; a folder that cannot be read is a problem of its own listing.
    """
    stack, visited = [""], set()
    while stack:
        folder = stack.pop()
        listing = Listing(folder)
        path = os.path.join(root, folder) if folder else os.fspath(root)
        try:
            found = os.stat(path)
            identity = (found.st_dev, found.st_ino)
            # A link can lead back to where it lies.
            if identity in visited:
                continue
            visited.add(identity)
            below = _list(path, listing)
        except OSError as error:
            listing.problems.append(("", f"the folder cannot be read: {error.strerror}"))
            below = []
        prefix = f"{folder}/" if folder else ""
        stack += [prefix + name for name in sorted(below, reverse=True)]
        if listing.images or listing.problems or listing.others:
            yield listing


def _list(path: str, listing: Listing) -> list[str]:
    """Fill a listing and give the names of the folders below."""
    below = []
    images, extensions = listing.images, EXTENSIONS
    with os.scandir(path) as entries:
        for entry in entries:
            name = entry.name
            if name[0] == ".":
                continue
            if name[name.rfind(".") :].lower() not in extensions:
                # A folder may be called anything, an image not.
                if entry.is_dir():
                    below.append(name)
                else:
                    listing.others[os.path.splitext(name)[1].lower() or "without an ending"] += 1
                continue
            try:
                found = entry.stat()
            except OSError as error:
                listing.problems.append((name, f"a link that leads nowhere: {error.strerror}"))
                continue
            if stat.S_ISREG(found.st_mode):
                images.append((name, found.st_size, found.st_mtime_ns))
            elif stat.S_ISDIR(found.st_mode):
                below.append(name)
            else:
                listing.problems.append((name, "not a regular file"))
    return below


BATCH = 256
"""Files a task and a commit: few enough that a kill costs little."""
HEADER_BYTES = 1 << 18
"""Read of a file that is not hashed; a header with an embedded preview fits."""


@dataclass
class Scan:
    """What a scan saw."""

    files: int = 0
    read: int = 0
    """Files that were new or changed."""
    others: int = 0
    """Files with names of other kinds."""
    problems: list[tuple[str, str]] = field(default_factory=list)
    """(path, reason) of what is no file, or no folder that can be read."""
    closed: set[str] = field(default_factory=set)
    """Folders that cannot be read."""


def scan(
    root: Path,
    listings: Iterable[Listing],
    store: Store,
    threads: int,
    hashed: bool,
    seen: Callable[[Scan], None],
) -> Scan:
    """Bring a store up to date with a folder.

    Args:
        root: the folder.
        listings: its files, of :func:`~fakedet.data.scan.walk` or of a table.
        store: what is known of them.
        threads: that read files; reading waits for the disk, so more than cores pay.
        hashed: take the SHA-256 of each file; without, only its beginning is read.
        seen: called with the counts so far, often.
    """
    state = Scan()
    folders = set()

    def pending() -> Iterator[tuple[str, str, int, int]]:
        for listing in listings:
            folders.add(listing.folder)
            yield from _changed(listing, store, state)
            seen(state)

    work_items = pending()
    with warnings.catch_warnings(), ThreadPoolExecutor(threads) as pool:
        # Of large images and damaged metadata; filters are global, so they are set outside of the threads.
        warnings.simplefilter("ignore")
        waiting: list[Future[list[Facts]]] = []
        try:
            while work := list(islice(work_items, BATCH)):
                waiting.append(pool.submit(_read, root, work, hashed))
                # Bounded: results do not pile up while the walk runs ahead.
                if len(waiting) > 4 * threads:
                    _keep(waiting.pop(0).result(), store, state, seen)
            for future in waiting:
                _keep(future.result(), store, state, seen)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    # A folder that is empty of a sudden is a disk that is not mounted; hours of work are not thrown away.
    if state.files:
        for folder in set(store.folders()) - folders:
            store.forget_folder(folder)
    return state


def _changed(listing: Listing, store: Store, state: Scan) -> Iterator[tuple[str, str, int, int]]:
    """Yield the files of a folder that are not known as they are now; forget those that are gone."""
    known = store.known(listing.folder)
    state.files += len(listing.images)
    state.others += listing.others.total()
    prefix = f"{listing.folder}/" if listing.folder else ""
    state.problems += [((prefix + name).rstrip("/"), reason) for name, reason in listing.problems]
    if any(not name for name, _ in listing.problems):
        state.closed.add(listing.folder)
        return  # the folder cannot be read now, which says nothing of its files
    names = set()
    for name, size, changed in listing.images:
        if not _is_text(prefix + name):
            state.problems.append(
                (prefix + name, "its name is not UTF-8, which a manifest cannot hold: rename it")
            )
            continue
        names.add(name)
        if known.get(name) != (size, changed):
            yield listing.folder, name, size, changed
    gone = [name for name in known if name not in names]
    if gone:
        store.forget(listing.folder, gone)


def _is_text(name: str) -> bool:
    if name.isascii():
        return True
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _keep(rows: list[Facts], store: Store, state: Scan, seen: Callable[[Scan], None]) -> None:
    store.add(rows)
    state.read += len(rows)
    seen(state)


def _read(root: Path, work: list[tuple[str, str, int, int]], hashed: bool) -> list[Facts]:
    return [_facts(root, *item, hashed) for item in work]


def _beginning(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read(HEADER_BYTES)


def _facts(root: Path, folder: str, name: str, size: int, changed: int, hashed: bool) -> Facts:
    digest, header, problem = "", Header("", 0, 0, 0, ""), ""
    try:
        path = os.path.join(root, folder, name)
        data = read_bytes(path) if hashed else _beginning(path)
        header = parse_header(data)
        if hashed:
            digest = hashlib.sha256(data).hexdigest()
            if header.jpeg_tables and not jpeg_ends(data):
                problem = "truncated JPEG: its end marker is missing"
    except DecodeError as error:
        problem = error.reason
    except OSError as error:
        problem = f"cannot be read: {error.strerror}"
    return Facts(folder, name, size, changed, digest, header.format, header.width, header.height,
                 header.jpeg_quality, header.jpeg_tables, problem)  # fmt: skip
