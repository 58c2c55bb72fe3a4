"""Our recipe ``cnndet`` against the published CNNDetection's augmentation, written anew from its description.

Both blur with probability 0.5 (σ uniform in 0 to 3) and compress with probability 0.5 (JPEG, quality 30 to
100), the whole image, then take a random crop of 224 and flip half of them. The reference works as the
published code does: scipy's Gaussian filter channel by channel into the 8-bit image, JPEG by OpenCV or PIL at
random, torchvision's crop and flip on a PIL image. Resizing, tensors and normalisation are left out of both.

Run: python -m benchmarks.augmentation
"""

from __future__ import annotations

import io
import random
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from benchmarks.photographs import photographs
from benchmarks.ratio import interleaved, table
from fakedet.data.transforms import Augmentation

SIZES = ((256, 256), (500, 375))
CROP = 224
COUNT = 200
TARGET = 2.0
OURS = Augmentation("cnndet")

Pixels = NDArray[np.uint8]


class Published:
    """What CNNDetection does to a training image, of any size that the crop fits in."""

    def __init__(self) -> None:
        self.crop = transforms.Compose([transforms.RandomCrop(CROP), transforms.RandomHorizontalFlip()])

    def __call__(self, image: Image.Image) -> Pixels:
        pixels = np.array(image)
        if random.random() < 0.5:
            sigma = 3.0 * random.random()
            for channel in range(3):
                gaussian_filter(pixels[:, :, channel], sigma=sigma, output=pixels[:, :, channel])
        if random.random() < 0.5:
            encode = random.choice((_jpeg_opencv, _jpeg_pil))
            pixels = encode(pixels, random.choice(range(30, 101)))
        return np.asarray(self.crop(Image.fromarray(pixels)))


def _jpeg_opencv(pixels: Pixels, quality: int) -> Pixels:
    data = cv2.imencode(".jpg", pixels[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    decoded: Pixels = np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR))
    return decoded[:, :, ::-1]


def _jpeg_pil(pixels: Pixels, quality: int) -> Pixels:
    with io.BytesIO() as buffer:
        Image.fromarray(pixels).save(buffer, format="jpeg", quality=quality)
        return np.array(Image.open(buffer))


class Crops(Dataset[torch.Tensor]):
    """The crops of all images under one of the two; each image comes decoded, as each way wants it."""

    def __init__(self, images: list[Pixels], published: bool) -> None:
        self.images = [Image.fromarray(image) if published else image for image in images]
        self.augment: Callable[[Any], Pixels] = Published() if published else _ours

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> torch.Tensor:
        return torch.from_numpy(np.array(self.augment(self.images[row])))


def _ours(image: Pixels) -> Pixels:
    return OURS(image, CROP, random.getrandbits(32))


def _alone(crops: Crops) -> Callable[[], object]:
    def run() -> None:
        for row in range(len(crops)):
            crops[row]

    return run


def _workers(crops: Crops) -> Callable[[], object]:
    # Workers stay: how long they take to start is not what is compared.
    loader = DataLoader(crops, batch_size=20, num_workers=2, persistent_workers=True, worker_init_fn=_one_thread)

    def run() -> None:
        for _ in loader:
            pass

    return run


def _one_thread(_: int) -> None:
    cv2.setNumThreads(0)


def main() -> None:
    """Time both, print the table."""
    _one_thread(0)
    random.seed(0)
    timings = []
    for width, height in SIZES:
        images = photographs(width, height, COUNT)
        for name, way in (("one process", _alone), ("two workers", _workers)):
            ours, reference = (way(Crops(images, published)) for published in (False, True))
            timings.append(interleaved(f"{width}x{height}, {name}", ours, reference, COUNT))
    print(table("cnndet: blur, JPEG, crop, flip", timings, TARGET))


if __name__ == "__main__":
    main()
