"""metrics/bootstrap"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from fakedet.errors import UserError, choose
from fakedet.metrics.pairing import Counterparts, Pairs, column, real_counterparts
from fakedet.metrics.ranking import (
    CHUNK_CELLS,
    Ranking,
    descending,
    mean_of_defined,
    rank,
    running_sum,
    weighted_statistics,
)


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

    @classmethod
    def from_dict(cls, content: Mapping[str, float | None]) -> Interval:
        """Read what :meth:`to_dict` wrote."""
        value, low, high = (content.get(key) for key in ("value", "low", "high"))
        return cls(*(math.nan if number is None else number for number in (value, low, high)))

    def text(self, form: str = ".2f") -> str:
        """Write ``0.83 [0.78, 0.88]``, the value alone where there is no interval, a dash where there is no value.

        Args:
            form: of each number; ``+.2f`` for differences.
        """
        if math.isnan(self.value):
            return "–"
        if math.isnan(self.low):
            return f"{self.value:{form}}"
        return f"{self.value:{form}} [{self.low:{form}}, {self.high:{form}}]"


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


METRICS = ("ap", "auc")
MEANS = ("map", "map_seen", "map_unseen")


@dataclass(frozen=True)
class GeneratorSummary:
    """What a generator was measured on."""

    seen: bool | None
    """Whether the detector saw its fakes in training; None where nobody knows."""
    n_real: int
    n_fake: int
    n_groups: int
    """Photos or prompts that its fakes and their counterparts come from."""
    reals: list[str]
    rule: str


@dataclass(frozen=True)
class BootstrapTable:
    """Point values and resamples of AP and AUC, by scorer, metric and name.

    A name is a generator, or "map", "map_seen", "map_unseen": the plain mean over all, the seen and the
    unseen generators, of the AP for metric "ap" and of the AUC for metric "auc". Row r of every sample comes
    from the same resample of the photos, so that differences between scorers and between names are paired.
    """

    generators: dict[str, GeneratorSummary]
    keys: tuple[str, ...]
    n_resamples: int
    points: dict[tuple[str, str], NDArray[np.float64]]
    """(key, metric) -> (G,) in the order of ``generators``."""
    resamples: dict[tuple[str, str], NDArray[np.float64]]
    """(key, metric) -> (R, G)."""

    def value(self, key: str, metric: str, name: str) -> float:
        """Return the value on the data themselves; NaN where undefined."""
        return mean_of_defined([float(x) for x in self._pick(self.points, key, metric)[self.members(name)]])

    def samples(self, key: str, metric: str, name: str) -> NDArray[np.float64]:
        """Return the (R,) values of the resamples.

        A mean is NaN in those resamples in which one of its generators is: the mean over the others would be
        of something else.
        """
        picked = self._pick(self.resamples, key, metric)[:, self.members(name)]
        return picked.mean(axis=1) if picked.shape[1] else np.full(self.n_resamples, np.nan)

    def interval(self, key: str, metric: str, name: str, level: float = 0.95) -> Interval:
        """Return the value with its percentile interval."""
        return percentile_interval(self.value(key, metric, name), self.samples(key, metric, name), level)

    def difference(self, first: str, second: str, metric: str, name: str, level: float = 0.95) -> Interval:
        """Return value(first) − value(second) with its paired interval."""
        value = self.value(first, metric, name) - self.value(second, metric, name)
        samples = self.samples(first, metric, name) - self.samples(second, metric, name)
        return percentile_interval(value, samples, level)

    def members(self, name: str) -> list[int]:
        """Return the places of the generators behind a name; a mean's are those with both classes.

        Raises:
            UserError: there is no such name.
        """
        if name in MEANS:
            wanted = {"map": (True, False, None), "map_seen": (True,), "map_unseen": (False,)}[name]
            rows = enumerate(self.generators.values())
            return [i for i, row in rows if row.seen in wanted and row.n_real and row.n_fake]
        return [list(self.generators).index(choose(name, [*self.generators, *MEANS], "generator"))]

    def left_out(self, name: str) -> list[str]:
        """Return the generators that a mean leaves out because they have one class only."""
        wanted = {"map": (True, False, None), "map_seen": (True,), "map_unseen": (False,)}[name]
        rows = self.generators.items()
        return [key for key, row in rows if row.seen in wanted and not (row.n_real and row.n_fake)]

    def _pick(
        self, table: dict[tuple[str, str], NDArray[np.float64]], key: str, metric: str
    ) -> NDArray[np.float64]:
        return table[choose(key, self.keys, "scorer"), choose(metric, METRICS, "metric")]


def bootstrap_statistics(
    frame: pd.DataFrame,
    logits: Mapping[str, ArrayLike],
    pairs: Pairs | None,
    seen: Collection[str] | None,
    n_resamples: int = 1000,
    seed: int = 0,
    known_reals: Collection[str] | None = None,
) -> BootstrapTable:
    """Compute AP and AUC per generator on the data and on the same resamples for every scorer.

    Args:
        frame: one row an image: label (0/1), generator, group and, where known, source. A row without a
            group is a group of its own. The resamples depend on its groups and cells and on the seed, and not
            on the order of its rows nor on the logits.
        logits: scorer (a method, or a method and seed) -> (n,) logits of the frame's rows in their order.
        pairs: see :func:`fakedet.metrics.pairing.real_counterparts`.
        seen: generators whose fakes the detector saw in training; None where nobody knows.
        n_resamples: R >= 0.
        seed: of the resamples.
        known_reals: see :func:`fakedet.metrics.pairing.real_counterparts`.

    Raises:
        UserError: a column is missing, the frame holds several views, a label is not 0 or 1, logits are NaN
            or not one for each row, or ``pairs`` names reals that are not there.
    """
    keys = _checked(frame, logits)
    counterparts = real_counterparts(frame, pairs, known_reals)
    strata = stratify_groups(group_names(frame), frame["label"].to_numpy(), column(frame, "generator"))
    generators = {name: _summarise(name, rows, strata, seen) for name, rows in counterparts.items()}
    scorers = {key: _Scorer(values, counterparts, strata.codes) for key, values in keys.items()}
    step = max(1, CHUNK_CELLS // max(1, len(frame)))
    drawn = resample_weights(strata, n_resamples, np.random.default_rng(seed), step)
    resamples = _fill(scorers, drawn, n_resamples, len(generators))
    itself = _fill(scorers, [np.ones((1, strata.n_groups), dtype=np.int32)], 1, len(generators))
    points = {place: values[0] for place, values in itself.items()}
    return BootstrapTable(generators, tuple(keys), n_resamples, points, resamples)


def _fill(
    scorers: Mapping[str, _Scorer], chunks: Iterable[NDArray[np.int32]], rows: int, columns: int
) -> dict[tuple[str, str], NDArray[np.float64]]:
    table = {(key, metric): np.empty((rows, columns)) for key in scorers for metric in METRICS}
    start = 0
    for weights in chunks:
        part = slice(start, start := start + len(weights))
        for key, scorer in scorers.items():
            for metric, values in zip(METRICS, scorer.statistics(weights), strict=True):
                table[key, metric][part] = values
    return table


class _Scorer:
    """The rankings of all generators by one scorer; generators with the same reals share their sums."""

    def __init__(
        self,
        keys: NDArray[np.float64],
        counterparts: Mapping[str, Counterparts],
        codes: NDArray[np.int64],
    ) -> None:
        self.real_groups: list[NDArray[np.int64]] = []
        self.rankings: list[tuple[int, NDArray[np.int64], Ranking]] = []
        places: dict[bytes, int] = {}
        sorted_reals: list[NDArray[np.float64]] = []
        for rows in counterparts.values():
            place = places.setdefault(rows.real_rows.tobytes(), len(places))
            if place == len(sorted_reals):
                order = rows.real_rows[np.argsort(keys[rows.real_rows], kind="stable")]
                self.real_groups.append(codes[order])
                sorted_reals.append(keys[order])
            ranking = rank(keys[rows.fake_rows], sorted_reals[place])
            fake_groups = codes[rows.fake_rows[ranking.fake_order]]
            self.rankings.append((place, fake_groups, ranking))

    def statistics(self, weights: NDArray[np.int32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Compute (R, G) AP and AUC from the (R, groups) weights of the groups."""
        ap = np.empty((len(weights), len(self.rankings)))
        auc = np.empty_like(ap)
        # By set of reals, so that one running sum is held at a time however many sets there are.
        for place, groups in enumerate(self.real_groups):
            real_sums = running_sum(weights.take(groups, axis=1))
            for column_, (own, fake_groups, ranking) in enumerate(self.rankings):
                if own == place:
                    found = weighted_statistics(ranking, weights.take(fake_groups, axis=1), real_sums)
                    ap[:, column_], auc[:, column_] = found
        return ap, auc


def _summarise(
    name: str, rows: Counterparts, strata: GroupStrata, seen: Collection[str] | None
) -> GeneratorSummary:
    codes = strata.codes[np.concatenate([rows.fake_rows, rows.real_rows])]
    return GeneratorSummary(
        seen=None if seen is None else name in seen,
        n_real=len(rows.real_rows),
        n_fake=len(rows.fake_rows),
        n_groups=len(np.unique(codes)),
        reals=rows.reals,
        rule=rows.rule,
    )


def group_names(frame: pd.DataFrame) -> NDArray[np.object_]:
    """Give each row's group for the bootstrap; a row without one is a group of its own."""
    groups = column(frame, "group").copy()
    alone = np.flatnonzero(groups == "")
    ids = frame["id"].to_numpy() if "id" in frame else np.arange(len(frame))
    groups[alone] = [f"\0{number}" for number in ids[alone]]
    return groups


def _checked(frame: pd.DataFrame, logits: Mapping[str, ArrayLike]) -> dict[str, NDArray[np.float64]]:
    missing = [name for name in ("label", "generator") if name not in frame]
    if missing:
        raise UserError(
            f"predictions: no column {missing}; a predictions file has label, generator and logit"
        )
    if not frame["label"].isin((0, 1)).all():
        raise UserError("predictions: labels are 0 (real) or 1 (fake), and some are neither")
    if "view" in frame and frame["view"].nunique() > 1:
        raise UserError(
            "predictions: rows of several views; measure one view at a time, for example 'original'"
        )
    taken = sorted(set(MEANS) & set(column(frame, "generator")))
    if taken:
        raise UserError(f"predictions: a generator is named {taken}, which is the name of a mean; rename it")
    keys = {}
    for key, values in logits.items():
        if np.shape(values) != (len(frame),):
            raise UserError(f"logits of '{key}': shape {np.shape(values)} for {len(frame)} rows")
        try:
            keys[key] = descending(values)
        except ValueError as error:
            raise UserError(f"logits of '{key}': {error}; the detector diverged on them") from error
    return keys
