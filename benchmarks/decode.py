"""Decoding image files: our ``read_image`` with all its checks against PIL, from the file to an RGB array.

Pixels are compared first and must be equal. Both use one thread, as in a DataLoader's worker.

Run: python -m benchmarks.decode   (FAKEDET_CORPUS=folder adds the files of its folder ``matched``)
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.photographs import photographs
from benchmarks.ratio import Timing, interleaved, table
from fakedet.data.decode import read_image

SIZES = {(256, 256): 200, (500, 375): 200, (1024, 768): 100}
"""Width and height, and how many JPEG files of it; half as many PNG files."""
QUALITIES = (75, 95)
CORPUS_FILES = 1000
TARGET = 1.1

Pixels = NDArray[np.uint8]


def by_pil(path: Path) -> Pixels:
    """What most training code does."""
    return np.asarray(Image.open(path).convert("RGB"))


def write(folder: Path) -> dict[str, list[Path]]:
    """Write photographs of every size and format."""
    rng = np.random.default_rng(0)
    kinds: dict[str, list[Path]] = {}
    for suffix, share in (("jpg", 1), ("png", 2)):
        for (width, height), count in SIZES.items():
            paths = []
            for number, image in enumerate(photographs(width, height, count // share)):
                paths.append(folder / f"{width}x{height}_{number}.{suffix}")
                quality = int(rng.integers(QUALITIES[0], QUALITIES[1] + 1))
                Image.fromarray(image).save(paths[-1], quality=quality)  # which PNG ignores
            kinds[f"{'JPEG' if suffix == 'jpg' else 'PNG'} {width}x{height}"] = paths
    return kinds


def compare(name: str, paths: list[Path]) -> Timing:
    """Check that pixels are equal, then time both."""
    for path in paths:
        assert np.array_equal(read_image(path), by_pil(path)), f"{path}: pixels differ"

    def all_by(read: Callable[[Path], Pixels]) -> Callable[[], None]:
        def run() -> None:
            for path in paths:
                read(path)

        return run

    return interleaved(f"{name} ({len(paths)})", all_by(read_image), all_by(by_pil), len(paths))


def main() -> None:
    """Time every kind of file, print the table."""
    cv2.setNumThreads(0)
    with tempfile.TemporaryDirectory(prefix="fakedet-benchmark-") as folder:
        timings = [compare(name, paths) for name, paths in write(Path(folder)).items()]
    corpus = os.environ.get("FAKEDET_CORPUS")
    if corpus:
        matched = sorted((Path(corpus) / "matched").rglob("*.jpg"))[:: max(1, 5300 // CORPUS_FILES)]
        timings.append(compare("corpus, JPEG 160x160", matched))
    print(table("from file to RGB array", timings, TARGET))


if __name__ == "__main__":
    main()
