"""Augmentations, by recipe, on albumentations; all randomness comes from the sample's own seed."""

from __future__ import annotations

import os

# Before the import: albumentations asks the network for its newest version otherwise.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import albumentations as A
import numpy as np
from numpy.typing import NDArray

from fakedet.data.crop import random_crop
from fakedet.errors import choose

# What happens before the crop and what after it.
RECIPES: dict[str, tuple[list[A.BasicTransform], list[A.BasicTransform]]] = {
    "none": ([], []),
    "light": ([], [A.HorizontalFlip(p=0.5)]),
    "views": (
        [],
        [
            A.HorizontalFlip(p=0.5),
            A.ColorJitter(brightness=0.2, contrast=0.2, saturation=0.2, hue=0.05, p=0.8),
            A.GaussianBlur(blur_limit=0, sigma_limit=(0.1, 0.6), p=0.2),
            A.ImageCompression(quality_range=(70, 100), p=0.3),
        ],
    ),
    # Wang et al. 2020: blur σ U(0, 3) and JPEG on the whole image, then crop and flip.
    "cnndet": (
        [
            A.GaussianBlur(blur_limit=0, sigma_limit=(0.0, 3.0), p=0.5),
            A.ImageCompression(quality_range=(30, 100), p=0.5),
        ],
        [A.HorizontalFlip(p=0.5)],
    ),
}


class Augmentation:
    """Crop and augment a training image by a named recipe.

    Args:
        recipe: "none" (crop only), "light", "views" or "cnndet".

    Raises:
        UserError: an unknown recipe.
    """

    def __init__(self, recipe: str) -> None:
        before, after = RECIPES[choose(recipe, RECIPES, "augment.recipe")]
        self.recipe = recipe
        self._before = A.Compose(before) if before else None
        self._after = A.Compose(after) if after else None

    def __call__(self, image: NDArray[np.uint8], size: int, seed: int) -> NDArray[np.uint8]:
        """Make one view (size, size, 3) of an image (H, W, 3); the same seed gives the same view."""
        rng = np.random.default_rng(seed)
        image = _apply(self._before, image, rng)
        image = random_crop(image, size, rng)
        return _apply(self._after, image, rng)


def _apply(
    pipeline: A.Compose | None, image: NDArray[np.uint8], rng: np.random.Generator
) -> NDArray[np.uint8]:
    if pipeline is None:
        return image
    # albumentations 2.0.8 would give every worker the same stream; a seed a call makes that irrelevant.
    pipeline.set_random_seed(int(rng.integers(2**31)))
    return np.asarray(pipeline(image=np.ascontiguousarray(image))["image"], dtype=np.uint8)
