"""The smoothing filters against OpenCV's, pixel by pixel."""

import cv2
import numpy as np
import pytest
import torch
from skimage import data

from fakedet.models.smoothing import MEDIAN, RADIUS, SIGMA_COLOUR, SIGMA_SPACE, SMOOTHERS, smooth

OPENCV = {
    "bilateral": lambda image: cv2.bilateralFilter(image, 2 * RADIUS + 1, SIGMA_COLOUR * 255, SIGMA_SPACE),
    "median": lambda image: cv2.medianBlur(image, MEDIAN),
}


def tensor(pictures: list[np.ndarray]) -> torch.Tensor:
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255


@pytest.mark.parametrize("name", sorted(SMOOTHERS))
@pytest.mark.parametrize("picture", ["photograph", "noise", "odd", "flat"])
def test_as_opencv_does(name: str, picture: str) -> None:
    image = {
        "photograph": data.astronaut()[100:196, 150:246],
        "noise": np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8),
        "odd": data.astronaut()[100:161, 150:197],
        "flat": np.full((20, 20, 3), 77, np.uint8),
    }[picture].copy()
    ours = (smooth(tensor([image]), name)[0] * 255).permute(1, 2, 0).numpy()
    # One grey level where a mean lies half-way between two.
    np.testing.assert_allclose(ours, OPENCV[name](image).astype(np.float32), atol=1.01)
    assert np.mean(np.abs(ours - OPENCV[name](image)) > 0.01) < 0.002


@pytest.mark.parametrize("name", sorted(SMOOTHERS))
def test_texture_goes_and_edges_stay(name: str) -> None:
    step = np.zeros((40, 40, 3), np.uint8)
    step[:, 20:] = 200
    noisy = np.clip(step + np.random.default_rng(0).normal(0, 8, step.shape) + 20, 0, 255).astype(np.uint8)
    smoothed = (smooth(tensor([noisy]), name)[0] * 255).numpy()
    assert smoothed[:, 5:-5, 5:15].std() < noisy[5:-5, 5:15].std() / 2
    assert smoothed[:, 5:-5, 21].mean() - smoothed[:, 5:-5, 18].mean() > 190


@pytest.mark.parametrize("name", sorted(SMOOTHERS))
def test_an_images_result_does_not_depend_on_its_batch(name: str) -> None:
    images = torch.rand(3, 3, 24, 30)
    assert torch.equal(smooth(images, name)[1:2], smooth(images[1:2], name))
