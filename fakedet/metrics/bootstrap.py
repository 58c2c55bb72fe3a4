"""The stratified group bootstrap: whole photos and prompts are drawn again, never single rows.

Siblings of one photo (its real crop, what each generator made of it) rise and fall together, and generators
share their reals; so a group's weight applies to all of its rows, in whatever generator they are. The groups
of a stratum cover the same cells (label, generator): every resample keeps the design of the data, and a
generator can lose all its fakes only where every one of them lies in a group of a make-up of its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True)
class GroupStrata:
    """Groups of rows, and the strata within which they are resampled."""

    codes: NDArray[np.int64]
    """(n,) the group of each row; the groups of one stratum have consecutive codes."""
    sizes: tuple[int, ...]
    """The number of groups of each stratum, in the order of the codes."""

    @property
    def n_groups(self) -> int:
        """The number of groups of all strata."""
        return sum(self.sizes)


@dataclass(frozen=True)
class Interval:
    """A value and the interval about it; NaN where undefined."""

    value: float
    low: float
    high: float

    def to_dict(self) -> dict[str, float | None]:
        """Return {"value", "low", "high"} with None for NaN, as JSON wants it."""
        parts = {"value": self.value, "low": self.low, "high": self.high}
        return {key: None if math.isnan(number) else float(number) for key, number in parts.items()}


def stratify_groups(groups: ArrayLike, labels: ArrayLike, generators: ArrayLike) -> GroupStrata:
    """Stratify groups by signature: the set of (label, generator) cells that a group covers.

    Signatures that fewer than two groups bear are pooled into one stratum, since a lone group would be drawn
    in every resample. The result does not depend on the order of the rows.

    Args:
        groups: (n,) names; rows of one name are resampled together.
        labels: (n,) 0 = real, 1 = fake.
        generators: (n,) names.
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
    signatures = [cells[start:end].tobytes() for start, end in zip(starts, ends, strict=True)]
    bearers: dict[bytes, list[int]] = {}
    for index, signature in enumerate(signatures):
        bearers.setdefault(signature, []).append(index)
    strata = [bearers[key] for key in sorted(bearers) if len(bearers[key]) > 1]
    pooled = [index for index, signature in enumerate(signatures) if len(bearers[signature]) == 1]
    if pooled:
        strata.append(pooled)
    code = np.empty(len(signatures), dtype=np.int64)
    code[np.concatenate([np.asarray(members) for members in strata])] = np.arange(len(signatures))
    return GroupStrata(codes=code[group], sizes=tuple(len(members) for members in strata))


def resample_weights(
    strata: GroupStrata, n_resamples: int, rng: np.random.Generator, chunk: int | None = None
) -> Iterator[NDArray[np.int32]]:
    """Draw the groups of each stratum with replacement, as many as it has, and yield how often each came.

    ``weights[:, strata.codes]`` are the weights of the rows. The draws do not depend on ``chunk``: every
    stratum has a stream of its own, spawned from ``rng``.

    Args:
        strata: from :func:`stratify_groups`.
        n_resamples: R, resamples in all.
        rng: where the randomness comes from; its state says which resamples.
        chunk: resamples at a time; None: all at once.

    Yields:
        (<= chunk, groups) int32 counts, R rows in all.
    """
    streams = rng.spawn(len(strata.sizes))
    step = max(1, chunk or n_resamples)
    for start in range(0, n_resamples, step):
        rows = min(step, n_resamples - start)
        parts = [_draw(size, rows, stream) for size, stream in zip(strata.sizes, streams, strict=True)]
        yield np.concatenate(parts, axis=1) if parts else np.zeros((rows, 0), dtype=np.int32)


def percentile_interval(value: float, samples: NDArray[Any], level: float = 0.95) -> Interval:
    """Take the interval between the outer percentiles of the resamples.

    Args:
        value: of the data themselves.
        samples: (R,) of the resamples; those that are NaN (a class was not drawn) are left out.
        level: the share of resamples inside, in (0, 1).

    Returns:
        The interval; its ends are NaN where the value is, or where more than half the resamples are.

    Raises:
        ValueError: the level is not in (0, 1).
    """
    if not 0 < level < 1:
        raise ValueError(f"level {level} is not between 0 and 1")
    defined = samples[~np.isnan(samples)]
    if math.isnan(value) or not len(defined) or 2 * len(defined) < len(samples):
        return Interval(float(value), math.nan, math.nan)
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(value), float(low), float(high))


def _draw(size: int, rows: int, stream: np.random.Generator) -> NDArray[np.int32]:
    drawn = stream.integers(0, size, size=(rows, size))
    drawn += np.arange(rows)[:, None] * size
    counts = np.bincount(drawn.ravel(), minlength=rows * size)
    return counts.reshape(rows, size).astype(np.int32)
