"""Scoring 13 degraded views of each image against the naive loop over views.

The naive loop is what one writes with an evaluation script at hand: for each view, for each image, decode, degrade the
whole image, crop, score. Ours decodes once and degrades a window around the crop. The model is one convolution, so that
the time is that of the data.

Run: python -m benchmarks.robustness
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import cv2
import numpy as np
import torch

from benchmarks.photographs import photographs
from benchmarks.ratio import interleaved, table
from fakedet.data.dataset import RobustDataset
from fakedet.data.decode import read_image
from fakedet.data.degrade import FAMILIES, ORIGINAL, make_views
from fakedet.data.sampler import Draw
from fakedet.data.sources import FileSource
from fakedet.data.transforms import evaluation_views

VIEWS = {
    "jpeg": [95, 75, 50, 30], "webp": [80], "blur": [1, 2], "resize": [0.5, 1.5], "noise": [5], "brightness": [1.2],
    "social": [0.6],
}  # fmt: skip
IMAGES, SIZE, TARGET = 40, 224, 1.6


def main() -> None:
    """Time both, print the table."""
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    model = torch.nn.Conv2d(3, 1, 8, stride=8)
    views = make_views(VIEWS)
    timings = []
    with tempfile.TemporaryDirectory(prefix="fakedet-benchmark-") as name, torch.inference_mode():
        for width, height in ((256, 256), (500, 375), (1024, 768)):
            paths = []
            for number, image in enumerate(photographs(width, height, IMAGES)):
                paths.append(f"{width}_{number}.jpg")
                cv2.imwrite(str(Path(name, paths[-1])), image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 90])
            dataset = RobustDataset(FileSource(Path(name), paths), views, "crop", SIZE)

            def ours(dataset: RobustDataset = dataset, count: int = len(paths)) -> None:
                for row in range(count):
                    model(torch.from_numpy(dataset[Draw(row, row)]["image"]).flatten(0, 1).float().div(255.0))

            def naive(folder: Path = Path(name), listed: list[str] = paths) -> None:
                for view in views:
                    for row, path in enumerate(listed):
                        image = read_image(folder / path)
                        if view.family != ORIGINAL:
                            image = FAMILIES[view.family].apply(image, view.severity, np.random.default_rng(row))
                        crop = np.ascontiguousarray(evaluation_views(image, SIZE, "crop")[0].transpose(2, 0, 1))
                        model(torch.from_numpy(crop)[None].float().div(255.0))

            timings.append(interleaved(f"{width}x{height}, {len(views)} views", ours, naive, len(paths), 7))
    print(table("degraded views against the naive loop", timings, TARGET))


if __name__ == "__main__":
    main()
