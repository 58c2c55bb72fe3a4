"""A folder for each generator, and one or more of reals."""

from __future__ import annotations

import re
from functools import cached_property
from typing import ClassVar

from fakedet.data.layouts.base import Layout, Parts, Place, without_split

REAL_NAME = re.compile(r"(0_)?(real|reals|nature|photo|photos)([_\- ].*)?", re.IGNORECASE)


class Generators(Layout):
    """``[train|val|test/]<generator>/...``; folders named real, real_*, photos, ... hold reals.

    Others that hold reals are named with ``reals=[...]``. Without any real folder this is no layout: nothing
    would say which of the folders are photographs.
    """

    name: ClassVar[str] = "generators"
    tree: ClassVar[str] = "[train|val|test/]<generator>/..., real*/..."

    def place(self, parts: Parts) -> Place | None:
        """Say what a folder holds."""
        rest, split = without_split(parts)
        if not rest or not self._has_reals:
            return None
        return Place(int(not self._real(rest)), rest[0], "", split)

    @cached_property
    def _has_reals(self) -> bool:
        return any(self._real(without_split(folder)[0]) for folder in self.folders)

    def _real(self, rest: Parts) -> bool:
        if not rest:
            return False
        return self.named_real(rest[0]) if self.reals else REAL_NAME.fullmatch(rest[0]) is not None
