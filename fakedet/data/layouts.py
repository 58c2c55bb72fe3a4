"""data/layouts"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from typing import ClassVar

from fakedet.errors import UserError, choose

Parts = tuple[str, ...]
"""The names of the folders from the root down to an image."""
Folders = Collection[Parts]

SPLIT_FOLDERS = {
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
        if part.lower() in SPLIT_FOLDERS:
            return parts[:position] + parts[position + 1 :], SPLIT_FOLDERS[part.lower()]
    return parts, ""


_PLAIN_LABELS = {
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
        position = next((at for at, part in enumerate(rest) if part.lower() in _PLAIN_LABELS), None)
        if position is None:
            return None
        label = _PLAIN_LABELS[rest[position].lower()]
        others = rest[:position] + rest[position + 1 :]
        return Place(label, "/".join(others) or rest[position], "", split)


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


_FORENSYNTHS_LABELS = {"0_real": 0, "1_fake": 1}
# CNNDetection's train and val hold ProGAN alone, in a folder for each of these classes of LSUN.
PROGAN_CLASSES = {
    "airplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
}  # fmt: skip


class ForenSynths(Layout):
    """``[train|val|test/]<generator>/[class/]{0_real,1_fake}``; a generator's reals stand beside it."""

    name: ClassVar[str] = "forensynths"
    tree: ClassVar[str] = "[train|val|test/]<generator>/[class/]{0_real,1_fake}"

    def place(self, parts: Parts) -> Place | None:
        """Say what a folder holds."""
        position = next((at for at, part in enumerate(parts) if part.lower() in _FORENSYNTHS_LABELS), None)
        if position is None:
            return None
        label, above = _FORENSYNTHS_LABELS[parts[position].lower()], parts[:position]
        split = ""
        # Only the first folder can be a split: "train" is also one of ProGAN's classes.
        if above and above[0].lower() in SPLIT_FOLDERS:
            split, above = SPLIT_FOLDERS[above[0].lower()], above[1:]
        elif above and above[0].lower().endswith(("_train", "_val", "_test")):
            split = above[0].lower().rsplit("_", 1)[1]
            above = (above[0].rsplit("_", 1)[0], *above[1:])
        if not above:
            return Place(label, self.root, "", split)
        if len(above) == 1 and split in ("train", "val") and above[0].lower() in PROGAN_CLASSES:
            return Place(label, "progan", above[0], split)
        # Below the generator stands the class, if anything does.
        return Place(label, above[0], "/".join(above[1:]), split)


_GENIMAGE_LABELS = {"nature": 0, "ai": 1}


class GenImage(Layout):
    """``<generator>/[imagenet_*/]{train,val}/{ai,nature}``, in any case; a generator's reals stand beside it.

    What GenImage calls val is what its papers test on, so it is the test split here; a validation split is
    cut from train.
    """

    name: ClassVar[str] = "genimage"
    tree: ClassVar[str] = "<generator>/[imagenet_*/]{train,val}/{ai,nature}"

    def place(self, parts: Parts) -> Place | None:
        """Say what a folder holds."""
        position = next((at for at, part in enumerate(parts) if part.lower() in _GENIMAGE_LABELS), None)
        if position is None:
            return None
        above = [part for part in parts[:position] if part.lower() not in SPLIT_FOLDERS]
        splits = [SPLIT_FOLDERS[part.lower()] for part in parts[:position] if part.lower() in SPLIT_FOLDERS]
        split = {"train": "train", "val": "test", "test": "test"}[splits[-1]] if splits else ""
        return Place(_GENIMAGE_LABELS[parts[position].lower()], above[0] if above else self.root, "", split)


_UFD_REALS = ("imagenet", "laion")
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
        label = _FORENSYNTHS_LABELS[inner[1].lower()]
        if label == 0:
            return Place(0, inner[0], inner[0].lower(), "test") if inner[0].lower() in _UFD_REALS else None
        source = "imagenet" if inner[0].lower() in OF_IMAGENET else "laion"
        return Place(1, inner[0], source, "test")

    def _inner(self, parts: Parts) -> Parts | None:
        """Give (generator, 0_real or 1_fake) of a folder of the diffusion sets."""
        lowered = [part.lower() for part in parts]
        if FOLDER in lowered:
            parts = parts[lowered.index(FOLDER) + 1 :]
        elif self.root.lower() != FOLDER and not self._is_root:
            return None
        return parts[:2] if len(parts) >= 2 and parts[1].lower() in _FORENSYNTHS_LABELS else None

    @cached_property
    def _below(self) -> bool:
        """Say whether the folder of the diffusion sets lies below the root."""
        return any(FOLDER in (part.lower() for part in parts) for parts in self.folders)

    @cached_property
    def _is_root(self) -> bool:
        """Say whether the root is the folder of the diffusion sets under another name."""
        # Pictures may lie in the root itself, below no folder.
        lowered = {tuple(part.lower() for part in parts[:2]) for parts in self.folders if parts}
        shared = any((name, "0_real") in lowered for name in _UFD_REALS)
        lonely = all(name in _UFD_REALS or (name, "0_real") not in lowered for name, *_ in lowered)
        return shared and lonely


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
        if len(parts) < 3 or parts[0].lower() not in SPLIT_FOLDERS:
            return None
        name = "real" if parts[2].lower() == "real" else parts[2]
        return SPLIT_FOLDERS[parts[0].lower()], parts[1], name


_DRCT_REALS = "mscoco"
_DRCT_SPLITS = {"train2017": "train", "val2017": "test"}


class Drct(Layout):
    """``<generator>/{train2017,val2017}`` with reals under ``MSCOCO/``.

    Fakes are made from the captions of COCO's photographs and bear their numbers, so the number is the group.
    val2017 is what is tested on; a validation split is cut from train2017.
    """

    name: ClassVar[str] = "drct"
    tree: ClassVar[str] = "MSCOCO/{train2017,val2017}, <generator>/{train2017,val2017}"

    def place(self, parts: Parts) -> Place | None:
        """Say what a folder holds."""
        position = next((at for at, part in enumerate(parts) if part.lower() in _DRCT_SPLITS), None)
        if not position:
            return None
        name = parts[position - 1]
        return Place(int(name.lower() != _DRCT_REALS), name, "MSCOCO", _DRCT_SPLITS[parts[position].lower()])

    def group(self, parts: Parts, stem: str) -> str:
        """Give the number of the COCO photograph."""
        number = re.search(r"\d{6,}", stem)
        return f"coco {int(number.group())}" if number else ""


LAYOUTS: dict[str, type[Layout]] = {
    # From the most to the least particular: the first that places all images is taken.
    layout.name: layout
    for layout in (UniversalFakeDetect, ForenSynths, GenImage, DiffusionForensics, Drct, Plain, Generators)
}

__all__ = ["LAYOUTS", "Folders", "Layout", "Place"]


ENOUGH = 0.9
"""Share of the images that a layout must place to be recognised; a dataset may hold a few strays."""
SHOWN = 12


def find_layout(name: str, root: str, images: Mapping[Parts, int], reals: Collection[str] = ()) -> Layout:
    """Choose the layout of a folder.

    Args:
        name: of a layout, or "auto" to recognise it.
        root: name of the folder.
        images: number of images in each folder below it.
        reals: see :class:`~fakedet.data.layouts.Layout`.

    Raises:
        UserError: no layout fits; the message lists the folders seen and the layouts there are.
    """
    if name != "auto":
        layout = LAYOUTS[choose(name, ["auto", *LAYOUTS], "layout")](root, images, reals)
        if _share(layout, images) == 0:
            raise UserError(
                f"layout={name}: no folder here is as it says ({layout.tree}). {_seen(images)}. Known layouts: "
                + _known()
            )
        return layout
    if reals:  # only this layout asks for them
        return find_layout("generators", root, images, reals)
    candidates = [kind(root, images, reals) for kind in LAYOUTS.values()]
    shares = [_share(layout, images) for layout in candidates]
    for layout, share in zip(candidates, shares, strict=True):
        if share >= ENOUGH:
            return layout
    nearest = max(zip(shares, candidates, strict=True), key=lambda pair: pair[0])
    close = f" {nearest[1].name} would place {nearest[0]:.0%} of the images." if nearest[0] > 0 else ""
    raise UserError(
        f"the layout of {root} cannot be told.{close} {_seen(images)}. Name it with layout=NAME, or say which "
        f"top folders hold real photographs with reals=[NAME,...]. Known layouts: {_known()}"
    )


def _share(layout: Layout, images: Mapping[Parts, int]) -> float:
    ours = {parts: count for parts, count in images.items() if not layout.aside(parts)}
    placed = {parts: place for parts in ours if (place := layout.place(parts)) is not None}
    return sum(images[parts] for parts in placed) / max(1, sum(ours.values()))


def _seen(images: Mapping[Parts, int]) -> str:
    listed = sorted(images.items(), key=lambda item: (-item[1], item[0]))
    shown = ", ".join(f"{'/'.join(parts) or '.'} ({count} images)" for parts, count in listed[:SHOWN])
    more = f" and {len(listed) - SHOWN} more folders" if len(listed) > SHOWN else ""
    return f"Seen: {shown}{more}"


def _known() -> str:
    return "; ".join(f"{layout.name}: {layout.tree}" for layout in LAYOUTS.values())
