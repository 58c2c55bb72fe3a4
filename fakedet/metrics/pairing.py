"""fakedet.metrics.pairing"""

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

    fake_rows: NDArray[np.int64]
    """Positions in the frame, rising."""
    real_rows: NDArray[np.int64]
    """Positions in the frame, rising; empty where there are none."""
    reals: list[str]
    """The names of the generators of ``real_rows``, sorted."""
    rule: str
    """Why these: "pairs" (the user said so), "generator" (the reals bear the generator's name), "source"
    (they come from the sources of its fakes) or "all"."""


def real_counterparts(
    frame: pd.DataFrame, pairs: Pairs | None, known_reals: Collection[str] | None = None
) -> dict[str, Counterparts]:
    """Find the real counterparts of every fake generator of a frame.

    The first rule that applies: ``pairs``; reals with the generator's own name; reals whose source is among
    the sources of the generator's fakes; all reals. Of several keys of ``pairs`` that match, an exact name
    wins over globs and a longer glob over a shorter one.

    Args:
        frame: label (0/1), generator (str) and, where there are any, source (str; "" if unknown).
        pairs: fake generator (name or glob) -> names or globs of real generators or sources. A value that
            begins with "!" takes reals away; values of this kind alone take away from all reals. Keys that
            match no generator here are left aside: another split may hold it.
        known_reals: the names that values may bear though no real of this frame bears them, because
            another split of the data does; None: those of the frame only.

    Returns:
        Fake generator -> its counterparts, sorted by name. The reals are empty where ``pairs`` names reals
        that this frame has not, or where it has none at all.

    Raises:
        UserError: a value of ``pairs`` matches no real, or a key that matters names none.
    """
    reals = _Reals(frame, known_reals or ())
    fake_rows = np.flatnonzero(frame["label"].to_numpy() == 1)
    names = column(frame, "generator")[fake_rows]
    sources = column(frame, "source")[fake_rows]
    result = {}
    for name in sorted(set(names)):
        own = names == name
        chosen, rule = _choose(str(name), set(sources[own]), reals, pairs or {})
        rows = reals.rows[chosen]
        result[str(name)] = Counterparts(
            fake_rows=fake_rows[own], real_rows=rows, reals=sorted(set(reals.generators[chosen])), rule=rule
        )
    return result


def column(frame: pd.DataFrame, name: str) -> NDArray[Any]:
    """Return a column of names as an array of str; "" where a value or the column is missing."""
    if name not in frame:
        return np.full(len(frame), "", dtype=object)
    values = frame[name].astype(object)
    return values.where(values.notna(), "").map(str).to_numpy(dtype=object)


class _Reals:
    """The real rows of a frame, found by name."""

    def __init__(self, frame: pd.DataFrame, known: Collection[str]) -> None:
        self.rows = np.flatnonzero(frame["label"].to_numpy() == 0)
        self.generators = column(frame, "generator")[self.rows]
        # Names are compared once each and rows by code: a hundred thousand string comparisons a generator
        # would take longer than the ranking.
        self._generator_codes, generator_names = pd.factorize(self.generators)
        self._source_codes, source_names = pd.factorize(column(frame, "source")[self.rows])
        self._generator_names, self._source_names = list(generator_names), list(source_names)
        self.names = sorted({*self._generator_names, *self._source_names, *known} - {""})

    def of_generators(self, names: Collection[str]) -> NDArray[np.bool_]:
        """Mark the reals whose generator bears one of the names."""
        return np.array([name in names for name in self._generator_names], dtype=bool)[self._generator_codes]

    def of_sources(self, names: Collection[str]) -> NDArray[np.bool_]:
        """Mark the reals whose source bears one of the names."""
        return np.array([name in names for name in self._source_names], dtype=bool)[self._source_codes]

    def matching(self, pattern: str, key: str) -> NDArray[np.bool_]:
        """Mark the reals whose generator or source matches a name or glob.

        Raises:
            UserError: no known real name does, though there are reals.
        """
        # A name that happens to look like a glob ("real[2]") still matches itself.
        found = (
            [pattern]
            if pattern in self.names
            else [name for name in self.names if fnmatchcase(name, pattern)]
        )
        if not found and self.names:
            raise UserError(
                f"data.pairs: '{key}' is paired with '{pattern}', which matches no real generator or source "
                f"of this data; {nearest(pattern, self.names)}"
            )
        return self.of_generators(found) | self.of_sources(found)


def _choose(name: str, sources: set[str], reals: _Reals, pairs: Pairs) -> tuple[NDArray[np.bool_], str]:
    key = _most_specific(name, pairs)
    if key is not None:
        return _paired(key, pairs[key], reals), "pairs"
    same_name = reals.of_generators({name})
    if same_name.any():
        return same_name, "generator"
    same_source = reals.of_sources(sources - {""})
    if same_source.any():
        return same_source, "source"
    return np.ones(len(reals.rows), dtype=bool), "all"


def _most_specific(name: str, pairs: Pairs) -> str | None:
    if name in pairs:
        return name
    globs = [key for key in pairs if fnmatchcase(name, str(key))]
    return max(globs, key=lambda key: len(str(key)), default=None)


def _paired(key: str, value: str | Sequence[str], reals: _Reals) -> NDArray[np.bool_]:
    values = [value] if isinstance(value, str) else [str(item) for item in value or ()]
    if not values:
        raise UserError(f"data.pairs: '{key}' names no reals; name some, or take the key out")
    included = [item for item in values if not item.startswith("!")] or ["*"]
    chosen = np.zeros(len(reals.rows), dtype=bool)
    for pattern in included:
        chosen |= reals.matching(pattern, key)
    for item in values:
        if item.startswith("!"):
            chosen &= ~reals.matching(item[1:], key)
    return chosen
