"""data/index"""

from __future__ import annotations

import csv
import hashlib
import json
import logging
import os
import posixpath
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from omegaconf import DictConfig

from fakedet.data.dataset import cores
from fakedet.data.decode import DecodeError, parse_header
from fakedet.data.layouts import SPLIT_FOLDERS, Layout, Place, find_layout
from fakedet.data.manifest import check_manifest
from fakedet.data.manifest_table import COLUMNS, ROOT_KEY, SHARES, SPLITS, read_table, split_of
from fakedet.data.scan import Facts, Listing, Scan, Store, scan, walk
from fakedet.errors import UserError, nearest
from fakedet.utils import Bar, bar, replacing

ROWS = 1 << 16
"""Of a piece in memory."""
NAMES = pa.dictionary(pa.int32(), pa.string())
SCHEMA = pa.schema([
    ("path", pa.string()), ("label", pa.int8()), ("generator", NAMES), ("source", NAMES), ("split", NAMES),
    ("group", pa.string()), ("width", pa.int32()), ("height", pa.int32()), ("format", NAMES),
    ("jpeg_quality", pa.int16()), ("jpeg_tables", NAMES), ("bytes", pa.int64()), ("sha256", pa.string()),
])  # fmt: skip


def write_manifest(path: Path, rows: Iterable[tuple[Any, ...]], facts: dict[bytes, bytes]) -> int:
    """Write rows in the order of :data:`SCHEMA`; a manifest that is there stays whole until the end.

    Returns:
        The number of rows.

    Raises:
        UserError: the disk is full or the folder cannot be written.
    """
    written, source = 0, iter(rows)
    with replacing(path) as temporary, pq.ParquetWriter(temporary, SCHEMA.with_metadata(facts)) as writer:
        while piece := list(islice(source, ROWS)):
            arrays = [
                pa.array(column, field.type)
                for column, field in zip(zip(*piece, strict=True), SCHEMA, strict=True)
            ]
            writer.write_table(pa.Table.from_arrays(arrays, schema=SCHEMA))
            written += len(piece)
    return written


def write_rejected(path: Path, rows: Iterable[tuple[str, str]]) -> None:
    """Write (path, reason) of what was left out as CSV; no file where there is nothing.

    Raises:
        UserError: as :func:`write_manifest`.
    """
    listed = list(rows)
    if not listed:
        path.unlink(missing_ok=True)  # of an earlier run
        return
    # Names that are not UTF-8 are shown with their bytes escaped.
    with (
        replacing(path) as temporary,
        open(temporary, "w", newline="", encoding="utf-8", errors="backslashreplace") as file,
    ):
        writer = csv.writer(file)
        writer.writerow(("path", "reason"))
        writer.writerows(listed)


# Where a content stands in several splits, the copy in the first of these stays.
KEPT = ("test", "val", "train")


@dataclass
class Copies:
    """What became of files that share their content with others."""

    contents: int = 0
    """Contents that more than one file has."""
    files: int = 0
    """Files that have them."""
    contradictions: int = 0
    """Files left out because their content stands as real and as fake."""
    crossing: int = 0
    """Files left out because their content stands in another split too."""
    dropped: dict[str, str] = field(default_factory=dict)
    """Path → reason of the files left out."""


def resolve_copies(store: Store, rows: Rows) -> Copies:
    """Decide what becomes of files that share their content, and tell ``rows`` which are one group.

    A content that is labelled both real and fake leaves with all its files. Of a content in several splits,
    the copies in test stay, else those in val: what is measured stays as its makers published it.
    """
    found = Copies()
    for same in store.copies():
        files = [(folder, name) for _, folder, name in same if rows.place(folder) is not None]
        if len(files) < 2:
            continue
        found.contents += 1
        found.files += len(files)
        paths = [posixpath.join(folder, name) for folder, name in files]
        rows.first_copy |= dict.fromkeys(paths[1:], files[0])
        if not _drop_contradiction(files, paths, rows, found):
            _drop_crossing(files, paths, rows, found)
    return found


def _drop_contradiction(files: list[tuple[str, str]], paths: list[str], rows: Rows, found: Copies) -> bool:
    labels = [place.label for folder, _ in files if (place := rows.place(folder)) is not None]
    if len(set(labels)) == 1:
        return False
    for path, label in zip(paths, labels, strict=True):
        other = paths[labels.index(1 - label)]
        found.dropped[path] = (
            f"equal content as {other}, which is {('real', 'fake')[1 - label]}: one of the labels is wrong"
        )
    found.contradictions += len(paths)
    return True


def _drop_crossing(files: list[tuple[str, str]], paths: list[str], rows: Rows, found: Copies) -> None:
    splits = [rows.split(folder, name) for folder, name in files]
    kept = next(split for split in KEPT if split in splits)
    for path, split in zip(paths, splits, strict=True):
        if split != kept:
            found.dropped[path] = f"equal content as {paths[splits.index(kept)]}, which is in {kept}"
            found.crossing += 1


CARVED = {"val": 0.1, "train": 0.9}
"""Shares of the training groups of a layout that has a test split and no validation split."""
GROUP_RULES = ("auto", "file", "stem")


@dataclass(frozen=True)
class Choices:
    """What the user may say of splits and groups."""

    split: str | None = None
    """Every image's split; None: the layout's, else by the hash of the group."""
    unseen: Collection[str] = ()
    """Generators (names or globs) whose images go to test alone."""
    group: str = "auto"
    """One of :data:`GROUP_RULES`, or a regular expression whose first group is looked for in the path."""
    seed: int = 0
    """Of the splits by hash."""
    pattern: re.Pattern[str] | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        if self.split is not None and self.split not in SPLITS:
            raise UserError(f"split={self.split}: {nearest(self.split, set(SPLITS.values()))}")
        if self.group in GROUP_RULES:
            return
        try:
            pattern = re.compile(self.group)
        except re.error as error:
            raise UserError(f"group={self.group}: not a regular expression: {error}") from error
        if not pattern.groups:
            raise UserError(
                f"group={self.group}: one of {', '.join(GROUP_RULES)}, or a regular expression with a group "
                "in parentheses, such as group='(\\d+)_'"
            )
        object.__setattr__(self, "pattern", pattern)


class Rows:
    """Say where each file belongs.

    Args:
        layout: of the folder.
        choices: of the user.
        counts: usable files of each folder, relative to the root.

    Raises:
        UserError: ``unseen`` names a generator that is not there.
    """

    def __init__(self, layout: Layout, choices: Choices, counts: Mapping[str, int]) -> None:
        self.layout, self.choices = layout, choices
        self.place = lru_cache(maxsize=1 << 16)(self._place)
        self.first_copy: dict[str, tuple[str, str]] = {}
        """Path of a copy → (folder, name) of the first file with its content: one content, one group."""
        self.unseen_groups: set[str] = set()
        places = [place for folder in counts if (place := self.place(folder)) is not None]
        given = {place.split for place in places if place.split}
        self._carve = "test" in given and "val" not in given and "train" in given
        self._unseen = _matching(choices.unseen, {place.generator for place in places if place.label == 1})

    def group(self, folder: str, name: str) -> str:
        """Name the group of a file."""
        folder, name = self.first_copy.get(posixpath.join(folder, name), (folder, name))
        path, stem = posixpath.join(folder, name), posixpath.splitext(name)[0]
        if self.choices.pattern is not None:
            found = self.choices.pattern.search(path)
            return (found.group(1) if found else None) or path
        if self.choices.group == "stem":
            return stem
        if self.choices.group == "auto":
            return self.layout.group(tuple(folder.split("/")), stem) or path
        return path

    def split(self, folder: str, name: str) -> str:
        """Choose the split of a file that has a place."""
        place = self.place(folder)
        assert place is not None
        if self.choices.split is not None:
            return SPLITS[self.choices.split]
        group = self.group(folder, name)
        if place.generator in self._unseen or group in self.unseen_groups:
            return "test"
        if place.split == "train" and self._carve:
            return split_of(group, self.choices.seed, CARVED)
        return place.split or split_of(group, self.choices.seed, SHARES)

    def note_unseen(self, rows: Iterable[Facts]) -> None:
        """Remember the groups of unseen generators: their siblings go to test with them."""
        if self._unseen:
            for fact in rows:
                place = self.place(fact.folder)
                if place is not None and place.generator in self._unseen:
                    self.unseen_groups.add(self.group(fact.folder, fact.name))

    def _place(self, folder: str) -> Place | None:
        return self.layout.place(tuple(folder.split("/")) if folder else ())


def _matching(patterns: Collection[str], names: Collection[str]) -> set[str]:
    found = set()
    for pattern in patterns:
        own = {name for name in names if fnmatchcase(name, pattern)}
        if not own:
            raise UserError(f"unseen: no generator is called '{pattern}'; {nearest(pattern, names)}")
        found |= own
    return found


@dataclass(frozen=True)
class Settings:
    """How to index.

    Raises:
        UserError: a value is out of range.
    """

    layout: str = "auto"
    reals: Collection[str] = ()
    choices: Choices = field(default_factory=Choices)
    hashed: bool = True
    threads: int = 8
    skip_unreadable: bool = False
    """Go on without folders that cannot be read."""


@dataclass(frozen=True)
class Indexed:
    """What an index run did."""

    manifest: Path
    rejected: Path
    layout: str
    rows: int
    scan: Scan
    copies: Copies
    reasons: Counter[str]
    """How many files were left out, by reason."""
    counts: Counter[tuple[int, str, str]]
    """Images by (label, generator, split)."""


def index_folder(
    root: Path, manifest: Path, settings: Settings, seen: Callable[[Scan], None] = lambda state: None
) -> Indexed:
    """Bring the manifest of a folder up to date.

    Args:
        root: the folder.
        manifest: the parquet file to write. Beside it come ``<name>.rejected.csv``, what was left out and why,
            and ``<name>.index.sqlite``, what is known of each file, so that the next run reads only what changed.
        settings: how.
        seen: called with the counts so far.

    Raises:
        UserError: no images, no layout that fits, a folder that cannot be read, no space.
    """
    with Store(manifest.with_suffix(".index.sqlite")) as store:
        state = scan(root, walk(root), store, settings.threads, settings.hashed, seen)
        state.others -= _own_files(root, manifest)
        _check_seen(root, state, settings)
        counts = store.counts()
        if not counts:
            raise UserError(
                f"{root}: none of the {state.files} images there can be read; the first: {_first_problem(store)}"
            )
        folders = {_parts(folder): count for folder, count in counts.items()}
        layout = find_layout(settings.layout, root.name, folders, settings.reals)
        rows = Rows(layout, settings.choices, counts)
        rows.note_unseen(store.rows())
        copies = resolve_copies(store, rows)
        rejected: list[tuple[str, str]] = list(state.problems)
        placed: Counter[tuple[int, str, str]] = Counter()
        facts = metadata(root, manifest, layout.name, settings)
        written = write_manifest(manifest, _rows(_open(store, state), rows, copies, rejected, placed), facts)
    path = manifest.with_suffix(".rejected.csv")
    write_rejected(path, sorted(rejected))
    return Indexed(manifest, path, layout.name, written, state, copies, count_reasons(rejected), placed)


def _open(store: Store, state: Scan) -> Iterator[Facts]:
    """Yield what is known of files in folders that can be read now."""
    return (fact for fact in store.rows() if fact.folder not in state.closed)


def _rows(
    facts: Iterable[Facts],
    rows: Rows,
    copies: Copies,
    rejected: list[tuple[str, str]],
    placed: Counter[tuple[int, str, str]],
) -> Iterator[tuple[Any, ...]]:
    for fact in facts:
        path = posixpath.join(fact.folder, fact.name)
        place = rows.place(fact.folder)
        if place is None and rows.layout.aside(_parts(fact.folder)):
            continue
        reason = fact.problem or copies.dropped.get(path, "")
        if place is None and not reason:
            reason = f"the layout {rows.layout.name} has no place for its folder"
        if reason or place is None:
            rejected.append((path, reason))
            continue
        split = rows.split(fact.folder, fact.name)
        placed[(place.label, place.generator, split)] += 1
        yield (path, place.label, place.generator, place.source, split, rows.group(fact.folder, fact.name),
               *described(fact))  # fmt: skip


def described(fact: Facts) -> tuple[Any, ...]:
    """Give the columns of a manifest that say what a file is like."""
    return (
        fact.width,
        fact.height,
        fact.format,
        fact.jpeg_quality,
        fact.jpeg_tables,
        fact.bytes,
        fact.sha256,
    )


def _parts(folder: str) -> tuple[str, ...]:
    return tuple(folder.split("/")) if folder else ()


def _own_files(root: Path, manifest: Path) -> int:
    """Count the files that indexing itself has put below the root."""
    try:
        manifest.resolve().relative_to(root)
    except ValueError:
        return 0
    return sum(path.name.startswith(f"{manifest.stem}.") for path in manifest.parent.iterdir())


def _check_seen(root: Path, state: Scan, settings: Settings) -> None:
    if state.closed and not settings.skip_unreadable:
        first = min(state.closed)
        path, reason = next(problem for problem in state.problems if problem[0] == first)
        raise UserError(
            f"{root}: {len(state.closed)} folder(s) cannot be read, the first: {path or '.'}: {reason}. A manifest "
            "without them would be of a part of the data only; give read permission, or pass "
            "skip_unreadable=true. What was read so far is kept"
        )
    if not state.files:
        what = f"{state.others} files of other kinds" if state.others else "no files at all"
        raise UserError(
            f"{root}: there are no images (jpg, png, webp, bmp, tif, ...) but {what}; is it mounted?"
        )


def _first_problem(store: Store) -> str:
    fact = next(store.rows())
    return f"{posixpath.join(fact.folder, fact.name)}: {fact.problem}"


def metadata(root: Path, manifest: Path, layout: str, settings: Settings) -> dict[bytes, bytes]:
    """Say in a manifest what it is relative to and how it was made."""
    choices = settings.choices
    made = {
        "layout": layout, "split": choices.split, "unseen": list(choices.unseen), "group": choices.group,
        "split_seed": choices.seed,
    }  # fmt: skip
    relative = os.path.relpath(root, manifest.parent.resolve())
    return {ROOT_KEY: os.fsencode(relative), b"fakedet.index": json.dumps(made).encode()}


def count_reasons(rejected: list[tuple[str, str]]) -> Counter[str]:
    """Count reasons; what follows a colon or names another file is particular to one."""
    return Counter(reason.split(" as ")[0].split(":")[0] for _, reason in rejected)


WORDS = {"real": 0, "fake": 1}


def index_table(
    table: Path, root: Path, manifest: Path, settings: Settings, columns: Mapping[str, str],
    seen: Callable[[Scan], None] = lambda state: None,
) -> Indexed:  # fmt: skip
    """Write the manifest of the images that a table names; files that it does not name are not looked at.

    The table's own labels, generators, groups and splits are taken as they are, and checked.

    Args:
        table: CSV or parquet.
        root: the folder that its paths are relative to.
        manifest: see :func:`fakedet.data.index.index_folder`.
        settings: how; the layout does not matter.
        columns: the manifest's column → the table's column, where they have other names.
        seen: called with the counts so far.

    Raises:
        UserError: the table is wrong; see :func:`fakedet.data.manifest.load_manifest`.
    """
    _check_choices(settings)
    choices = settings.choices
    renamed = _renamed(read_table(table), columns, table)
    # With one split for all, no group can stand in two.
    frame = check_manifest(renamed, table, root, choices.split is not None, choices.seed).frame
    if choices.split is not None:
        frame["split"] = SPLITS[choices.split]
    rejected: list[tuple[str, str]] = []
    with Store(manifest.with_suffix(".index.sqlite")) as store:
        state = scan(root, _listings(root, frame["path"]), store, settings.threads, settings.hashed, seen)
        facts = {posixpath.join(fact.folder, fact.name): fact for fact in store.rows()}
    problems = dict(state.problems)
    copies = _contradictions(frame, facts)
    placed: Counter[tuple[int, str, str]] = Counter()

    def rows() -> Iterator[tuple[object, ...]]:
        for row in frame.itertuples(index=False):
            path, fact = str(row.path), facts.get(str(row.path))
            reason = fact.problem if fact else problems.get(path, "no such file")
            reason = reason or copies.dropped.get(path, "")
            if reason or fact is None:
                rejected.append((path, reason))
                continue
            placed[(row.label, row.generator, row.split)] += 1  # type: ignore[index]
            yield (*row, *described(fact))

    frame = frame[["path", "label", "generator", "source", "split", "group"]]
    written = write_manifest(manifest, rows(), metadata(root, manifest, "table", settings))
    path = manifest.with_suffix(".rejected.csv")
    write_rejected(path, sorted(rejected))
    return Indexed(manifest, path, "table", written, state, copies, count_reasons(rejected), placed)


def _check_choices(settings: Settings) -> None:
    choices = settings.choices
    given = {"layout": settings.layout != "auto", "reals": bool(settings.reals), "unseen": bool(choices.unseen),
             "group": choices.group != "auto"}  # fmt: skip
    for name, is_given in given.items():
        if is_given:
            raise UserError(f"{name}: this is for folders; a table says it itself, in its columns")


def _renamed(table: pa.Table, columns: Mapping[str, str], path: Path) -> pa.Table:
    present = table.column_names
    for wanted, given in columns.items():
        if wanted not in COLUMNS:
            raise UserError(f"columns: a manifest has no column '{wanted}'; {nearest(wanted, COLUMNS)}")
        if given not in present:
            raise UserError(f"{path}: there is no column '{given}'; {nearest(given, present)}")
    names = {given: wanted for wanted, given in columns.items()}
    table = table.rename_columns([names.get(name, name) for name in present])
    if "label" in table.column_names:
        words = [WORDS.get(str(word).strip().lower(), word) for word in table["label"].to_pylist()]
        if any(isinstance(word, str) for word in words):  # mixed with words, numbers are text too
            words = [str(word) for word in words]
        table = table.set_column(table.column_names.index("label"), "label", pa.array(words))
    return table


def _listings(root: Path, paths: pd.Series) -> Iterator[Listing]:
    folders: dict[str, list[str]] = defaultdict(list)
    for path in paths:
        folder, name = posixpath.split(path)
        folders[folder].append(name)
    for folder, names in sorted(folders.items()):
        listing = Listing(folder)
        for name in names:
            try:
                found = os.stat(os.path.join(root, folder, name))
            except OSError as error:
                listing.problems.append((name, f"cannot be read: {error.strerror}"))
            else:
                listing.images.append((name, found.st_size, found.st_mtime_ns))
        yield listing


def _contradictions(frame: pd.DataFrame, facts: Mapping[str, Facts]) -> Copies:
    """Find contents that the table labels both real and fake; both are left out."""
    digests = pd.Series([facts[path].sha256 if path in facts else "" for path in frame["path"]], frame.index)
    known = frame.assign(sha256=digests)[digests != ""]
    same = known[known["sha256"].duplicated(keep=False)]
    copies = Copies(contents=int(same["sha256"].nunique()), files=len(same))
    for _, rows in same.groupby("sha256"):
        if rows["label"].nunique() > 1:
            for row in rows.itertuples():
                other = rows.loc[rows["label"] != row.label, "path"].iloc[0]
                copies.dropped[str(row.path)] = f"equal content as {other}, which has the other label"
    copies.contradictions = len(copies.dropped)
    return copies


IMAGE_COLUMN = ("image_data", "image", "bytes")
NAME_COLUMNS = ("model_name", "generator", "model")
LABEL_COLUMNS = {"0": 0, "1": 1, "real": 0, "fake": 1, "false": 0, "true": 1}
ROWS_AT_A_TIME = 64
"""Rows in memory at a time."""
EXTENSIONS = {
    "JPEG": "jpg",
    "MPO": "jpg",
    "PNG": "png",
    "WEBP": "webp",
    "BMP": "bmp",
    "TIFF": "tif",
    "GIF": "gif",
}


def holds_images(path: Path) -> bool:
    """Say whether a parquet file has a column of image bytes."""
    try:
        return _image_column(pq.read_schema(path)) is not None
    except (pa.ArrowInvalid, OSError):
        return False


def parquets(source: Path, deep: bool = False) -> list[Path]:
    """List the parquet files that hold images.

    Args:
        source: a file or a folder.
        deep: look at all depths; else in the folder and its ``data/``, where Hugging Face puts them.
    """
    if source.is_file():
        files = [source] if source.suffix == ".parquet" else []
    elif deep:
        files = sorted(source.rglob("*.parquet"))
    else:
        files = sorted([*source.glob("*.parquet"), *source.glob("data/*.parquet")])
    return [path for path in files if holds_images(path)]


def extract(
    files: list[Path], folder: Path, seen: Callable[[int], None] = lambda count: None
) -> dict[str, str]:
    """Write the images of parquet files, byte for byte, to ``<folder>/[split/]<generator>/{real,fake}/``.

    A file of the same name and size is not written again, so interrupted work goes on.

    Args:
        files: from :func:`parquets`.
        folder: where the images go.
        seen: called with the number of rows done.

    Returns:
        "file row" → reason, of rows without an image or a label.

    Raises:
        UserError: a file is damaged or lacks the columns; the disk is full.
    """
    failed, done = {}, 0
    for path in files:
        for number, row in _parquet_rows(path):
            where, data = _target(path, number, row)
            if isinstance(where, str):
                failed[f"{path.name} row {number}"] = where
            else:
                _write(folder / where, data)
            done += 1
            seen(done)
    return failed


def _parquet_rows(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    schema = pq.read_schema(path)
    image = _image_column(schema)
    if "label" not in schema.names:
        raise UserError(
            f"{path}: there is no column 'label' beside '{image}'; it has {', '.join(schema.names)}"
        )
    wanted = [
        name for name in (image, "label", *NAME_COLUMNS, "real_source", "split") if name in schema.names
    ]
    number = 0
    try:
        for batch in pq.ParquetFile(path).iter_batches(ROWS_AT_A_TIME, columns=wanted):
            for row in batch.to_pylist():
                yield number, {**row, "image": row[image]}
                number += 1
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{path}: damaged after row {number}: {error}") from error


def _target(path: Path, number: int, row: Mapping[str, Any]) -> tuple[Path | str, bytes]:
    """Give where a row's image goes, or why it goes nowhere."""
    label = LABEL_COLUMNS.get(str(row["label"]).strip().lower())
    if label is None:
        return f"label {row['label']!r} is neither 0 (real) nor 1 (fake)", b""
    image = row["image"]
    data = image.get("bytes") if isinstance(image, Mapping) else image
    if not isinstance(data, bytes):
        return "no image bytes", b""
    try:
        extension = EXTENSIONS.get(parse_header(data).format, "png")
    except DecodeError as error:
        return error.reason, b""
    name = next((str(row[key]) for key in NAME_COLUMNS if row.get(key)), ("real", "fake")[label])
    if label == 0 and row.get("real_source"):
        name = str(row["real_source"])
    split = SPLIT_FOLDERS.get(str(row.get("split", "")).lower(), "") or SPLIT_FOLDERS.get(
        path.name.split("-")[0].lower(), ""
    )
    # Files of one name may lie in several folders.
    mark = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:6]
    file = f"{path.stem}_{mark}_{number:08d}.{extension}"
    return Path(split, quote(name, safe=" +=,@") or "unknown", ("real", "fake")[label], file), data


def _write(path: Path, data: bytes) -> None:
    try:
        if path.stat().st_size == len(data):
            return
    except OSError:
        pass
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def _image_column(schema: pa.Schema) -> str | None:
    for name in IMAGE_COLUMN:
        if name in schema.names:
            kind = schema.field(name).type
            if pa.types.is_struct(kind):
                return name if kind.get_field_index("bytes") >= 0 else None
            if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
                return name
    return None


log = logging.getLogger("fakedet")

TABLES = (".csv", ".tsv", ".parquet")
EMBEDDED = "parquet"
"""As ``layout=`` names parquet files that hold the images."""


def index_source(config: DictConfig) -> Indexed:
    """Index the folder, the table or the parquet files of images that ``source`` names.

    Raises:
        UserError: anything wrong with source, settings or the place for the manifest.
    """
    source = Path(config.source)
    if not source.exists():
        raise UserError(f"source={source}: there is no such folder or file")
    settings = _index_settings(config)
    manifest = _manifest_path(config, source)
    embedded = parquets(source, deep=settings.layout == EMBEDDED)
    if settings.layout == EMBEDDED and not embedded:
        raise UserError(f"layout={EMBEDDED}: {source} holds no parquet files with a column of image bytes")
    if embedded:
        return _index_embedded(embedded, manifest, settings)
    with bar("reading headers") as shown:
        if source.is_dir():
            return index_folder(source.resolve(), manifest, settings, _show(shown))
        if source.suffix.lower() not in TABLES:
            raise UserError(f"source={source}: neither a folder nor a table ({', '.join(TABLES)})")
        root = Path(config.root) if config.root else source.parent
        columns = {str(key): str(value) for key, value in config.columns.items()}
        return index_table(source, root.resolve(), manifest, settings, columns, _show(shown))


def _index_embedded(files: list[Path], manifest: Path, settings: Settings) -> Indexed:
    """Write the images beside the manifest, then index them."""
    folder = manifest.parent / "images"
    log.info("%d parquet file(s) hold images; they are written to %s", len(files), folder)
    with bar("writing images") as shown:
        failed = extract(files, folder, shown.show)
    for where, reason in list(failed.items())[:5]:
        log.warning("left out: %s: %s", where, reason)
    if len(failed) > 5:
        log.warning("... and %d more rows", len(failed) - 5)
    with bar("reading headers") as shown:
        return index_folder(folder.resolve(), manifest, replace(settings, layout="real_fake"), _show(shown))


def _show(shown: Bar) -> Callable[[Scan], None]:
    def seen(state: Scan) -> None:
        shown.show(state.files, f"files, {state.read:,} read")

    return seen


def _index_settings(config: DictConfig) -> Settings:
    threads = 4 * cores() if config.threads is None else int(config.threads)
    if threads < 1:
        raise UserError(f"threads={threads}: must be at least 1")
    choices = Choices(config.split, _listed_names(config.unseen), config.group, config.split_seed)
    return Settings(
        config.layout,
        _listed_names(config.reals),
        choices,
        config.hash,
        min(threads, 64),
        config.skip_unreadable,
    )


def _listed_names(value: str | Iterable[object] | None) -> list[str]:
    if value is None:
        return []
    return [value] if isinstance(value, str) else [str(name) for name in value]


def _manifest_path(config: DictConfig, source: Path) -> Path:
    """Choose where the manifest goes: into the folder itself, else beside the table."""
    if config.output is None:
        return (source if source.is_dir() else source.parent) / "manifest.parquet"
    path = Path(config.output)
    if path.is_dir():
        return path / "manifest.parquet"
    if path.suffix != ".parquet":
        raise UserError(f"output={path}: name a folder or a .parquet file")
    if source.is_file() and path.exists() and path.samefile(source):
        raise UserError(f"output={path}: this is the source itself; name another file")
    return path
