"""DiffusionForensics (Wang et al. 2023, DIRE)."""

from __future__ import annotations

from functools import cached_property
from typing import ClassVar

from fakedet.data.layouts.base import SPLITS, Layout, Parts, Place

# What DIRE computed from the images; no photographs and no generator's output.
DERIVED = ("dire", "recons", "reconstruction")


class DiffusionForensics(Layout):
    """``[images/]{train,val,test}/<domain>/{real,<generator>}``; reals are matched by domain."""

    name: ClassVar[str] = "diffusionforensics"
    tree: ClassVar[str] = "[images/]{train,val,test}/<domain>/{real,<generator>}"

    def place(self, parts: Parts) -> Place | None:
        """Say what a folder holds."""
        inner = self._inner(parts)
        if inner is None or (*inner[:2], "real") not in self._known:
            return None
        split, domain, name = inner
        if name == "real":
            return Place(0, domain, domain, split)
        return Place(1, name, domain, split)

    def aside(self, parts: Parts) -> bool:
        """Leave aside the reconstructions that DIRE made of the images."""
        return bool(parts) and parts[0].lower() in DERIVED

    @cached_property
    def _known(self) -> set[Parts]:
        return {inner for inner in map(self._inner, self.folders) if inner is not None}

    @staticmethod
    def _inner(parts: Parts) -> Parts | None:
        """Give (split, domain, real or generator)."""
        if parts and parts[0].lower() == "images":
            parts = parts[1:]
        if len(parts) < 3 or parts[0].lower() not in SPLITS:
            return None
        name = "real" if parts[2].lower() == "real" else parts[2]
        return SPLITS[parts[0].lower()], parts[1], name
