"""Layouts: the folder trees in which public datasets are published, and what a folder in them says of its images.

:func:`find_layout` chooses one. A layout is a class with one method that matters, :meth:`Layout.place`; to add one,
write a subclass and list it in :data:`LAYOUTS`.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from operator import itemgetter
from typing import ClassVar

from fakedet.data.manifest_table import SPLITS
from fakedet.errors import UserError, choose

Parts = tuple[str, ...]  # The names of the folders from the root down to an image
ENOUGH = 0.9  # Share of the images that a layout must place to be recognised; a dataset may hold a few other files
SHOWN = 12  # Folders that a message names


@dataclass(frozen=True)
class Place:
    """What the folder of an image says of it."""

    label: int  # 0 real, 1 fake
    generator: str  # Who made it; for a real, its collection
    source: str = ""  # What reals and fakes are matched on; "" if the layout has no such thing
    split: str = ""  # train, val, test, or "" if the layout does not say


class Layout(ABC):
    """A folder tree.

    Args:
        root: name of the root folder; it names the generator where the tree begins below it.
        folders: all folders that hold images, for trees in which one folder explains another.
        reals: names or globs of folders that hold reals, for trees that do not say so themselves.
    """

    name: ClassVar[str]  # The value of ``layout=``
    tree: ClassVar[str]  # The tree in one line, as the documentation writes it

    def __init__(self, root: str, folders: Collection[Parts], reals: Collection[str] = ()) -> None:
        self.root, self.folders, self.reals = root, folders, tuple(reals)

    @abstractmethod
    def place(self, parts: Parts) -> Place | None:
        """Return what a folder holds; None if the layout knows no such folder."""

    def aside(self, parts: Parts) -> bool:
        """Return whether a folder without a place belongs to the layout nevertheless, and is not used."""
        return False

    def group(self, stem: str) -> str:
        """Return the photo or prompt that an image of this name shares with others; "" if the layout does not say."""
        return ""


def find_layout(name: str, root: str, images: Mapping[Parts, int], reals: Collection[str] = ()) -> Layout:
    """Choose the layout of a folder by its name, or recognise it ("auto") by the number of images in each folder.

    On root and reals see :class:`Layout`. A UserError if no layout fits; it lists the folders and the known layouts.
    """
    if name == "auto" and reals:  # only this layout asks for them
        name = "generators"
    known = "; ".join(f"{layout.name}: {layout.tree}" for layout in LAYOUTS.values())
    listed = sorted(images.items(), key=lambda item: (-item[1], item[0]))
    seen = ", ".join(f"{'/'.join(parts) or '.'} ({count} images)" for parts, count in listed[:SHOWN])
    if len(listed) > SHOWN:
        seen += f" and {len(listed) - SHOWN} more folders"
    if name != "auto":
        layout = LAYOUTS[choose(name, ["auto", *LAYOUTS], "layout")](root, images, reals)
        if _share(layout, images) == 0:
            raise UserError(
                f"layout={name}: no folder here is as it says ({layout.tree}). Seen: {seen}. Known layouts: {known}"
            )
        return layout
    shares = {layout: _share(layout, images) for layout in (kind(root, images, reals) for kind in LAYOUTS.values())}
    for layout, share in shares.items():
        if share >= ENOUGH:
            return layout
    near, best = max(shares.items(), key=itemgetter(1))
    close = f" {near.name} would place {best:.0%} of the images." if best > 0 else ""
    raise UserError(
        f"the layout of {root} cannot be told.{close} Seen: {seen}. Name it with layout=NAME, or say which "
        f"top folders hold real photographs with reals=[NAME,...]. Known layouts: {known}"
    )


def _share(layout: Layout, images: Mapping[Parts, int]) -> float:
    """Return the share of the images that a layout places, of those that it does not leave aside."""
    counts = {parts: count for parts, count in images.items() if not layout.aside(parts)}
    placed = sum(count for parts, count in counts.items() if layout.place(parts) is not None)
    return placed / max(1, sum(counts.values()))


def _find(parts: Parts, names: Collection[str]) -> int | None:
    """Return the place of the first folder that bears one of these names, in any case."""
    return next((position for position, part in enumerate(parts) if part.lower() in names), None)


def _without_split(parts: Parts) -> tuple[Parts, str]:
    """Take the first folder that names a split out of the path."""
    position = _find(parts, SPLITS)
    if position is None:
        return parts, ""
    return parts[:position] + parts[position + 1 :], SPLITS[parts[position].lower()]


class Plain(Layout):
    """Folders named real and fake, or similar; a generator's reals may be beside it."""

    name: ClassVar[str] = "real_fake"
    tree: ClassVar[str] = "[train|val|test/]{real,fake}[/<generator>] or <generator>/{real,fake}"
    labels: ClassVar[dict[str, int]] = {
        "real": 0, "reals": 0, "0_real": 0, "nature": 0, "natural": 0, "authentic": 0, "genuine": 0, "human": 0,
        "fake": 1, "fakes": 1, "1_fake": 1, "ai": 1, "synthetic": 1, "generated": 1, "ai_generated": 1,
    }  # fmt: skip

    def place(self, parts: Parts) -> Place | None:
        """Return what a folder holds; the names of the other folders are the generator."""
        rest, split = _without_split(parts)
        position = _find(rest, self.labels)
        if position is None:
            return None
        others = rest[:position] + rest[position + 1 :]
        return Place(self.labels[rest[position].lower()], "/".join(others) or rest[position], "", split)


class Generators(Layout):
    """A folder for each generator; folders named real, real_*, photos, ... or in ``reals=[...]`` hold reals.

    A tree without a folder of reals does not fit, because nothing says which of the folders are photographs.
    """

    name: ClassVar[str] = "generators"
    tree: ClassVar[str] = "[train|val|test/]<generator>/..., real*/..."
    real_name = re.compile(r"(0_)?(real|reals|nature|photo|photos)([_\- ].*)?", re.IGNORECASE)

    def place(self, parts: Parts) -> Place | None:
        """Return what a folder holds."""
        rest, split = _without_split(parts)
        if not rest or not self._has_reals:
            return None
        return Place(int(not self._is_real(rest)), rest[0], "", split)

    @cached_property
    def _has_reals(self) -> bool:
        return any(self._is_real(_without_split(folder)[0]) for folder in self.folders)

    def _is_real(self, rest: Parts) -> bool:
        if self.reals:
            return any(fnmatchcase(name, pattern) for name in rest[:1] for pattern in self.reals)
        return bool(rest) and self.real_name.fullmatch(rest[0]) is not None


FORENSYNTHS_LABELS = {"0_real": 0, "1_fake": 1}
# CNNDetection's train and val hold only ProGAN, in a folder for each of these classes of LSUN.
PROGAN_CLASSES = {
    "airplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
}  # fmt: skip


class ForenSynths(Layout):
    """ForenSynths, CNNDetection, AIGCDetectBenchmark; a generator's reals are beside it."""

    name: ClassVar[str] = "forensynths"
    tree: ClassVar[str] = "[train|val|test/]<generator>/[class/]{0_real,1_fake}"

    def place(self, parts: Parts) -> Place | None:
        """Return what a folder holds; the class below the generator is the source."""
        position = _find(parts, FORENSYNTHS_LABELS)
        if position is None:
            return None
        label, above = FORENSYNTHS_LABELS[parts[position].lower()], parts[:position]
        # Only the first folder can be a split: "train" is also one of ProGAN's classes.
        split, first = "", above[0].lower() if above else ""
        if first in SPLITS:
            split, above = SPLITS[first], above[1:]
        elif first.endswith(("_train", "_val", "_test")):
            split, above = first.rsplit("_", 1)[1], (above[0].rsplit("_", 1)[0], *above[1:])
        if not above:
            return Place(label, self.root, "", split)
        if len(above) == 1 and split in ("train", "val") and above[0].lower() in PROGAN_CLASSES:
            return Place(label, "progan", above[0], split)
        return Place(label, above[0], "/".join(above[1:]), split)


class GenImage(Layout):
    """GenImage, names in upper or lower case; a generator's reals are beside it.

    GenImage's papers test on what it calls val, so that is the test split here; a validation split is cut from train.
    """

    name: ClassVar[str] = "genimage"
    tree: ClassVar[str] = "<generator>/[imagenet_*/]{train,val}/{ai,nature}"
    labels: ClassVar[dict[str, int]] = {"nature": 0, "ai": 1}

    def place(self, parts: Parts) -> Place | None:
        """Return what a folder holds."""
        position = _find(parts, self.labels)
        if position is None:
            return None
        above = [part for part in parts[:position] if part.lower() not in SPLITS]
        splits = [SPLITS[part.lower()] for part in parts[:position] if part.lower() in SPLITS]
        split = splits[-1].replace("val", "test") if splits else ""
        return Place(self.labels[parts[position].lower()], above[0] if above else self.root, "", split)


class UniversalFakeDetect(Layout):
    """UniversalFakeDetect's diffusion sets, which share their reals, beside ForenSynths' folders."""

    name: ClassVar[str] = "universalfakedetect"
    tree: ClassVar[str] = "[diffusion_datasets/]{imagenet,laion}/0_real, [diffusion_datasets/]<generator>/1_fake"
    folder: ClassVar[str] = "diffusion_datasets"
    real_sets: ClassVar[tuple[str, ...]] = ("imagenet", "laion")

    def place(self, parts: Parts) -> Place | None:
        """Return what a folder holds; folders outside the diffusion sets are read as ForenSynths."""
        inner = self._inner(parts)
        if inner is None:
            return ForenSynths(self.root, self.folders).place(parts) if self._is_below else None
        label = FORENSYNTHS_LABELS[inner[1].lower()]
        if label == 0:
            return Place(0, inner[0], inner[0].lower(), "test") if inner[0].lower() in self.real_sets else None
        # The paper compares ADM's guided diffusion with ImageNet, all others with LAION.
        return Place(1, inner[0], "imagenet" if inner[0].lower() == "guided" else "laion", "test")

    def _inner(self, parts: Parts) -> Parts | None:
        """Return (generator, 0_real or 1_fake) of a folder of the diffusion sets."""
        position = _find(parts, (self.folder,))
        if position is not None:
            parts = parts[position + 1 :]
        elif self.root.lower() != self.folder and not self._is_root:
            return None
        return parts[:2] if len(parts) >= 2 and parts[1].lower() in FORENSYNTHS_LABELS else None

    @cached_property
    def _is_below(self) -> bool:
        """Whether the folder of the diffusion sets is below the root."""
        return any(_find(parts, (self.folder,)) is not None for parts in self.folders)

    @cached_property
    def _is_root(self) -> bool:
        """Whether the root is the folder of the diffusion sets under another name."""
        # Images may be in the root itself, below no folder.
        lowered = {tuple(part.lower() for part in parts[:2]) for parts in self.folders if parts}
        shared = any((name, "0_real") in lowered for name in self.real_sets)
        # Where any other folder has reals of its own, this is ForenSynths.
        return shared and all(name in self.real_sets or (name, "0_real") not in lowered for name, *_ in lowered)


class DiffusionForensics(Layout):
    """DiffusionForensics (DIRE); reals and fakes are matched by domain."""

    name: ClassVar[str] = "diffusionforensics"
    tree: ClassVar[str] = "[images/]{train,val,test}/<domain>/{real,<generator>}"

    def place(self, parts: Parts) -> Place | None:
        """Return what a folder holds."""
        inner = self._inner(parts)
        if inner is None or (*inner[:2], "real") not in self._known:
            return None
        split, domain, name = inner
        return Place(0, domain, domain, split) if name == "real" else Place(1, name, domain, split)

    def aside(self, parts: Parts) -> bool:
        """Return whether a folder holds what DIRE computed from the images."""
        return bool(parts) and parts[0].lower() in ("dire", "recons", "reconstruction")

    @cached_property
    def _known(self) -> set[Parts]:
        return {inner for inner in map(self._inner, self.folders) if inner is not None}

    @staticmethod
    def _inner(parts: Parts) -> Parts | None:
        """Return (split, domain, real or generator)."""
        if parts and parts[0].lower() == "images":
            parts = parts[1:]
        if len(parts) < 3 or parts[0].lower() not in SPLITS:
            return None
        return SPLITS[parts[0].lower()], parts[1], "real" if parts[2].lower() == "real" else parts[2]


class Drct(Layout):
    """DRCT-2M, with COCO as its reals; val2017 is the test split, and a validation split is cut from train2017.

    Fakes are made from the captions of COCO's photographs and bear their numbers, so the number is the group.
    """

    name: ClassVar[str] = "drct"
    tree: ClassVar[str] = "MSCOCO/{train2017,val2017}, <generator>/{train2017,val2017}"
    splits: ClassVar[dict[str, str]] = {"train2017": "train", "val2017": "test"}

    def place(self, parts: Parts) -> Place | None:
        """Return what a folder holds."""
        position = _find(parts, self.splits)
        if not position:
            return None
        name = parts[position - 1]
        return Place(int(name.lower() != "mscoco"), name, "MSCOCO", self.splits[parts[position].lower()])

    def group(self, stem: str) -> str:
        """Return the number of the COCO photograph."""
        number = re.search(r"\d{6,}", stem)
        return f"coco {int(number.group())}" if number else ""


# From the most to the least specific: the first that places nearly all images is taken.
_ORDER = (UniversalFakeDetect, ForenSynths, GenImage, DiffusionForensics, Drct, Plain, Generators)
LAYOUTS: dict[str, type[Layout]] = {layout.name: layout for layout in _ORDER}
