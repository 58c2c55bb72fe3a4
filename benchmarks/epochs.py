"""An epoch over pictures that are in memory already, and one that decodes each anew.

Both load the same balanced batches of a whole epoch with ``ImageDataModule`` in one process: 1,024 JPEG files of
quality 90 from photographs that scikit-image brings along, which the system has in its cache, no augmentation.

Run: python -m benchmarks.epochs
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import cv2
import pandas as pd

from benchmarks.photographs import photographs
from benchmarks.ratio import interleaved, table
from fakedet.data.datamodule import ImageDataModule
from fakedet.data.dataset import PictureMemory
from fakedet.data.transforms import Augmentation

COUNT, ROUNDS = 1024, 7


def manifest(folder: Path, side: int) -> Path:
    """Write crops of photographs, half of them labelled fake."""
    rows = []
    for number, image in enumerate(photographs(side, side, COUNT)):
        cv2.imwrite(str(folder / f"{number}.jpg"), image, [cv2.IMWRITE_JPEG_QUALITY, 90])
        kind = ("a", "b")[number % 2]
        rows.append({"path": f"{number}.jpg", "label": number % 2, "generator": kind, "split": "train"})
    pd.DataFrame(rows).to_csv(folder / "m.csv", index=False)
    return folder / "m.csv"


def epoch(path: Path, side: int, remember: bool) -> Callable[[], None]:
    """Give what loads one epoch."""
    data = ImageDataModule(str(path), crop_size=side, batch_size=64, augment=Augmentation("none"))
    data.prepare()
    loader = data.train_dataloader()
    if not remember:
        loader.dataset.memory = PictureMemory(0)  # type: ignore[attr-defined]

    def load() -> None:
        for _ in loader:
            pass

    return load


def main() -> None:
    """Time both, print the table."""
    timings = []
    for side in (160, 256):
        with tempfile.TemporaryDirectory(prefix="fakedet-benchmark-") as name:
            path = manifest(Path(name), side)
            both = epoch(path, side, True), epoch(path, side, False)
            timings.append(interleaved(f"JPEG {side}x{side}", *both, COUNT, ROUNDS))
    print(table("an image of a later epoch, from memory and decoded", timings, None))


if __name__ == "__main__":
    main()
