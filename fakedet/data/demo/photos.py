"""The photographs that ship inside well-known packages, and which split each belongs to."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fakedet.data.decode import DecodeError, read_image
from fakedet.errors import UserError

log = logging.getLogger("fakedet")

# package, folder in it, file. Read off the folder: scikit-image's own functions would download what is missing.
SKIMAGE, SKLEARN, MATPLOTLIB = (
    ("skimage", "data"),
    ("sklearn", "datasets/images"),
    ("matplotlib", "mpl-data/sample_data"),
)
PHOTOS: dict[str, dict[str, tuple[tuple[str, str], str]]] = {
    "train": {
        "astronaut": (SKIMAGE, "astronaut.png"),
        "coffee": (SKIMAGE, "coffee.png"),
        "motorcycle": (SKIMAGE, "motorcycle_left.png"),
        "grass": (SKIMAGE, "grass.png"),
        "brick": (SKIMAGE, "brick.png"),
        "hubble": (SKIMAGE, "hubble_deep_field.jpg"),
        "clock": (SKIMAGE, "clock_motion.png"),
        "cell": (SKIMAGE, "cell.png"),
        "grace_hopper": (MATPLOTLIB, "grace_hopper.jpg"),
    },
    "val": {
        "flower": (SKLEARN, "flower.jpg"),
        "moon": (SKIMAGE, "moon.png"),
        "ihc": (SKIMAGE, "ihc.png"),
        "page": (SKIMAGE, "page.png"),
    },
    "test": {
        "chelsea": (SKIMAGE, "chelsea.png"),
        "china": (SKLEARN, "china.jpg"),
        "rocket": (SKIMAGE, "rocket.jpg"),
        "gravel": (SKIMAGE, "gravel.png"),
        "coins": (SKIMAGE, "coins.png"),
        "retina": (SKIMAGE, "retina.jpg"),
        "camera": (SKIMAGE, "camera.png"),
    },
}
# Fewer than these and a split says nothing.
LEAST = {"train": 6, "val": 2, "test": 4}
# Crops with less contrast are sky or black borders; both classes leave them out alike.
LEAST_STD = 6.0


def load_photos(split: str) -> dict[str, NDArray[np.uint8]]:
    """Read the photographs of a split: name → (H, W, 3) uint8; a missing one is left out.

    Raises:
        UserError: too few are there.
    """
    found = {}
    for name, ((package, folder), file) in PHOTOS[split].items():
        try:
            found[name] = read_image(Path(str(files(package).joinpath(folder).joinpath(file))))
        except (DecodeError, ModuleNotFoundError):
            # Another version of the package may have dropped it: the data then differ from those of the docs.
            log.warning("demo data: %s is not in the installed %s; going on without it", file, package)
    if len(found) < LEAST[split]:
        raise UserError(
            f"demo data: only {len(found)} of {len(PHOTOS[split])} photographs for '{split}' are in the installed "
            "scikit-image, scikit-learn and matplotlib; install the versions of requirements.lock"
        )
    return found


def crops(
    photos: dict[str, NDArray[np.uint8]], size: int, rng: np.random.Generator, margin: int = 0
) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    """Cut endless random crops, photograph after photograph, whose middle is not flat.

    Args:
        photos: name → (H, W, 3) uint8.
        size: side of the middle, which is what an image will show.
        rng: of the places.
        margin: around the middle; a crop is (size + 2 margin, size + 2 margin, 3). The places and the flatness
            of the middle depend on it, so both classes have to use the same.
    """
    while True:
        for name, photo in photos.items():
            yield name, _crop(photo, size, margin, rng)


def middle(crop: NDArray[np.uint8], margin: int) -> NDArray[np.uint8]:
    """Cut a margin off all four sides of (H, W, 3)."""
    return crop[margin : crop.shape[0] - margin, margin : crop.shape[1] - margin]


def _crop(photo: NDArray[np.uint8], size: int, margin: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    side = size + 2 * margin
    for _ in range(50):
        top = int(rng.integers(photo.shape[0] - side + 1))
        left = int(rng.integers(photo.shape[1] - side + 1))
        cut = photo[top : top + side, left : left + side]
        if middle(cut, margin).std() >= LEAST_STD:
            break
    return cut
