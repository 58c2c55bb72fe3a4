"""Which reals each generator's fakes are measured against, and which rows are one photograph or prompt."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fakedet.errors import UserError, nearest

Pairs = Mapping[str, "str | Sequence[str]"]


@dataclass(frozen=True)
class Counterparts:
    """The rows of one fake generator and of the reals that it is measured against."""

    fake_rows: NDArray[np.int64]  # positions in the frame, rising
    real_rows: NDArray[np.int64]  # likewise
    reals: list[str]  # the names of the generators of ``real_rows``, sorted
    rule: str  # why these: "pairs" (the user said so), "generator" (same name), "source" (that of its fakes) or "all"


def real_counterparts(
    frame: pd.DataFrame, pairs: Pairs | None, known_reals: Collection[str] | None = None
) -> dict[str, Counterparts]:
    """Find the real counterparts of every fake generator of a frame.

    The first rule that applies: ``pairs``; reals with the generator's own name; reals whose source is among the sources
    of the generator's fakes; all reals. Of several keys of ``pairs`` that match, an exact name wins over globs and a
    longer glob over a shorter one.

    Args:
        frame: label (0/1), generator (str) and, where there are any, source (str; "" if unknown).
        pairs: fake generator (name or glob) -> names or globs of real generators or sources. A value that begins with
            "!" excludes reals; if all values do, they are excluded from all reals. Keys that match no generator here
            are ignored: another split may hold it.
        known_reals: names of reals in other splits, which values may name although this frame has no such real.

    Returns:
        Fake generator -> its counterparts, sorted by name. The reals are empty where ``pairs`` names reals that this
        frame does not have, or where it has none at all.

    Raises:
        UserError: a value of ``pairs`` matches no real, or a key that matches a generator names no reals.
    """
    pairs = pairs or {}
    reals = _Reals(frame, known_reals or ())
    fake_rows = np.flatnonzero(frame["label"].to_numpy() == 1)
    names, sources = (column(frame, name)[fake_rows] for name in ("generator", "source"))
    result = {}
    for name in sorted({str(name) for name in names}):
        own = names == name
        globs = [key for key in pairs if fnmatchcase(name, str(key))]
        key = name if name in pairs else max(globs, key=lambda glob: len(str(glob)), default=None)
        if key is not None:
            chosen, rule = reals.paired(key, pairs[key]), "pairs"
        elif (chosen := reals.named("generator", {name})).any():
            rule = "generator"
        elif (chosen := reals.named("source", set(sources[own]) - {""})).any():
            rule = "source"
        else:
            chosen, rule = np.ones(len(reals.rows), dtype=bool), "all"
        result[name] = Counterparts(fake_rows[own], reals.rows[chosen], sorted(set(reals.generators[chosen])), rule)
    return result


class _Reals:
    """The real rows of a frame, found by name."""

    def __init__(self, frame: pd.DataFrame, known: Collection[str]) -> None:
        self.rows = np.flatnonzero(frame["label"].to_numpy() == 0)
        self.generators = column(frame, "generator")[self.rows]
        # Names are compared once each and rows by code: comparing a hundred thousand strings per generator would take
        # longer than the ranking.
        self.codes = {kind: pd.factorize(column(frame, kind)[self.rows]) for kind in ("generator", "source")}
        self.names = sorted({*self.codes["generator"][1], *self.codes["source"][1], *known} - {""})

    def named(self, kind: str, names: Collection[str]) -> NDArray[np.bool_]:
        """Mark the reals whose "generator" or "source" is one of the names."""
        codes, known = self.codes[kind]
        return np.array([name in names for name in known], dtype=bool)[codes]

    def paired(self, key: str, value: str | Sequence[str]) -> NDArray[np.bool_]:
        """Mark the reals that an entry of ``pairs`` names."""
        values = [value] if isinstance(value, str) else [str(item) for item in value or ()]
        if not values:
            raise UserError(f"data.pairs: '{key}' names no reals; name some, or remove the key")
        chosen = np.zeros(len(self.rows), dtype=bool)
        for item in [item for item in values if not item.startswith("!")] or ["*"]:
            chosen |= self.matching(item, key)
        for item in (item[1:] for item in values if item.startswith("!")):
            chosen &= ~self.matching(item, key)
        return chosen

    def matching(self, pattern: str, key: str) -> NDArray[np.bool_]:
        """Mark the reals whose generator or source matches a name or glob."""
        # A name that happens to look like a glob ("real[2]") still matches itself.
        found = [pattern] if pattern in self.names else [name for name in self.names if fnmatchcase(name, pattern)]
        if not found and self.names:
            raise UserError(
                f"data.pairs: '{key}' is paired with '{pattern}', which matches no real generator or source "
                f"of this data; {nearest(pattern, self.names)}"
            )
        return self.named("generator", found) | self.named("source", found)


def column(frame: pd.DataFrame, name: str) -> NDArray[Any]:
    """Return a column of names as an array of str; "" where a value or the column is missing."""
    if name not in frame:
        return np.full(len(frame), "", dtype=object)
    values = frame[name].astype(object)
    return values.where(values.notna(), "").map(str).to_numpy(dtype=object)


def group_cells(frame: pd.DataFrame) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Return the (n,) group, label and generator of each row; a row without a group is a group of its own."""
    groups = column(frame, "group").copy()
    alone = np.flatnonzero(groups == "")
    ids = frame["id"].to_numpy() if "id" in frame else np.arange(len(frame))
    groups[alone] = [f"\0{number}" for number in ids[alone]]
    return groups, frame["label"].to_numpy(), column(frame, "generator")
