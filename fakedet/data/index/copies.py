"""Files of equal content: one group, one label, one split."""

from __future__ import annotations

import posixpath
from dataclasses import dataclass, field

from fakedet.data.index.rows import Rows
from fakedet.data.index.store import Store

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
