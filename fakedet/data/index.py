"""Indexing: make a manifest of a folder of images, a table of paths, or files that hold images."""

from __future__ import annotations

import csv
import json
import logging
import os
import posixpath
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import lru_cache
from itertools import islice
from operator import attrgetter
from pathlib import Path, PurePosixPath
from typing import Any, TypeAlias

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from fakedet.data.embedded import Embedded, Part, decide, extract, find_parts, look_inside
from fakedet.data.layouts import Layout, Place, find_layout
from fakedet.data.manifest import check_manifest
from fakedet.data.manifest_table import (
    COLUMNS,
    FACTS,
    INSIDE_KEY,
    ROOT_KEY,
    SHARDS_KEY,
    SHARES,
    SPLITS,
    class_names,
    classes,
    common_folder,
    features_of,
    label_text,
    read_table,
    split_of,
    texts,
)
from fakedet.data.scan import Facts, Listing, Scan, Store, describe_left_behind, scan, walk
from fakedet.errors import UserError, nearest
from fakedet.utils import bar, replacing

log = logging.getLogger("fakedet")

NAMES = pa.dictionary(pa.int32(), pa.string())
SCHEMA = pa.schema([
    ("path", pa.string()), ("label", pa.int8()), ("generator", NAMES), ("source", NAMES), ("split", NAMES),
    ("group", pa.string()), ("family", NAMES), ("width", pa.int32()), ("height", pa.int32()), ("format", NAMES),
    ("jpeg_quality", pa.int16()), ("jpeg_tables", NAMES), ("bytes", pa.int64()), ("sha256", pa.string()),
])  # fmt: skip
described = attrgetter(*FACTS[:7])  # The columns of a manifest that describe a file, of its Facts
Row: TypeAlias = tuple[tuple[Any, ...], str, Facts]  # Values of COLUMNS, what the label follows from, the file
TABLES = (".csv", ".tsv", ".tab", ".txt", ".parquet")
GROUP_RULES = ("auto", "file", "stem")


@dataclass(frozen=True)
class Settings:
    """How to index; raises a UserError if a value is out of range."""

    layout: str = "auto"  # Name of a layout, or "auto" to recognise it
    reals: Collection[str] = ()  # Names or globs of top folders, or of labels, that hold reals
    fakes: Collection[str] = ()  # The same of fakes
    split: str | None = None  # Every image's split; None: the layout's, or else by the hash of the group
    unseen: Collection[str] = ()  # Generators (names or globs) whose images go to the test split only
    group: str = "auto"  # One of GROUP_RULES, or a regular expression whose first group is searched for in the path
    split_seed: int = 0  # Of the splits by hash
    hashed: bool = True  # Take the SHA-256 of each file, which finds duplicates
    threads: int | None = None  # Files read at a time, at most 64; None: four for each core
    skip_unreadable: bool = False  # Go on without folders that cannot be read
    extract: bool = True  # Write images that lie inside parquet or Arrow files to files of their own
    pattern: re.Pattern[str] | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        if self.threads is not None and self.threads < 1:
            raise UserError(f"threads={self.threads}: must be at least 1")
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


@dataclass
class Copies:
    """What happened to files that share their content with others."""

    contents: int = 0  # Contents that more than one file has
    files: int = 0  # Files that have them
    contradictions: int = 0  # Files left out because their content is labelled both real and fake
    crossing: int = 0  # Files left out because their content is in another split too
    dropped: dict[str, str] = field(default_factory=dict)  # Path → reason of the files left out


@dataclass(frozen=True)
class Indexed:
    """What an index run did."""

    manifest: Path
    rejected: Path  # CSV of the files left out, with their reasons; not there if none were
    layout: str
    rows: int
    scan: Scan
    copies: Copies
    reasons: Counter[str]  # Number of files left out, by reason
    counts: Counter[tuple[int, str, str]]  # Number of images by (label, generator, split)
    why: dict[tuple[int, str], str]  # What the label of a (label, generator) follows from


def index_source(
    source: Path, output: Path | None, settings: Settings, root: Path | None, columns: Mapping[str, str]
) -> Indexed:
    """Index a folder, a table, or parquet and Arrow files that hold images, and show the progress.

    ``output`` is the manifest to write, or a folder for it; None: manifest.parquet in the source's folder. Only for a
    table: ``root`` is the folder that its paths are relative to (None: its own). ``columns`` gives manifest column →
    the column of the table or of the files that hold images. A UserError if the source, a setting or the place for the
    manifest is wrong.
    """
    try:
        os.stat(source)
    except FileNotFoundError as error:
        raise UserError(f"source={source}: there is no such folder or file") from error
    manifest = _manifest_path(source, output)
    log.info("reading %s", source)
    deep = settings.layout == Embedded.name
    if (deep or settings.layout == "auto") and (parts := find_parts(source, columns, deep)):
        return index_embedded(parts, manifest, settings)
    if deep:
        what = "parquet or Arrow files with a column of image bytes"
        raise UserError(f"layout={Embedded.name}: {source} holds no {what}")
    with bar("reading headers") as shown:

        def seen(state: Scan) -> None:
            shown.show(state.files, f"files, {state.read:,} read")

        if source.is_dir():
            return index_folder(source.resolve(), manifest, settings, seen)
        if source.suffix.lower() not in TABLES:
            raise UserError(f"source={source}: neither a folder nor a table ({', '.join(TABLES)})")
        return index_table(source, root, manifest, settings, columns, seen)


def index_embedded(parts: list[Part], manifest: Path, settings: Settings) -> Indexed:
    """Write the images that a dataset's files hold to images/ beside the manifest, and the manifest of these images.

    What another dataset wrote to images/ is not looked at. Where the settings do not extract, images stay where they
    are, and the manifest names their rows. A UserError if the labels are ambiguous.
    """
    decide(parts, settings.reals, settings.fakes)
    if not settings.extract:
        with Store(manifest.with_suffix(".index.sqlite")) as store:
            with bar("reading rows") as shown:
                layout, state = look_inside(parts, store, settings.hashed, shown.show)
            if not state.read:
                raise UserError(f"{parts[0].path}: no image can be used; the first: {': '.join(state.problems[0])}")
            base = parts[0].path.resolve().parents[len(PurePosixPath(parts[0].name).parts) - 1]
            inside = json.dumps({part.name: part.columns["image"] for part in parts})
            return index_store(store, state, base, manifest, settings, layout, {INSIDE_KEY: inside.encode()})
    folder = manifest.parent.resolve() / "images"
    log.info("%d file(s) hold images; they are written to %s", len(parts), folder)
    with bar("writing images") as shown:
        layout, paths, failed = extract(parts, folder, shown.show)
    if not paths:
        raise UserError(f"{parts[0].path}: no image can be used" + "".join(f"; {': '.join(one)}" for one in failed[:1]))
    with Store(manifest.with_suffix(".index.sqlite")) as store, bar("reading headers") as shown:
        listings = _listings(folder, pd.Series(paths))
        state = scan(folder, listings, store, settings.threads, settings.hashed, lambda now: shown.show(now.files))
        state.problems += failed
        return index_store(store, state, folder, manifest, settings, layout)


def _manifest_path(source: Path, output: Path | None) -> Path:
    if output is None:
        return (source if source.is_dir() else source.parent) / "manifest.parquet"
    if os.path.isdir(output):  # Path.is_dir raises an error for a name that is too long
        return output / "manifest.parquet"
    if output.suffix != ".parquet":
        raise UserError(f"output={output}: name a folder or a .parquet file")
    if source.is_file() and os.path.exists(output) and output.samefile(source):
        raise UserError(f"output={output}: this is the source itself; name another file")
    return output


def index_folder(
    root: Path, manifest: Path, settings: Settings, seen: Callable[[Scan], None] = lambda state: None
) -> Indexed:
    """Write the manifest of a folder, or bring it up to date; ``seen`` is called with the counts so far.

    Beside the manifest, a parquet file, it writes ``<name>.rejected.csv``, what was left out and why, and
    ``<name>.index.sqlite``, what is known of each file, so that the next run reads only what changed. A UserError if
    there are no images, no layout fits, a folder cannot be read, or the disk is full.
    """
    with Store(manifest.with_suffix(".index.sqlite")) as store:
        state = scan(root, walk(root), store, settings.threads, settings.hashed, seen)
        if manifest.parent.resolve().is_relative_to(root):  # files that indexing itself wrote
            state.others -= sum(path.name.startswith(f"{manifest.stem}.") for path in manifest.parent.iterdir())
        if state.closed and not settings.skip_unreadable:
            first = min(state.closed)
            path, reason = next(problem for problem in state.problems if problem[0] == first)
            raise UserError(
                f"{root}: {len(state.closed)} folder(s) cannot be read, the first: {path or '.'}: {reason}. A manifest "
                "without them would be of a part of the data only; give read permission, or pass "
                "skip_unreadable=true. What was read so far is kept"
            )
        if not state.files:
            what = f" but {state.others} files of other kinds" if state.others else ", and no other files"
            aside = f" ({left})" if (left := describe_left_behind(state.left_behind)) else ""
            raise UserError(f"{root}: there are no images (jpg, png, webp, bmp, tif, ...){what}{aside}; is it mounted?")
        return index_store(store, state, root, manifest, settings)


def index_store(
    store: Store, state: Scan, root: Path, manifest: Path, settings: Settings, layout: Layout | None = None,
    metadata: Mapping[bytes, bytes] | None = None,
) -> Indexed:  # fmt: skip
    """Write the manifest of the files that a store knows; a UserError if none can be used or no layout fits.

    ``layout`` None: the one that the settings name, or that fits. ``metadata`` is written into the manifest besides.
    """
    counts = store.counts()
    if not counts:
        first = next(store.rows())
        raise UserError(
            f"{root}: none of the {state.files} images there can be read; the first: {first.path}: {first.problem}"
        )
    if layout is None:
        images = {_parts(folder): count for folder, count in counts.items()}
        layout = find_layout(settings.layout, root.name, images, settings.reals, settings.fakes)
        if doubtful := layout.doubtful():
            log.warning("not taken for photographs, because their names do not plainly say so: %s; if they hold "
                        "photographs, pass reals=[NAME,...]; if fakes, fakes=[NAME,...]",
                        ", ".join(doubtful))  # fmt: skip
    files = Placement(layout, settings, counts, store.rows())
    copies = resolve_copies(store, files)
    rejected = list(state.problems)

    def rows() -> Iterator[Row]:
        for fact in store.rows():
            place = files.place(fact.folder)
            # What is known of a folder that cannot be read now is kept, and not used.
            if fact.folder in state.closed or (place is None and layout.aside(_parts(fact.folder))):
                continue
            reason = fact.problem or copies.dropped.get(fact.path, "")
            if place is None or reason:
                rejected.append((fact.path, reason or f"the layout {layout.name} has no place for its folder"))
                continue
            split, group = files.split(fact.folder, fact.name), files.group(fact.folder, fact.name)
            generator = place.generator.strip() or "unnamed"  # as the manifest is read
            yield (fact.path, place.label, generator, place.source, split, group, generator), place.reason, fact

    return _write(manifest, root, layout.name, settings, state, copies, rows(), rejected, metadata)


def _parts(folder: str) -> tuple[str, ...]:
    return tuple(folder.split("/")) if folder else ()


class Placement:
    """Where each file belongs: its label and generator, its group, its split.

    ``counts`` holds the folders with usable files, ``rows`` all files. A UserError if ``settings.unseen`` names a
    generator that is not there.
    """

    def __init__(self, layout: Layout, settings: Settings, counts: Mapping[str, int], rows: Iterable[Facts]) -> None:
        self.layout, self.settings = layout, settings
        self.place: Callable[[str], Place | None] = lru_cache(1 << 16)(lambda folder: layout.place(_parts(folder)))
        # Path of a copy → (folder, name) of the first file with its content: one content, one group.
        self.first_copy: dict[str, tuple[str, str]] = {}
        places = [place for folder in counts if (place := self.place(folder)) is not None]
        given = {place.split for place in places if place.split}
        # Such a layout has no validation split: a tenth of the training groups becomes one.
        self._carve = "test" in given and "val" not in given and "train" in given
        fakes = {place.generator for place in places if place.label == 1}
        self._unseen: set[str] = set()
        for pattern in settings.unseen:
            own = {name for name in fakes if name == pattern or fnmatchcase(name, pattern)}
            if not own:
                raise UserError(f"unseen: no generator is called '{pattern}'; {nearest(pattern, fakes)}")
            self._unseen |= own
        # Images that share a group with an unseen generator's go to test with them.
        self._unseen_groups = {
            self.group(fact.folder, fact.name) for fact in (rows if self._unseen else ())
            if (place := self.place(fact.folder)) is not None and place.generator in self._unseen
        }  # fmt: skip

    def group(self, folder: str, name: str) -> str:
        """Return the group of a file."""
        folder, name = self.first_copy.get(posixpath.join(folder, name), (folder, name))
        path, stem = posixpath.join(folder, name), posixpath.splitext(name)[0]
        if self.settings.pattern is not None:
            found = self.settings.pattern.search(path)
            return (found.group(1) if found else None) or path
        if self.settings.group == "stem":
            return stem
        return (self.settings.group == "auto" and self.layout.group(stem)) or path

    def split(self, folder: str, name: str) -> str:
        """Return the split of a file that has a place."""
        place = self.place(folder)
        assert place is not None
        if self.settings.split is not None:
            return SPLITS[self.settings.split]
        group = self.group(folder, name)
        if place.generator in self._unseen or group in self._unseen_groups:
            return "test"
        if place.split == "train" and self._carve:
            return split_of(group, self.settings.split_seed, {"val": 0.1, "train": 0.9})
        return place.split or split_of(group, self.settings.split_seed, SHARES)


def resolve_copies(store: Store, files: Placement) -> Copies:
    """Decide what happens to files that share their content, and tell ``files`` which are one group.

    All files of a content that is labelled both real and fake are left out. Of a content in several splits, the copies
    in test stay, or else those in val, so that the test set stays as it was published.
    """
    found = Copies()
    for same in store.copies():
        placed = [(folder, name, place) for folder, name in same if (place := files.place(folder)) is not None]
        if len(placed) < 2:
            continue
        found.contents += 1
        found.files += len(placed)
        paths = [posixpath.join(folder, name) for folder, name, _ in placed]
        labels = [place.label for _, _, place in placed]
        files.first_copy |= dict.fromkeys(paths[1:], placed[0][:2])
        if len(set(labels)) > 1:
            for path, label in zip(paths, labels, strict=True):
                other, what = paths[labels.index(1 - label)], ("real", "fake")[1 - label]
                found.dropped[path] = f"equal content as {other}, which is {what}: one of the labels is wrong"
            found.contradictions += len(paths)
            continue
        splits = [files.split(folder, name) for folder, name, _ in placed]
        kept = next(split for split in ("test", "val", "train") if split in splits)
        for path, split in zip(paths, splits, strict=True):
            if split != kept:
                found.dropped[path] = f"equal content as {paths[splits.index(kept)]}, which is in {kept}"
                found.crossing += 1
    return found


def index_table(
    table: Path, root: Path | None, manifest: Path, settings: Settings, columns: Mapping[str, str],
    seen: Callable[[Scan], None] = lambda state: None,
) -> Indexed:  # fmt: skip
    """Write the manifest of the images that a table names; other files are not looked at.

    The labels, generators, groups and splits of the table, CSV or parquet, are taken as they are, and checked; on what
    labels mean see :func:`fakedet.data.manifest_table.classes`. The settings for the others may not be set. Its paths
    are relative to ``root``, or below it; None: the table's folder, or that of absolute paths. ``columns`` gives
    manifest column → the table's column, where they have other names. On manifest and seen see :func:`index_folder`, on
    the errors of a wrong table :func:`fakedet.data.manifest.load_manifest`.
    """
    for name in ("layout", "unseen", "group"):
        value, unset = getattr(settings, name), getattr(Settings(), name)
        if value != unset and (value or unset):  # an empty list equals an empty tuple here
            raise UserError(f"{name}: this is for folders; a table says it itself, in its columns")
    given, words, meaning = _renamed(read_table(table), columns, table, settings)
    if root is None:  # the folder of absolute paths, or else the table's own
        paths = texts(given["path"]).to_pylist() if "path" in given.column_names else []
        root = Path(common_folder(paths) or table.parent)
    root = root.resolve()
    # With one split for all, no group can be in two.
    frame = check_manifest(given, table, root, settings.split is not None, settings.split_seed).frame
    if settings.split is not None:
        frame["split"] = SPLITS[settings.split]
    for (split, word), own in frame.assign(word=words).groupby(["split", "word"]):
        label, reason = meaning[str(word)]
        shown = ", ".join(own["path"][:2])
        log.info("%s: %d images are %s (%s), such as %s", split, len(own), ("real", "fake")[label], reason, shown)
    with Store(manifest.with_suffix(".index.sqlite")) as store:
        state = scan(root, _listings(root, frame["path"]), store, settings.threads, settings.hashed, seen)
        facts = {fact.path: fact for fact in store.rows()}
    problems = dict(state.problems)
    copies = _contradictions(frame, facts)
    rejected: list[tuple[str, str]] = []

    def rows() -> Iterator[Row]:
        for row, word in zip(frame[list(COLUMNS)].itertuples(index=False, name=None), words, strict=True):
            path, fact = row[0], facts.get(row[0])
            reason = (fact.problem if fact else problems.get(path, "no such file")) or copies.dropped.get(path, "")
            if reason or fact is None:
                rejected.append((path, reason))
            else:
                yield row, meaning[word][1], fact

    return _write(manifest, root, "table", settings, state, copies, rows(), rejected)


def _renamed(
    table: pa.Table, columns: Mapping[str, str], path: Path, settings: Settings
) -> tuple[pa.Table, list[str], dict[str, tuple[int, str]]]:
    """Rename a table's columns to the manifest's and decide what its labels mean; also return the labels as text."""
    present = table.column_names
    for wanted, given in columns.items():
        if wanted not in COLUMNS:
            raise UserError(f"columns: a manifest has no column '{wanted}'; {nearest(wanted, COLUMNS)}")
        if given not in present:
            raise UserError(f"{path}: there is no column '{given}'; {nearest(given, present)}")
    names, kept = {given: wanted for wanted, given in columns.items()}, table.schema.metadata or {}
    column = columns.get("label", "label")
    labelled = class_names(features_of(table.schema), column) or ()
    # Names of classes are used here; they do not hold for 0 and 1, which stand in their place.
    table = table.replace_schema_metadata({key: kept[key] for key in (ROOT_KEY, SHARDS_KEY) if key in kept})
    table = table.rename_columns([names.get(name, name) for name in present])
    if "label" not in table.column_names:
        return table, [], {}
    words = [label_text(value, labelled) for value in table["label"].to_pylist()]
    meaning = classes(filter(None, words), column, path, settings.reals, settings.fakes)
    values = pa.array([str(meaning[word][0]) if word else "" for word in words], pa.large_string())
    return table.set_column(table.column_names.index("label"), "label", values), words, meaning


def _listings(root: Path, paths: pd.Series) -> Iterator[Listing]:
    for folder, own in paths.groupby(paths.map(posixpath.dirname)):
        listing = Listing(str(folder))
        for name in own.map(posixpath.basename):
            try:
                found = os.stat(os.path.join(root, listing.folder, name))
            except OSError as error:
                listing.problems.append((name, f"cannot be read: {error.strerror}"))
            else:
                listing.images.append((name, found.st_size, found.st_mtime_ns))
        yield listing


def _contradictions(frame: pd.DataFrame, facts: Mapping[str, Facts]) -> Copies:
    """Find contents that the table labels both real and fake; their files are left out."""
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


def _write(
    manifest: Path, root: Path, layout: str, settings: Settings, state: Scan, copies: Copies,
    found: Iterator[Row], rejected: list[tuple[str, str]], metadata: Mapping[bytes, bytes] | None = None,
) -> Indexed:  # fmt: skip
    """Write the rows; reading them fills ``rejected``."""
    counts: Counter[tuple[int, str, str]] = Counter()
    why: dict[tuple[int, str], str] = {}

    def rows() -> Iterator[tuple[Any, ...]]:
        for row, reason, fact in found:
            _, label, generator, _, split, *_ = row
            counts[(label, generator, split)] += 1
            why.setdefault((label, generator), reason)
            yield (*row, *described(fact))

    how = {key: getattr(settings, key) for key in ("split", "unseen", "group", "split_seed")}
    made = json.dumps({"layout": layout, **how}, default=list)
    relative = os.fsencode(os.path.relpath(root, manifest.parent.resolve()))
    described_by = {ROOT_KEY: relative, b"fakedet.index": made.encode(), **(metadata or {})}
    written = write_manifest(manifest, rows(), described_by)
    path = manifest.with_suffix(".rejected.csv")
    write_rejected(path, sorted(rejected))
    # What follows a colon or names another file belongs to one file only.
    reasons = Counter(reason.split(" as ")[0].split(":")[0] for _, reason in rejected)
    return Indexed(manifest, path, layout, written, state, copies, reasons, counts, why)


def write_manifest(path: Path, rows: Iterable[tuple[Any, ...]], metadata: dict[bytes, bytes]) -> int:
    """Write rows in the order of :data:`SCHEMA` and return their number; an old manifest stays whole until the end.

    A full disk, or a folder that cannot be written, is a UserError.
    """
    written, source = 0, iter(rows)
    with replacing(path) as temporary, pq.ParquetWriter(temporary, SCHEMA.with_metadata(metadata)) as writer:
        while piece := list(islice(source, 1 << 16)):  # rows in memory at a time
            arrays = [pa.array(column, one.type) for column, one in zip(zip(*piece, strict=True), SCHEMA, strict=True)]
            writer.write_table(pa.Table.from_arrays(arrays, schema=SCHEMA))
            written += len(piece)
    return written


def write_rejected(path: Path, rows: Iterable[tuple[str, str]]) -> None:
    """Write (path, reason) of what was left out as CSV; no file if there is none. Errors as :func:`write_manifest`."""
    listed = list(rows)
    if not listed:
        path.unlink(missing_ok=True)  # of an earlier run
        return
    # Names that are not UTF-8 are shown with their bytes escaped.
    with replacing(path) as new, open(new, "w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        csv.writer(file).writerows([("path", "reason"), *listed])
