"""Time and peak memory of metrics with intervals, for 1,000 to 1,000,000 rows.

Each size runs in a process of its own, because the system reports only the peak of a whole process. Ten generators
share the reals, each row is a group of its own, and there are 200 resamples.

Run: python -m benchmarks.evaluation
"""

from __future__ import annotations

import resource
import subprocess
import sys
import time

import numpy as np
import pandas as pd

SIZES = (1_000, 10_000, 100_000, 1_000_000)
RESAMPLES = 200


def frame(rows: int) -> pd.DataFrame:
    """Make a predictions frame: half reals, half fakes of ten generators."""
    rng = np.random.default_rng(0)
    label = np.arange(rows) % 2
    names = np.where(label == 1, np.char.add("g", (np.arange(rows) // 2 % 10).astype(str)), "real")
    return pd.DataFrame({
        "label": label, "generator": names, "source": "", "group": np.arange(rows).astype(str),
        "logit": rng.normal(size=rows) + label,
    })  # fmt: skip


def one(rows: int) -> None:
    """Measure one size; print seconds, and MiB before and at the peak."""
    from fakedet.metrics.per_generator import evaluate_frame

    given = frame(rows)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    start = time.perf_counter()
    evaluate_frame(given, None, [], n_resamples=RESAMPLES)
    seconds = time.perf_counter() - start
    print(seconds, before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def main() -> None:
    """Measure all sizes, print the table."""
    print("| rows | seconds | microseconds per row | MiB more than before |\n|---|---|---|---|")
    for rows in SIZES:
        found = []
        for _ in range(3):
            done = subprocess.run(
                [sys.executable, "-m", "benchmarks.evaluation", str(rows)],
                capture_output=True,
                text=True,
                check=True,
            )
            found.append([float(word) for word in done.stdout.split()])
        seconds, before, most = np.median(found, axis=0)
        low, high = min(run[0] for run in found), max(run[0] for run in found)
        print(f"| {rows:,} | {seconds:.2f} ({low:.2f}-{high:.2f}) | {1e6 * seconds / rows:.1f} | {most - before:.0f} |")


if __name__ == "__main__":
    one(int(sys.argv[1])) if len(sys.argv) > 1 else main()
