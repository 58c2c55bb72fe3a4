"""Reading images from shards against reading their files: bytes alone, and training batches.

Files lie in the system's cache, so they are at their best; shards are for where they are not: object stores, and file
systems that are slow at many small files. The order is that of training: the balanced sampler's draws.

Run: python -m benchmarks.shards
"""

from __future__ import annotations

import itertools
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.photographs import photographs
from benchmarks.ratio import interleaved, table
from fakedet.cli.app import launch
from fakedet.data.datamodule import ImageDataModule
from fakedet.data.transforms import Augmentation

IMAGES = 2000


def prepare(root: Path) -> Path:
    """Write JPEG files of 256 × 256 and their manifest."""
    import cv2

    rows, rng = [], np.random.default_rng(0)
    crops = itertools.cycle(photographs(256, 256, 200))
    for number in range(IMAGES):
        label = number % 2
        path = f"{('real', 'fake')[label]}/{number:05d}.jpg"
        (root / path).parent.mkdir(exist_ok=True)
        image = np.roll(next(crops), int(rng.integers(0, 200)), axis=1)
        cv2.imwrite(str(root / path), image, [cv2.IMWRITE_JPEG_QUALITY, 90])
        rows.append((path, label, ("real", "gan")[label], "train" if number % 10 else "val"))
    pd.DataFrame(rows, columns=["path", "label", "generator", "split"]).to_csv(root / "m.csv", index=False)
    return root / "m.csv"


def read(data: ImageDataModule, steps: int) -> None:
    """Read the bytes of the first steps of an epoch."""
    for step in itertools.islice(iter(data.train_dataloader().batch_sampler), steps):  # type: ignore[arg-type]
        for draw in step:
            data.read_bytes(draw.id)


def load(data: ImageDataModule, steps: int) -> None:
    """Load the first steps of an epoch."""
    for _ in itertools.islice(iter(data.train_dataloader()), steps):
        pass


def main() -> None:
    """Time both, print the table."""
    with tempfile.TemporaryDirectory(prefix="fakedet-benchmark-") as name:
        manifest = prepare(Path(name))
        assert launch("shard", [f"data.manifest={manifest}", f"output_dir={name}/shards", "shard_mb=4"]) == 0
        timings = []
        for what, work, steps, workers in (
            ("bytes", read, 25, 0), ("batches, one process", load, 8, 0), ("batches, two workers", load, 8, 2),
        ):  # fmt: skip
            shards, files = (
                ImageDataModule(str(path), crop_size=224, num_workers=workers, augment=Augmentation("light"))
                for path in (Path(name) / "shards" / "manifest.parquet", manifest)
            )
            timings.append(interleaved(
                what, lambda: work(shards, steps), lambda: work(files, steps), items=64 * steps,  # noqa: B023
            ))  # fmt: skip
        print(table("shards against files", timings, None))


if __name__ == "__main__":
    main()
