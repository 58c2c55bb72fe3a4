"""The table of a manifest: reading it, and checking its columns, all on Arrow: a million rows take below a second."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import posixpath
import re
import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from fakedet.errors import UserError, nearest, one_line
from fakedet.utils import shown_names

Texts: TypeAlias = pa.LargeStringArray  # One text for each row, none of them null

COLUMNS = ("path", "label", "generator", "source", "split", "group", "family")
# Further columns: `fakedet index` writes the first seven, `fakedet shard` two more; the last is the user's, the date on
# which a fake's generator was released, for protocol=over_time.
FACTS = ("width", "height", "format", "jpeg_quality", "jpeg_tables", "bytes", "sha256", "shard", "position", "released")
# Columns with few different values, which are read as categories
REPEATING = ["generator", "source", "split", "group", "family"]
SPLITS = {  # names in tables and of folders
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test",
}  # fmt: skip
SHARES = {"train": 0.70, "val": 0.15, "test": 0.15}
# Metadata of a parquet manifest, both relative to its folder:
ROOT_KEY = b"fakedet.root"  # the folder that paths are relative to
SHARDS_KEY = b"fakedet.shards"  # the folder of the shards that hold the images
INSIDE_KEY = b"fakedet.inside"  # JSON: parquet files that hold the images → their column of these
# What str.strip() takes off; Arrow's own idea of white space is narrower.
BLANKS = "".join(character for character in map(chr, range(0x3001)) if character.isspace())

# The field's words for both classes, written together in small letters. Those of REAL_TOPIC are also names of what
# a picture shows: as folders they count only beside a folder of the other class.
MADE = (
    r"(?:fakes?|ai|aigc|aigi|generated|(?:ai|machine|computer)(?:gen|generated|made|created)|synthetic|synth|artificial|"
    r"artificialintelligence|deepfakes?|forged|forgery|forgeries|manipulated|tampered|altered|spoof|spoofed)"
)
FAKE = rf"(?:{MADE}|(?:not?|non)(?:real|authentic|genuine)|inauthentic)"
REAL = (
    r"(?:reals?|authentic|genuine|pristine|bonafide|realworld|reallife|(?:human|camera)(?:made|created|generated)|"
    rf"(?:not?|non|un|without){MADE}|(?:ai|(?:deep)?fakes?)free)"
)
REAL_TOPIC = r"(?:natural|nature|humans?|originals?|photos?|photographs?|photography|camera)"
BEFORE = r"(?:images?|imgs?|faces?|class|label|train(?:ing)?|test(?:ing)?|val(?:idation)?)?"
AFTER = (
    r"images?|imgs?|pictures?|pics?|photos?|photographs?|faces?|data|datasets?|sets?|samples?|class|content|"
    r"train(?:ing)?|test(?:ing)?|val(?:idation)?|jpe?g|png|webp|people|scenes?|animals?|landscapes?|clothing|objects?"
)
ART = r"arts?|artworks?|paintings?|portraits?"  # after words for fakes only: RealArt and HumanArt may be models
PHOTOGRAPHS = (  # Collections of photographs, which a name of reals may add
    r"(?:ms)?coco|ffhq|celeba(?:hq)?|imagenetk?|laion|lsun|flickr(?:k|faces)?|openimages?|raise(?:k)?|dresden|"
    r"places|ccm|yfcc(?:m)?|redcaps|afhq(?:v)?|unsplash|pexels|pixabay|divk|c?bsds?|wikiart|metfaces|pascal(?:voc)?|voc|"
    r"adek|kodak|ucid|boss(?:base)?|sab|vggfaces?|widerface|forchheim"
)
# What a name that resembles one for photographs holds, without saying so plainly.
REALLIKE = r"real|authent|genuin|pristin|bona.?fid|human|camera|photo|natur|origin|legit|organic"
# Words for a class that is missing, or was not decided on.
UNDECIDED = (
    r"(?:un(?:known|sure|clear|certain|[a-z]+ed)|nan?|none|null|nil|missing|empty|blank|true|false|yes|no|tb[acd]|"
    r"to(?:do|sort|review|check)|pending|review|check|skip(?:ped)?|ignored?|excluded?|rejected|removed|deleted|trash|junk|"
    r"invalid|corrupt(?:ed)?|broken|errors?|failed|others?|misc(?:ellaneous)?|various|mix(?:ed)?|both|either|neither|rest|"
    r"maybe|perhaps|possibly|ambiguous|inconclusive|indeterminate|questionable|suspicious|suspect(?:ed)?|hybrid|"
    r"partial(?:ly)?|edit(?:ed|s)?|retouched|modified|processed|idk|(?:not|dont|cannot|cant)[a-z]*|default|new|all|label|"
    rf"source|type|no(?:label|answer|data|value|idea|class|tag)s?|(?:{AFTER})+)+"
)
# Words whose misspellings are no generators.
SPELLED = ("real", "fake", "authentic", "genuine", "synthetic", "generated", "human", "photo", "natural", "original")


@lru_cache(1 << 14)
def class_of(name: str, surely: bool = False) -> int | None:
    """Return the class that a name plainly says, of a folder, a class or a column: 0 real, 1 fake; None if it does not.

    "REAL", "0_real", "real_photos", "real_coco", "AI-generated images" are plain; "Real-ESRGAN", "Photo-Real",
    "RealArt", "Real-2.0" and "nature_gan" are not. ``surely`` leaves out words that may be the topic of a picture, such
    as "nature".
    """
    word = re.sub(r"[\W\d_]+", "", name.lower())
    if re.fullmatch(f"{BEFORE}{FAKE}(?:{AFTER}|{ART})*", word):
        return 1
    reals = REAL if surely else f"(?:{REAL}|{REAL_TOPIC})"
    has_version = re.search(r"\d\.\d", name)  # as models have
    return 0 if re.fullmatch(f"{BEFORE}{reals}(?:{AFTER}|{PHOTOGRAPHS})*", word) and not has_version else None


def is_undecided(name: str) -> bool:
    """Return whether a name that says no class is none of a generator: "unknown", "todo", "?", "1", "rael"."""
    word = re.sub(r"[\W\d_]+", "", name.lower())
    close = get_close_matches(word, SPELLED, 1, 0.75) if name.isalpha() else []
    misspelt = bool(close) and abs(len(close[0]) - len(word)) <= 1
    return not word or len(name.strip()) < 2 or misspelt or re.fullmatch(UNDECIDED, word) is not None


def class_names(features: Any, column: str) -> list[str] | None:
    """Return the names of a column's classes by their number, of ``features`` as Hugging Face writes them, or None."""
    given = features.get(column) if isinstance(features, Mapping) else None
    names = given.get("names") if isinstance(given, Mapping) else None
    return [str(name) for name in names] if isinstance(names, list) and names else None


def features_of(schema: pa.Schema) -> Any:
    """Return what Hugging Face's datasets wrote into a schema about its columns."""
    try:
        return json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
    except (ValueError, KeyError, TypeError):
        return {}


def label_text(value: Any, names: Sequence[str] = ()) -> str:
    """Write a label as text, by the name of its class where classes have names; "" if it is missing."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, bool | np.bool_):
        return str(value).lower()
    text = "" if value is None or value != value else str(value).strip()
    if re.fullmatch(r"[+-]?\d+\.0*", text):
        text = text.split(".")[0]
    if names and re.fullmatch(r"-?\d+", text):
        return names[int(text)] if 0 <= int(text) < len(names) else ""  # -1 stands for no label
    return text


def matching(names: Iterable[str], pattern: str) -> list[str]:
    """Return the one of these names that is the pattern, or else those that it fits as a glob in any case."""
    names = list(names)
    exact = [name for name in names if name == pattern]
    return exact or [name for name in names if fnmatchcase(name.lower(), pattern.lower())]


def named_classes(
    names: Collection[str], reals: Collection[str], fakes: Collection[str], what: str
) -> dict[str, tuple[int, str]]:
    """Return the names that the options reals and fakes, names or globs, name: name → (0 real or 1 fake, the option).

    A UserError if an option names none of them, or both name the same.
    """
    found: dict[str, tuple[int, str]] = {}
    for label, (option, patterns) in enumerate((("reals", reals), ("fakes", fakes))):
        for pattern in patterns:
            own = matching(names, pattern)
            if not own:
                raise UserError(f"{option}: no {what} is called '{pattern}'; {nearest(pattern, names)}")
            for name in own:
                if found.setdefault(name, (label, f"{option}=[{pattern}]"))[0] != label:
                    raise UserError(f"reals and fakes both name '{name}'")
    return found


def classes(
    values: Iterable[str], column: str, where: object, reals: Collection[str] = (), fakes: Collection[str] = (),
    by_number: bool = True,
) -> dict[str, tuple[int, str]]:  # fmt: skip
    """Decide what the values of a label column mean: value → (0 real or 1 fake, the reason).

    ``reals`` and ``fakes``, values or globs, come first; then names that plainly say a class; then, if ``by_number``,
    0 real, 1 fake, for numbers without names. Where a name says real, and none says fake, the others are taken for
    generators, unless they are undecided. All else is ambiguous, a UserError that names the options: also numbers in a
    column such as "real_label", whose name says real in a way that is not understood.
    """
    given = sorted(set(values))
    found = named_classes(given, reals, fakes, f"label of {where}")
    others = [value for value in given if value not in found]
    flag, numbers = class_of(re.sub("^(is|has)_?", "", column, flags=re.IGNORECASE)), set(others) <= {"0", "1"}
    truth = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
    if flag is not None and all(value.lower() in truth for value in others):
        told = {value: flag if truth[value.lower()] else 1 - flag for value in others}
        return found | {value: (label, f"{column} is {value}") for value, label in told.items()}
    parted = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", column).lower()
    unclear = re.search(rf"{REALLIKE}|(?<![a-z])(?:no(?![a-z])|non|not|un|without)|free", parted)
    if numbers and not found and by_number and not unclear:
        return {value: (int(value), f"{column} {value}; it has no name: 0 is real, 1 fake") for value in others}
    named = {value: label for value in others if (label := class_of(value)) is not None}
    found |= {value: (label, f"{column} '{value}'") for value, label in named.items()}
    rest = [value for value in others if value not in found]
    undecided = [value for value in rest if is_undecided(value)]
    is_sure = 1 not in named.values() and any(class_of(value, surely=True) == 0 for value in named)
    if rest and bool(reals) != bool(fakes):
        found |= {value: (int(bool(reals)), f"not among {'reals' if reals else 'fakes'}") for value in rest}
    elif rest and is_sure and not undecided:
        found |= {value: (1, f"{column} '{value}', a generator beside reals") for value in rest}
    elif rest:
        one, shown = [*undecided, *rest][:1], ", ".join(map(repr, given[:12])) + "..." * (len(given) > 12)
        raise UserError(
            f"{where}: which labels are real and which fake? The column '{column}' has {shown}. Pass "
            f"{shown_names('reals', one)} or {shown_names('fakes', one)}, with all labels of that class in the "
            "list, leave out rows that are of neither, or name another column: columns={label: NAME}"
        )
    return found


def read_table(path: Path) -> pa.Table:
    """Read a parquet or CSV table, told apart by content; no file, an empty one, or another kind is a UserError.

    Commas, tabs, semicolons or bars may part the columns of a CSV; the first line tells which. Every value of it stays
    text: pandas would read a generator "NA" or "null" as missing, a group "007" as a number.
    """
    try:
        data = path.read_bytes()
    except IsADirectoryError:
        raise UserError(f"data.manifest={path}: this is a folder; give the table in it") from None
    except FileNotFoundError:
        raise UserError(f"data.manifest={path}: there is no such file") from None
    except OSError as error:
        why = "no permission to read it" if isinstance(error, PermissionError) else f"cannot be read: {error.strerror}"
        raise UserError(f"data.manifest={path}: {why}") from error
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
    return _read_text(data, path)


def _read_text(data: bytes, path: Path) -> pa.Table:
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):  # "Unicode text" of a spreadsheet
        data = data.decode("utf-16", "replace").encode()
    data = re.sub(rb'\A(\xef\xbb\xbf)?"?sep=."?\r?\n', b"", data)  # a line of Excel's; the next tells as much
    if b"\0" in data:
        raise UserError(f"{path} is neither a parquet nor a CSV table: it holds binary data")
    # The separator that parts the first line into most columns; a comma where there is one column.
    first = data.lstrip().split(b"\n", 1)[0].decode("utf-8-sig", "replace").strip("\r")
    separator = max(",\t;|", key=lambda one: len(next(csv.reader([first], delimiter=one), [])))
    try:
        with warnings.catch_warnings():
            # Rows with more values than the header has names: pandas would warn and drop the values.
            warnings.simplefilter("error", pd.errors.ParserWarning)
            frame = pd.read_csv(io.BytesIO(data), sep=separator, dtype=str, keep_default_na=False,
                                index_col=False, encoding="utf-8-sig")  # fmt: skip
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
        if column in present and pa.types.is_nested(kind := table.schema.field(column).type):
            what = f"holds lists or structures ({kind})"
            raise UserError(f"{path}: the column '{column}' {what}; one value a row is needed")
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
    if (row := pc.index(missing, True).as_py()) >= 0:
        raise UserError(f"{path}: row {row + 1} has no {column}, as do {pc.sum(missing).as_py() - 1} others")


def paths(table: pa.Table, path: Path, root: Path) -> Texts:
    """Return the normalised image paths, relative to the root; one that is missing, outside, or twice is an error."""
    given = texts(table["path"])
    _require(pc.or_(pc.equal(given, ""), pc.utf8_is_space(given)), "path", path)
    written = {ROOT_KEY, SHARDS_KEY} & set(table.schema.metadata or {})  # by fakedet, which names files as they are
    if not written and (content(given)[1] == ord("\\")).any():
        odd = pc.match_substring(given, "\\")
        # Windows writes paths so; elsewhere it may be a part of a name.
        found = given.filter(odd).to_pylist()
        names = [name if os.path.lexists(root / name) else name.replace("\\", "/") for name in found]
        given = pc.replace_with_mask(given, odd, pa.array(names, pa.large_string()))
    clean = given
    # Looking through all texts at once is fast, and almost always nothing is to be done.
    everything = content(given)[1].tobytes()
    if b"./" in everything or b"//" in everything:
        odd = pc.match_substring_regex(given, "[./]/")
        normal = [posixpath.normpath(text) for text in given.filter(odd).to_pylist()]
        clean = pc.replace_with_mask(given, odd, pa.array(normal, pa.large_string()))
    for start in dict.fromkeys(f"{base.rstrip('/')}/" for base in (os.path.abspath(root), os.path.realpath(root))):
        below = pc.starts_with(clean, start)
        clean = pc.if_else(below, pc.utf8_slice_codeunits(clean, len(start)), clean)
    absolute = pc.starts_with(clean, "/")
    outside = pc.or_(absolute, pc.or_(pc.starts_with(clean, "../"), pc.equal(clean, "..")))
    row, twice = pc.index(outside, True).as_py(), _first_duplicate(clean)
    if row >= 0 and (twice is None or row <= twice[1]):
        common = common_folder(clean.filter(absolute).to_pylist())
        raise UserError(
            f"{path}: row {row + 1} has the path '{given[row]}'; paths are relative to data.root and stay inside it"
            + (f". All absolute paths are below {common}: pass that as the root" if common else "")
        )
    if twice is not None:
        raise UserError(f"{path}: rows {twice[0] + 1} and {twice[1] + 1} have the same path '{clean[twice[0]]}'")
    return clean


def common_folder(paths: Collection[str]) -> str:
    """Return the lowest folder that holds all of these files, if all paths are absolute; else ""."""
    absolute = bool(paths) and all(path.startswith("/") for path in paths)
    return posixpath.commonpath(sorted({posixpath.dirname(path) for path in paths})) if absolute else ""


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
    if (names := class_names(features_of(table.schema), "label")) is not None:
        words = given.map(lambda value: label_text(value, names))
        meant = classes([text for text in words if text], "label", path)
        given = words.map(lambda text: meant[text][0] if text else text)
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


def families(table: pa.Table, labels: NDArray[np.int64], generators: Texts, path: Path) -> Texts:
    """Return each row's family, its generator's name where the table has none; a fake generator of two is an error."""
    given = names(table, "family", path, blank=True)
    family = pc.if_else(pc.equal(given, ""), generators, given)
    fakes = pa.table({"generator": generators, "family": family}).filter(pa.array(labels == 1))
    found: dict[str, str] = {}
    for one in sorted(fakes.group_by(fakes.column_names).aggregate([]).to_pylist(), key=lambda one: one["family"]):
        if (other := found.setdefault(one["generator"], one["family"])) != one["family"]:
            raise UserError(f"{path}: the generator '{one['generator']}' has two families, '{other}' and "
                            f"'{one['family']}'; give all its fakes one (a blank is the generator's name)")  # fmt: skip
    return family


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
