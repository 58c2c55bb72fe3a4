"""The table of a manifest: reading it as it is written, and checking and completing each column.

Everything is done on Arrow columns: a million rows take less than a second.
"""

from __future__ import annotations

import hashlib
import io
import posixpath
import warnings
from collections.abc import Mapping
from difflib import get_close_matches
from itertools import accumulate
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from fakedet.errors import UserError, nearest, one_line

Texts: TypeAlias = pa.LargeStringArray  # One text for each row, none of them null

COLUMNS = ("path", "label", "generator", "source", "split", "group")
# Further columns: `fakedet index` writes the first seven, `fakedet shard` all.
FACTS = ("width", "height", "format", "jpeg_quality", "jpeg_tables", "bytes", "sha256", "shard", "position")
REPEATING = ["generator", "source", "split", "group"]  # Columns with few different values, which are read as categories
SPLITS = {  # names in tables and of folders
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test",
}  # fmt: skip
SHARES = {"train": 0.70, "val": 0.15, "test": 0.15}
# Metadata of a parquet manifest, both relative to its folder:
ROOT_KEY = b"fakedet.root"  # the folder that paths are relative to
SHARDS_KEY = b"fakedet.shards"  # the folder of the shards that hold the images
# What str.strip() takes off; Arrow's own idea of white space is narrower.
BLANKS = "".join(character for character in map(chr, range(0x3001)) if character.isspace())


def read_table(path: Path) -> pa.Table:
    """Read a parquet or CSV table, told apart by content; no file, an empty one, or another kind is a UserError.

    Every value of a CSV stays text: pandas would read a generator "NA" or "null" as missing, a group "007" as a number.
    """
    if path.is_dir():
        raise UserError(f"data.manifest={path}: this is a folder; give the table in it")
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"data.manifest={path}: there is no such file") from None
    except OSError as error:
        raise UserError(f"data.manifest={path}: cannot be read: {error.strerror}") from error
    if not data.strip():
        raise UserError(f"{path}: the file is empty")
    if data[:4] == b"PAR1":
        try:
            table = pq.read_table(pa.BufferReader(data), read_dictionary=REPEATING)
            table.validate(full=True)  # finds text that is not UTF-8, for example
        except Exception as error:  # pyarrow raises errors of many types on damaged files
            raise UserError(f"{path}: a damaged parquet file: {one_line(error)[:200]}") from error
        # pandas adds such a column for the index of a frame that was filtered or sorted.
        return table.drop_columns([name for name in table.column_names if name.startswith("__index_level_")])
    if b"\0" in data:
        raise UserError(f"{path} is neither a parquet nor a CSV table: it holds binary data")
    try:
        with warnings.catch_warnings():
            # Rows with more values than the header has names: pandas would warn and drop the values.
            warnings.simplefilter("error", pd.errors.ParserWarning)
            text = io.BytesIO(data)
            frame = pd.read_csv(text, dtype=str, keep_default_na=False, index_col=False, encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: {one_line(error)[:200]}") from error
    except (pd.errors.ParserError, pd.errors.ParserWarning, ValueError) as error:
        raise UserError(f"{path} is not a well-formed CSV table: {one_line(error)[:200]}") from error
    columns = [pa.array(frame.iloc[:, i]) for i in range(frame.shape[1])]
    return pa.table(columns, names=[str(column).strip() for column in frame.columns])


def texts(column: pa.ChunkedArray) -> Texts:
    """Return a column as text; numbers are written out, a missing value is the empty text."""
    array = column.combine_chunks()
    if not _is_text(array.type):
        values = column.to_pandas().astype(object)
        array = pa.array([str(value) for value in values.where(values.notna(), "")], pa.large_string())
    return pc.fill_null(array.cast(pa.large_string()), "")


def content(array: Texts) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """Return the length of each text in bytes, and all texts, one after the other, in UTF-8."""
    _, offsets, data = array.buffers()
    if data is None or not len(array):
        return np.zeros(len(array), np.int64), np.zeros(0, np.uint8)
    ends = np.frombuffer(offsets, np.int64)[array.offset : array.offset + len(array) + 1]
    return np.diff(ends), np.frombuffer(data, np.uint8)[ends[0] : ends[-1]]


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _first(mask: pa.BooleanArray) -> int | None:
    """Return the first row where a mask is true."""
    row = int(pc.index(mask, pa.scalar(True)).as_py())
    return None if row < 0 else row


def check_columns(table: pa.Table, path: Path, notes: list[str]) -> None:
    """Raise a UserError if a required column is missing or any is there twice; note those that are not used."""
    present = table.column_names
    for column in COLUMNS:
        if column in COLUMNS[:3] and column not in present:
            close = get_close_matches(column, [name for name in present if name not in COLUMNS], 1)
            advice = f" '{close[0]}'; did you mean '{column}'?" if close else f": {', '.join(present)}"
            raise UserError(f"{path}: there is no column '{column}'; the table has{advice}")
        if present.count(column) > 1:
            raise UserError(f"{path}: there are {present.count(column)} columns '{column}'; keep one")
    extra = [name for name in present if name not in (*COLUMNS, *FACTS)]
    if extra:
        notes.append(f"columns not used: {', '.join(extra)}")


def names(table: pa.Table, column: str, path: Path, blank: bool = False) -> Texts:
    """Return a trimmed column of names, empty if there is none; a missing name is a UserError unless ``blank``."""
    if column not in table.column_names:
        return pa.repeat(pa.scalar("", pa.large_string()), table.num_rows)
    array = table[column].combine_chunks()
    if pa.types.is_dictionary(array.type) and _is_text(array.type.value_type):
        values = pc.utf8_trim(array.dictionary.cast(pa.large_string()), characters=BLANKS)
        given = pc.fill_null(values.take(array.indices), "")
    else:
        given = pc.utf8_trim(texts(table[column]), characters=BLANKS)
    if not blank:
        _require(pc.equal(given, ""), column, path)
    return given


def _require(missing: pa.BooleanArray, column: str, path: Path) -> None:
    row = _first(missing)
    if row is not None:
        others = pc.sum(missing).as_py() - 1
        raise UserError(f"{path}: row {row + 1} has no {column}, as do {others} others")


def paths(table: pa.Table, path: Path) -> Texts:
    """Return the normalised image paths; one that is missing, absolute, outside of the root, or twice is an error."""
    given = texts(table["path"])
    _require(pc.or_(pc.equal(given, ""), pc.utf8_is_space(given)), "path", path)
    if (content(given)[1] == ord("\\")).any():
        given = pc.replace_substring(given, "\\", "/")
    clean = given
    # Looking through all texts at once is fast, and almost always nothing is to be done.
    everything = content(given)[1].tobytes()
    if b"./" in everything or b"//" in everything:
        odd = pc.or_(pc.match_substring(given, "./"), pc.match_substring(given, "//"))
        normal = [posixpath.normpath(text) for text in given.filter(odd).to_pylist()]
        clean = pc.replace_with_mask(given, odd, pa.array(normal, pa.large_string()))
    outside = pc.or_(pc.starts_with(clean, "/"), pc.or_(pc.starts_with(clean, "../"), pc.equal(clean, "..")))
    row, twice = _first(outside), _first_duplicate(clean)
    if row is not None and (twice is None or row <= twice[1]):
        raise UserError(
            f"{path}: row {row + 1} has the path '{given[row]}'; paths are relative to data.root and stay inside it"
        )
    if twice is not None:
        raise UserError(f"{path}: rows {twice[0] + 1} and {twice[1] + 1} have the same path '{clean[twice[0]]}'")
    return clean


def _first_duplicate(array: Texts) -> tuple[int, int] | None:
    """Return the first row whose text was there before, after the row where it was."""
    if len(pc.unique(array)) == len(array):
        return None
    codes = array.dictionary_encode().indices.to_numpy()
    row = int(np.flatnonzero(pd.Series(codes).duplicated().to_numpy())[0])
    return int(np.flatnonzero(codes == codes[row])[0]), row


def labels(table: pa.Table, path: Path) -> NDArray[np.int64]:
    """Return the labels, (n,) int64 of 0 and 1; any other is a UserError."""
    given = table["label"].to_pandas()
    values = pd.to_numeric(given, errors="coerce").astype(float)
    wrong = ((values != 0) & (values != 1)).to_numpy()
    # True and False are refused, as text and as booleans: which of them would be the fake?
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
    """Return each row's train, val or test, by the groups' hash if the table has none; an unknown one is an error."""
    given = names(table, "split", path, blank=True).dictionary_encode()
    present = given.dictionary.to_pylist()
    if not any(present):
        coded = groups.dictionary_encode()
        chosen = [split_of(group, seed) for group in coded.dictionary.to_pylist()]
        result = pa.array(chosen, pa.large_string()).take(coded.indices)
        counts = ", ".join(f"{name} {pc.sum(pc.equal(result, name)).as_py()}" for name in SHARES)
        notes.append(
            f"no split in the table: groups were split 70/15/15 by hash ({counts}); so test holds the "
            "generators of train, and no unseen ones"
        )
        return result
    known = [SPLITS.get(name.lower()) for name in present]
    if None in known:
        unknown = pa.array([code for code, name in enumerate(known) if name is None], given.indices.type)
        row = pc.index(pc.is_in(given.indices, unknown), True).as_py()
        name = present[given.indices[row].as_py()]
        what = f"the split '{name}'; {nearest(name, SPLITS)}" if name else "no split, though others have one"
        raise UserError(f"{path}: row {row + 1} has {what}")
    return pa.array(known, pa.large_string()).take(given.indices)


def split_of(group: str, seed: int, shares: Mapping[str, float] = SHARES) -> str:
    """Choose a group's split by the hash of its name and a seed, the same on every machine; shares add up to 1."""
    digest = hashlib.sha256(f"{seed}\x1f{group}".encode("utf-8", "surrogatepass")).digest()
    place = int.from_bytes(digest[:8], "big") / 2**64
    ends = zip(shares, accumulate(shares.values()), strict=True)
    # By rounding, the sum of the shares may fall short of 1.
    return next((name for name, end in ends if place < end), list(shares)[-1])


def check_groups(groups: Texts, split: Texts, path: Path, allowed: bool, notes: list[str]) -> None:
    """Raise a UserError if a group is in several splits, or note it where that is allowed."""
    group, place = (array.dictionary_encode().indices.to_numpy() for array in (groups, split))
    some = np.zeros(group.max() + 1, place.dtype)
    some[group] = place  # of each group, the split of one of its rows
    leaks = np.flatnonzero(some[group] != place)
    if not leaks.size:
        return
    crossing = np.unique(group[leaks])
    one = groups[int(np.flatnonzero(np.isin(group, crossing))[0])]
    where = ", ".join(sorted(pc.unique(split.filter(pc.equal(groups, one))).to_pylist()))
    found = f"{len(crossing)} groups stand in several splits, such as '{one}' in {where}"
    if not allowed:
        raise UserError(
            f"{path}: {found}; what was trained on would be tested on. Give each group one split, or pass "
            "data.allow_group_leak=true"
        )
    notes.append(f"{found}: allowed by data.allow_group_leak")
