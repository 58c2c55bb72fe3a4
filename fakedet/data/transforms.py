"""Transforms: random training crops with augmentation, and the fixed crops of evaluation."""

from __future__ import annotations

import os
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache
from typing import Any, Protocol

# Before the import: albumentations asks the network for its newest version otherwise.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import albumentations as A
import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from fakedet.errors import UserError, choose, nearest

Pixels = NDArray[np.uint8]

POLICIES = {"crop": 1, "multi-crop": 5, "resize": 1}  # Views that each evaluation policy takes of an image
RESIZES = {name: InterpolationMode(name) for name in ("bilinear", "bicubic", "lanczos")}
CUTS = {"centre": 1, "middle": 1, "five": 5, "ten": 10, "grid": 5}  # Views of the last of a policy's torchvision steps
STEP = r"(shorter|square|enlarge)([1-9]\d{1,3})-([a-z]+)|(centre|middle|five|ten|tile)|(whole|grid|tile)([1-9]\d{1,3})"
LONGEST_RATIO = 16  # Images are cut to this aspect ratio before resizing: one of a single row would grow to gigabytes
# Pixels by which the augmented region exceeds the crop: two JPEG blocks, so that the crop begins anywhere in the JPEG
# grid and contains no border of a blur.
MARGIN = 16
JPEG_SIDE = 65_500  # The longest side that a JPEG can have


def random_crop(image: Pixels, height: int, width: int, rng: np.random.Generator) -> Pixels:
    """Take a crop (height, width, 3) at a uniformly random place of an image (H, W, 3).

    Smaller images are padded by reflection; where nothing was padded, a view is returned.
    """
    top = int(rng.integers(max(image.shape[0] - height, 0) + 1))
    left = int(rng.integers(max(image.shape[1] - width, 0) + 1))
    return _cut(image, top, left, height, width)


def evaluation_views(image: Pixels, size: int, policy: str) -> list[Pixels]:
    """Take the crops of an evaluation policy; they depend only on the image.

    * ``crop``: the centre.
    * ``multi-crop``: the centre and the four corners; scores are averaged over them.
    * ``resize``: the shorter side is resized to ``size``, then the centre is cut out. This destroys the traces that a
      detector looks for; it serves comparisons with detectors that were evaluated in this way.
    * torchvision's own steps, for detectors that were published with them, joined by "+": ``shorter256-bicubic``
      resizes the shorter side, ``square256-bilinear`` both, whatever the shape, and ``enlarge256-bicubic`` the shorter
      side if it is less, all through PIL; ``square224-opencv`` goes through OpenCV, bilinear without smoothing before;
      ``tile`` repeats a picture until no side is below ``size``, ``tile256`` below 256 pixels. Then ``centre`` cuts out
      the centre, padded with zeros, ``middle`` the same as albumentations rounds it, ``five`` the four corners and the
      centre, ``ten`` these and their mirror images.
    * ``grid14``, last: ``five`` squares of whole patches of 14 pixels, counted from the upper left, as B-Free takes
      them; a picture that is smaller on any side is repeated to the right and below, and its upper left is seen.
    * ``whole2048``, last: all of the picture, of any shape; of one with a longer side, the middle 2048 pixels of it.

    Returns ``views_of(policy)`` arrays (size, size, 3) of an image (H, W, 3); an unknown policy is a UserError.
    """
    if (steps := steps_of(policy)) is not None:
        return _torchvision_views(image, size, steps)
    if policy == "resize":
        most = LONGEST_RATIO * min(image.shape[:2])
        top, left = (max(side - most, 0) // 2 for side in image.shape[:2])
        image = image[top : top + most, left : left + most]
        scale = size / min(image.shape[:2])
        height, width = (max(size, round(side * scale)) for side in image.shape[:2])
        interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
        image = cv2.resize(image, (width, height), interpolation=interpolation).astype(np.uint8, copy=False)
    bottom, right = (max(side - size, 0) for side in image.shape[:2])
    corners = [(bottom // 2, right // 2)]
    if policy == "multi-crop":
        corners += [(0, 0), (0, right), (bottom, 0), (bottom, right)]
    return [_cut(image, top, left, size, size) for top, left in corners]


@cache
def steps_of(policy: str) -> tuple[tuple[str, int, str], ...] | None:
    """Read an evaluation policy that is written as torchvision's steps: (name, size, interpolation) of each.

    None for one of :data:`POLICIES`; UserError for one that is neither.
    """
    if policy in POLICIES:
        return None
    steps = []
    for step in policy.split("+"):
        found = re.fullmatch(STEP, step)
        if found is None or (found[3] and found[3] not in (*RESIZES, *("opencv",) * (found[1] == "square"))):
            raise UserError(f"data.eval_policy: '{policy}' is not known; {nearest(policy, POLICIES)}, or torchvision's "
                            "steps, such as shorter256-bicubic+centre or square224-bilinear")  # fmt: skip
        steps.append((found[1] or found[4] or found[5], int(found[2] or found[6] or 0), found[3] or ""))
    *before, (last, _, _) = steps
    if last not in (*CUTS, "square", "whole") or any(name in (*CUTS, "whole") for name, _, _ in before):
        raise UserError(f"data.eval_policy={policy}: it must end, and only end, with a step that gives squares: "
                        "centre, five, ten, grid14 or square, or with whole2048")  # fmt: skip
    return tuple(steps)


def views_of(policy: str) -> int:
    """Return how many views an evaluation policy takes of an image; UserError for an unknown one."""
    steps = steps_of(policy)
    return POLICIES[policy] if steps is None else CUTS.get(steps[-1][0], 1)


def is_whole(policy: str) -> bool:
    """Say whether the views of an evaluation policy have the shapes of the pictures, so that no two can be stacked."""
    steps = steps_of(policy)
    return steps is not None and steps[-1][0] == "whole"


def check_policy(policy: str, size: int) -> None:
    """Raise UserError for an unknown evaluation policy, and one whose views are not squares of ``size`` pixels."""
    steps = steps_of(policy)
    if steps and steps[-1][0] == "square" and steps[-1][1] != size:
        raise UserError(f"data.eval_policy={policy} gives squares of {steps[-1][1]} pixels: set data.crop_size to that")
    if steps and steps[-1][0] == "grid" and size % steps[-1][1]:
        raise UserError(f"data.eval_policy={policy}: data.crop_size={size} is no multiple of {steps[-1][1]} pixels")


def _torchvision_views(image: Pixels, size: int, steps: tuple[tuple[str, int, str], ...]) -> list[Pixels]:
    """Take the views as the evaluation code of most published detectors does: PIL images through torchvision."""
    picture: Any = Image.fromarray(np.ascontiguousarray(image))
    for step in steps:
        picture = _resized(picture, size, *step)
    return _last_views(picture, size, *steps[-1][:2])


def _resized(picture: Any, size: int, name: str, wanted: int, interpolation: str) -> Any:
    """Do one of torchvision's steps that resize or repeat; others leave the picture as it is."""
    if name == "tile":
        return _tiled(picture, wanted or size)
    if name == "square" and interpolation == "opencv":
        return Image.fromarray(cv2.resize(np.asarray(picture), (wanted, wanted)))
    if name == "square":
        return tv.resize(picture, [wanted, wanted], RESIZES[interpolation])
    if name == "shorter" or (name == "enlarge" and min(picture.size) < wanted):
        # One that is resized to a ribbon of gigabytes is cut before; published code would fail on it.
        longest = LONGEST_RATIO * min(picture.size)
        picture = tv.center_crop(picture, [min(side, longest) for side in picture.size[::-1]])
        return tv.resize(picture, [wanted], RESIZES[interpolation])
    return picture


def _tiled(picture: Any, least: int) -> Any:
    """Repeat a picture, whole, to the right and below, until no side is below ``least`` pixels."""
    if min(picture.size) >= least:
        return picture
    longest = LONGEST_RATIO * least  # a row of a million pixels would grow to gigabytes
    pixels = np.asarray(tv.center_crop(picture, [min(side, longest) for side in picture.size[::-1]]))
    return Image.fromarray(np.tile(pixels, [*(-(-least // side) for side in pixels.shape[:2]), 1]))


def _last_views(picture: Any, size: int, last: str, wanted: int) -> list[Pixels]:
    """Take the views of the last of torchvision's steps."""
    if last == "square":
        return [np.asarray(picture)]
    if last == "whole":
        return [np.asarray(tv.center_crop(picture, [min(side, wanted) for side in picture.size[::-1]]))]
    if last == "grid":
        return _on_grid(np.asarray(picture), size, wanted)
    if last == "centre":
        return [np.asarray(tv.center_crop(picture, [size, size]))]
    if last == "middle":
        return [np.asarray(tv.crop(picture, *(int((side - size) / 2) for side in picture.size[::-1]), size, size))]
    if min(picture.size) < size:  # torchvision's own refuses these
        picture = tv.center_crop(picture, [max(size, side) for side in picture.size[::-1]])
    views = (tv.five_crop if last == "five" else tv.ten_crop)(picture, [size, size])
    return [np.asarray(view) for view in views]


def _on_grid(image: Pixels, size: int, patch: int) -> list[Pixels]:
    """Cut the five squares of whole patches; of a side below one patch, all pixels are repeated."""
    height, width = (side // patch * patch or side for side in image.shape[:2])
    if min(height, width) < size:
        return [image[np.arange(size)[:, None] % height, np.arange(size) % width]] * 5
    bottom, right = height - size, width - size
    middle = bottom // patch // 2 * patch, right // patch // 2 * patch
    corners = [middle, (0, 0), (bottom, 0), (bottom, right), (0, right)]
    return [image[top : top + size, left : left + size] for top, left in corners]


def pad_to(image: Pixels, height: int, width: int) -> Pixels:
    """Pad any image by reflection, equally on all sides, to at least the given size; reflections are repeated."""
    missing = [max(0, wanted - have) for wanted, have in zip((height, width), image.shape[:2], strict=True)]
    if not any(missing):
        return image
    return np.pad(image, [(m // 2, m - m // 2) for m in missing] + [(0, 0)], mode="reflect")


def _cut(image: Pixels, top: int, left: int, height: int, width: int) -> Pixels:
    """Cut, then pad: padding the whole image first would multiply one with a row of a million pixels."""
    return pad_to(image[top : top + height, left : left + width], height, width)


class Augment(Protocol):
    """Makes one training view of an image; all randomness comes from the seed."""

    def __call__(self, image: Pixels, size: int, seed: int) -> Pixels:
        """Return (size, size, 3) uint8 of an image (H, W, 3) uint8, which is not changed."""


class CustomAugmentation:
    """A random crop, changed by a function of the user's, the ``augment._target_`` of a config.

    ``function`` takes the crop (H, W, 3) uint8 RGB, which it may change in place, and a seeded generator that gives all
    its randomness; it returns (H, W, 3) uint8 of the same size. It is pickled into worker processes.
    """

    def __init__(self, function: Callable[[Pixels, np.random.Generator], Pixels]) -> None:
        self.function = function

    def __call__(self, image: Pixels, size: int, seed: int) -> Pixels:
        """Return one view, as :class:`Augment` says; if the function returned no such array, raise a UserError."""
        rng = np.random.default_rng(seed)
        crop = random_crop(image, size, size, rng).copy()
        made = self.function(crop, rng)
        if not isinstance(made, np.ndarray) or made.dtype != np.uint8 or made.shape != (size, size, 3):
            what = f"{made.dtype} {made.shape}" if isinstance(made, np.ndarray) else type(made).__name__
            wanted = f"a uint8 array ({size}, {size}, 3), of the size it was given"
            raise UserError(f"augment: {self.function!r} returned {what}; it must return {wanted}")
        return made


@dataclass(frozen=True)
class Recipe:
    """What may happen to a training image, in this order, before the last crop."""

    colour: float = 0.0  # Probability of jittered brightness, contrast, saturation and hue
    colour_strength: tuple[float, float] = (0.2, 0.05)  # Brightness, contrast and saturation as a factor; hue in turns
    blur: float = 0.0  # Probability of Gaussian blur
    blur_sigma: tuple[float, float] = (0.0, 3.0)  # Range of its σ in pixels, uniform
    jpeg: float = 0.0  # Probability of JPEG compression
    jpeg_quality: tuple[int, int] = (30, 100)  # Range of its quality, uniform, ends included
    flip: float = 0.0  # Probability of a horizontal flip
    rotate: float = 0.0  # Probability of a rotation by any angle; corners become black
    mask: float = 0.0  # Probability that squares of 16 pixels are blackened
    mask_ratio: tuple[float, float] = (0.0, 0.75)  # Range of their share of the image, uniform
    whole_image: bool = False  # Augment the whole image, then crop, as CNNDetection does; or only around the crop


RECIPES: dict[str, Recipe] = {
    "none": Recipe(),
    "light": Recipe(flip=0.5),
    "views": Recipe(colour=0.8, blur=0.2, blur_sigma=(0.1, 0.6), jpeg=0.3, jpeg_quality=(70, 100), flip=0.5),
    # Wang et al. 2020, section 3.2: blur, JPEG, crop, flip; its two published models.
    "cnndet": Recipe(blur=0.5, jpeg=0.5, flip=0.5, whole_image=True),
    "cnndet01": Recipe(blur=0.1, jpeg=0.1, flip=0.5, whole_image=True),
    # Li et al., KDD 2025: crop, flip, rotation by ±180°, colour jitter, masked patches.
    "safe": Recipe(flip=0.5, rotate=1.0, colour=1.0, colour_strength=(0.5, 0.0), mask=0.5),
}


class JpegCompression(A.ImageCompression):
    """JPEG compression of an RGB image, with the artifacts of a real JPEG file.

    albumentations hands RGB to an encoder that takes BGR, so that red is weighed as blue. OpenCV swaps the channels
    here: numpy would take as long for it as the compression itself.
    """

    def apply(self, img: Pixels, quality: int, image_type: Any, **params: Any) -> Pixels:
        """Compress an RGB image."""
        flags = [cv2.IMWRITE_JPEG_QUALITY, quality]
        encoded = cv2.imencode(image_type, cv2.cvtColor(img, cv2.COLOR_RGB2BGR), flags)[1]
        return np.asarray(cv2.imdecode(encoded, cv2.IMREAD_COLOR_RGB), np.uint8)


class PatchMask(A.ImageOnlyTransform):
    """With probability p, blacken random squares of a grid of 16 pixels (SAFE; Li et al., KDD 2025).

    The blackened share of the image is uniform in the range ``ratio``, rounded down to whole squares.
    """

    def __init__(self, ratio: tuple[float, float], p: float) -> None:
        super().__init__(p=p)
        self.ratio, self.size = ratio, 16

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        """Draw the squares."""
        height, width = params["shape"][:2]
        squares = [(top, left) for top in range(height // self.size) for left in range(width // self.size)]
        count = int(height * width * self.py_random.uniform(*self.ratio) / self.size**2)
        return {"squares": self.py_random.sample(squares, min(count, len(squares)))}

    def apply(self, img: Pixels, squares: list[tuple[int, int]], **params: Any) -> Pixels:
        """Blacken the squares."""
        masked = img.copy()
        for top, left in squares:
            masked[top * self.size : (top + 1) * self.size, left * self.size : (left + 1) * self.size] = 0
        return masked


class Augmentation:
    """A random crop, augmented by a recipe of albumentations' transforms.

    All randomness comes from the seed of the call. albumentations' own streams are the same in every DataLoader
    worker, and its ``set_random_seed`` gives every transform of a Compose the same stream, so that blur and JPEG with
    probability 0.5 each would always come together.

    ``recipe`` is a key of :data:`RECIPES`, ``changes`` are fields of :class:`Recipe` that differ from it, such as
    ``blur=0.1``. A UserError if there is no such recipe or field, or a value is out of range.
    """

    def __init__(self, recipe: str = "none", **changes: Any) -> None:
        choose(recipe, RECIPES, "augment.recipe")
        known = [field.name for field in fields(Recipe)]
        for key, value in changes.items():
            if key not in known:
                raise UserError(f"augment: there is no '{key}'; {nearest(key, known)}")
            if isinstance(value, Sequence) and not isinstance(value, str):
                changes[key] = tuple(value)
        self.settings = replace(RECIPES[recipe], **changes)
        _check(self.settings)
        transforms = _transforms(self.settings)
        self._compose = A.Compose(transforms) if transforms else None

    def __call__(self, image: Pixels, size: int, seed: int) -> Pixels:
        """Return one view, as :class:`Augment` says; the same seed gives the same view."""
        rng = np.random.default_rng(seed)
        if self._compose is None:
            return random_crop(image, size, size, rng)
        margin = MARGIN if self.settings.blur or self.settings.jpeg else 0
        if not self.settings.whole_image:
            height, width = (min(size + margin, max(size, side)) for side in image.shape[:2])
            image = random_crop(image, height, width, rng)
        elif max(image.shape) > JPEG_SIDE:
            height, width = (min(side, JPEG_SIDE) for side in image.shape[:2])
            image = random_crop(image, height, width, rng)
        self._compose.set_random_state(rng, random.Random(int(rng.integers(2**63))))
        augmented: Pixels = self._compose(image=np.ascontiguousarray(image))["image"]
        return random_crop(augmented, size, size, rng)


def _transforms(recipe: Recipe) -> list[Any]:
    strength, hue = recipe.colour_strength
    made: list[Any] = [
        recipe.colour and A.ColorJitter(strength, strength, strength, hue, p=recipe.colour),
        # blur_limit 0: the kernel is as wide as its σ needs.
        recipe.blur and A.GaussianBlur(blur_limit=0, sigma_limit=recipe.blur_sigma, p=recipe.blur),
        recipe.jpeg and JpegCompression(quality_range=recipe.jpeg_quality, p=recipe.jpeg),
        recipe.flip and A.HorizontalFlip(p=recipe.flip),
        recipe.rotate and A.Rotate(limit=180, interpolation=cv2.INTER_NEAREST, fill=0, p=recipe.rotate),
        recipe.mask and PatchMask(recipe.mask_ratio, p=recipe.mask),
    ]
    return [transform for transform in made if transform]


def _check(recipe: Recipe) -> None:
    for key in ("colour", "blur", "jpeg", "flip", "rotate", "mask"):
        value = getattr(recipe, key)
        if not (isinstance(value, int | float) and 0 <= value <= 1):
            raise UserError(f"augment.{key}: {value!r} is not a probability between 0 and 1")
    if not isinstance(recipe.whole_image, bool):
        raise UserError(f"augment.whole_image: {recipe.whole_image!r} is neither true nor false")
    for key, low, high in (("blur_sigma", 0, 100), ("mask_ratio", 0, 1), ("jpeg_quality", 1, 100)):
        value = getattr(recipe, key)
        types: tuple[type, ...] = (int,) if key == "jpeg_quality" else (int, float)
        ok = isinstance(value, tuple) and len(value) == 2 and all(isinstance(v, types) for v in value)
        if not ok or not low <= value[0] <= value[1] <= high:
            kind = "whole numbers" if types == (int,) else "numbers"
            raise UserError(f"augment.{key}: {value!r} is not a range [from, to] of {kind} in {low} to {high}")
    if recipe.blur and recipe.blur_sigma[1] == 0:
        raise UserError("augment.blur_sigma: [0, 0] blurs nothing; set augment.blur=0 instead")
