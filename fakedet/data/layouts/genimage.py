"""GenImage (Zhu et al. 2023)."""

from __future__ import annotations

from typing import ClassVar

from fakedet.data.layouts.base import SPLITS, Layout, Parts, Place

LABELS = {"nature": 0, "ai": 1}


class GenImage(Layout):
    """``<generator>/[imagenet_*/]{train,val}/{ai,nature}``, in any case; a generator's reals stand beside it.

    What GenImage calls val is what its papers test on, so it is the test split here; a validation split is
    cut from train.
    """

    name: ClassVar[str] = "genimage"
    tree: ClassVar[str] = "<generator>/[imagenet_*/]{train,val}/{ai,nature}"

    def place(self, parts: Parts) -> Place | None:
        """Say what a folder holds."""
        position = next((at for at, part in enumerate(parts) if part.lower() in LABELS), None)
        if position is None:
            return None
        above = [part for part in parts[:position] if part.lower() not in SPLITS]
        splits = [SPLITS[part.lower()] for part in parts[:position] if part.lower() in SPLITS]
        split = {"train": "train", "val": "test", "test": "test"}[splits[-1]] if splits else ""
        return Place(LABELS[parts[position].lower()], above[0] if above else self.root, "", split)
