"""Loading a checked manifest of 100,000 images against finding as many files by walking their folders.

The reference is what a loader without a manifest does first: a recursive walk with ``os.scandir`` and a stat
of every file. Its files are tiny and, after the untimed first round, in the cache of the system: the walk is
at its best. Our part is a whole ``load_manifest`` of a parquet file, with every check and the digest.

Run: python -m benchmarks.manifest
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.ratio import interleaved, table
from fakedet.data.manifest import load_manifest

FOLDERS, FILES = 100, 1000
FAMILY = 4
"""Images of one group, such as a photograph and the fakes made after it."""
TARGET = 4.0


def prepare(root: Path) -> Path:
    """Write the files and their manifest, rows in random order, four images a group."""
    names = []
    for folder in range(FOLDERS):
        where = f"generator_{folder // 2:02d}/{'1_fake' if folder % 2 else '0_real'}"
        (root / where).mkdir(parents=True)
        for number in range(FILES):
            names.append(f"{where}/{number:06d}.png")
            (root / names[-1]).write_bytes(b"x")
    rows = np.random.default_rng(0).permutation(len(names))
    family = rows // FAMILY
    frame = pd.DataFrame({
        "path": [names[row] for row in rows],
        "label": rows // FILES % 2,
        "generator": [names[row].split("/")[0] for row in rows],
        "source": np.where(rows % 3 == 0, "indoors", "outdoors"),
        "split": np.array(["train", "train", "train", "val", "test"])[family % 5],
        "group": [f"photo_{one:06d}" for one in family],
    })  # fmt: skip
    path = root / "manifest.parquet"
    frame.to_parquet(path)
    return path


def walk(folder: str) -> list[tuple[str, int]]:
    """Find all files below a folder, each with its size."""
    found: list[tuple[str, int]] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                found += walk(entry.path)
            else:
                found.append((entry.path, entry.stat().st_size))
    return found


def main() -> None:
    """Time both, print the table."""
    with tempfile.TemporaryDirectory(prefix="fakedet-benchmark-") as folder:
        path = prepare(Path(folder))
        count = FOLDERS * FILES
        assert len(load_manifest(path).frame) == count == len(walk(folder)) - 1  # the manifest is a file too
        timing = interleaved(
            f"one load of {count:,} rows",
            lambda: load_manifest(path),
            lambda: walk(folder),
            items=1,
            rounds=15,
        )
    print(table("manifest against os.scandir and stat", [timing], TARGET))


if __name__ == "__main__":
    main()
