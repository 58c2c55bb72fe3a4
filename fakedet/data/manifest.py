"""The manifest: a checked table of images, with what is derived from it: cells, held-out generators, quarantine."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from fakedet.data import manifest_table as columns
from fakedet.data.manifest_table import COLUMNS, FACTS, INSIDE_KEY, ROOT_KEY, SHARDS_KEY, content, read_table, texts
from fakedet.errors import UserError, choose, nearest
from fakedet.metrics.pairing import real_counterparts

ASIDE = "aside"  # The split of rows that a run with held-out generators does not use


@dataclass(frozen=True)
class Manifest:
    """A checked table of images."""

    frame: pd.DataFrame  # The columns of ``COLUMNS``; the index 0..n-1 is a row's id
    root: Path  # The folder that paths are relative to
    sha256: str  # Of the frame's content; the same for a CSV and a parquet table of the same rows
    facts: pa.Table | None = None  # Further columns, which `fakedet index` and `fakedet shard` write; see ``FACTS``
    # Folder or URL of the shards or parquet files that hold the images; None: they are files below the root
    shards: str | None = None
    inside: dict[str, str] | None = None  # Parquet files that hold the images → their column of these; None: none do
    notes: list[str] = field(default_factory=list)  # What was filled in or not used, for the log
    path: Path = Path("<data frame>")  # The file it was read from

    @classmethod
    def from_frame(cls, frame: pd.DataFrame, root: str | Path = ".", **settings: Any) -> Manifest:
        """Check and complete a data frame, which a data module made; a wrong column or value is a UserError.

        Args:
            frame: at least the columns path (unique names, in any form), label (0 real, 1 fake) and generator.
            root: the folder that paths are relative to, if they are files; whether the files are there is not checked.
            **settings: ``allow_group_leak`` and ``split_seed``; see :func:`load_manifest`.
        """
        table = pa.Table.from_pandas(frame, preserve_index=False)
        return check_manifest(table, cls.path, Path(root), probe=False, **settings)

    @cached_property
    def digests(self) -> pd.Series | None:
        """SHA-256 of each row's file by id; "" where one is not known, None where the table has none."""
        if self.facts is None or "sha256" not in self.facts.column_names:
            return None
        return pd.Series(texts(self.facts["sha256"]).to_pylist(), self.frame.index, dtype=object)

    def fact(self, name: str) -> NDArray[np.int64]:
        """Return a column of whole numbers of the facts."""
        assert self.facts is not None
        return self.facts[name].to_numpy().astype(np.int64)

    def rows(self, split: str) -> pd.DataFrame:
        """Return the rows of one split."""
        return self.frame[self.frame["split"] == split]

    def require(self, split: str, both_classes: bool = False) -> None:
        """Raise a UserError if a split has no images, or lacks a class and both are asked for."""
        rows = self.rows(split)
        if rows.empty:
            present = ", ".join(f"{name} ({count})" for name, count in self.frame["split"].value_counts().items())
            raise UserError(f"the split '{split}' is empty: the manifest has {present}")
        for label, name in ((0, "real"), (1, "fake")):
            if both_classes and not (rows["label"] == label).any():
                raise UserError(
                    f"the split '{split}' has no {name} images (label {label}); a detector needs both classes there"
                )


def load_manifest(
    path: str | Path, root: str | Path | None = None, allow_group_leak: bool = False, split_seed: int = 0
) -> Manifest:
    """Read and check a manifest; a UserError names the first mistake in the file, a column, a value or the folder.

    Args:
        path: a parquet or CSV file with at least the columns path, label (0 real, 1 fake) and generator.
        root: the folder that its paths are relative to, or the folder or URL of its shards or parquet files; None: what
            the manifest itself says, or else its own folder.
        allow_group_leak: accept a group of images that is in several splits.
        split_seed: of the split by groups that a table without a split gets.
    """
    path = Path(os.path.expanduser(path))
    table = read_table(path)
    metadata = table.schema.metadata or {}
    written = metadata.get(SHARDS_KEY, metadata.get(ROOT_KEY))
    own = path.parent if written is None else (path.parent / os.fsdecode(written)).resolve()
    if SHARDS_KEY in metadata or INSIDE_KEY in metadata:
        location = str(own if root is None else root)
        if INSIDE_KEY in metadata and "://" not in location and not os.path.isdir(location):
            raise UserError(f"data.root={location}: there is no such folder; it is to hold the parquet files of {path}")
        found = check_manifest(table, path, path.parent, allow_group_leak, split_seed, location, probe=False)
        return replace(found, inside=json.loads(metadata[INSIDE_KEY])) if INSIDE_KEY in metadata else found
    return check_manifest(table, path, own if root is None else Path(root), allow_group_leak, split_seed)


def check_manifest(
    table: pa.Table, path: Path, root: Path, allow_group_leak: bool = False, split_seed: int = 0,
    shards: str | None = None, probe: bool = True,
) -> Manifest:  # fmt: skip
    """Check and complete a table, as :func:`load_manifest` does; messages name the path.

    ``shards`` is the folder or URL of the shards that hold the images, if any do; ``probe`` checks that some of the
    first images are there.
    """
    if not root.is_dir():
        raise UserError(f"data.root={root}: there is no such folder")
    notes: list[str] = []
    columns.check_columns(table, path, notes)
    if not table.num_rows:
        raise UserError(f"{path}: the table is empty, it has no rows")
    image, label = columns.paths(table, path, root), columns.labels(table, path)
    generator, source = columns.names(table, "generator", path), columns.names(table, "source", path, blank=True)
    group = columns.names(table, "group", path, blank=True)
    group = pc.if_else(pc.equal(group, ""), image, group)  # a row without a group is its own
    split = columns.splits(table, group, path, split_seed, notes)
    columns.check_groups(group, split, path, allow_group_leak, notes)
    family = columns.families(table, label, generator, path)
    checked = dict(zip(COLUMNS, (image, label, generator, source, split, group, family), strict=True))
    frame = pa.table(checked).to_pandas()
    probed = frame["path"].head(300).tolist() if probe else []
    # os.path returns False where Path raises: a name that is too long, a folder without permission. Single missing
    # files go into quarantine.
    if probed and not any(os.path.isfile(root / name) for name in probed):
        if not any(root.iterdir()):
            raise UserError(f"data.root={root}: the folder is empty")
        raise UserError(
            f"none of the first {len(probed)} images of {path} is in {root}: is this the manifest of another "
            f"root? First missing: {probed[0]}. Pass data.root=FOLDER, the folder that the paths are relative to"
        )
    kept = table.select([name for name in FACTS if name in table.column_names])
    digest = hashlib.sha256()  # pandas' own hash may change with its version
    if family.equals(generator):  # as of tables without the column
        del checked["family"]
    for name, values in checked.items():
        digest.update(f"{name} {len(values)}\n".encode())
        if isinstance(values, np.ndarray):
            digest.update(values.astype(np.uint8).data)  # labels, 0 or 1
            continue
        # Lengths and then texts: a separator could be part of a text.
        lengths, characters = content(values)
        digest.update(lengths.astype("<u2" if lengths.max() < 1 << 16 else "<i8").data)
        digest.update(characters.data)
    return Manifest(frame, root, digest.hexdigest(), kept, shards, None, notes, path)


@dataclass(frozen=True)
class Cells:
    """The cells that the metric counts in: each generator's fakes, each collection's reals."""

    names: list[str]  # By code
    is_fake: list[bool]  # By code
    counterparts: dict[int, list[int]]  # Code of fakes → codes of the reals that they are compared with
    codes: NDArray[np.int64]  # (n,) cell of each row of the manifest


def make_cells(manifest: Manifest, pairs: Mapping[str, Any] | None, split: str) -> Cells:
    """Number the cells of a manifest, and pair them among the rows of one split; errors: see the metric's pairing."""
    frame, measured = manifest.frame, manifest.rows(split)
    # Reals may be matched by source, so each (collection, source) is a cell of its own.
    by_source = (frame["label"] == 0) & (frame["source"] != "")
    named = np.where(by_source, frame["generator"] + ":" + frame["source"], frame["generator"])
    keys = list(zip(frame["label"].tolist(), named.tolist(), strict=True))
    order = {key: code for code, key in enumerate(sorted(set(keys)))}
    codes = np.array([order[key] for key in keys], dtype=np.int64)
    reals = frame.loc[frame["label"] == 0, ["generator", "source"]]
    known = set(reals["generator"]) | set(reals["source"])
    of_split = codes[measured.index.to_numpy()]
    counterparts = {
        order[(1, name)]: sorted({int(code) for code in of_split[found.real_rows]})
        for name, found in real_counterparts(measured, pairs, known).items()
    }
    return Cells([name for _, name in order], [bool(label) for label, _ in order], counterparts, codes)


def hold_out(
    manifest: Manifest, generators: Sequence[str], measure: str = "test", families: Sequence[str] = ()
) -> Manifest:
    """Take the fakes of generators, families of fakes and families of photographs out of training and validation.

    Args:
        manifest: the images.
        generators, families: whose images leave the splits train and val (of generators the fakes, of families the
            fakes or the photographs, with all other images of these photographs' groups); none: the manifest is
            returned as it is.
        measure: "test": the split test stays, and the held-out generators are unseen in it. "held_out": for choosing
            hyperparameters without looking at the test split, so that split is not used either. The split test becomes
            the held-out fakes whose groups are no longer trained on, and the reals of some groups, drawn by name, whose
            images leave train and val: half of the groups of validation reals; with ``families`` a quarter of all
            groups of train and val that hold a real or fakes of several families, the same whichever are held out.
            Held-out photographs are all in it; where no fakes are held out, it is these alone.

    A UserError if a name is no generator or family of training or validation fakes, the measure is unknown, or
    "held_out" has nothing to hold out.
    """
    choose(measure, ("test", "held_out"), "data.measure")
    if not generators and not families:
        if measure != "test":
            raise UserError(f"data.measure={measure} needs generators or families to hold out: data.hold_out=[NAME] or "
                            "data.hold_out_families=[NAME]")  # fmt: skip
        return manifest
    frame = manifest.frame
    is_fake = frame["label"] == 1
    used = frame["split"].isin(("train", "val"))
    fakes, held = frame[is_fake & used], used & False
    for key, column, names in (("hold_out", "generator", generators), ("hold_out_families", "family", families)):
        known, what, rows = {*fakes[column]}, "fakes", is_fake
        if key == "hold_out_families":  # a name that fakes and photographs share is of the fakes
            what, rows = "images", is_fake | ~frame[column].isin(known)
            known |= {*frame.loc[used, column]}
        for name in names:
            if name not in known:
                told = nearest(name, sorted(known))
                raise UserError(f"data.{key}: no training or validation {what} are of '{name}'; {told}")
        held = held | (used & rows & frame[column].isin(list(names)))
    photographs = held & ~is_fake
    # What else shows a held-out photograph is not trained on either.
    split = frame["split"].mask(held | (used & frame["group"].isin(frame.loc[photographs, "group"])), ASIDE)
    if measure == "held_out":
        split = split.mask(split == "test", ASIDE).mask(photographs, "test")
    if measure == "held_out" and (held & is_fake).any():
        leaving, parts = (used, 4) if families else (split == "val", 2)
        groups = set(frame.loc[leaving & ~is_fake, "group"])
        if families:  # prompts that generators share; else none of their fakes could be measured
            spread = fakes.groupby("group")["family"].nunique()
            groups |= set(spread.index[spread > 1])
        # Which are drawn depends only on the names of the groups.
        drawn = np.random.default_rng(0).permutation(np.sort(np.array([*groups], dtype=str)))[: len(groups) // parts]
        leaving = leaving & ~held & frame["group"].isin(drawn)
        # Other generators' fakes of the drawn photographs can neither be measured nor stay in validation.
        split = split.mask(leaving, "test").mask(leaving & is_fake, ASIDE)
        # A fake of a photograph that is still used for training or validation is not new.
        remaining = frame.loc[split.isin(("train", "val")), "group"]
        split = split.mask(held & ~frame["group"].isin(remaining), "test")
    return replace(manifest, frame=frame.assign(split=split))


@dataclass(frozen=True)
class Quarantine:
    """The unreadable images of a run."""

    frame: pd.DataFrame  # Columns path, label, generator, split, reason; the index is the id; each image once
    n_images: dict[str, int]  # Number of images of each split that was read

    @classmethod
    def from_records(cls, records: Iterable[dict[str, Any]], manifest: Manifest, splits: Collection[str]) -> Quarantine:
        """Collect what batches of these splits reported; an image counts once, however often it was tried."""
        reasons: dict[int, str] = {}
        for record in records:
            reasons.setdefault(int(record["id"]), str(record["reason"]))
        rows = sorted(reasons)
        frame = manifest.frame.loc[rows, ["path", "label", "generator", "split"]].copy()
        frame["reason"] = [reasons[row] for row in rows]
        counts = manifest.frame["split"].value_counts()
        return cls(frame, {split: int(counts[split]) for split in splits if split in counts})

    def __len__(self) -> int:
        return len(self.frame)

    def shares(self) -> dict[str, float]:
        """Return the share of unreadable images in each split, so that a large split hides no broken one."""
        bad = self.frame["split"].value_counts()
        return {split: float(bad.get(split, 0)) / count for split, count in self.n_images.items()}

    def summary(self) -> dict[str, Any]:
        """Return their numbers in all, by class, split and generator."""
        return {
            "n": len(self.frame),
            "n_real": int((self.frame["label"] == 0).sum()),
            "n_fake": int((self.frame["label"] == 1).sum()),
            "share_per_split": self.shares(),
            "per_generator": {str(key): int(n) for key, n in self.frame["generator"].value_counts().items()},
        }

    def describe(self) -> str:
        """Return in one line how many there are, by class and generator."""
        kinds = self.frame["label"].map({0: "real", 1: "fake"}) + " " + self.frame["generator"]
        counts = ", ".join(f"{count} {kind}" for kind, count in kinds.value_counts().items())
        return f"{len(self.frame)} images could not be read and were left out ({counts})"

    def lost(self, split: str, read: pd.DataFrame) -> list[str]:
        """Name the generators and collections of a split of which no image is among the rows that could be read."""
        gone = self.frame[self.frame["split"] == split]
        lost = set(zip(gone["label"], gone["generator"], strict=True))
        return sorted({name for _, name in lost - set(zip(read["label"], read["generator"], strict=True))})

    def write(self, path: Path) -> None:
        """Write the list as CSV, if there is anything to list."""
        if len(self.frame):
            self.frame.to_csv(path, index_label="id")

    def check(self, most: float) -> None:
        """Raise a UserError if more than this share of a split's images was unreadable."""
        for split, share in self.shares().items():
            if share > most:
                own = self.frame[self.frame["split"] == split]
                first = own.iloc[0]
                raise UserError(
                    f"{len(own)} of {self.n_images[split]} images of the split '{split}' ({share:.1%}) could "
                    f"not be read, more than data.max_quarantine={most}; first: {first['path']}: "
                    f"{first['reason']}. All are in quarantine.csv; what was trained and scored is kept"
                )
