"""data/transforms"""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import albumentations as A
import cv2
import numpy as np
from numpy.typing import NDArray

from fakedet.errors import UserError, choose, nearest

POLICIES = {"crop": 1, "multi-crop": 5, "resize": 1}
"""Evaluation policies and how many views of an image each gives."""

LONGEST = 16
"""Times the shorter side that the longer one may measure when an image is resized: an image of one row would
grow to gigabytes. The centre is all that is looked at."""

Pixels = NDArray[np.uint8]


def random_crop(image: Pixels, height: int, width: int, rng: np.random.Generator) -> Pixels:
    """Take a crop at a uniformly random place; smaller images are padded by reflection.

    Args:
        image: (H, W, 3).
        height: of the crop.
        width: of the crop.
        rng: gives the place.

    Returns:
        (height, width, 3), a view of ``image`` where nothing was padded.
    """
    top = int(rng.integers(max(image.shape[0] - height, 0) + 1))
    left = int(rng.integers(max(image.shape[1] - width, 0) + 1))
    return _cut(image, top, left, height, width)


def evaluation_views(image: Pixels, size: int, policy: str) -> list[Pixels]:
    """Take the crops that an evaluation policy asks for; they depend on nothing but the image.

    * ``crop``: the centre.
    * ``multi-crop``: the centre and the four corners; scores are averaged over them.
    * ``resize``: the shorter side is resized to ``size``, then the centre. This destroys the traces that a
      detector looks for; it is here to compare with detectors that were evaluated so.

    Args:
        image: (H, W, 3).
        size: side of the square.
        policy: a key of :data:`POLICIES`.

    Returns:
        ``POLICIES[policy]`` arrays (size, size, 3).

    Raises:
        UserError: no such policy.
    """
    choose(policy, POLICIES, "data.eval_policy")
    if policy == "resize":
        image = _resize_shorter_side(image, size)
    bottom, right = (max(side - size, 0) for side in image.shape[:2])
    corners = [(bottom // 2, right // 2)]
    if policy == "multi-crop":
        corners += [(0, 0), (0, right), (bottom, 0), (bottom, right)]
    return [_cut(image, top, left, size, size) for top, left in corners]


def pad_to(image: Pixels, height: int, width: int) -> Pixels:
    """Pad an image on all sides alike, by reflection, to at least the given size.

    Images of any size will do: where one reflection is not enough it is repeated, and a single row or column
    is replicated.
    """
    missing = [max(0, wanted - have) for wanted, have in zip((height, width), image.shape[:2], strict=True)]
    if not any(missing):
        return image
    return np.pad(image, [(m // 2, m - m // 2) for m in missing] + [(0, 0)], mode="reflect")


def _cut(image: Pixels, top: int, left: int, height: int, width: int) -> Pixels:
    """Cut first and pad what is left: padded as a whole, one row of a million pixels would be a hundred."""
    return pad_to(image[top : top + height, left : left + width], height, width)


def _resize_shorter_side(image: Pixels, size: int) -> Pixels:
    most = LONGEST * min(image.shape[:2])
    top, left = (max(side - most, 0) // 2 for side in image.shape[:2])
    image = image[top : top + most, left : left + most]
    height, width = image.shape[:2]
    scale = size / min(height, width)
    target = (max(size, round(width * scale)), max(size, round(height * scale)))
    interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    return cv2.resize(image, target, interpolation=interpolation).astype(np.uint8, copy=False)


# Before the import: albumentations asks the network for its newest version otherwise.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")


MARGIN = 16
"""Pixels a side by which the degraded region exceeds the crop: two JPEG blocks, so that the grid falls
anywhere, and a border that blur at the edge does not reach into the crop."""
JPEG_SIDE = 65_500
"""The longest side that a JPEG can have."""


@dataclass(frozen=True)
class Recipe:
    """What may happen to a training image, in this order, before the last crop."""

    colour: float = 0.0
    """Probability of jittered brightness, contrast, saturation and hue."""
    colour_strength: tuple[float, float] = (0.2, 0.05)
    """How far: of brightness, contrast and saturation as a factor, of hue in turns."""
    blur: float = 0.0
    """Probability of Gaussian blur."""
    blur_sigma: tuple[float, float] = (0.0, 3.0)
    """Range of its σ in pixels, uniform."""
    jpeg: float = 0.0
    """Probability of JPEG compression."""
    jpeg_quality: tuple[int, int] = (30, 100)
    """Range of its quality, uniform, ends included."""
    flip: float = 0.0
    """Probability of a horizontal flip."""
    rotate: float = 0.0
    """Probability of a rotation by any angle; corners become black."""
    mask: float = 0.0
    """Probability that squares of 16 pixels are blackened."""
    mask_ratio: tuple[float, float] = (0.0, 0.75)
    """Range of their share of the image, uniform."""
    whole_image: bool = False
    """Degrade the whole image and crop then, as CNNDetection does; else only a region around the crop."""


RECIPES: dict[str, Recipe] = {
    "none": Recipe(),
    "light": Recipe(flip=0.5),
    "views": Recipe(colour=0.8, blur=0.2, blur_sigma=(0.1, 0.6), jpeg=0.3, jpeg_quality=(70, 100), flip=0.5),
    # Wang et al. 2020, section 3.2: blur, JPEG, crop, flip.
    "cnndet": Recipe(blur=0.5, jpeg=0.5, flip=0.5, whole_image=True),
    # Its other published model: blur and JPEG at p 0.1.
    "cnndet01": Recipe(blur=0.1, jpeg=0.1, flip=0.5, whole_image=True),
    # Li et al., KDD 2025: crop, flip, rotation by ±180°, colour jitter, masked patches.
    "safe": Recipe(flip=0.5, rotate=1.0, colour=1.0, colour_strength=(0.5, 0.0), mask=0.5),
}


class JpegCompression(A.ImageCompression):
    """JPEG as cameras and sites write it.

    albumentations hands RGB to an encoder that takes BGR, and weighs red as if it were blue; the artifacts
    are then not those of a JPEG file. The channels are swapped by OpenCV: numpy takes as long for it as the
    compression itself.
    """

    def apply(self, img: Pixels, quality: int, image_type: Any, **params: Any) -> Pixels:
        """Compress an RGB image."""
        encoded = cv2.imencode(
            image_type, cv2.cvtColor(img, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality]
        )[1]
        return np.asarray(cv2.imdecode(encoded, cv2.IMREAD_COLOR_RGB), np.uint8)


class PatchMask(A.ImageOnlyTransform):
    """Blacken random squares of a grid (SAFE; Li et al., KDD 2025).

    Args:
        ratio: range of the share of the image that is blackened, uniform; squares are whole, so it is rounded down.
        size: of the squares in pixels.
        p: probability.
    """

    def __init__(self, ratio: tuple[float, float], size: int = 16, p: float = 0.5) -> None:
        super().__init__(p=p)
        self.ratio, self.size = ratio, size

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        """Draw which squares."""
        height, width = params["shape"][:2]
        squares = [(top, left) for top in range(height // self.size) for left in range(width // self.size)]
        count = int(height * width * self.py_random.uniform(*self.ratio) / self.size**2)
        return {"squares": self.py_random.sample(squares, min(count, len(squares)))}

    def apply(self, img: Pixels, squares: list[tuple[int, int]], **params: Any) -> Pixels:
        """Blacken them."""
        masked = img.copy()
        for top, left in squares:
            masked[top * self.size : (top + 1) * self.size, left * self.size : (left + 1) * self.size] = 0
        return masked


class Augmentation:
    """Take a random, augmented training crop of an image.

    All randomness comes from the seed of the call: albumentations' own streams are the same in every
    DataLoader worker, and its ``set_random_seed`` gives every transform of a Compose the same stream, so that
    blur and JPEG at p 0.5 each would always come together.

    Args:
        recipe: a key of :data:`RECIPES`.
        **changes: fields of :class:`Recipe` that differ from it, such as ``blur=0.1``.

    Raises:
        UserError: no such recipe or field, or a value out of range.
    """

    def __init__(self, recipe: str = "none", **changes: Any) -> None:
        choose(recipe, RECIPES, "augment.recipe")
        known = [field.name for field in fields(Recipe)]
        for key in changes:
            if key not in known:
                raise UserError(f"augment: there is no '{key}'; {nearest(key, known)}")
        given: dict[str, Any] = {
            key: tuple(value) if _is_list(value) else value for key, value in changes.items()
        }
        self.recipe = recipe
        self.settings = replace(RECIPES[recipe], **given)
        _check(self.settings)
        transforms = _transforms(self.settings)
        self._compose = A.Compose(transforms) if transforms else None

    @property
    def only_crops(self) -> bool:
        """Whether nothing but the crop's place is random."""
        return self._compose is None

    def __call__(self, image: Pixels, size: int, seed: int) -> Pixels:
        """Take one crop.

        Args:
            image: (H, W, 3) RGB uint8; it is not changed.
            size: side of the crop.
            seed: of the draw, at least 0; the same seed gives the same crop.

        Returns:
            (size, size, 3) uint8.
        """
        rng = np.random.default_rng(seed)
        if self._compose is None:
            return random_crop(image, size, size, rng)
        if self.settings.whole_image:
            if max(image.shape) > JPEG_SIDE:  # no draw for the others, whose crops stay what they were
                height, width = (min(side, JPEG_SIDE) for side in image.shape[:2])
                image = random_crop(image, height, width, rng)
        else:
            margin = MARGIN if self.settings.blur or self.settings.jpeg else 0
            height, width = (min(size + margin, max(size, side)) for side in image.shape[:2])
            image = random_crop(image, height, width, rng)
        self._compose.set_random_state(rng, random.Random(int(rng.integers(2**63))))
        augmented: Pixels = self._compose(image=np.ascontiguousarray(image))["image"]
        return random_crop(augmented, size, size, rng)

    def __repr__(self) -> str:
        return f"Augmentation({self.recipe!r}, {asdict(self.settings)})"


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _transforms(recipe: Recipe) -> list[Any]:
    transforms: list[Any] = []
    if recipe.colour:
        strength, hue = recipe.colour_strength
        transforms.append(
            A.ColorJitter(
                brightness=strength, contrast=strength, saturation=strength, hue=hue, p=recipe.colour
            )
        )
    if recipe.blur:
        # blur_limit 0: the kernel is as wide as its σ asks for.
        transforms.append(A.GaussianBlur(blur_limit=0, sigma_limit=recipe.blur_sigma, p=recipe.blur))
    if recipe.jpeg:
        transforms.append(JpegCompression(quality_range=recipe.jpeg_quality, p=recipe.jpeg))
    if recipe.flip:
        transforms.append(A.HorizontalFlip(p=recipe.flip))
    if recipe.rotate:
        transforms.append(A.Rotate(limit=180, interpolation=cv2.INTER_NEAREST, fill=0, p=recipe.rotate))
    if recipe.mask:
        transforms.append(PatchMask(recipe.mask_ratio, p=recipe.mask))
    return transforms


def _check(recipe: Recipe) -> None:
    for key in ("colour", "blur", "jpeg", "flip", "rotate", "mask"):
        value = getattr(recipe, key)
        if not (isinstance(value, int | float) and 0 <= value <= 1):
            raise UserError(f"augment.{key}: {value!r} is not a probability between 0 and 1")
    if not isinstance(recipe.whole_image, bool):
        raise UserError(f"augment.whole_image: {recipe.whole_image!r} is neither true nor false")
    _check_range("blur_sigma", recipe.blur_sigma, 0, 100, (int, float))
    _check_range("mask_ratio", recipe.mask_ratio, 0, 1, (int, float))
    _check_range("jpeg_quality", recipe.jpeg_quality, 1, 100, (int,))
    if recipe.blur and recipe.blur_sigma[1] == 0:
        raise UserError("augment.blur_sigma: [0, 0] blurs nothing; set augment.blur=0 instead")


def _check_range(key: str, value: Any, low: float, high: float, types: tuple[type, ...]) -> None:
    ok = isinstance(value, tuple) and len(value) == 2 and all(isinstance(v, types) for v in value)
    if not ok or not low <= value[0] <= value[1] <= high:
        kind = "whole numbers" if types == (int,) else "numbers"
        raise UserError(f"augment.{key}: {value!r} is not a range [from, to] of {kind} in {low} to {high}")
