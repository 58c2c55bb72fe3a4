"""Columns of text as Arrow arrays: a million rows are checked without a Python object for each."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

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
