"""NPR and SAFE: ResNet-50 cut after its second stage, behind a residual, each written anew."""

import argparse
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from PIL import Image
from torch import Tensor, nn

import fakedet
from tests.detectors.naive import IMAGENET, centre, normalised, picture, saved, with_random_statistics


class Trunk(nn.Module):
    """The authors' truncated ResNet-50, with their names."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        whole = torchvision.models.resnet50(weights=None)
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 3, 2, 1, bias=False), whole.bn1
        self.layer1, self.layer2 = whole.layer1, whole.layer2
        self.fc1 = nn.Linear(512, outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        return self.fc1(self.layer2(self.layer1(x)).mean(dim=(2, 3)))


def trunk(outputs: int) -> nn.Module:
    torch.manual_seed(0)
    return with_random_statistics(Trunk(outputs))


def npr(x: Tensor) -> Tensor:
    half = F.interpolate(x, scale_factor=0.5, mode="nearest", recompute_scale_factor=True)
    return (x - F.interpolate(half, scale_factor=2.0, mode="nearest", recompute_scale_factor=True)) * 2.0 / 3.0


def repeated(image: Image.Image, size: int) -> Image.Image:
    """Repeat a picture as GenImage's evaluation of NPR does."""
    width, height = image.size
    if min(width, height) >= size:
        return image
    wide = Image.new("RGB", (width * math.ceil(size / width), height * math.ceil(size / height)))
    for left in range(0, wide.width, width):
        for top in range(0, wide.height, height):
            wide.paste(image, (left, top))
    return wide


@pytest.mark.parametrize("container", ["module", "bare"])
@pytest.mark.parametrize("size", [(300, 357), (256, 256), (100, 261)])
def test_npr_looks_at_the_residual_of_the_resized_normalised_picture(
    tmp_path: Path, size: tuple[int, int], container: str
) -> None:
    net, image = trunk(1), picture(*size)
    state = net.state_dict()
    content = state if container == "bare" else {"model": {f"module.{key}": value for key, value in state.items()}}
    with torch.no_grad():
        wanted = float(net(npr(normalised(image.resize((256, 256), Image.BILINEAR), IMAGENET))))
    detector = fakedet.load(detector="npr", weights=saved(content, tmp_path))
    assert detector.predict(image, views=(), tiles=0).logit == pytest.approx(wanted, abs=1e-4)


@pytest.mark.parametrize("size", [(300, 357), (256, 256), (101, 260)])
def test_npr_of_whole_pictures_leaves_out_an_odd_row_or_column(tmp_path: Path, size: tuple[int, int]) -> None:
    net, image = trunk(1), picture(*size)
    with torch.no_grad():
        seen = normalised(image, IMAGENET)[:, :, : size[0] // 2 * 2, : size[1] // 2 * 2]
        wanted = float(net(npr(seen)))
    detector = fakedet.load(detector="npr_whole", weights=saved(net.state_dict(), tmp_path))
    assert detector.predict(image, views=(), tiles=0).logit == pytest.approx(wanted, abs=1e-4)


@pytest.mark.parametrize("size", [(300, 257), (224, 224), (100, 260), (90, 40)])
def test_npr_of_genimage_repeats_small_pictures(tmp_path: Path, size: tuple[int, int]) -> None:
    net, image = trunk(1), picture(*size)
    with torch.no_grad():
        wanted = float(net(npr(normalised(centre(repeated(image, 224), 224), IMAGENET))))
    detector = fakedet.load(detector="npr_genimage", weights=saved(net.state_dict(), tmp_path))
    assert detector.predict(image, views=(), tiles=0).logit == pytest.approx(wanted, abs=1e-4)
    assert detector.generators == ["stable_diffusion_1_4"]


def details(image: Image.Image) -> Tensor:
    """Compute the band HH of bior1.3 of a square picture in [0, 1], resized to the picture's size."""
    pixels = np.asarray(image, np.float64) / 255.0
    size = len(pixels)
    high, count = np.array([0, 0, 0.5**0.5, -(0.5**0.5), 0, 0]), (size + 5) // 2
    padding = 2 * (count - 1) - size + 6
    for axis in (0, 1):
        widths = [(0, 0)] * 3
        widths[axis] = (padding // 2, (padding + 1) // 2)
        padded = np.moveaxis(np.pad(pixels, widths, mode="symmetric"), axis, 0)
        filtered = np.stack([np.tensordot(high, padded[2 * k : 2 * k + 6], axes=1) for k in range(count)])
        pixels = np.moveaxis(filtered, 0, axis)
    band = torch.from_numpy(pixels.transpose(2, 0, 1)[None]).float()
    return F.interpolate(band, size=(size, size), mode="bilinear", align_corners=False)


@pytest.mark.parametrize("size", [(300, 357), (256, 256), (100, 260)])
def test_safe_looks_at_the_wavelet_details_of_the_centre(tmp_path: Path, size: tuple[int, int]) -> None:
    net, image = trunk(2), picture(*size)
    settings = argparse.Namespace(lr=1e-2, output_dir="x")
    content = {"model": net.state_dict(), "optimizer": {"state": {}}, "epoch": "best", "args": settings}
    with torch.no_grad():
        wanted = float(net(details(centre(image, 256))).softmax(dim=1)[0, 1])
    detector = fakedet.load(detector="safe", weights=saved(content, tmp_path))
    found = detector.predict(image, views=(), tiles=0)
    assert found.score == pytest.approx(wanted, abs=1e-4)
    assert found.logit == pytest.approx(math.log(wanted / (1 - wanted)), abs=1e-4)
