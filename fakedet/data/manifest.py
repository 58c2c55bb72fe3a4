"""Manifests: one row an image, from a parquet or CSV table, checked before anything is trained on it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from fakedet.data.manifest_columns import COLUMNS, check_columns, check_groups, labels, names, paths, splits
from fakedet.data.manifest_table import ROOT_KEY, read_table
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
    digests: pd.Series | None = None
    """SHA-256 of each row's file by id, where the table has them; "" where one is not known."""
    notes: list[str] = field(default_factory=list)
    """What was filled in or left aside, for the log."""

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
    return check_manifest(table, path, _root(path, root, table), allow_group_leak, split_seed)


def check_manifest(
    table: pd.DataFrame, path: Path, folder: Path, allow_group_leak: bool = False, split_seed: int = 0
) -> Manifest:
    """Check and complete a table that was read; see :func:`load_manifest`.

    Args:
        table: the rows.
        path: of the table, for messages.
        folder: that the rows' paths are relative to.
        allow_group_leak: see :func:`load_manifest`.
        split_seed: see :func:`load_manifest`.

    Raises:
        UserError: see :func:`load_manifest`.
    """
    if not folder.is_dir():
        raise UserError(f"data.root={folder}: there is no such folder")
    notes: list[str] = []
    check_columns(table, path, notes)
    if table.empty:
        raise UserError(f"{path}: the table is empty, it has no rows")
    frame = pd.DataFrame({
        "path": paths(table, path),
        "label": labels(table, path),
        "generator": names(table, "generator", path),
        "source": names(table, "source", path, blank=True),
    })  # fmt: skip
    groups = names(table, "group", path, blank=True)
    # A row without a group is a group of its own.
    frame["group"] = [group or own for group, own in zip(groups, frame["path"], strict=True)]
    frame["split"] = splits(table, frame["group"].tolist(), path, split_seed, notes)
    check_groups(frame, path, allow_group_leak, notes)
    frame = frame[list(COLUMNS)]
    _probe(frame["path"].head(PATHS_PROBED).tolist(), folder, path)
    digests = None
    if "sha256" in table:
        digests = pd.Series(names(table, "sha256", path, blank=True), frame.index, dtype=object)
    return Manifest(frame, folder, _digest(frame), digests, notes)


def _root(path: Path, root: str | Path | None, table: pd.DataFrame) -> Path:
    """Give the folder that paths are relative to: what the user says, what the manifest says, or its own."""
    if root is not None:
        return Path(root)
    written = table.attrs.get(ROOT_KEY)
    return (path.parent / written).resolve() if written is not None else path.parent


def _digest(frame: pd.DataFrame) -> str:
    """Hash names and values themselves: pandas' own hash may change with its version."""
    digest = hashlib.sha256()
    for column in frame.columns:
        values = "\x1f".join(map(str, frame[column].tolist()))
        digest.update(f"{column}\x1e{values}\x1d".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def _probe(probed: list[str], folder: Path, path: Path) -> None:
    """Notice a manifest of another root before a run is set up; single missing files go into quarantine."""
    if any((folder / name).is_file() for name in probed):
        return
    if not any(folder.iterdir()):
        raise UserError(f"data.root={folder}: the folder is empty")
    raise UserError(
        f"none of the first {len(probed)} images of {path} is in {folder}: is this the manifest of another "
        f"root? First missing: {probed[0]}. Pass data.root=FOLDER, the folder that the paths are relative to"
    )
