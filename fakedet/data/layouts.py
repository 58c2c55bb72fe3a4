"""Layouts: the folder trees in which public datasets are published, and what a folder in them says of its images.

:func:`find_layout` chooses one. A layout is a class with one method that matters, :meth:`Layout.place`; to add one,
write a subclass and list it in :data:`LAYOUTS`.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from operator import itemgetter
from typing import ClassVar

from fakedet.data.manifest_table import REALLIKE, SPLITS, class_of, is_undecided, named_classes
from fakedet.errors import UserError, choose

Parts = tuple[str, ...]  # The names of the folders from the root down to an image
ENOUGH = 0.9  # Share of the images that a layout must place to be recognised; a dataset may hold a few other files
SHOWN = 12  # Folders that a message names
DOUBT = "its name is not plainly one for photographs"
UNDECIDED = "its name says neither a class nor a generator"


@dataclass(frozen=True)
class Place:
    """What the folder of an image says of it."""

    label: int  # 0 real, 1 fake
    generator: str  # Who made it; for a real, its collection
    source: str = ""  # What reals and fakes are matched on; "" if the layout has no such thing
    split: str = ""  # train, val, test, or "" if the layout does not say
    reason: str = ""  # What its label follows from


class Layout(ABC):
    """A folder tree.

    Args:
        root: name of the root folder; it names the generator where the tree begins below it.
        folders: all folders that hold images, for trees in which one folder explains another.
        reals, fakes: names or globs of folders that hold reals or fakes, for trees that do not say so themselves.
    """

    name: ClassVar[str]  # The value of ``layout=``
    tree: ClassVar[str]  # The tree in one line, as the documentation writes it

    def __init__(
        self, root: str, folders: Collection[Parts], reals: Collection[str] = (), fakes: Collection[str] = ()
    ) -> None:
        self.root, self.folders, self.named = root, folders, (tuple(reals), tuple(fakes))

    @abstractmethod
    def place(self, parts: Parts) -> Place | None:
        """Return what a folder holds; None if the layout knows no such folder."""

    def aside(self, parts: Parts) -> bool:
        """Return whether a folder without a place belongs to the layout nevertheless, and is not used."""
        return False

    def group(self, stem: str) -> str:
        """Return the photo or prompt that an image of this name shares with others; "" if the layout does not say."""
        return ""

    def doubtful(self) -> list[str]:
        """Return names of folders that might be meant for reals."""
        return []

    def class_folder(self, parts: Parts) -> int | None:
        """Return the place of the folder that is named for a class; None if there is none, or two disagree.

        One that stands beside a folder of the other class comes first: "nature" beside "ai" is a class, and in
        nature/real or nature/fake it is what the pictures show.
        """
        paired, words = self._paired
        named = [position for position, part in enumerate(parts) if class_of(part) is not None]
        for position in named:
            if parts[: position + 1] in paired:
                return position
        sure = [n for n in named if class_of(parts[n], surely=True) is not None or parts[n].lower() in words]
        return sure[0] if len({class_of(parts[n]) for n in sure}) == 1 else None

    @cached_property
    def _paired(self) -> tuple[set[Parts], set[str]]:
        """Folders that are named for a class and stand beside one of the other class; and their names."""
        known = {folder[:end]: label for folder in self.folders for end in range(1, len(folder) + 1)
                 if (label := class_of(folder[end - 1])) is not None}  # fmt: skip
        beside = {(folder[:-1], label) for folder, label in known.items()}
        paired = {folder for folder, label in known.items() if (folder[:-1], 1 - label) in beside}
        return paired, {folder[-1].lower() for folder in paired}


def find_layout(
    name: str, root: str, images: Mapping[Parts, int], reals: Collection[str] = (), fakes: Collection[str] = ()
) -> Layout:
    """Choose the layout of a folder by its name, or recognise it ("auto") by the number of images in each folder.

    On root, reals and fakes see :class:`Layout`. A UserError if no layout fits; it lists the folders and the known
    layouts.
    """
    if reals or fakes:  # only this layout asks for them
        if name not in ("auto", Generators.name):
            raise UserError(f"reals and fakes name top folders, for layout={Generators.name}; layout={name} takes none")
        name = Generators.name
    known = "; ".join(f"{layout.name}: {layout.tree}" for layout in LAYOUTS.values())
    listed = sorted(images.items(), key=lambda item: (-item[1], item[0]))
    seen = ", ".join(f"{'/'.join(parts) or '.'} ({count} images)" for parts, count in listed[:SHOWN])
    if len(listed) > SHOWN:
        seen += f" and {len(listed) - SHOWN} more folders"
    if name != "auto":
        layout = LAYOUTS[choose(name, ["auto", *LAYOUTS], "layout")](root, images, reals, fakes)
        if _share(layout, images) == 0:
            advice = " Say which folders hold photographs: reals=[NAME,...]." * (name == Generators.name)
            raise UserError(
                f"layout={name}: no folder here is as it says ({layout.tree}).{advice} Seen: {seen}. Known layouts: "
                f"{known}"
            )
        return layout
    shares = {layout: _share(layout, images) for layout in (kind(root, images) for kind in LAYOUTS.values())}
    fitting = [layout for layout, share in shares.items() if share >= ENOUGH]
    if fitting:  # one that sees both classes before one that leaves a class out
        labels = ({place.label for parts in images if (place := one.place(parts))} for one in fitting)
        return max(zip(fitting, labels, strict=True), key=lambda pair: len(pair[1]))[0]
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

    def place(self, parts: Parts) -> Place | None:
        """Return what a folder holds; the names of the other folders are the generator."""
        position = self.class_folder(parts)
        if position is None:
            return None
        others, split = _without_split(parts[:position] + parts[position + 1 :])
        label = class_of(parts[position])
        assert label is not None
        return Place(label, "/".join(others) or parts[position], "", split, f"folder '{parts[position]}'")


class Generators(Layout):
    """A folder for each generator; those whose names plainly say so, or in ``reals=[...]``, hold reals.

    A tree without a folder of reals does not fit, because nothing says which of the folders are photographs.
    """

    name: ClassVar[str] = "generators"
    tree: ClassVar[str] = "[train|val|test/]<generator>/..., real*/..."

    def place(self, parts: Parts) -> Place | None:
        """Return what a folder holds."""
        rest, split = _without_split(parts)
        if not rest or not self._is_told:
            return None
        label, reason = self._told[rest[0]]
        return None if reason == UNDECIDED else Place(label, rest[0], "", split, reason)

    def aside(self, parts: Parts) -> bool:
        """Return whether the name of a folder says neither a class nor a generator."""
        rest, _ = _without_split(parts)
        return bool(rest) and self._told[rest[0]][1] == UNDECIDED

    @cached_property
    def _is_told(self) -> bool:
        """Whether some folder holds reals, or the options name all folders."""
        labels, reasons = zip(*self._told.values(), strict=True)
        return 0 in labels or all(reason.startswith("fakes=") for reason in reasons)

    @cached_property
    def _told(self) -> dict[str, tuple[int, str]]:
        """Label of each top folder, with its reason."""
        tops = {rest[0] for folder in self.folders if (rest := _without_split(folder)[0])}
        told = named_classes(tops, *self.named, "top folder")
        for name in tops - set(told):
            label = class_of(name)
            if label is not None:
                told[name] = (label, "by its name")
            else:
                doubt = DOUBT if re.search(REALLIKE, name.lower()) else "a folder beside reals"
                told[name] = (1, UNDECIDED if is_undecided(name) else doubt)
        return told

    def doubtful(self) -> list[str]:
        """Return the top folders whose names resemble one for photographs, or say nothing."""
        doubts = {DOUBT: "", UNDECIDED: " (left out)"}
        return sorted(f"{name}{doubts[reason]}" for name, (_, reason) in self._told.items() if reason in doubts)


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
            above = (self.root,)
        elif len(above) == 1 and split in ("train", "val") and above[0].lower() in PROGAN_CLASSES:
            above = ("progan", *above)
        return Place(label, above[0], "/".join(above[1:]), split, f"folder '{parts[position]}'")


class GenImage(Layout):
    """GenImage, names in upper or lower case; a generator's reals are beside it.

    GenImage's papers test on what it calls val, so that is the test split here; a validation split is cut from train.
    """

    name: ClassVar[str] = "genimage"
    tree: ClassVar[str] = "<generator>/[imagenet_*/]{train,val}/{ai,nature}"
    labels: ClassVar[dict[str, int]] = {"nature": 0, "ai": 1}

    def place(self, parts: Parts) -> Place | None:
        """Return what a folder holds."""
        position = self.class_folder(parts)
        if position is None or parts[position].lower() not in self.labels:
            return None
        above = [part for part in parts[:position] if part.lower() not in SPLITS]
        splits = [SPLITS[part.lower()] for part in parts[:position] if part.lower() in SPLITS]
        split = splits[-1].replace("val", "test") if splits else ""
        name = parts[position]
        return Place(self.labels[name.lower()], above[0] if above else self.root, "", split, f"folder '{name}'")


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
        label, source, reason = FORENSYNTHS_LABELS[inner[1].lower()], inner[0].lower(), f"folder '{inner[1]}'"
        if label == 0:
            return Place(0, inner[0], source, "test", reason) if source in self.real_sets else None
        # The paper compares ADM's guided diffusion with ImageNet, all others with LAION.
        return Place(1, inner[0], "imagenet" if source == "guided" else "laion", "test", reason)

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
        if name == "real":
            return Place(0, domain, domain, split, "folder 'real'")
        return Place(1, name, domain, split, "a folder beside 'real'")

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
        name, split = parts[position - 1], self.splits[parts[position].lower()]
        if name.lower() in ("mscoco", "coco") or class_of(name) == 0:
            return Place(0, name, "MSCOCO", split, "COCO's photographs")
        return Place(1, name, "MSCOCO", split, "a folder beside MSCOCO")

    def group(self, stem: str) -> str:
        """Return the number of the COCO photograph."""
        number = re.search(r"\d{6,}", stem)
        return f"coco {int(number.group())}" if number else ""


# From the most to the least specific: the first that places nearly all images is taken.
_ORDER = (UniversalFakeDetect, ForenSynths, GenImage, DiffusionForensics, Drct, Plain, Generators)
LAYOUTS: dict[str, type[Layout]] = {layout.name: layout for layout in _ORDER}
