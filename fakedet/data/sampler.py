"""Samplers: what every batch holds is a pure function of (seed, epoch, step)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

from fakedet.errors import UserError


class Draw(NamedTuple):
    """One image of a batch: which row, and the seed of everything random that happens to it."""

    id: int
    seed: int


class _Stratum:
    """Walk the rows of one stratum in reshuffled rounds: every row is used before any is used again."""

    def __init__(self, ids: NDArray[np.int64], key: Sequence[int]) -> None:
        self.ids = ids
        self._key = list(key)
        self._round = -1
        self._order = ids

    def at(self, position: int) -> int:
        turn, place = divmod(position, len(self.ids))
        if turn != self._round:
            self._order = np.random.default_rng([*self._key, turn]).permutation(self.ids)
            self._round = turn
        return int(self._order[place])


class BalancedBatchSampler(Sampler[list[Draw]]):
    """Yield batches that are half real, half fake and, among fakes, equal over generators.

    Reals are matched to the fakes' source where both have one. With several ranks each yields its share of the
    same global batches: the union over ranks is what one process would draw.

    Args:
        ids: row numbers.
        labels: 0 real, 1 fake, for each id.
        generators: name for each id.
        sources: name for each id, "" for none.
        batch_size: of the global batch, over all ranks.
        steps: batches an epoch.
        seed: of everything.
        real_only: draw reals only (stage 1).
        rank: of this process.
        world_size: number of processes.

    Raises:
        UserError: a batch size that cannot be split evenly, or a class without rows.
    """

    def __init__(
        self,
        ids: NDArray[np.int64],
        labels: NDArray[np.int64],
        generators: Sequence[str],
        sources: Sequence[str],
        batch_size: int,
        steps: int,
        seed: int,
        real_only: bool = False,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        share = world_size * (1 if real_only else 2)
        if batch_size < share or batch_size % share:
            raise UserError(
                f"data.batch_size={batch_size}: must be a multiple of {share} "
                f"({'' if real_only else 'half real, half fake, '}{world_size} process(es))"
            )
        self.batch_size, self.steps, self.seed = batch_size, steps, seed
        self.real_only, self.rank, self.world_size = real_only, rank, world_size
        self.epoch, self.start_step = 0, 0
        # Lightning calls set_epoch on `batch_sampler.sampler`, never on the batch sampler itself.
        self.sampler = self
        names, origin = np.asarray(generators, dtype=object), np.asarray(sources, dtype=object)
        real = np.asarray(labels) == 0
        self._reals = _Stratum(_some(ids[real], "real"), [seed, 0])
        self._fakes = [] if real_only else [
            _Stratum(ids[~real & (names == name)], [seed, 1, number])
            for number, name in enumerate(sorted(set(names[~real])))
        ]  # fmt: skip
        if not real_only:
            _some(ids[~real], "fake")
        self._source_of = dict(zip(ids.tolist(), origin.tolist(), strict=True))
        shared = (set(origin[real]) & set(origin[~real])) - {""}
        self._by_source = {name: ids[real & (origin == name)] for name in sorted(shared)}

    def __len__(self) -> int:
        """Give the batches that are left in this epoch."""
        return self.steps - self.start_step

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration yields."""
        self.epoch = epoch

    def set_start_step(self, step: int) -> None:
        """Begin the next iteration at this step of its epoch."""
        self.start_step = step

    def __iter__(self) -> Iterator[list[Draw]]:
        """Yield this rank's share of each batch of the epoch."""
        for step in range(self.start_step, self.steps):
            yield self.batch(self.epoch, step)[self.rank :: self.world_size]

    def batch(self, epoch: int, step: int) -> list[Draw]:
        """Give the global batch of a step; reals and fakes alternate, so that every rank gets its half."""
        number = epoch * self.steps + step
        if self.real_only:
            ids = [self._reals.at(number * self.batch_size + i) for i in range(self.batch_size)]
        else:
            half = self.batch_size // 2
            fakes = [self._fake(number * half + i) for i in range(half)]
            reals = [self._real(number * half + i, fake) for i, fake in enumerate(fakes)]
            ids = _spread(reals, fakes, self.world_size)
        seeds = np.random.SeedSequence([self.seed, 2, epoch, step]).generate_state(len(ids), np.uint64)
        return [Draw(row, int(seed)) for row, seed in zip(ids, seeds, strict=True)]

    def _fake(self, slot: int) -> int:
        # Rounds over all generators, each in its own order: equal counts over any run of whole rounds.
        turn, place = divmod(slot, len(self._fakes))
        order = np.random.default_rng([self.seed, 3, turn]).permutation(len(self._fakes))
        return self._fakes[int(order[place])].at(turn)

    def _real(self, slot: int, fake: int) -> int:
        candidates = self._by_source.get(self._source_of[fake])
        if candidates is None:
            return self._reals.at(slot)
        return int(candidates[np.random.default_rng([self.seed, 4, slot]).integers(len(candidates))])


class EvaluationSampler(Sampler[list[Draw]]):
    """Yield every row once, in order; with several ranks each takes every world_size-th, nothing is padded.

    Args:
        ids: row numbers.
        batch_size: most rows of a batch.
        rank: of this process.
        world_size: number of processes.
    """

    def __init__(self, ids: NDArray[np.int64], batch_size: int, rank: int = 0, world_size: int = 1) -> None:
        self.ids = ids[rank::world_size]
        self.batch_size = batch_size

    def __len__(self) -> int:
        """Give the number of batches."""
        return -(-len(self.ids) // self.batch_size)

    def __iter__(self) -> Iterator[list[Draw]]:
        """Yield batches of draws; evaluation uses no randomness, the seed is the row's number."""
        for start in range(0, len(self.ids), self.batch_size):
            yield [Draw(int(row), int(row)) for row in self.ids[start : start + self.batch_size]]


def _spread(reals: list[int], fakes: list[int], world_size: int) -> list[int]:
    """Order a global batch so that every ``rank::world_size`` slice is half real, half fake."""
    ids: list[int] = []
    for start in range(0, len(reals), world_size):
        ids += reals[start : start + world_size] + fakes[start : start + world_size]
    return ids


def _some(ids: NDArray[np.int64], kind: str) -> NDArray[np.int64]:
    if len(ids) == 0:
        raise UserError(f"the train split has no {kind} images; balanced batches need both classes")
    return ids
