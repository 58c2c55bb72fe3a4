"""Crops against index arithmetic."""

import tracemalloc

import numpy as np
import pytest

from fakedet.data.transforms import POLICIES, Augmentation, check_policy, evaluation_views, pad_to, random_crop
from fakedet.errors import UserError


def numbered(height: int, width: int) -> np.ndarray:
    """Give an image whose pixels say where they stand."""
    rows, columns = np.mgrid[:height, :width]
    return np.dstack([rows, columns, rows ^ columns]).astype(np.uint8)


def reflected(index: int, length: int) -> int:
    """Walk to and fro between 0 and length - 1 without repeating the ends."""
    if length == 1:
        return 0
    index %= 2 * (length - 1)
    return index if index < length else 2 * (length - 1) - index


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (2, 3), (5, 40), (31, 31), (32, 32), (40, 33)])
def test_small_images_are_padded_by_reflection(shape: tuple[int, int]) -> None:
    image = numbered(*shape)
    padded = pad_to(image, 32, 32)
    before = [max(0, 32 - side) // 2 for side in shape]
    for row in range(padded.shape[0]):
        for column in range(padded.shape[1]):
            expected = image[reflected(row - before[0], shape[0]), reflected(column - before[1], shape[1])]
            assert (padded[row, column] == expected).all()
    assert padded.shape[:2] == tuple(max(32, side) for side in shape)


def test_random_crops_are_contiguous_pieces_from_everywhere() -> None:
    image = numbered(11, 13)
    rng = np.random.default_rng(0)
    corners = set()
    for _ in range(400):
        crop = random_crop(image, 8, 8, rng)
        top, left = int(crop[0, 0, 0]), int(crop[0, 0, 1])
        np.testing.assert_array_equal(crop, image[top : top + 8, left : left + 8])
        corners.add((top, left))
    assert corners == {(top, left) for top in range(4) for left in range(6)}, "ends included"


def test_evaluation_sees_the_centre_and_with_multi_crop_the_corners() -> None:
    image = numbered(20, 30)
    centre = image[6:14, 11:19]
    np.testing.assert_array_equal(evaluation_views(image, 8, "crop"), [centre])
    expected = [centre, image[:8, :8], image[:8, 22:], image[12:, :8], image[12:, 22:]]
    np.testing.assert_array_equal(evaluation_views(image, 8, "multi-crop"), expected)


def test_a_whole_picture_is_seen_up_to_a_size() -> None:
    np.testing.assert_array_equal(evaluation_views(numbered(20, 30), 8, "whole30"), [numbered(20, 30)])
    np.testing.assert_array_equal(evaluation_views(numbered(20, 30), 8, "whole12"), [numbered(20, 30)[4:16, 9:21]])
    with pytest.raises(UserError, match="must end, and only end"):
        evaluation_views(numbered(9, 9), 8, "whole12+centre")


def test_squares_of_whole_patches_need_a_size_of_whole_patches() -> None:
    with pytest.raises(UserError, match=r"data\.crop_size=40 is no multiple of 14 pixels"):
        check_policy("grid14", 40)
    assert check_policy("grid14", 42) is None
    (view, *others) = evaluation_views(np.zeros((1, 60_000, 3), np.uint8), 42, "grid14")
    assert [one.shape for one in (view, *others)] == [(42, 42, 3)] * 5


def test_only_resize_resizes() -> None:
    image = np.full((40, 60, 3), 77, np.uint8)
    image[:, 30:] = 177
    (view,) = evaluation_views(image, 20, "resize")
    # The whole height is seen, and the middle 40 of 60 columns.
    assert view.shape == (20, 20, 3)
    assert (view[:, :9] == 77).all()
    assert (view[:, 11:] == 177).all()
    for size in (64, 33):
        assert evaluation_views(numbered(40, 50), size, "resize")[0].shape == (size, size, 3)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("shape", [(1, 1), (3, 70), (33, 16)])
def test_every_policy_takes_any_image(policy: str, shape: tuple[int, int]) -> None:
    views = evaluation_views(numbered(*shape), 32, policy)
    assert [view.shape for view in views] == [(32, 32, 3)] * POLICIES[policy]


def test_an_unknown_policy_is_named() -> None:
    with pytest.raises(UserError, match=r"data\.eval_policy.*'multi-crop'"):
        evaluation_views(numbered(9, 9), 8, "multicrop")


@pytest.mark.parametrize("shape", [(1, 60_000, 3), (60_000, 1, 3)])
@pytest.mark.parametrize("policy", ["crop", "multi-crop", "resize"])
def test_an_image_of_one_row_does_not_grow_to_gigabytes(shape: tuple[int, int, int], policy: str) -> None:
    image = np.zeros(shape, np.uint8)
    tracemalloc.start()
    views = evaluation_views(image, 128, policy)
    random_crop(image, 128, 128, np.random.default_rng(0))
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert all(view.shape == (128, 128, 3) for view in views)
    assert most < 60_000 * 3 * 16


def test_jpeg_augmentation_takes_images_longer_than_a_jpeg_can_be() -> None:
    image = np.zeros((20, 66_000, 3), np.uint8)
    assert Augmentation("cnndet", blur=0.0, jpeg=1.0)(image, 16, 0).shape == (16, 16, 3)
