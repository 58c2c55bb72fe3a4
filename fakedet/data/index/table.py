"""Index a table of paths: check it, read the files' headers, and write the manifest."""

from __future__ import annotations

import os
import posixpath
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pandas as pd
import pyarrow as pa

from fakedet.data.index.copies import Copies
from fakedet.data.index.folder import Indexed, Settings, count_reasons, described, metadata
from fakedet.data.index.scan import Scan, scan
from fakedet.data.index.store import Facts, Store
from fakedet.data.index.walk import Listing
from fakedet.data.index.write import write_manifest, write_rejected
from fakedet.data.manifest import check_manifest
from fakedet.data.manifest_columns import COLUMNS, SPLITS
from fakedet.data.manifest_table import read_table
from fakedet.errors import UserError, nearest

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
        manifest: see :func:`fakedet.data.index.folder.index_folder`.
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
