"""Walk a folder: every file with its size and time of change, a folder at a time."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

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
