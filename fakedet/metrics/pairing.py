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
    reals: list[
        str
    ]  # collections of ``real_rows``, sorted; "collection:source" where only some of its sources are used
    rule: str  # why these: "pairs" (the user said so), "generator" (same name), "source" (that of its fakes) or "all"

    @property
    def words(self) -> str:
        """The reals in a few words."""
        return against(self.rule, self.reals)


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
        result[name] = Counterparts(fake_rows[own], reals.rows[chosen], reals.described(chosen), rule)
    return result


def pairing_notes(
    frame: pd.DataFrame, pairs: Pairs | None, others: Mapping[str, Pairs | None] | None = None,
    known_reals: Collection[str] | None = None, known_fakes: Collection[str] | None = None,
) -> list[str]:  # fmt: skip
    """Say in sentences what a reader of a table would not expect of the reals in it.

    Args:
        frame, pairs, known_reals: as for :func:`real_counterparts`.
        others: other pairs that a reader may have in mind, such as {"in training": those of the training}.
        known_fakes: names of generators in other splits, which keys may name although this frame has no such fake.

    Returns:
        A sentence for each: keys that match no generator; generators that are compared with all reals although the
        sources of reals tell kinds apart; generators without reals; generators that ``others`` compare with other
        reals. Empty without fakes or without reals.
    """
    found = real_counterparts(frame, pairs, known_reals)
    names = {*found, *(known_fakes or ())}
    reals = frame["label"].to_numpy() == 0
    if not found or not reals.any():
        return []
    told = [
        f"data.pairs: '{key}' matches no generator of these data, so it pairs nothing; {nearest(str(key), names)}"
        for key in pairs or {} if not any(fnmatchcase(name, str(key)) for name in names)
    ]  # fmt: skip
    sources = pd.Series(column(frame, "source")[reals]).value_counts()
    if (fallen := [name for name, own in found.items() if own.rule == "all"]) and len(sources) > 1:
        kinds = _listed([f"{name or 'no source'} {count}" for name, count in sources.items()])
        told.append(
            f"{_listed(fallen)}: compared with all reals, of all sources ({kinds}), because no real shares a source or "
            "a name with the fakes; data.pairs names the reals that show the same"
        )
    if empty := [name for name, own in found.items() if not len(own.real_rows)]:
        told.append(f"{_listed(empty)}: data.pairs names reals that are not among these images, so AP is not defined")
    for when, other in (others or {}).items():
        try:
            wanted = real_counterparts(frame, other, known_reals)
        except UserError:
            told.append(f"the pairs {when} name reals that these data do not have; other reals are used here")
            continue
        changed: dict[tuple[str, str], list[str]] = {}
        for name, own in found.items():
            if not np.array_equal(own.real_rows, wanted[name].real_rows):
                changed.setdefault((own.words, wanted[name].words), []).append(name)
        told += [f"{_listed(own)}: compared with {here} here, and with {there} by the pairs {when}"
                 for (here, there), own in changed.items()]  # fmt: skip
    return told


def against(rule: str, reals: Sequence[str]) -> str:
    """Name the reals that a generator is compared with in a few words; for the arguments see :class:`Counterparts`."""
    return "all reals" if rule == "all" else _listed(reals) or "no reals"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


class _Reals:
    """The real rows of a frame, found by name."""

    def __init__(self, frame: pd.DataFrame, known: Collection[str]) -> None:
        self.rows = np.flatnonzero(frame["label"].to_numpy() == 0)
        # Names are compared once each and rows by code: comparing a hundred thousand strings per generator would take
        # longer than the ranking.
        self.codes = {kind: pd.factorize(column(frame, kind)[self.rows]) for kind in ("generator", "source")}
        self.names = sorted({*self.codes["generator"][1], *self.codes["source"][1], *known} - {""})

    def described(self, chosen: NDArray[np.bool_]) -> list[str]:
        """Name the collections of the chosen reals; those that are chosen in part, with their sources."""
        (of, names), (of_source, sources) = self.codes["generator"], self.codes["source"]
        partial = set(of[~chosen].tolist())
        cells = np.unique(np.stack([of[chosen], of_source[chosen]], axis=1), axis=0).tolist()
        return sorted({str(names[one]) + (f":{sources[source]}" if one in partial and sources[source] else "")
                       for one, source in cells})  # fmt: skip

    def named(self, kind: str, names: Collection[str]) -> NDArray[np.bool_]:
        """Mark the reals whose "generator" or "source" is one of the names."""
        codes, known = self.codes[kind]
        return np.array([name in names for name in known], dtype=bool)[codes]

    def paired(self, key: str, value: str | Sequence[str]) -> NDArray[np.bool_]:
        """Mark the reals that an entry of ``pairs`` names."""
        # A collection may be named by a number, which Hydra reads as one.
        values = [str(value)] if isinstance(value, str | int | float) else [str(item) for item in value or ()]
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
