"""A method's statistic over its seeds, and its difference to a baseline's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fakedet.metrics.per_generator import BootstrapTable

Run = tuple[int, int]


@dataclass(frozen=True)
class Draws:
    """Seeds drawn with replacement for every resample: the same draw for as many seeds."""

    n_resamples: int
    seed: int

    def __call__(self, count: int, stream: int = 0) -> NDArray[np.int64]:
        """Give (R, count) places among ``count`` seeds; another stream is an independent draw."""
        rng = np.random.default_rng([self.seed, count, *([stream] if stream else [])])
        return rng.integers(count, size=(self.n_resamples, count))


@dataclass(frozen=True)
class OverSeeds:
    """A statistic of a method, for each of its runs.

    Attributes:
        values: run → value; a run is its seed, and how many with this seed came before it.
        samples: run → (R,) of the resamples.
    """

    values: dict[Run, float]
    samples: dict[Run, NDArray[np.float64]]

    @classmethod
    def read(
        cls, table: BootstrapTable, method: str, metric: str, name: str, seeds: Sequence[int]
    ) -> OverSeeds:
        """Read the runs of a method."""
        keys = {(seed, seeds[:place].count(seed)): f"{method}#{place}" for place, seed in enumerate(seeds)}
        return cls(
            {run: table.value(key, metric, name) for run, key in keys.items()},
            {run: table.samples(key, metric, name) for run, key in keys.items()},
        )

    def mean(self, runs: Sequence[Run], draws: Draws, stream: int = 0) -> tuple[float, NDArray[np.float64]]:
        """Give the mean over these runs and the (R,) means over those drawn in each resample."""
        by_seed = np.stack([self.samples[run] for run in runs], axis=1)
        drawn = np.take_along_axis(by_seed, draws(len(runs), stream), axis=1).mean(axis=1)
        return float(np.mean([self.values[run] for run in runs])), drawn

    def less(self, base: OverSeeds, draws: Draws) -> tuple[float, NDArray[np.float64]]:
        """Give the difference to the baseline over the seeds that both have, and that of each resample."""
        shared = [run for run in self.values if run in base.values]
        value, samples = self.mean(shared or list(self.values), draws)
        base_value, base_samples = base.mean(shared or list(base.values), draws, stream=0 if shared else 1)
        return value - base_value, samples - base_samples
