"""Real photographs of any size, from those that scikit-image brings along."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import skimage
from numpy.typing import NDArray
from PIL import Image

from fakedet.data.transforms import pad_to, random_crop

NAMES = (
    "astronaut.png",
    "chelsea.png",
    "coffee.png",
    "ihc.png",
    "motorcycle_left.png",
    "retina.jpg",
    "rocket.jpg",
)
SHRINK = (0.5, 1.0)


def photographs(width: int, height: int, count: int, seed: int = 0) -> list[NDArray[np.uint8]]:
    """Cut windows at random places and shrink them a little, as published data sets are made.

    Windows larger than the photograph are continued by reflection: enlarging would blur them, and a
    blurred image is decoded sooner than a real one.
    """
    folder = Path(skimage.__file__).parent / "data"
    sources = [np.asarray(Image.open(folder / name).convert("RGB")) for name in NAMES]
    rng = np.random.default_rng(seed)
    images = []
    for number in range(count):
        scale = rng.uniform(*SHRINK)
        rows, columns = round(height / scale), round(width / scale)
        window = random_crop(pad_to(sources[number % len(sources)], rows, columns), rows, columns, rng)
        shrunk = Image.fromarray(window).resize((width, height), Image.Resampling.BICUBIC)
        images.append(np.asarray(shrunk))
    return images
