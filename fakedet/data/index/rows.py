"""From what is known of a file to its row of the manifest."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import lru_cache

from fakedet.data.index.store import Facts
from fakedet.data.layouts import Layout, Place
from fakedet.data.manifest_columns import SHARES, SPLITS, split_of
from fakedet.errors import UserError, nearest

CARVED = {"val": 0.1, "train": 0.9}
"""Shares of the training groups of a layout that has a test split and no validation split."""
GROUP_RULES = ("auto", "file", "stem")


@dataclass(frozen=True)
class Choices:
    """What the user may say of splits and groups."""

    split: str | None = None
    """Every image's split; None: the layout's, else by the hash of the group."""
    unseen: Collection[str] = ()
    """Generators (names or globs) whose images go to test alone."""
    group: str = "auto"
    """One of :data:`GROUP_RULES`, or a regular expression whose first group is looked for in the path."""
    seed: int = 0
    """Of the splits by hash."""
    pattern: re.Pattern[str] | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        if self.split is not None and self.split not in SPLITS:
            raise UserError(f"split={self.split}: {nearest(self.split, set(SPLITS.values()))}")
        if self.group in GROUP_RULES:
            return
        try:
            pattern = re.compile(self.group)
        except re.error as error:
            raise UserError(f"group={self.group}: not a regular expression: {error}") from error
        if not pattern.groups:
            raise UserError(
                f"group={self.group}: one of {', '.join(GROUP_RULES)}, or a regular expression with a group "
                "in parentheses, such as group='(\\d+)_'"
            )
        object.__setattr__(self, "pattern", pattern)


class Rows:
    """Say where each file belongs.

    Args:
        layout: of the folder.
        choices: of the user.
        counts: usable files of each folder, relative to the root.

    Raises:
        UserError: ``unseen`` names a generator that is not there.
    """

    def __init__(self, layout: Layout, choices: Choices, counts: Mapping[str, int]) -> None:
        self.layout, self.choices = layout, choices
        self.place = lru_cache(maxsize=1 << 16)(self._place)
        self.first_copy: dict[str, tuple[str, str]] = {}
        """Path of a copy → (folder, name) of the first file with its content: one content, one group."""
        self.unseen_groups: set[str] = set()
        places = [place for folder in counts if (place := self.place(folder)) is not None]
        given = {place.split for place in places if place.split}
        self._carve = "test" in given and "val" not in given and "train" in given
        self._unseen = _matching(choices.unseen, {place.generator for place in places if place.label == 1})

    def group(self, folder: str, name: str) -> str:
        """Name the group of a file."""
        folder, name = self.first_copy.get(posixpath.join(folder, name), (folder, name))
        path, stem = posixpath.join(folder, name), posixpath.splitext(name)[0]
        if self.choices.pattern is not None:
            found = self.choices.pattern.search(path)
            return (found.group(1) if found else None) or path
        if self.choices.group == "stem":
            return stem
        if self.choices.group == "auto":
            return self.layout.group(tuple(folder.split("/")), stem) or path
        return path

    def split(self, folder: str, name: str) -> str:
        """Choose the split of a file that has a place."""
        place = self.place(folder)
        assert place is not None
        if self.choices.split is not None:
            return SPLITS[self.choices.split]
        group = self.group(folder, name)
        if place.generator in self._unseen or group in self.unseen_groups:
            return "test"
        if place.split == "train" and self._carve:
            return split_of(group, self.choices.seed, CARVED)
        return place.split or split_of(group, self.choices.seed, SHARES)

    def note_unseen(self, rows: Iterable[Facts]) -> None:
        """Remember the groups of unseen generators: their siblings go to test with them."""
        if self._unseen:
            for fact in rows:
                place = self.place(fact.folder)
                if place is not None and place.generator in self._unseen:
                    self.unseen_groups.add(self.group(fact.folder, fact.name))

    def _place(self, folder: str) -> Place | None:
        return self.layout.place(tuple(folder.split("/")) if folder else ())


def _matching(patterns: Collection[str], names: Collection[str]) -> set[str]:
    found = set()
    for pattern in patterns:
        own = {name for name in names if fnmatchcase(name, pattern)}
        if not own:
            raise UserError(f"unseen: no generator is called '{pattern}'; {nearest(pattern, names)}")
        found |= own
    return found
