"""Ways to re-synthesise images: the content stays, the low-level statistics become those of the method.

Each function maps float images (n, 3, H, W) and as many rows of uniform draws in [0, 1), shape (n, DRAWS) on
the CPU, to images of the same shape. An image's result depends on its own draws alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

# Uniform draws that an image gets: as many as the hungriest method, the nine weights of a kernel, takes.
DRAWS = 9

SCALES = (0.4, 0.8)  # of the sides, down; up again by the inverse
MODES = ("bilinear", "bicubic", "area", "nearest")
CUTOFFS = (0.15, 0.4)  # cycles a pixel; the Nyquist frequency is 0.5
ROLL_OFF = 0.02  # cycles a pixel; a softer edge than this hardly rings
SIGMAS = (0.5, 1.5)  # pixels


def resample(images: Tensor, draws: Tensor) -> Tensor:
    """Scale each image down by a random factor and up again, each way with a random kernel."""
    full = list(images.shape[-2:])
    done = []
    for image, (scale, down, up) in zip(images.split(1), draws[:, :3].tolist(), strict=True):
        factor = SCALES[0] + scale * (SCALES[1] - SCALES[0])
        small = _interpolate(image, [max(1, round(side * factor)) for side in full], down)
        done.append(_interpolate(small, full, up))
    return torch.cat(done)


def zero_insert(images: Tensor, draws: Tensor) -> Tensor:
    """Halve each image, put zeros between its pixels and filter with a random positive 3×3 kernel.

    This is what a transposed convolution of stride 2 does. An output pixel sees one, two or four of the
    inserted samples, by its phase; the kernel's weights sum to one within each phase. With one sum for all,
    a flat grey would become a chequerboard, far from what any trained generator leaves.
    """
    height, width = images.shape[-2:]
    small = F.avg_pool2d(images, 2, ceil_mode=True, count_include_pad=False)
    count, channels = small.shape[:2]
    spread = images.new_zeros(count, channels, 2 * small.shape[-2], 2 * small.shape[-1])
    spread[..., ::2, ::2] = small
    kernels = 0.1 + draws.reshape(count, 3, 3)
    for rows in (slice(1, 2), slice(0, 3, 2)):
        for columns in (slice(1, 2), slice(0, 3, 2)):
            phase = kernels[:, rows, columns]
            kernels[:, rows, columns] = phase / phase.sum(dim=(1, 2), keepdim=True)
    # Reflection keeps the phase: the pixel beyond the border is as far from a sample as the one within.
    padded = F.pad(spread, (1, 1, 1, 1), mode="reflect")
    return _filter_each(padded, kernels.to(images))[..., :height, :width]


def lowpass(images: Tensor, draws: Tensor) -> Tensor:
    """Cut off the frequencies above a random one, in the Fourier domain, with a steep but soft edge."""
    height, width = images.shape[-2:]
    # The transform sees a periodic image; without a margin opposite borders would bleed into each other.
    margin = min(8, height - 1, width - 1)
    padded = F.pad(images, (margin,) * 4, mode="reflect")
    size = padded.shape[-2:]
    vertical = torch.fft.fftfreq(size[0], device=images.device).view(1, 1, -1, 1)
    horizontal = torch.fft.rfftfreq(size[1], device=images.device).view(1, 1, 1, -1)
    cutoff = (CUTOFFS[0] + draws[:, 0] * (CUTOFFS[1] - CUTOFFS[0])).to(images).view(-1, 1, 1, 1)
    gain = torch.sigmoid((cutoff - (vertical**2 + horizontal**2).sqrt()) / ROLL_OFF)
    filtered = torch.fft.irfft2(torch.fft.rfft2(padded) * gain, s=size)
    return filtered[..., margin : margin + height, margin : margin + width]


def smooth(images: Tensor, draws: Tensor) -> Tensor:
    """Blur each image with a Gaussian of random width."""
    sigma = SIGMAS[0] + draws[:, :1] * (SIGMAS[1] - SIGMAS[0])
    reach = min(math.ceil(3 * SIGMAS[1]), min(images.shape[-2:]) - 1)
    kernels = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma) ** 2)
    kernels = (kernels / kernels.sum(dim=1, keepdim=True)).to(images)
    padded = F.pad(images, (reach,) * 4, mode="reflect")
    return _filter_each(_filter_each(padded, kernels[:, None, :]), kernels[:, :, None])


def _interpolate(image: Tensor, size: list[int], draw: float) -> Tensor:
    mode = MODES[int(draw * len(MODES))]
    antialias = mode in ("bilinear", "bicubic")
    return F.interpolate(image, size=size, mode=mode, antialias=antialias)


def _filter_each(images: Tensor, kernels: Tensor) -> Tensor:
    """Correlate each of (n, C, H, W) with its own of (n, h, w), without padding."""
    count, channels = images.shape[:2]
    weight = kernels.repeat_interleave(channels, dim=0).unsqueeze(1)
    made = F.conv2d(images.flatten(0, 1).unsqueeze(0), weight, groups=count * channels)
    return made.view(count, channels, *made.shape[-2:])


METHODS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "resample": resample,
    "zero_insert": zero_insert,
    "lowpass": lowpass,
    "smooth": smooth,
}
