"""DRCT-2M (Chen et al. 2024)."""

from __future__ import annotations

import re
from typing import ClassVar

from fakedet.data.layouts.base import Layout, Parts, Place

REALS = "mscoco"
SPLITS = {"train2017": "train", "val2017": "test"}


class Drct(Layout):
    """``<generator>/{train2017,val2017}`` with reals under ``MSCOCO/``.

    Fakes are made from the captions of COCO's photographs and bear their numbers, so the number is the group.
    val2017 is what is tested on; a validation split is cut from train2017.
    """

    name: ClassVar[str] = "drct"
    tree: ClassVar[str] = "MSCOCO/{train2017,val2017}, <generator>/{train2017,val2017}"

    def place(self, parts: Parts) -> Place | None:
        """Say what a folder holds."""
        position = next((at for at, part in enumerate(parts) if part.lower() in SPLITS), None)
        if not position:
            return None
        name = parts[position - 1]
        return Place(int(name.lower() != REALS), name, "MSCOCO", SPLITS[parts[position].lower()])

    def group(self, parts: Parts, stem: str) -> str:
        """Give the number of the COCO photograph."""
        number = re.search(r"\d{6,}", stem)
        return f"coco {int(number.group())}" if number else ""
