"""The stratified bootstrap over groups of images, and the intervals taken from it.

Images of one photograph or prompt are not independent, so whole groups are drawn with replacement, within strata of
groups that cover the same labels and generators. A resample is stored as the number of times each group was drawn.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.stats import beta

from fakedet.metrics.ranking import CHUNK_CELLS


@dataclass(frozen=True)
class GroupStrata:
    """The (n,) group of each row, consecutive codes in a stratum, and the number of groups of each stratum in turn."""

    codes: NDArray[np.int64]
    sizes: tuple[int, ...]


@dataclass(frozen=True)
class Interval:
    """A value and the interval around it; NaN where undefined."""

    value: float
    low: float
    high: float

    def to_dict(self) -> dict[str, float | None]:
        """Return {"value", "low", "high"}, with None for NaN because JSON has no NaN."""
        return {key: None if math.isnan(number) else float(number) for key, number in vars(self).items()}

    @classmethod
    def from_dict(cls, content: Mapping[str, float | None]) -> Interval:
        """Read what :meth:`to_dict` wrote."""
        value, low, high = (content.get(key) for key in ("value", "low", "high"))
        return cls(*(math.nan if number is None else number for number in (value, low, high)))

    def text(self, form: str = ".2f") -> str:
        """Format as ``0.83 [0.78, 0.88]``, each number by ``form``; without interval the value, without value –."""
        if math.isnan(self.value):
            return "–"
        if math.isnan(self.low):
            return f"{self.value:{form}}"
        return f"{self.value:{form}} [{self.low:{form}}, {self.high:{form}}]"


def stratify_groups(groups: ArrayLike, labels: ArrayLike, generators: ArrayLike) -> GroupStrata:
    """Stratify groups by signature: the set of (label, generator) cells that a group covers.

    Signatures of only one group are pooled into one stratum, since a lone group would be drawn in every resample. The
    result does not depend on the order of the rows. The (n,) arguments are those that
    :func:`fakedet.metrics.pairing.group_cells` returns; rows of one group are resampled together.
    """
    group, _ = pd.factorize(np.asarray(groups), sort=True)
    generator, _ = pd.factorize(np.asarray(generators), sort=True)
    if not group.size:
        return GroupStrata(codes=np.zeros(0, dtype=np.int64), sizes=())
    cell = generator.astype(np.int64) * 2 + np.asarray(labels, dtype=np.int64)
    width = int(cell.max()) + 1
    covered = np.unique(group.astype(np.int64) * width + cell)
    starts = np.flatnonzero(np.diff(covered // width, prepend=-1))
    ends = np.append(starts[1:], len(covered))
    # Big-endian, so that the order of the bytes, which orders the strata, is the same on every machine.
    cells = (covered % width).astype(">i8")
    members: dict[bytes, list[int]] = {}
    for index, (start, end) in enumerate(zip(starts, ends, strict=True)):
        members.setdefault(cells[start:end].tobytes(), []).append(index)
    strata = [members[signature] for signature in sorted(members) if len(members[signature]) > 1]
    if pooled := sorted(own[0] for own in members.values() if len(own) == 1):
        strata.append(pooled)
    code = np.empty(len(starts), dtype=np.int64)
    code[np.concatenate([np.asarray(stratum) for stratum in strata])] = np.arange(len(starts))
    return GroupStrata(codes=code[group], sizes=tuple(len(stratum) for stratum in strata))


def resample_weights(
    strata: GroupStrata, n_resamples: int, rng: np.random.Generator, chunk: int | None = None
) -> Iterator[NDArray[np.int32]]:
    """Draw the groups of each stratum with replacement, as many as it has; yield (<= chunk, groups) int32 counts.

    ``weights[:, strata.codes]`` are the weights of the rows. The draws do not depend on ``chunk``, the number of
    resamples at a time (None: all ``n_resamples``): every stratum has a stream of its own, spawned from ``rng``.
    """
    streams = rng.spawn(len(strata.sizes))
    step = max(1, chunk or n_resamples)
    for start in range(0, n_resamples, step):
        rows = min(step, n_resamples - start)
        parts = [np.zeros((rows, 0), dtype=np.int32)]
        for size, stream in zip(strata.sizes, streams, strict=True):
            drawn = stream.integers(0, size, size=(rows, size))
            drawn += np.arange(rows)[:, None] * size
            counts = np.bincount(drawn.ravel(), minlength=rows * size)
            parts.append(counts.reshape(rows, size).astype(np.int32))
        yield np.concatenate(parts, axis=1)


def resample_chunks(strata: GroupStrata, n_resamples: int, seed: int) -> Iterator[NDArray[np.int32]]:
    """Yield the weights of R resamples from a seed, in chunks that fit the cache; see :func:`resample_weights`."""
    chunk = CHUNK_CELLS // max(1, len(strata.codes)) or 1
    return resample_weights(strata, n_resamples, np.random.default_rng(seed), chunk)


def draw_families(n_families: int, n_resamples: int, seed: int) -> NDArray[np.int64]:
    """Draw families with replacement, as many as there are: (R, F) the number of times that each was drawn."""
    drawn = np.random.default_rng([seed, n_families, 0xFA]).integers(n_families, size=(n_resamples, n_families))
    drawn += np.arange(n_resamples)[:, None] * n_families
    return np.bincount(drawn.ravel(), minlength=n_resamples * n_families).reshape(n_resamples, n_families)


def mean_over_families(samples: NDArray[Any], drawn: NDArray[np.int64]) -> NDArray[np.float64]:
    """Average the (R, F) values of the families over those that were drawn; NaN where that of a drawn one is."""
    return np.where(drawn > 0, samples * drawn, 0.0).sum(axis=1) / drawn.sum(axis=1)  # type: ignore[no-any-return]


def percentile_interval(value: float, samples: NDArray[Any], level: float = 0.95) -> Interval:
    """Take the interval that a share ``level`` of the (R,) resamples lies in; ValueError for a level outside (0, 1).

    Samples that are NaN (a class was not drawn) are left out. The ends are NaN if most are, or if the value is.
    """
    if not 0 < level < 1:
        raise ValueError(f"level {level} is not between 0 and 1")
    defined = samples[~np.isnan(samples)]
    if math.isnan(value) or not len(defined) or 2 * len(defined) < len(samples):
        return Interval(float(value), math.nan, math.nan)
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(value), float(low), float(high))


def share_interval(value: float, samples: NDArray[Any], n_groups: int, level: float = 0.95) -> Interval:
    """Take the interval of a share; where all resamples agree, the exact binomial one (Clopper-Pearson) over groups.

    If all groups are alike so are all resamples, and their percentiles would claim certainty from a few images.
    """
    found = percentile_interval(value, samples, level)
    if found.low != found.high:  # or NaN
        return found
    hits, tail = value * n_groups, (1 - level) / 2
    low = beta.ppf(tail, hits, n_groups - hits + 1) if hits > 0 else 0.0
    high = beta.ppf(1 - tail, hits + 1, n_groups - hits) if hits < n_groups else 1.0
    return Interval(value, float(low), float(high))
