"""data/manifest_table"""

from __future__ import annotations

import hashlib
import io
import posixpath
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from fakedet.errors import UserError, nearest

Texts: TypeAlias = pa.LargeStringArray
"""One text a row, none of them null."""
# What str.strip() takes off; Arrow's own idea of white space is narrower.
BLANKS = "".join(character for character in map(chr, range(0x3001)) if character.isspace())

WORD = 8
"""Bytes of a text that are hashed at a time."""
LONG = 512
MIX = np.uint64(0x9E3779B97F4A7C15)  # odd, so that multiplying loses nothing


def texts(column: pa.ChunkedArray) -> Texts:
    """Give a column as it stands, numbers and such as text; a missing value is the empty text."""
    array = column.combine_chunks()
    if not _is_text(array.type):
        values = column.to_pandas().astype(object)
        array = pa.array([str(value) for value in values.where(values.notna(), "")], pa.large_string())
    return pc.fill_null(array.cast(pa.large_string()), "")


def stripped(column: pa.ChunkedArray) -> Texts:
    """Give a column as text, without the blanks around each."""
    array = column.combine_chunks()
    if pa.types.is_dictionary(array.type) and _is_text(array.type.value_type):
        values = pc.utf8_trim(array.dictionary.cast(pa.large_string()), characters=BLANKS)
        return pc.fill_null(values.take(array.indices), "")
    return pc.utf8_trim(texts(column), characters=BLANKS)


def repeated(text: str, count: int) -> Texts:
    """Give the same text in every row."""
    return pa.repeat(pa.scalar(text, pa.large_string()), count)


def first(mask: pa.BooleanArray) -> int | None:
    """Give the first row where a mask is true."""
    row = int(pc.index(mask, pa.scalar(True)).as_py())
    return None if row < 0 else row


def first_duplicate(array: Texts) -> tuple[int, int] | None:
    """Give the first row whose text stood before, after the row where it stood."""
    if _surely_distinct(array) or len(pc.unique(array)) == len(array):
        return None
    codes = array.dictionary_encode().indices.to_numpy()
    row = int(np.flatnonzero(pd.Series(codes).duplicated().to_numpy())[0])
    return int(np.flatnonzero(codes == codes[row])[0]), row


def contains_pair(array: Texts, pairs: tuple[bytes, ...]) -> bool:
    """Say whether a pair of ASCII characters may stand in a text; it may also lie where two rows meet."""
    characters = content(array)[1]
    wanted = [int.from_bytes(pair, "little") for pair in pairs]
    for offset in (0, 1):
        part = characters[offset:]
        both = part[: len(part) // 2 * 2].view("<u2")
        if any((both == pair).any() for pair in wanted):
            return True
    return False


def content(array: Texts) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """Give the length of each text in bytes, and all texts one after the other in UTF-8."""
    _, offsets, data = array.buffers()
    if data is None or not len(array):
        return np.zeros(len(array), np.int64), np.zeros(0, np.uint8)
    ends = np.frombuffer(offsets, np.int64)[array.offset : array.offset + len(array) + 1]
    return np.diff(ends), np.frombuffer(data, np.uint8)[ends[0] : ends[-1]]


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _surely_distinct(array: Texts) -> bool:
    """Say that texts differ where their 64-bit hashes do: half the time of Arrow's own table of them.

    False where two hashes are equal or a text is too short or long, and then nothing is known.
    """
    lengths, characters = content(array)
    if not lengths.size or lengths.min() < WORD or lengths.max() > LONG:
        return False
    words: NDArray[np.uint64] = np.ndarray((len(characters) - WORD + 1,), "<u8", characters, strides=(1,))
    stops = np.cumsum(lengths)
    starts, last = stops - lengths, stops - WORD
    hashes = words[last] ^ lengths.astype(np.uint64)
    for offset in range(0, int(lengths.max()) - WORD, WORD):
        hashes = (hashes ^ (hashes >> np.uint64(29))) * MIX
        hashes += words[np.minimum(starts + offset, last)]
    hashes.sort()
    return bool((hashes[1:] != hashes[:-1]).all())


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


ROOT_KEY = b"fakedet.root"
"""Metadata of a parquet manifest: the folder that its paths are relative to, itself relative to its own."""
SHARDS_KEY = b"fakedet.shards"
"""Metadata of a parquet manifest whose images lie in shards: their folder, relative to its own."""
REPEATING = ["generator", "source", "split", "group"]
"""Columns whose few values are read once each, as categories."""


def read_table(path: Path) -> pa.Table:
    """Read a table; every value of a CSV stays the text that it is.

    pandas would read a generator called "NA" or "null" as missing, and a group "007" as a number.

    Raises:
        UserError: no file, an empty one, or one that is no such table.
    """
    data = _bytes(path)
    if not data.strip():
        raise UserError(f"{path}: the file is empty")
    if data[:4] == b"PAR1":
        try:
            table = pq.read_table(pa.BufferReader(data), read_dictionary=REPEATING)
            table.validate(full=True)  # text that is no UTF-8, say
        except Exception as error:  # pyarrow raises all sorts of things on damaged files
            raise UserError(f"{path}: a damaged parquet file: {_short(error)}") from error
        # What pandas adds for the index of a frame that was filtered or sorted is no column of the user's.
        return table.drop_columns([name for name in table.column_names if name.startswith("__index_level_")])
    if b"\0" in data:
        raise UserError(f"{path} is neither a parquet nor a CSV table: it holds binary data")
    return _csv(data, path)


def _bytes(path: Path) -> bytes:
    if path.is_dir():
        raise UserError(f"data.manifest={path}: this is a folder; give the table in it")
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"data.manifest={path}: there is no such file") from None
    except OSError as error:
        raise UserError(f"data.manifest={path}: cannot be read: {error.strerror}") from error


def _csv(data: bytes, path: Path) -> pa.Table:
    try:
        with warnings.catch_warnings():
            # Rows with more values than the header has names: pandas would warn and drop them.
            warnings.simplefilter("error", pd.errors.ParserWarning)
            table = pd.read_csv(
                io.BytesIO(data), dtype=str, keep_default_na=False, index_col=False, encoding="utf-8-sig"
            )
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: {_short(error)}") from error
    except (pd.errors.ParserError, pd.errors.ParserWarning, ValueError) as error:
        raise UserError(f"{path} is not a well-formed CSV table: {_short(error)}") from error
    columns = [pa.array(table.iloc[:, i]) for i in range(table.shape[1])]
    return pa.table(columns, names=[str(column).strip() for column in table.columns])


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
