"""Check and complete the columns of a manifest, one after the other; the first offender is named."""

from __future__ import annotations

import hashlib
import posixpath
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from fakedet.data.manifest_text import (
    Texts,
    contains_pair,
    content,
    first,
    first_duplicate,
    repeated,
    stripped,
    texts,
)
from fakedet.errors import UserError, nearest

COLUMNS = ("path", "label", "generator", "source", "split", "group")
REQUIRED = COLUMNS[:3]
FACTS = ("width", "height", "format", "jpeg_quality", "jpeg_tables", "bytes", "sha256", "shard", "position")
"""What `fakedet index` and `fakedet shard` write besides."""
SPLITS = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test",
}  # fmt: skip
SHARES = {"train": 0.70, "val": 0.15, "test": 0.15}


def check_columns(table: pa.Table, path: Path, notes: list[str]) -> None:
    """Check that the required columns are there, and note those that are not used.

    Raises:
        UserError: one is missing; the nearest column that is there is named.
    """
    present = table.column_names
    for column in COLUMNS:
        if column in REQUIRED and column not in present:
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


def names(table: pa.Table, column: str, path: Path, blank: bool = False) -> Texts:
    """Give a column of names, without the blanks around them.

    Raises:
        UserError: one is missing and ``blank`` does not allow it.
    """
    if column not in table.column_names:
        return repeated("", table.num_rows)
    given = stripped(table[column])
    if not blank:
        _require(pc.equal(given, ""), column, path)
    return given


def _require(missing: pa.BooleanArray, column: str, path: Path) -> None:
    row = first(missing)
    if row is not None:
        others = pc.sum(missing).as_py() - 1
        raise UserError(f"{path}: row {row + 1} has no {column}, as do {others} others")


def paths(table: pa.Table, path: Path) -> Texts:
    """Give the image paths, relative to the root, normalised.

    Raises:
        UserError: one is missing, absolute, leads out of the root, or stands twice.
    """
    given = texts(table["path"])
    _require(pc.or_(pc.equal(given, ""), pc.utf8_is_space(given)), "path", path)
    if (content(given)[1] == ord("\\")).any():
        given = pc.replace_substring(given, "\\", "/")
    clean = _normal(given)
    outside = pc.or_(pc.starts_with(clean, "/"), pc.or_(pc.starts_with(clean, "../"), pc.equal(clean, "..")))
    row, twice = first(outside), first_duplicate(clean)
    if row is not None and (twice is None or row <= twice[1]):
        raise UserError(
            f"{path}: row {row + 1} has the path '{given[row]}'; paths are relative to data.root and "
            "stay inside it"
        )
    if twice is not None:
        one, other = twice
        raise UserError(f"{path}: rows {one + 1} and {other + 1} have the same path '{clean[one]}'")
    return clean


def _normal(given: Texts) -> Texts:
    """Normalise paths. Almost all are normal already; a million calls are not."""
    if not contains_pair(given, (b"./", b"//")):
        return given
    odd = pc.or_(pc.match_substring(given, "./"), pc.match_substring(given, "//"))
    normal = [posixpath.normpath(text) for text in given.filter(odd).to_pylist()]
    return pc.replace_with_mask(given, odd, pa.array(normal, pa.large_string()))


def labels(table: pa.Table, path: Path) -> NDArray[np.int64]:
    """Give the labels.

    Raises:
        UserError: one is neither 0 nor 1.
    """
    given = table["label"].to_pandas()
    values = pd.to_numeric(given, errors="coerce").astype(float)
    wrong = ((values != 0) & (values != 1)).to_numpy()
    # True and False are refused as text and as booleans alike: which of them would be the fake?
    if pd.api.types.is_bool_dtype(given):
        wrong = np.ones(len(given), bool)
    elif given.dtype == object:
        wrong = wrong | given.map(lambda value: isinstance(value, bool | np.bool_)).to_numpy()
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        shown = ", ".join(repr(str(value)) for value in given[wrong].unique()[:5])
        raise UserError(
            f"{path}: label must be 0 (real) or 1 (fake); row {row + 1} has {str(given.iloc[row])!r}; "
            f"{int(wrong.sum())} rows are wrong, with: {shown}"
        )
    return values.to_numpy().astype(np.int64)


def splits(table: pa.Table, groups: Texts, path: Path, seed: int, notes: list[str]) -> Texts:
    """Give train, val or test for each row; without a split in the table, by the hash of the groups.

    Raises:
        UserError: a split has an unknown name or none.
    """
    given = names(table, "split", path, blank=True).dictionary_encode()
    present = given.dictionary.to_pylist()
    if not any(present):
        return _hashed_splits(groups, seed, notes)
    known = [SPLITS.get(name.lower()) for name in present]
    if None in known:
        unknown = pa.array([code for code, name in enumerate(known) if name is None], given.indices.type)
        row = pc.index(pc.is_in(given.indices, unknown), True).as_py()
        name = present[given.indices[row].as_py()]
        what = f"the split '{name}'; {nearest(name, SPLITS)}" if name else "no split, though others have one"
        raise UserError(f"{path}: row {row + 1} has {what}")
    return pa.array(known, pa.large_string()).take(given.indices)


def _hashed_splits(groups: Texts, seed: int, notes: list[str]) -> Texts:
    coded = groups.dictionary_encode()
    chosen = [split_of(group, seed) for group in coded.dictionary.to_pylist()]
    result = pa.array(chosen, pa.large_string()).take(coded.indices)
    counts = ", ".join(f"{name} {pc.sum(pc.equal(result, name)).as_py()}" for name in SHARES)
    notes.append(
        f"no split in the table: groups were split 70/15/15 by hash ({counts}); so test holds the "
        "generators of train, and no unseen ones"
    )
    return result


def check_groups(groups: Texts, split: Texts, path: Path, allowed: bool, notes: list[str]) -> None:
    """Check that no group stands in several splits.

    Raises:
        UserError: one does, and it is not allowed.
    """
    group, place = (array.dictionary_encode().indices.to_numpy() for array in (groups, split))
    some = np.zeros(group.max() + 1, place.dtype)
    some[group] = place  # of each group, the split of one of its rows
    leaks = np.flatnonzero(some[group] != place)
    if not leaks.size:
        return
    crossing = np.unique(group[leaks])
    one = groups[int(np.flatnonzero(np.isin(group, crossing))[0])]
    where = ", ".join(sorted(pc.unique(split.filter(pc.equal(groups, one))).to_pylist()))
    said = f"{len(crossing)} groups stand in several splits, such as '{one}' in {where}"
    if not allowed:
        raise UserError(
            f"{path}: {said}; what was trained on would be tested on. Give each group one split, or pass "
            "data.allow_group_leak=true"
        )
    notes.append(f"{said}: allowed by data.allow_group_leak")


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
