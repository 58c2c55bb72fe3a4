"""Edge-preserving smoothing: what an image shows stays, its fine texture goes.

Each function maps float images (N, 3, H, W) in [0, 1] to images of the same shape, the same each time.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

RADIUS = 4
"""Pixels that the bilateral filter looks away from the middle."""
SIGMA_SPACE = 5.0
"""Of the bilateral filter's weights over distance, in pixels."""
SIGMA_COLOUR = 40.0 / 255.0
"""Of its weights over the difference in colour, summed over the channels."""
MEDIAN = 5
"""Side in pixels of the median's square."""


def bilateral(images: Tensor) -> Tensor:
    """Average each pixel with those near it in place and in colour (Tomasi & Manduchi, ICCV 1998).

    As OpenCV does: a round neighbourhood, colours apart by the sum over channels, the border mirrored.
    """
    height, width = images.shape[-2:]
    padded = F.pad(images, (RADIUS,) * 4, mode="reflect")
    total, weights = torch.zeros_like(images), torch.zeros_like(images[:, :1])
    for down in range(-RADIUS, RADIUS + 1):
        for across in range(-RADIUS, RADIUS + 1):
            square = down * down + across * across
            if square > RADIUS * RADIUS:
                continue
            top, left = RADIUS + down, RADIUS + across
            other = padded[..., top : top + height, left : left + width]
            apart = (other - images).abs().sum(dim=1, keepdim=True)
            near = math.exp(-square / (2 * SIGMA_SPACE**2))
            weight = near * torch.exp(-apart.square() / (2 * SIGMA_COLOUR**2))
            total += weight * other
            weights += weight
    return total / weights


def median(images: Tensor) -> Tensor:
    """Replace each value by the median of the square around it, channel by channel; the border is repeated."""
    around = F.pad(images, (MEDIAN // 2,) * 4, mode="replicate")
    squares = around.unfold(2, MEDIAN, 1).unfold(3, MEDIAN, 1).flatten(-2)
    return squares.sort(dim=-1).values[..., MEDIAN * MEDIAN // 2]  # ONNX knows no median


SMOOTHERS: dict[str, Callable[[Tensor], Tensor]] = {"bilateral": bilateral, "median": median}
"""By name."""


def smooth(images: Tensor, name: str) -> Tensor:
    """Smooth images by the method ``name``, in steps of 1/255 as every stored image is."""
    return (SMOOTHERS[name](images) * 255.0).round().div(255.0)
