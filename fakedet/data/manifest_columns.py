"""Check and complete the columns of a manifest, one after the other; the first offender is named."""

from __future__ import annotations

import hashlib
import posixpath
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fakedet.errors import UserError, nearest

COLUMNS = ("path", "label", "generator", "source", "split", "group")
REQUIRED = COLUMNS[:3]
FACTS = ("width", "height", "format", "jpeg_quality", "jpeg_tables", "bytes", "sha256")
"""What `fakedet index` writes besides; the audit reads it."""
SPLITS = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test",
}  # fmt: skip
SHARES = {"train": 0.70, "val": 0.15, "test": 0.15}


def check_columns(table: pd.DataFrame, path: Path, notes: list[str]) -> None:
    """Check that the required columns are there, and note those that are not used.

    Raises:
        UserError: one is missing; the nearest column that is there is named.
    """
    present = [str(column) for column in table.columns]
    for column in REQUIRED:
        if column not in present:
            spare = [name for name in present if name not in COLUMNS]
            hint = nearest(column, spare) if spare else ""
            close = hint.split("'")[1] if hint.startswith("did you mean") else None
            advice = f"the table has '{close}'; did you mean '{column}'?" if close else (
                f"the table has: {', '.join(present)}"
            )  # fmt: skip
            raise UserError(f"{path}: there is no column '{column}'; {advice}")
        if present.count(column) > 1:
            raise UserError(f"{path}: there are {present.count(column)} columns '{column}'; keep one")
    extra = [name for name in present if name not in (*COLUMNS, *FACTS)]
    if extra:
        notes.append(f"columns not used: {', '.join(extra)}")


def names(table: pd.DataFrame, column: str, path: Path, blank: bool = False) -> list[str]:
    """Give a column of names, without the blanks around them.

    Raises:
        UserError: one is missing and ``blank`` does not allow it.
    """
    if column not in table:
        return [""] * len(table)
    texts = _texts(table[column])
    if not blank and "" in texts:
        row = texts.index("")
        raise UserError(f"{path}: row {row + 1} has no {column}, as do {texts.count('') - 1} others")
    return texts


def paths(table: pd.DataFrame, path: Path) -> list[str]:
    """Give the image paths, relative to the root, normalised.

    Raises:
        UserError: one is missing, absolute, leads out of the root, or stands twice.
    """
    names(table, "path", path)  # none is missing
    texts = [str(text).replace("\\", "/") for text in table["path"]]
    # Almost all are normal already; a million calls are not.
    clean = [posixpath.normpath(text) if "./" in text or "//" in text else text for text in texts]
    first: dict[str, int] = {}
    for row, text in enumerate(clean):
        if text.startswith(("/", "../")) or text == "..":
            raise UserError(
                f"{path}: row {row + 1} has the path '{texts[row]}'; paths are relative to data.root and "
                "stay inside it"
            )
        if first.setdefault(text, row) != row:
            raise UserError(f"{path}: rows {first[text] + 1} and {row + 1} have the same path '{text}'")
    return clean


def labels(table: pd.DataFrame, path: Path) -> NDArray[np.int64]:
    """Give the labels.

    Raises:
        UserError: one is neither 0 nor 1.
    """
    given = table["label"]
    values = pd.to_numeric(given, errors="coerce").astype(float)
    # True and False are refused as text and as booleans alike: which of them would be the fake?
    wrong = (
        ~values.isin([0, 1]).to_numpy()
        | given.map(lambda value: isinstance(value, bool | np.bool_)).to_numpy()
    )
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        shown = ", ".join(repr(str(value)) for value in given[wrong].unique()[:5])
        raise UserError(
            f"{path}: label must be 0 (real) or 1 (fake); row {row + 1} has {str(given.iloc[row])!r}; "
            f"{int(wrong.sum())} rows are wrong, with: {shown}"
        )
    return values.to_numpy().astype(np.int64)


def splits(table: pd.DataFrame, groups: list[str], path: Path, seed: int, notes: list[str]) -> list[str]:
    """Give train, val or test for each row; without a split in the table, by the hash of the groups.

    Raises:
        UserError: a split has an unknown name or none.
    """
    given = names(table, "split", path, blank=True)
    if not any(given):
        chosen = {group: split_of(group, seed) for group in set(groups)}
        result = [chosen[group] for group in groups]
        counts = ", ".join(f"{name} {result.count(name)}" for name in SHARES)
        notes.append(
            f"no split in the table: groups were split 70/15/15 by hash ({counts}); so test holds the "
            "generators of train, and no unseen ones"
        )
        return result
    known = {name: SPLITS.get(name.lower()) for name in set(given)}
    for row, name in enumerate(given):
        if known[name] is None:
            what = (
                f"the split '{name}'; {nearest(name, SPLITS)}" if name else "no split, though others have one"
            )
            raise UserError(f"{path}: row {row + 1} has {what}")
    return [str(known[name]) for name in given]


def check_groups(frame: pd.DataFrame, path: Path, allowed: bool, notes: list[str]) -> None:
    """Check that no group stands in several splits.

    Raises:
        UserError: one does, and it is not allowed.
    """
    pairs = frame[["group", "split"]].drop_duplicates()
    crossing = pairs[pairs["group"].duplicated(keep=False)]
    if crossing.empty:
        return
    count, first = crossing["group"].nunique(), crossing["group"].iloc[0]
    where = ", ".join(sorted(crossing.loc[crossing["group"] == first, "split"]))
    said = f"{count} groups stand in several splits, such as '{first}' in {where}"
    if not allowed:
        raise UserError(
            f"{path}: {said}; what was trained on would be tested on. Give each group one split, or pass "
            "data.allow_group_leak=true"
        )
    notes.append(f"{said}: allowed by data.allow_group_leak")


def _texts(column: pd.Series) -> list[str]:
    values = column.astype(object)
    return [str(value).strip() for value in values.where(values.notna(), "")]


def split_of(group: str, seed: int, shares: Mapping[str, float] = SHARES) -> str:
    """Choose the split of a group by the hash of its name; the same on every machine, whatever else there is.

    Args:
        group: its name.
        seed: another one gives another division.
        shares: of the splits, adding up to 1.
    """
    digest = hashlib.sha256(f"{seed}\x1f{group}".encode("utf-8", "surrogatepass")).digest()
    place = int.from_bytes(digest[:8], "big") / 2**64
    reached = 0.0
    for name, share in shares.items():
        reached += share
        if place < reached:
            return name
    return list(shares)[-1]  # the shares' sum may fall short of 1 by rounding
