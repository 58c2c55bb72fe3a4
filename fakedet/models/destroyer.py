"""Trace-destroyed copies: the content stays, the low-level statistics are re-synthesised."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fakedet.errors import choose


class TraceDestroyer(nn.Module):
    """Make a trace-destroyed copy of each image (ours; docs/method.md).

    Each image draws one kind and a strength: the share of the destroyed image in its blend with the original.

    Args:
        kinds: of "resample", "zero_insert", "lowpass", "smooth".
        min_strength: least strength; strengths are uniform in [min_strength, 1].
    """

    def __init__(
        self,
        kinds: Sequence[str] = ("resample", "zero_insert", "lowpass", "smooth"),
        min_strength: float = 0.4,
    ) -> None:
        super().__init__()
        self.kinds = [choose(kind, KINDS, "model.destroyers") for kind in kinds]
        self.min_strength = min_strength

    def forward(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Destroy the traces of float images (N, 3, H, W) in [0, 1]; the random draws are the CPU's."""
        chosen = torch.randint(len(self.kinds), (len(images),), generator=generator)
        strength = torch.rand(len(images), generator=generator) * (1 - self.min_strength) + self.min_strength
        destroyed = images.clone()
        for index, kind in enumerate(self.kinds):
            rows = (chosen == index).nonzero().squeeze(1)
            if len(rows):
                destroyed[rows.to(images.device)] = KINDS[kind](images[rows.to(images.device)], generator)
        share = strength.to(images).view(-1, 1, 1, 1)
        return (images + share * (destroyed - images)).clamp(0.0, 1.0)


def _resample(images: Tensor, generator: torch.Generator | None) -> Tensor:
    """Scale down and up again with random factors and kernels, one pair for the group."""
    modes = ("bilinear", "bicubic", "area", "nearest")
    down, up = (modes[int(torch.randint(len(modes), (), generator=generator))] for _ in range(2))
    factor = 0.4 + 0.4 * float(torch.rand((), generator=generator))
    size = [max(2, round(side * factor)) for side in images.shape[-2:]]
    small = _interpolate(images, size, down)
    return _interpolate(small, list(images.shape[-2:]), up)


def _interpolate(images: Tensor, size: list[int], mode: str) -> Tensor:
    smooth = mode in ("bilinear", "bicubic")
    return F.interpolate(images, size=size, mode=mode, antialias=smooth, align_corners=False if smooth else None)


def _zero_insert(images: Tensor, generator: torch.Generator | None) -> Tensor:
    """Halve, insert zeros, and filter with a random 3×3 kernel each: what a transposed convolution does."""
    height, width = images.shape[-2:]
    small = F.avg_pool2d(images, 2, ceil_mode=True, count_include_pad=False)
    count, channels = small.shape[:2]
    spread = images.new_zeros(count, channels, 2 * small.shape[-2], 2 * small.shape[-1])
    spread[..., ::2, ::2] = small
    kernel = torch.rand(count, 1, 3, 3, generator=generator).to(images) + 0.1
    # An output pixel sees 1, 2 or 4 of the inserted samples; the sum of 4 keeps the mean brightness.
    kernel = 4 * kernel / kernel.sum(dim=(2, 3), keepdim=True)
    kernel = kernel.repeat_interleave(channels, dim=0)
    padded = F.pad(spread.flatten(0, 1).unsqueeze(0), (1, 1, 1, 1), mode="reflect")
    made = F.conv2d(padded, kernel, groups=count * channels)
    return made.view_as(spread)[..., :height, :width]


def _lowpass(images: Tensor, generator: torch.Generator | None) -> Tensor:
    """Cut high frequencies off in the Fourier domain, softly, at a random frequency each."""
    height, width = images.shape[-2:]
    cut = (0.15 + 0.25 * torch.rand(len(images), generator=generator)).to(images).view(-1, 1, 1, 1)
    vertical = torch.fft.fftfreq(height, device=images.device).view(1, 1, -1, 1)
    horizontal = torch.fft.rfftfreq(width, device=images.device).view(1, 1, 1, -1)
    radius = (vertical**2 + horizontal**2).sqrt()
    gain = torch.sigmoid((cut - radius) / 0.02)
    return torch.fft.irfft2(torch.fft.rfft2(images) * gain, s=(height, width))


def _smooth(images: Tensor, generator: torch.Generator | None) -> Tensor:
    """Blur with a Gaussian of random width each."""
    sigma = (0.5 + 1.0 * torch.rand(len(images), generator=generator)).to(images).view(-1, 1)
    reach = min(math.ceil(3 * 1.5), min(images.shape[-2:]) - 1)
    offsets = torch.arange(-reach, reach + 1, device=images.device).float()
    kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
    kernel = kernel / kernel.sum(dim=1, keepdim=True)
    count, channels = images.shape[:2]
    rows = images.flatten(0, 1).unsqueeze(0)
    across = kernel.repeat_interleave(channels, dim=0).view(count * channels, 1, 1, -1)
    rows = F.conv2d(F.pad(rows, (reach, reach, 0, 0), mode="reflect"), across, groups=count * channels)
    rows = F.conv2d(
        F.pad(rows, (0, 0, reach, reach), mode="reflect"), across.transpose(2, 3), groups=count * channels
    )
    return rows.view_as(images)


KINDS: dict[str, Callable[[Tensor, torch.Generator | None], Tensor]] = {
    "resample": _resample,
    "zero_insert": _zero_insert,
    "lowpass": _lowpass,
    "smooth": _smooth,
}
