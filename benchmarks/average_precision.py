"""Time of the metric's AP of 20 generators against scikit-learn's.

Ours is a whole ``compute()``: unpack the rows of all ranks, keep each image once, check labels, and compute exact AP
and AUC of every generator. The reference gets the same rows as arrays, selects the rows of each generator and its
reals, and calls ``average_precision_score``; it computes no AUC. The values must agree to 1e-9.

Run: python -m benchmarks.average_precision
"""

from __future__ import annotations

import numpy as np
import torch
from sklearn.metrics import average_precision_score

from benchmarks.ratio import Timing, interleaved, table
from fakedet.metrics.average_precision import GeneratorAveragePrecision

GENERATORS = 20
# The goal: 0.6 times the time of scikit-learn.
TARGET = 1 / 0.6


def case(name: str, rows: int, shared: bool, rounds: int) -> Timing:
    """Time one layout of rows; half are reals, which all generators share or each generator has its own."""
    rng = np.random.default_rng(0)
    number = rng.integers(0, GENERATORS, rows)
    label = rng.integers(0, 2, rows)
    reals = 1 if shared else GENERATORS
    code = np.where(label == 1, number, GENERATORS + number % reals)
    logit = (rng.normal(size=rows) + label).astype(np.float32)
    cells = [f"g{i}" for i in range(GENERATORS)] + [f"r{i}" for i in range(reals)]
    counterparts = {i: [GENERATORS + i % reals] for i in range(GENERATORS)}
    metric = GeneratorAveragePrecision(cells, [True] * GENERATORS + [False] * reals, counterparts)
    for part in np.array_split(np.arange(rows), 64):
        metric.update(*(torch.from_numpy(column[part]) for column in (np.arange(rows), label, code, logit)))
    nothing = [torch.zeros(0, dtype=torch.int64)] * 3 + [torch.zeros(0)]

    def ours() -> dict[str, float]:
        metric.update(*nothing)  # else compute() returns its last result
        return dict(metric.compute())

    def reference() -> dict[str, float]:
        values = {}
        for fake, own in counterparts.items():
            wanted = (code == fake) | np.isin(code, own)
            values[f"ap/g{fake}"] = float(average_precision_score(label[wanted], logit[wanted]))
        return values

    measured, expected = ours(), reference()
    assert all(abs(measured[key] - value) < 1e-9 for key, value in expected.items())
    return interleaved(name, ours, reference, 1, rounds)


def main() -> None:
    """Time the layouts, print the table."""
    timings = [
        case("1,000,000 rows, shared reals", 1_000_000, True, 5),
        case("1,000,000 rows, own reals", 1_000_000, False, 5),
        case("20 x 1,000,000 rows, own reals", 20_000_000, False, 5),
    ]
    print(table(f"AP of {GENERATORS} generators against scikit-learn", timings, TARGET))


if __name__ == "__main__":
    main()
