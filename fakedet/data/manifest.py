"""Manifests: one row an image, from a parquet or CSV table, checked before anything is trained on it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd

from fakedet.errors import UserError, nearest

REQUIRED = ("path", "label", "generator")
OPTIONAL = ("source", "split", "group")
SPLITS = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test",
}  # fmt: skip
# Where a table names no split, groups fall into splits by these shares.
SHARES = (("train", 0.70), ("val", 0.15), ("test", 0.15))
PATHS_PROBED = 300


@dataclass(frozen=True)
class Manifest:
    """A checked table of images.

    Attributes:
        frame: columns path, label, generator, source, split, group; the index 0..n−1 is a row's id.
        root: the folder that paths are relative to.
        sha256: of the table's content.
        notes: what was filled in or left aside, for the log.
    """

    frame: pd.DataFrame
    root: Path
    sha256: str
    notes: list[str] = field(default_factory=list)

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
            present = ", ".join(
                f"{name} ({count})" for name, count in self.frame["split"].value_counts().items()
            )
            raise UserError(f"the split '{split}' is empty: the manifest has {present or 'no rows'}")
        for label, name in ((0, "real"), (1, "fake")):
            if both_classes and not (rows["label"] == label).any():
                raise UserError(
                    f"the split '{split}' has no {name} images (label {label}); a detector needs both classes there"
                )


def load_manifest(
    path: str | Path, root: str | Path | None = None, allow_group_leak: bool = False
) -> Manifest:
    """Read and check a manifest.

    Args:
        path: a parquet or CSV file with at least the columns path, label (0 real, 1 fake) and generator.
        root: the folder that paths are relative to; None: the file's own folder.
        allow_group_leak: go on although images of one group stand in several splits.

    Raises:
        UserError: whatever is wrong with the file, its columns, values or folder; the first offender is named.
    """
    path = Path(path)
    table = _read_table(path)
    folder = Path(root) if root is not None else path.parent
    if not folder.is_dir():
        raise UserError(f"data.root={folder}: there is no such folder")
    notes: list[str] = []
    _check_columns(table, path, notes)
    if table.empty:
        raise UserError(f"{path}: the table is empty, it has no rows")
    frame = pd.DataFrame({
        "path": _paths(table, path),
        "label": _labels(table, path),
        "generator": _names(table["generator"], path, "generator"),
    })  # fmt: skip
    frame["source"] = table["source"].fillna("").astype(str).to_numpy() if "source" in table else ""
    frame["group"] = _groups(table, frame)
    frame["split"] = _splits(table, frame, path, notes)
    _check_groups(frame, path, allow_group_leak)
    _probe(frame["path"], folder, path)
    digest = pd.util.hash_pandas_object(frame, index=False).to_numpy().tobytes()
    columns = ["path", "label", "generator", "source", "split", "group"]
    return Manifest(frame[columns], folder, hashlib.sha256(digest).hexdigest(), notes)


def _read_table(path: Path) -> pd.DataFrame:
    if not path.is_file():
        raise UserError(f"data.manifest={path}: there is no such file")
    try:
        with path.open("rb") as file:
            is_parquet = file.read(4) == b"PAR1"
        if is_parquet:
            return pd.read_parquet(path)
        return pd.read_csv(path, dtype={"group": str, "source": str, "path": str}, low_memory=False)
    except pd.errors.EmptyDataError as error:
        raise UserError(f"{path}: the file is empty") from error
    except Exception as error:  # parsers raise all sorts of things on foreign files
        raise UserError(
            f"{path} is neither a parquet nor a CSV table: {' '.join(str(error).split())[:200]}"
        ) from error


def _check_columns(table: pd.DataFrame, path: Path, notes: list[str]) -> None:
    present = [str(column) for column in table.columns]
    for column in REQUIRED:
        if column not in present:
            spare = [name for name in present if name not in (*REQUIRED, *OPTIONAL)]
            hint = nearest(column, spare)
            hint = f"rename '{hint.split(chr(39))[1]}'?" if hint.startswith("did you mean") else ""
            raise UserError(
                f"{path}: there is no column '{column}' (there are: {', '.join(present)}). {hint}".strip()
            )
    extra = [name for name in present if name not in (*REQUIRED, *OPTIONAL)]
    if extra:
        notes.append(f"columns not used: {', '.join(extra)}")


def _paths(table: pd.DataFrame, path: Path) -> list[str]:
    texts = _names(table["path"], path, "path")
    clean = [str(PurePosixPath(text.replace("\\", "/"))) for text in texts]
    for row, text in enumerate(clean):
        if text.startswith("/") or ".." in PurePosixPath(text).parts:
            raise UserError(
                f"{path}: row {row} has the path '{texts[row]}'; paths are relative to data.root and stay in it"
            )
    twice = pd.Series(clean)[pd.Series(clean).duplicated()]
    if len(twice):
        raise UserError(f"{path}: {len(twice)} paths stand more than once, first '{twice.iloc[0]}'")
    return clean


def _labels(table: pd.DataFrame, path: Path) -> np.ndarray:
    values = pd.to_numeric(table["label"], errors="coerce")
    wrong = ~values.isin([0, 1])
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        shown = ", ".join(repr(value) for value in table["label"][wrong].unique()[:5])
        raise UserError(f"{path}: label must be 0 (real) or 1 (fake); row {row} and {int(wrong.sum()) - 1} "
                        f"others have {shown}")  # fmt: skip
    return values.to_numpy(dtype=np.int64)


def _names(column: pd.Series, path: Path, name: str) -> list[str]:
    missing = column.isna() | (column.astype(str).str.strip() == "")
    if missing.any():
        raise UserError(f"{path}: row {int(np.flatnonzero(missing)[0])} has no {name}")
    return [str(value) for value in column]


def _groups(table: pd.DataFrame, frame: pd.DataFrame) -> np.ndarray:
    if "group" not in table:
        return frame["path"].to_numpy()
    given = table["group"]
    # A row without a group is a group of its own.
    return given.astype(object).where(given.notna(), frame["path"].to_numpy()).astype(str).to_numpy()


def _splits(table: pd.DataFrame, frame: pd.DataFrame, path: Path, notes: list[str]) -> list[str]:
    if "split" not in table:
        notes.append("no column 'split': groups were split 70/15/15 by the hash of their names")
        return [_split_of(group) for group in frame["group"]]
    names = _names(table["split"], path, "split")
    for row, name in enumerate(names):
        if name.strip().lower() not in SPLITS:
            raise UserError(f"{path}: row {row} has the split '{name}'; {nearest(name, SPLITS)}")
    return [SPLITS[name.strip().lower()] for name in names]


def _split_of(group: str) -> str:
    place = int.from_bytes(hashlib.sha256(group.encode()).digest()[:8], "big") / 2**64
    for name, share in SHARES:
        if place < share:
            return name
        place -= share
    return SHARES[-1][0]


def _check_groups(frame: pd.DataFrame, path: Path, allowed: bool) -> None:
    crossing = frame.groupby("group")["split"].nunique()
    crossing = crossing[crossing > 1]
    if len(crossing) and not allowed:
        first = crossing.index[0]
        splits = ", ".join(sorted(frame.loc[frame["group"] == first, "split"].unique()))
        raise UserError(
            f"{path}: {len(crossing)} groups stand in several splits, first '{first}' in {splits}; what was trained "
            "on would be tested on. Give each group one split, or pass data.allow_group_leak=true"
        )


def _probe(paths: Iterable[str], folder: Path, path: Path) -> None:
    """Notice a manifest of another root before a run is set up; single missing files are quarantined later."""
    probed = list(paths)[:PATHS_PROBED]
    if not any((folder / name).is_file() for name in probed):
        raise UserError(
            f"none of the first {len(probed)} images of {path} is in {folder} (first: {probed[0]}); "
            "pass data.root=FOLDER, the folder that the paths are relative to"
        )
