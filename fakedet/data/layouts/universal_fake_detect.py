"""The diffusion sets of UniversalFakeDetect (Ojha et al. 2023), alone or beside ForenSynths' folders."""

from __future__ import annotations

from functools import cached_property
from typing import ClassVar

from fakedet.data.layouts.base import Layout, Parts, Place
from fakedet.data.layouts.forensynths import LABELS, ForenSynths

REALS = ("imagenet", "laion")
# The paper compares ADM's guided diffusion with ImageNet, all others with LAION.
OF_IMAGENET = ("guided",)
FOLDER = "diffusion_datasets"


class UniversalFakeDetect(Layout):
    """``diffusion_datasets/<generator>/1_fake`` with shared reals in ``{imagenet,laion}/0_real``."""

    name: ClassVar[str] = "universalfakedetect"
    tree: ClassVar[str] = (
        "[diffusion_datasets/]{imagenet,laion}/0_real, [diffusion_datasets/]<generator>/1_fake"
    )

    def place(self, parts: Parts) -> Place | None:
        """Say what a folder holds; folders outside the diffusion sets are read as ForenSynths."""
        inner = self._inner(parts)
        if inner is None:
            return ForenSynths(self.root, self.folders).place(parts) if self._below else None
        label = LABELS[inner[1].lower()]
        if label == 0:
            return Place(0, inner[0], inner[0].lower(), "test") if inner[0].lower() in REALS else None
        source = "imagenet" if inner[0].lower() in OF_IMAGENET else "laion"
        return Place(1, inner[0], source, "test")

    def _inner(self, parts: Parts) -> Parts | None:
        """Give (generator, 0_real or 1_fake) of a folder of the diffusion sets."""
        lowered = [part.lower() for part in parts]
        if FOLDER in lowered:
            parts = parts[lowered.index(FOLDER) + 1 :]
        elif self.root.lower() != FOLDER and not self._is_root:
            return None
        return parts[:2] if len(parts) >= 2 and parts[1].lower() in LABELS else None

    @cached_property
    def _below(self) -> bool:
        """Say whether the folder of the diffusion sets lies below the root."""
        return any(FOLDER in (part.lower() for part in parts) for parts in self.folders)

    @cached_property
    def _is_root(self) -> bool:
        """Say whether the root is the folder of the diffusion sets under another name."""
        # Pictures may lie in the root itself, below no folder.
        lowered = {tuple(part.lower() for part in parts[:2]) for parts in self.folders if parts}
        shared = any((name, "0_real") in lowered for name in REALS)
        lonely = all(name in REALS or (name, "0_real") not in lowered for name, *_ in lowered)
        return shared and lonely
