"""Manifests: one row an image, from a parquet or CSV table, checked before anything is trained on it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from fakedet.data.manifest_columns import (
    COLUMNS,
    FACTS,
    check_columns,
    check_groups,
    labels,
    names,
    paths,
    splits,
)
from fakedet.data.manifest_table import ROOT_KEY, SHARDS_KEY, read_table
from fakedet.data.manifest_text import content, texts
from fakedet.errors import UserError

PATHS_PROBED = 300


@dataclass(frozen=True)
class Manifest:
    """A checked table of images."""

    frame: pd.DataFrame
    """Columns path, label, generator, source, split, group; the index 0..n-1 is a row's id."""
    root: Path
    """The folder that paths are relative to."""
    sha256: str
    """Of the frame's content; the same for a CSV and a parquet of the same rows."""
    facts: pa.Table | None = None
    """What `fakedet index` and `fakedet shard` say of each row besides; see ``FACTS``."""
    shards: str | None = None
    """Folder or URL of the shards that hold the images; None: they are files below the root."""
    notes: list[str] = field(default_factory=list)
    """What was filled in or left aside, for the log."""

    @cached_property
    def digests(self) -> pd.Series | None:
        """SHA-256 of each row's file by id; "" where one is not known, None where the table has none."""
        if self.facts is None or "sha256" not in self.facts.column_names:
            return None
        return pd.Series(texts(self.facts["sha256"]).to_pylist(), self.frame.index, dtype=object)

    def fact(self, name: str) -> NDArray[np.int64]:
        """Give a column of whole numbers of the facts."""
        assert self.facts is not None
        return self.facts[name].to_numpy().astype(np.int64)

    def rows(self, split: str) -> pd.DataFrame:
        """Give the rows of one split."""
        return self.frame[self.frame["split"] == split]

    def require(self, split: str, both_classes: bool = False) -> None:
        """Check that a split has images, and of both classes if asked.

        Raises:
            UserError: it has not.
        """
        rows = self.rows(split)
        if rows.empty:
            counts = self.frame["split"].value_counts().items()
            present = ", ".join(f"{name} ({count})" for name, count in counts)
            raise UserError(f"the split '{split}' is empty: the manifest has {present}")
        for label, name in ((0, "real"), (1, "fake")):
            if both_classes and not (rows["label"] == label).any():
                raise UserError(
                    f"the split '{split}' has no {name} images (label {label}); a detector needs both "
                    "classes there"
                )

    def describe(self) -> str:
        """Count images per generator and split, as a table to print."""
        kind = self.frame["label"].map({0: "real", 1: "fake"})
        table = pd.crosstab([kind, self.frame["generator"]], self.frame["split"])
        wanted = [split for split in ("train", "val", "test") if split in table]
        return str(table[wanted].to_string())


def load_manifest(
    path: str | Path, root: str | Path | None = None, allow_group_leak: bool = False, split_seed: int = 0
) -> Manifest:
    """Read and check a manifest.

    Args:
        path: a parquet or CSV file with at least the columns path, label (0 real, 1 fake) and generator.
        root: the folder that paths are relative to; None: what the manifest of `fakedet index` says, else the
            file's own folder.
        allow_group_leak: go on although images of one group stand in several splits.
        split_seed: of the split by groups that a table without a split gets.

    Raises:
        UserError: whatever is wrong with the file, its columns, values or folder; it names the first.
    """
    path = Path(path)
    table = read_table(path)
    metadata = table.schema.metadata or {}
    if SHARDS_KEY in metadata:
        inside = os.fsdecode(metadata[SHARDS_KEY])
        shards = str(root) if root is not None else str((path.parent / inside).resolve())
        return check_manifest(table, path, path.parent, allow_group_leak, split_seed, shards)
    return check_manifest(table, path, _root(path, root, metadata), allow_group_leak, split_seed)


def check_manifest(
    table: pa.Table,
    path: Path,
    folder: Path,
    allow_group_leak: bool = False,
    split_seed: int = 0,
    shards: str | None = None,
) -> Manifest:
    """Check and complete a table that was read; see :func:`load_manifest`.

    Args:
        table: the rows.
        path: of the table, for messages.
        folder: that the rows' paths are relative to.
        allow_group_leak: see :func:`load_manifest`.
        split_seed: see :func:`load_manifest`.
        shards: folder or URL of the shards that hold the images, if any do.

    Raises:
        UserError: see :func:`load_manifest`.
    """
    if not folder.is_dir():
        raise UserError(f"data.root={folder}: there is no such folder")
    notes: list[str] = []
    check_columns(table, path, notes)
    if not table.num_rows:
        raise UserError(f"{path}: the table is empty, it has no rows")
    image, label = paths(table, path), labels(table, path)
    generator, source = names(table, "generator", path), names(table, "source", path, blank=True)
    group = names(table, "group", path, blank=True)
    # A row without a group is a group of its own.
    group = pc.if_else(pc.equal(group, ""), image, group)
    split = splits(table, group, path, split_seed, notes)
    check_groups(group, split, path, allow_group_leak, notes)
    columns = dict(zip(COLUMNS, (image, label, generator, source, split, group), strict=True))
    frame = pa.table(columns).to_pandas()
    if shards is None:
        _probe(frame["path"].head(PATHS_PROBED).tolist(), folder, path)
    kept = table.select([name for name in FACTS if name in table.column_names])
    return Manifest(frame, folder, _digest(columns), kept, shards, notes)


def _root(path: Path, root: str | Path | None, metadata: Mapping[bytes, bytes]) -> Path:
    """Give the folder that paths are relative to: what the user says, what the manifest says, or its own."""
    if root is not None:
        return Path(root)
    written = metadata.get(ROOT_KEY)
    return (path.parent / os.fsdecode(written)).resolve() if written is not None else path.parent


def _digest(columns: dict[str, Any]) -> str:
    """Hash names and values themselves: pandas' own hash may change with its version."""
    digest = hashlib.sha256()
    for name, values in columns.items():
        digest.update(f"{name} {len(values)}\n".encode())
        if isinstance(values, np.ndarray):
            digest.update(values.astype(np.uint8).data)  # labels, 0 or 1
            continue
        # Lengths and then texts: no text can hold what would end it.
        lengths, characters = content(values)
        digest.update(lengths.astype("<u2" if lengths.max() < 1 << 16 else "<i8").data)
        digest.update(characters.data)
    return digest.hexdigest()


def _probe(probed: list[str], folder: Path, path: Path) -> None:
    """Notice a manifest of another root before a run is set up; single missing files go into quarantine."""
    # os.path says no where Path raises: a name that is too long, a folder that may not be searched.
    if any(os.path.isfile(folder / name) for name in probed):
        return
    if not any(folder.iterdir()):
        raise UserError(f"data.root={folder}: the folder is empty")
    raise UserError(
        f"none of the first {len(probed)} images of {path} is in {folder}: is this the manifest of another "
        f"root? First missing: {probed[0]}. Pass data.root=FOLDER, the folder that the paths are relative to"
    )
