"""What every layout answers: where an image stands, and which images are siblings."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import ClassVar

Parts = tuple[str, ...]
"""The names of the folders from the root down to an image."""
Folders = Collection[Parts]

SPLITS = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test",
}  # fmt: skip
"""Folder names that say a split."""


@dataclass(frozen=True)
class Place:
    """What the folder of an image says of it."""

    label: int
    """0 real, 1 fake."""
    generator: str
    """Who made it; for a real, its collection."""
    source: str = ""
    """What real counterparts are matched on; "" if the layout has no such thing."""
    split: str = ""
    """train, val, test, or "" if the layout does not say."""


class Layout(ABC):
    """A folder tree.

    Args:
        root: name of the root folder; it names the generator where the tree begins below it.
        folders: all folders that hold images, for trees in which one folder explains another.
        reals: names or globs of folders that hold reals, for trees that do not say it themselves.
    """

    name: ClassVar[str]
    """As ``layout=`` names it."""
    tree: ClassVar[str]
    """The tree in one line, as the documentation writes it."""

    def __init__(self, root: str, folders: Folders, reals: Collection[str] = ()) -> None:
        self.root, self.folders, self.reals = root, folders, tuple(reals)

    @abstractmethod
    def place(self, parts: Parts) -> Place | None:
        """Say what a folder holds; None if the layout knows no such folder."""

    def aside(self, parts: Parts) -> bool:
        """Say whether a folder that has no place belongs to the layout nevertheless and is left aside."""
        return False

    def group(self, parts: Parts, stem: str) -> str:
        """Name the photo or prompt that an image shares with siblings; "" if the layout does not tell."""
        return ""

    def named_real(self, name: str) -> bool:
        """Say whether the user named this folder as one of reals."""
        return any(fnmatchcase(name, pattern) for pattern in self.reals)


def without_split(parts: Parts) -> tuple[Parts, str]:
    """Take the first folder that names a split out of the path."""
    for position, part in enumerate(parts):
        if part.lower() in SPLITS:
            return parts[:position] + parts[position + 1 :], SPLITS[part.lower()]
    return parts, ""
