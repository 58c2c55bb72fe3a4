"""Folders called real and fake, at any depth, Community Forensics' among them."""

from __future__ import annotations

from typing import ClassVar

from fakedet.data.layouts.base import Layout, Parts, Place, without_split

LABELS = {
    "real": 0, "reals": 0, "0_real": 0, "nature": 0, "natural": 0, "authentic": 0, "genuine": 0, "human": 0,
    "fake": 1, "fakes": 1, "1_fake": 1, "ai": 1, "synthetic": 1, "generated": 1, "ai_generated": 1,
}  # fmt: skip


class Plain(Layout):
    """``[train|val|test/][<generator>/]{real,fake}[/<generator>]``; a generator's reals stand beside it."""

    name: ClassVar[str] = "real_fake"
    tree: ClassVar[str] = "[train|val|test/]{real,fake}[/<generator>] or <generator>/{real,fake}"

    def place(self, parts: Parts) -> Place | None:
        """Say what a folder holds."""
        rest, split = without_split(parts)
        position = next((at for at, part in enumerate(rest) if part.lower() in LABELS), None)
        if position is None:
            return None
        label = LABELS[rest[position].lower()]
        others = rest[:position] + rest[position + 1 :]
        return Place(label, "/".join(others) or rest[position], "", split)
