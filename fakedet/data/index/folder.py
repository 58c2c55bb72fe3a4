"""Index a folder: walk it, read what is new, and write the manifest."""

from __future__ import annotations

import json
import os
import posixpath
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fakedet.data.index.copies import Copies, resolve_copies
from fakedet.data.index.rows import Choices, Rows
from fakedet.data.index.scan import Scan, scan
from fakedet.data.index.store import Facts, Store
from fakedet.data.index.walk import walk
from fakedet.data.index.write import write_manifest, write_rejected
from fakedet.data.layouts.detect import find_layout
from fakedet.data.manifest_table import ROOT_KEY
from fakedet.errors import UserError


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
