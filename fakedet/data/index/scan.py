"""Read the headers of files that are new or changed, in threads, and keep what was found."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from fakedet.data.decode import DecodeError, jpeg_ends, read_bytes
from fakedet.data.header import Header, parse_header
from fakedet.data.index.store import Facts, Store
from fakedet.data.index.walk import Listing

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
        listings: its files, of :func:`~fakedet.data.index.walk.walk` or of a table.
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
