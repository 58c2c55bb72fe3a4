"""Augmentation: deterministic by seed, independent between operations, faithful to the recipes."""

import pickle
from collections import Counter
from pathlib import Path

import albumentations as A
import cv2
import numpy as np
import pytest
import scipy.ndimage

from fakedet.data.datamodule import ImageDataModule
from fakedet.data.transforms import RECIPES, Augmentation, CustomAugmentation, JpegCompression, random_crop
from fakedet.errors import UserError


def picture(size: int = 72) -> np.ndarray:
    noise = np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)
    return np.asarray(cv2.GaussianBlur(noise, (0, 0), 0.7))


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_seed_gives_one_crop_whatever_came_before(recipe: str) -> None:
    image = picture()
    before = image.copy()
    augment = Augmentation(recipe)
    first = [augment(image, 64, seed) for seed in range(20)]
    again = pickle.loads(pickle.dumps(Augmentation(recipe)))
    for seed in reversed(range(20)):
        np.random.seed(seed)
        np.testing.assert_array_equal(again(image, 64, seed), first[seed])
    assert len({crop.tobytes() for crop in first}) >= 15, "seeds differ"
    assert all(crop.shape == (64, 64, 3) and crop.dtype == np.uint8 for crop in first)
    np.testing.assert_array_equal(image, before)


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("shape", [(1, 1), (5, 90), (64, 64)])
def test_any_image_will_do(recipe: str, shape: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    for seed in range(8):
        assert Augmentation(recipe)(image, 64, seed).shape == (64, 64, 3)


def test_blur_and_jpeg_come_independently_of_each_other() -> None:
    # With one random stream for all transforms of a Compose they would come both or neither.
    augment = Augmentation("cnndet", flip=0.0, blur_sigma=(2.0, 2.0), jpeg_quality=(30, 30))
    image = picture(64)
    blurred = Augmentation(blur=1.0, blur_sigma=(2.0, 2.0), whole_image=True)(image, 64, 0)
    jpeg = Augmentation(jpeg=1.0, jpeg_quality=(30, 30), whole_image=True)
    kinds = {image.tobytes(): "none", blurred.tobytes(): "blur", jpeg(image, 64, 0).tobytes(): "jpeg",
             jpeg(blurred, 64, 0).tobytes(): "blur, then jpeg"}  # fmt: skip
    assert len(kinds) == 4
    n = 400
    seen = Counter(kinds[augment(image, 64, seed).tobytes()] for seed in range(n))
    for kind in kinds.values():
        assert abs(seen[kind] - n / 4) < 4 * (n * 0.25 * 0.75) ** 0.5, seen


def test_blur_is_gaussian_and_does_not_darken() -> None:
    image = picture(64)
    for sigma in (0.5, 1.0, 2.5):
        crop = Augmentation(blur=1.0, blur_sigma=(sigma, sigma), whole_image=True)(image, 64, 3)
        exact = scipy.ndimage.gaussian_filter(image.astype(float), (sigma, sigma, 0), mode="mirror", truncate=6)
        difference = crop.astype(float) - exact
        assert np.abs(difference).max() < 2
        assert abs(difference.mean()) < 0.1, "a truncating blur darkens by half a level"


def test_jpeg_is_that_of_a_file_at_the_drawn_quality() -> None:
    image = picture(64)
    crop = Augmentation(jpeg=1.0, jpeg_quality=(55, 55), whole_image=True)(image, 64, 0)
    data = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 55])[1]
    np.testing.assert_array_equal(crop, cv2.imdecode(data, cv2.IMREAD_COLOR)[..., ::-1])


@pytest.mark.parametrize(("height", "width"), [(64, 64), (71, 93), (66, 120)])
def test_jpeg_equals_that_with_channels_swapped_one_by_one(height: int, width: int) -> None:
    image = np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8)
    image = np.asarray(cv2.GaussianBlur(image, (0, 0), 1.0))
    for quality in range(30, 101, 7):
        fast = JpegCompression(p=1.0).apply(image, quality, ".jpg")
        swapped = np.ascontiguousarray(image[..., ::-1])
        naive = A.ImageCompression(p=1.0).apply(swapped, quality, ".jpg")[..., ::-1]
        np.testing.assert_array_equal(fast, naive)
        assert fast.flags.c_contiguous


def test_flips_come_half_of_the_time() -> None:
    image = picture(64)
    augment = Augmentation("light")
    flips = sum((augment(image, 64, seed) == image[:, ::-1]).all() for seed in range(300))
    assert 110 < flips < 190
    assert all((augment(image, 64, seed) == image).all() or (augment(image, 64, seed) == image[:, ::-1]).all()
               for seed in range(30))  # fmt: skip


def test_crops_without_degradation_are_uniform() -> None:
    rows = np.repeat(np.arange(20, dtype=np.uint8)[:, None, None], 20, axis=1).repeat(3, axis=2)
    tops = Counter(int(Augmentation("light")(rows, 16, seed)[0, 0, 0]) for seed in range(1000))
    assert set(tops) == set(range(5))
    assert all(abs(count - 200) < 4 * (1000 * 0.2 * 0.8) ** 0.5 for count in tops.values()), tops


def test_the_jpeg_grid_of_views_falls_anywhere() -> None:
    image = np.random.default_rng(0).integers(0, 256, (96, 96, 3), dtype=np.uint8)
    augment = Augmentation("none", jpeg=1.0, jpeg_quality=(10, 10))
    phases = set()
    for seed in range(60):
        crop = augment(image, 64, seed).astype(float).mean(axis=2)
        jumps = np.abs(np.diff(crop, axis=1)).mean(axis=0)
        phases.add(int(np.argmax([jumps[phase::8].mean() for phase in range(8)])))
    assert len(phases) >= 6


@pytest.mark.parametrize(("changes", "message"), [
    ({"recipe": "lite"}, "did you mean 'light'"),
    ({"blurr": 0.5}, "no 'blurr'; did you mean 'blur'"),
    ({"blur": 1.5}, r"augment\.blur: 1.5 is not a probability"),
    ({"flip": "yes"}, r"augment\.flip: 'yes'"),
    ({"jpeg_quality": [80, 30]}, r"augment\.jpeg_quality.*range"),
    ({"jpeg_quality": [0, 30]}, "1 to 100"),
    ({"jpeg_quality": 80}, "range"),
    ({"blur_sigma": [-1, 3]}, r"augment\.blur_sigma"),
    ({"blur": 0.5, "blur_sigma": [0, 0]}, "blurs nothing"),
    ({"whole_image": 3}, "neither true nor false"),
])  # fmt: skip
def test_mistakes_are_named(changes: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Augmentation(**changes)


def test_a_recipe_can_be_changed_by_lists_as_configs_have_them() -> None:
    settings = Augmentation("cnndet", blur=0.1, jpeg=0.1, jpeg_quality=[50, 60]).settings
    assert (settings.blur, settings.jpeg_quality, settings.blur_sigma) == (0.1, (50, 60), (0.0, 3.0))


def test_masks_are_the_published_ones() -> None:
    """SAFE's code: int(h·w·ratio / 256) different squares of a grid of 16 pixels become black, the rest stays."""
    image = np.full((100, 90, 3), 200, np.uint8)
    shares = []
    for seed in range(300):
        masked = Augmentation("none", mask=1.0)(image, 90, seed)
        black = (masked == 0).all(axis=2)
        grid = black[:80, :80].reshape(5, 16, 5, 16).mean(axis=(1, 3))
        assert set(np.unique(grid)) <= {0.0, 1.0}
        assert black.sum() == 256 * grid.sum()
        assert (masked[~black] == 200).all()
        shares.append(grid.sum())
    # Uniform in [0, 0.75] of 90×90 pixels, capped by the 25 squares that there are.
    expected = np.minimum(np.floor(90 * 90 * np.linspace(0, 0.75, 10_001) / 256), 25)
    assert abs(np.mean(shares) - expected.mean()) < 4 * expected.std() / 300**0.5
    assert max(shares) > 20


def test_safe_rotates_by_any_angle_and_blackens_the_corners() -> None:
    image = np.full((64, 64, 3), 200, np.uint8)
    turned = [Augmentation("none", rotate=1.0)(image, 64, seed) for seed in range(40)]
    assert all((crop[32, 32] == 200).all() for crop in turned)
    corners = np.mean([(crop[0, 0] == 0).all() for crop in turned])
    assert corners > 0.8
    assert len({crop.tobytes() for crop in turned}) > 30


def invert(crop: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    crop[:] = 255 - crop
    return np.roll(crop, rng.integers(64), axis=1)


def test_a_function_of_the_users_own_changes_a_random_crop(tiny_manifest: Path) -> None:
    augment = CustomAugmentation(invert)
    image = picture()
    before = image.copy()
    first = [augment(image, 64, seed) for seed in range(10)]
    np.testing.assert_array_equal(image, before)
    for seed, crop in enumerate(first):
        np.testing.assert_array_equal(augment(image, 64, seed), crop)
        rng = np.random.default_rng(seed)
        plain = random_crop(image, 64, 64, rng)
        np.testing.assert_array_equal(crop, np.roll(255 - plain, rng.integers(64), axis=1))
    assert len({crop.tobytes() for crop in first}) == 10
    data = ImageDataModule(str(tiny_manifest), crop_size=24, augment=augment)
    assert next(iter(data.train_dataloader()))["image"].shape[1:] == (1, 3, 24, 24)


@pytest.mark.parametrize(
    "wrong", [lambda c, rng: c[:-1], lambda c, rng: c / 255, lambda c, rng: None, lambda c, rng: c[..., 0]]
)
def test_what_a_users_function_returns_is_checked(wrong) -> None:
    with pytest.raises(UserError, match=r"augment: .* returned .* must return a uint8 array \(32, 32, 3\)"):
        CustomAugmentation(wrong)(picture(), 32, 0)


def test_cnndets_second_model_degrades_a_tenth() -> None:
    settings = Augmentation("cnndet01").settings
    assert (settings.blur, settings.jpeg, settings.flip, settings.whole_image) == (0.1, 0.1, 0.5, True)
