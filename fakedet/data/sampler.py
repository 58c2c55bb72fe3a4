"""Samplers: which images a batch is made of.

Both are batch samplers that yield lists of :class:`Draw`, and pure functions of their arguments: no step depends on an
earlier one, so resuming is exact and ranks agree.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch.utils.data import Sampler

from fakedet.errors import UserError

Ints = NDArray[np.int64]


class Draw(NamedTuple):
    """One image of a batch, and the seed of all that is random about it."""

    id: int  # Row of the manifest
    seed: int  # In 0 ... 2^63 - 1


class Shards(NamedTuple):
    """Where rows are, if they are read from shards."""

    of_row: Ints  # (rows of the manifest,) number of each row's shard
    window: int  # Number of shards that a walk keeps open at a time


class _Walk:
    """An endless walk over some rows: one shuffled permutation after another, at any position.

    With shards a permutation goes through windows of a few shards, in random order, and shuffles within a window: a
    shuffle of everything would need all shards at once.
    """

    def __init__(self, rows: Ints, strata: Ints, n_strata: int, seed: tuple[int, ...], shards: Shards | None) -> None:
        self.rows, self.strata, self.n_strata, self.seed = rows, strata, n_strata, seed
        self.window = shards.window if shards else 0
        # Numbered from 0 among the shards that hold a row of this walk.
        self.shard = np.unique(shards.of_row[rows], return_inverse=True)[1] if shards else None
        self._totals = np.bincount(strata, minlength=n_strata)
        self._round, self._order = -1, rows

    def at(self, position: int) -> int:
        number, offset = divmod(position, len(self.rows))
        return int(self.rows[self._permutation(number)[offset]])

    def counts(self, position: int) -> Ints:
        """Count the rows of each stratum before a position: (n_strata,)."""
        if self.n_strata == 1:
            return np.array([position], dtype=np.int64)
        number, offset = divmod(position, len(self.rows))
        begun = np.bincount(self.strata[self._permutation(number)[:offset]], minlength=self.n_strata)
        return (number * self._totals + begun).astype(np.int64)

    def _permutation(self, number: int) -> Ints:
        if number != self._round:
            rng = np.random.default_rng((*self.seed, number))
            self._round, self._order = number, rng.permutation(len(self.rows))
            if self.shard is not None:
                window = rng.permutation(int(self.shard.max()) + 1) // self.window
                self._order = self._order[np.argsort(window[self.shard[self._order]], kind="stable")]
        return self._order


class BalancedBatchSampler(Sampler[list[Draw]]):
    """Yield training batches: half reals, half fakes, the fakes equally many of each generator.

    The slots of the fakes cycle through the generators, so in any stretch of slots their counts differ by at most 1.
    Each real is paired with a fake: a real of the same source if there is one, otherwise any. Generators, sources and
    reals are each walked by reshuffled permutations, so every image is used before one is used again.

    Step s of epoch e is a pure function of (seed, e, s). A rank takes its share of the global batch: the ranks' shares,
    one after the other, are the batch of a single process. A UserError if a class is missing, or the batch does not
    divide into equal shares.

    Args:
        ids, labels: (n,) rows of the manifest; (n,) 0 = real, 1 = fake.
        generators, sources: (n,) names; a source is "" where unknown.
        batch_size, steps: images of a step over all ranks; batches of an epoch.
        seed, real_only: seed of all random choices; draw only reals, for stage 1, where one permutation is walked.
        rank, world_size, shards: of this process; number of processes; where the rows are, if they are in shards.
    """

    def __init__(
        self, ids: ArrayLike, labels: ArrayLike, generators: Sequence[str], sources: Sequence[str], batch_size: int,
        steps: int, seed: int, real_only: bool = False, rank: int = 0, world_size: int = 1,
        shards: Shards | None = None,
    ) -> None:  # fmt: skip
        label, rows = np.asarray(labels), np.asarray(ids, dtype=np.int64)
        names, places = np.asarray(generators, dtype=object), np.asarray(sources, dtype=object)
        unit = world_size if real_only else 2 * world_size
        if batch_size < unit or batch_size % unit:
            halves = "equal shares for" if real_only else "half reals and half fakes on each of"
            raise UserError(f"data.batch_size: {batch_size} does not divide into {halves} {world_size} process(es); "
                            f"take a multiple of {unit}, such as {max(unit, batch_size // unit * unit)}")  # fmt: skip
        fake = label == 1
        for value, name in ((0, "real"), (1, "fake")):
            if not (label == value).any() and not (real_only and value):
                raise UserError(f"there are no {name} images (label {value}) to train on")
        self.batch_size, self.steps, self.seed, self.real_only = batch_size, steps, seed, real_only
        self.rank, self.world_size, self.epoch, self.start_step = rank, world_size, 0, 0
        matched = [] if real_only else sorted((set(places[fake]) & set(places[~fake])) - {""})
        # Stratum 0 is all reals; the others are the sources that fakes and reals share.
        stratum = {name: code for code, name in enumerate(matched, start=1)}
        codes = np.array([stratum.get(place, 0) for place in places], dtype=np.int64)
        pools = [rows[~fake]] + [rows[~fake & (codes == code)] for code in stratum.values()]
        self._reals = [_Walk(pool, np.zeros_like(pool), 1, (seed, 0, code), shards) for code, pool in enumerate(pools)]
        self._fakes = [] if real_only else [
            _Walk(rows[fake & (names == name)], codes[fake & (names == name)], len(pools), (seed, 1, code), shards)
            for code, name in enumerate(sorted(set(names[fake])))
        ]  # fmt: skip
        self._stratum = dict(zip(rows[fake].tolist(), codes[fake].tolist(), strict=True))
        # Lightning calls set_epoch on `batch_sampler.sampler`, never on the batch sampler itself.
        self.sampler = self

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration draws; another epoch begins at its first step."""
        if epoch != self.epoch:
            self.epoch, self.start_step = int(epoch), 0

    def set_start_step(self, step: int) -> None:
        """Begin this epoch at a later step (a ValueError if it has no such one); later epochs begin at their first."""
        if not 0 <= step < self.steps:
            raise ValueError(f"step {step} of an epoch of {self.steps}")
        self.start_step = int(step)

    def __len__(self) -> int:
        """Return the steps of a whole epoch, wherever this one begins: Lightning asks only once."""
        return self.steps

    def __iter__(self) -> Iterator[list[Draw]]:
        # A generator: the epoch is read at the first batch, as Lightning sets it after making a run's first iterator.
        epoch, size = self.epoch, self.batch_size // self.world_size
        for step in range(self.start_step, self.steps):
            yield self.batch(epoch, step)[self.rank * size : (self.rank + 1) * size]

    def batch(self, epoch: int, step: int) -> list[Draw]:
        """Return the global batch of a step; in balanced batches each fake follows its real."""
        number = epoch * self.steps + step
        if self.real_only:
            ids = [self._reals[0].at(number * self.batch_size + slot) for slot in range(self.batch_size)]
        else:
            ids = self._pairs(number * (self.batch_size // 2))
        seeds = np.random.SeedSequence((self.seed, 2, epoch, step)).generate_state(self.batch_size, np.uint64)
        return [Draw(row, seed) for row, seed in zip(ids, (seeds >> np.uint64(1)).tolist(), strict=True)]

    def _pairs(self, first_slot: int) -> list[int]:
        kinds = len(self._fakes)
        # How often each stratum of reals was needed before this step, which may be the first of a resumed run.
        counts = [walk.counts((first_slot - code + kinds - 1) // kinds) for code, walk in enumerate(self._fakes)]
        needed = np.sum(counts, axis=0)
        ids = []
        for slot in range(first_slot, first_slot + self.batch_size // 2):
            fake = self._fakes[slot % kinds].at(slot // kinds)
            stratum = self._stratum[fake]
            ids += [self._reals[stratum].at(int(needed[stratum])), fake]
            needed[stratum] += 1
        return ids


class EvaluationSampler(Sampler[list[Draw]]):
    """Yield every row of a rank's share exactly once, in order: nothing padded, nothing dropped.

    Ranks with fewer rows end with empty batches, so that all take the same number of steps and none waits for another.
    ``ids`` are (n,) rows of the manifest, ``batch_size`` is that of one rank.
    """

    def __init__(self, ids: Sequence[int] | Ints, batch_size: int, rank: int = 0, world_size: int = 1) -> None:
        rows = np.asarray(ids, dtype=np.int64)
        if batch_size < 1:
            raise UserError(f"data.eval_batch_size: {batch_size} should be at least 1")
        self.ids, self.batch_size = rows[rank::world_size], batch_size
        self._steps = -(-len(rows) // (world_size * batch_size))  # of the largest share

    def __len__(self) -> int:
        return self._steps

    def __iter__(self) -> Iterator[list[Draw]]:
        for step in range(self._steps):
            rows = self.ids[step * self.batch_size : (step + 1) * self.batch_size].tolist()
            # Nothing in evaluation is random; the seed is the row's own, whatever the batch.
            yield [Draw(row, row) for row in rows]
