"""Scanning: which image files a folder holds and what their headers say, kept in a SQLite file between runs."""

from __future__ import annotations

import hashlib
import os
import posixpath
import re
import sqlite3
import stat
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import astuple, dataclass, field
from itertools import groupby, islice
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple

from fakedet.data.dataset import cores
from fakedet.data.decode import HEADER_BYTES, DecodeError, Header, parse_header, read_bytes, what_is_missing
from fakedet.data.kinds import is_named_like_an_image
from fakedet.errors import UserError

VERSION = 2  # Of the tables below and of what is read of a file; a file of another version is begun anew
# Names of folders, in any case, that operating systems, network storage and photo programs make for themselves.
LEFT_BEHIND = re.compile(
    r"@(eadir|tmp|recycle|recently-snapshot|globalsnapshot|sharebin|sharesnap|__thumb|img_bkp_cache|syno\w*)|"
    r"[#~](recycle|snapshot)|\$recycle\.bin|recycle[dr]|system volume information|found\.\d{3}|lost\+found|lost\.dir|"
    r"__macosx|network trash folder|temporary items|_?thumb(nail)?s?|ipod photo cache|_gsdata_|.*\.lrdata|"
    r"appdata_oc\w+", re.I)  # fmt: skip
# Folders of a photo program's library that hold no originals.
DERIVED = re.compile(r".*\.(photos|photo|ap|migratedphoto)library/(resources|previews|private|scopes)", re.I | re.S)
# Files that they leave beside images.
THUMBNAIL = re.compile(
    r"synophoto_(thumb|film)_.*|synofile_thumb_.*|albumart_?(small|\{.*)\.jpg|zbthumbnail.*|"
    r"(eh)?thumbs(_vista)?\.db|desktop\.ini", re.I)  # fmt: skip
BATCH = 256  # Files of a task and of a commit: few enough that a kill costs little


class Facts(NamedTuple):
    """What is known of one file."""

    folder: str  # Relative to the root, with slashes; "" for the root itself
    name: str
    bytes: int
    changed: int  # Time of change in ns
    sha256: str
    format: str
    width: int
    height: int
    jpeg_quality: int
    jpeg_tables: str
    problem: str  # Why it cannot be used; "" if it can

    @property
    def path(self) -> str:
        """The path relative to the root."""
        return posixpath.join(self.folder, self.name)


class Store:
    """A SQLite file of facts, made if it is not there; a context manager.

    Two million rows need not fit into memory, only what changed is written, and a kill loses no committed row. A file
    that cannot be written, or belongs to another program, is a UserError.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> Store:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"the folder {self.path.parent} for the manifest cannot be made: {error.strerror}"
            ) from error
        with self._errors():
            self._base = sqlite3.connect(self.path)
            # One process writes; cluster file systems are slow or wrong at anything finer.
            self._base.execute("PRAGMA locking_mode = EXCLUSIVE")
            with closing(self._base.execute("PRAGMA user_version")) as cursor:
                version = cursor.fetchone()[0]
            if version != VERSION:
                self._base.execute("DROP TABLE IF EXISTS files")
            kinds = dict.fromkeys(("bytes", "changed", "width", "height", "jpeg_quality"), "INTEGER")
            columns = "".join(f"{name} {kinds.get(name, 'TEXT')} NOT NULL, " for name in Facts._fields)
            table = f"files ({columns}PRIMARY KEY (folder, name)) WITHOUT ROWID"
            self._base.execute(f"CREATE TABLE IF NOT EXISTS {table}")
            self._base.execute("CREATE INDEX IF NOT EXISTS by_content ON files (sha256)")
            self._base.execute(f"PRAGMA user_version = {VERSION}")
            self._base.commit()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            with self._errors():
                self._base.commit()
        except UserError:
            if kind is None:  # otherwise the first error is the one to report
                raise
        finally:
            self._base.close()

    def known(self, folder: str) -> dict[str, tuple[int, int]]:
        """Return name → (bytes, time of change) of the files of a folder that were read before."""
        rows = self._base.execute("SELECT name, bytes, changed FROM files WHERE folder = ?", (folder,))
        return {name: (size, changed) for name, size, changed in rows}

    def folders(self) -> list[str]:
        """List the folders of all files."""
        return [folder for (folder,) in self._base.execute("SELECT DISTINCT folder FROM files")]

    def forget(self, folder: str, names: Iterable[str]) -> None:
        """Drop files of a folder."""
        with self._errors():
            gone = [(folder, name) for name in names]
            self._base.executemany("DELETE FROM files WHERE folder = ? AND name = ?", gone)

    def add(self, rows: list[Facts]) -> None:
        """Write facts; they are safe when this returns."""
        with self._errors():
            values = ",".join("?" * len(Facts._fields))
            self._base.executemany(f"INSERT OR REPLACE INTO files VALUES ({values})", rows)
            self._base.commit()

    def rows(self) -> Iterator[Facts]:
        """Yield all facts in the order of folders and names."""
        return map(Facts._make, self._base.execute("SELECT * FROM files ORDER BY folder, name"))

    def counts(self) -> dict[str, int]:
        """Return folder → number of its usable files."""
        return dict(self._base.execute("SELECT folder, count(*) FROM files WHERE problem = '' GROUP BY folder"))

    def copies(self) -> Iterator[list[tuple[str, str]]]:
        """Yield (folder, name) of the files that share their content, one content at a time."""
        query = """SELECT sha256, folder, name FROM files WHERE problem = '' AND sha256 IN
                   (SELECT sha256 FROM files WHERE problem = '' AND sha256 != '' GROUP BY sha256 HAVING count(*) > 1)
                   ORDER BY sha256, folder, name"""
        for _, same in groupby(self._base.execute(query), key=itemgetter(0)):
            yield [(folder, name) for _, folder, name in same]

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as error:
            raise UserError(
                f"{self.path}: {error}; is the disk full or the folder read-only, is another `fakedet index` at "
                "work on it, or is the file no index of fakedet's? What was committed is kept; free space, or "
                "delete the file to begin anew"
            ) from error


@dataclass
class Listing:
    """The images of one folder."""

    folder: str  # Relative to the root, with slashes; "" for the root itself
    images: list[tuple[str, int, int]] = field(default_factory=list)  # (name, bytes, time of change in ns)
    # (name, reason): what has the name of an image and cannot be one; "" names the folder itself.
    problems: list[tuple[str, str]] = field(default_factory=list)
    others: list[str] = field(default_factory=list)  # Names of files that are not named like images
    left_behind: Counter[str] = field(default_factory=Counter)  # What machines leave behind, by its name or kind


def is_left_behind(name: str, folder: str = "") -> bool:
    """Return whether a file or folder of this name is what machines leave behind, and no image of a collection.

    Such are names that begin with a dot, recycle bins, snapshots, and the thumbnails that systems and programs keep,
    also in the libraries of photo programs: ``folder`` is the path of what it is in.
    """
    known = LEFT_BEHIND.fullmatch(name) or THUMBNAIL.fullmatch(name) or DERIVED.fullmatch(os.path.join(folder, name))
    return name.startswith(".") or known is not None


def describe_left_behind(counts: Counter[str]) -> str:
    """Say in one line what :attr:`Listing.left_behind` counted; "" if it is nothing."""
    listed = ", ".join(f"{name} ({count})" for name, count in counts.most_common(8))
    return f"left behind by systems and other programs, not looked at: {listed}" if counts else ""


def walk(root: Path) -> Iterator[Listing]:
    """List every folder below an absolute path that holds files, following links, each folder once.

    What :func:`is_left_behind` tells by its name is counted and not looked at; the root may have any name. A folder
    that cannot be read is a problem of its own listing.
    """
    stack, visited = [""], set()
    while stack:
        folder = stack.pop()
        listing, below = Listing(folder), []
        path = os.path.join(root, folder)
        try:
            found = os.stat(path)
            # A link can lead back to a folder that holds it.
            if (found.st_dev, found.st_ino) in visited:
                continue
            visited.add((found.st_dev, found.st_ino))
            below = _list_folder(path, listing)
        except OSError as error:
            listing.problems.append(("", f"the folder cannot be read: {error.strerror}"))
        stack += [posixpath.join(folder, name) for name in sorted(below, reverse=True)]
        if listing.images or listing.problems or listing.others or listing.left_behind:
            yield listing


def _list_folder(path: str, listing: Listing) -> list[str]:
    """Fill a listing and return the names of the folders below."""
    below = []
    with os.scandir(path) as entries:
        for entry in entries:
            name = entry.name
            is_image = is_named_like_an_image(name)
            if is_left_behind(name, path):
                if entry.is_dir():
                    listing.left_behind[f"{name}/"] += 1
                elif is_image:
                    listing.left_behind["hidden images" if name[0] == "." else "thumbnails"] += 1
                continue
            if not is_image:
                # A folder may have any name, an image may not.
                if entry.is_dir():
                    below.append(name)
                else:
                    listing.others.append(name)
                continue
            try:
                found = entry.stat()
            except OSError as error:
                listing.problems.append((name, f"a link that leads nowhere: {error.strerror}"))
                continue
            if stat.S_ISREG(found.st_mode):
                listing.images.append((name, found.st_size, found.st_mtime_ns))
            elif stat.S_ISDIR(found.st_mode):
                below.append(name)
            else:
                listing.problems.append((name, "not a regular file"))
    return below


@dataclass
class Scan:
    """What a scan found."""

    files: int = 0
    read: int = 0  # Files that were new or changed
    others: int = 0  # Files with names of other kinds
    left_behind: Counter[str] = field(default_factory=Counter)  # As in the listings
    # (path, reason) of what is no file, or no folder that can be read.
    problems: list[tuple[str, str]] = field(default_factory=list)
    closed: set[str] = field(default_factory=set)  # Folders that cannot be read


def scan(
    root: Path, listings: Iterable[Listing], store: Store, threads: int | None, hashed: bool,
    seen: Callable[[Scan], None],
) -> Scan:  # fmt: skip
    """Bring a store up to date with the files of a folder, which :func:`walk` or a table lists.

    ``threads``, at most 64, read files (None: four for each core, because reading waits for the disk). ``hashed`` takes
    the SHA-256 of each file; otherwise only its beginning is read. ``seen`` is often called with the counts so far.
    """
    state, folders, threads = Scan(), set(), min(threads or 4 * cores(), 64)

    def changed_files() -> Iterator[tuple[str, str, int, int]]:
        for listing in listings:
            folders.add(listing.folder)
            yield from _changed(listing, store, state)
            seen(state)

    def keep(task: Future[list[Facts]]) -> None:
        rows = task.result()
        store.add(rows)
        state.read += len(rows)
        seen(state)

    todo = changed_files()
    with warnings.catch_warnings(), ThreadPoolExecutor(threads) as pool:
        # About large images and damaged metadata; filters are global, so they are set outside of the threads.
        warnings.simplefilter("ignore")
        waiting: list[Future[list[Facts]]] = []
        try:
            while work := list(islice(todo, BATCH)):
                waiting.append(pool.submit(lambda work: [_facts(root, *item, hashed) for item in work], work))
                # Bounded, so that results do not pile up while the walk runs ahead.
                if len(waiting) > 4 * threads:
                    keep(waiting.pop(0))
            for task in waiting:
                keep(task)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    # A folder that is suddenly empty is a disk that is not mounted; hours of work are not thrown away.
    if state.files:
        for folder in set(store.folders()) - folders:
            store.forget(folder, store.known(folder))
    return state


def _changed(listing: Listing, store: Store, state: Scan) -> Iterator[tuple[str, str, int, int]]:
    """Yield the files of a folder that are new or changed; forget those that are gone."""
    known = store.known(listing.folder)
    state.files += len(listing.images)
    state.others += len(listing.others)
    state.left_behind += listing.left_behind
    prefix = f"{listing.folder}/" if listing.folder else ""
    state.problems += [((prefix + name).rstrip("/"), reason) for name, reason in listing.problems]
    if any(not name for name, _ in listing.problems):
        state.closed.add(listing.folder)
        return  # the folder cannot be read now, which says nothing about its files
    names = set()
    for name, size, changed in listing.images:
        try:
            (prefix + name).encode("utf-8")
        except UnicodeEncodeError:
            state.problems.append((prefix + name, "its name is not UTF-8, which a manifest cannot hold: rename it"))
            continue
        names.add(name)
        if known.get(name) != (size, changed):
            yield listing.folder, name, size, changed
    store.forget(listing.folder, [name for name in known if name not in names])


def _facts(root: Path, folder: str, name: str, size: int, changed: int, hashed: bool) -> Facts:
    digest, header, problem, path = "", Header("", 0, 0, 0, ""), "", os.path.join(root, folder, name)
    try:
        if hashed:
            data = read_bytes(path)
        else:
            with open(path, "rb") as file:
                data = file.read(HEADER_BYTES)
                try:
                    header = parse_header(data)
                except DecodeError:  # long metadata come first
                    data += file.read()
        header = parse_header(data)
        if hashed:
            digest = hashlib.sha256(data).hexdigest()
            problem = what_is_missing(header.format, data)
    except DecodeError as error:
        problem = error.reason
    except OSError as error:
        problem = f"cannot be read: {error.strerror}"
    return Facts._make((folder, name, size, changed, digest, *astuple(header), problem))
