"""Trace-destroyed copies of photographs: the content stays, the low-level statistics are re-synthesised (ours).

Each function of :data:`METHODS` maps float images (n, 3, H, W) and uniform draws in [0, 1), (n, DRAWS) on the CPU, to
images of the same shape. An image's result depends on its own draws alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fakedet.errors import UserError, choose

DRAWS = 9  # per image: as many as zero_insert, which needs the most, takes for the weights of its kernel
GRID = 3  # draws per recompressed image: quality, and its offset on JPEG's grid, down and across
BLOCK = 8  # side of JPEG's blocks in pixels
SCALES = (0.4, 0.8)  # of the sides, down; up again by the inverse
MODES = ("bilinear", "bicubic", "area", "nearest")
CUTOFFS = (0.15, 0.4)  # cycles a pixel; the Nyquist frequency is 0.5
ROLL_OFF = 0.02  # cycles a pixel; a softer edge than this hardly rings
SIGMAS = (0.5, 1.5)  # pixels


def check_qualities(pair: Sequence[int], name: str) -> tuple[int, int]:
    """Return the least and the greatest JPEG quality; UserError unless they are two integers from 1 to 100 in order."""
    whole = [value for value in pair if isinstance(value, int) and not isinstance(value, bool)]
    if len(pair) != 2 or len(whole) != 2 or not 1 <= whole[0] <= whole[1] <= 100:
        raise UserError(f"{name}={list(pair)}: two JPEG qualities from 1 to 100, the least first, or null")
    return whole[0], whole[1]


def recompress(levels: Tensor, draws: Tensor, qualities: tuple[int, int]) -> Tensor:
    """Compress each image as a JPEG and decode it; shape, dtype and device stay.

    Each image has its own offset on JPEG's 8×8 grid: if its corner were always a block's, the offset would tell it
    from crops of files, which were compressed before they were cut.

    Args:
        levels: float RGB (N, 3, H, W) of whole numbers from 0 to 255, H and W at least 8.
        draws: uniform (N, GRID) in [0, 1) on the CPU.
        qualities: least and greatest, uniform between.
    """
    low, high = qualities
    height, width = levels.shape[-2:]
    padded = F.pad(levels, (BLOCK - 1,) * 4, mode="reflect").to("cpu", torch.uint8)
    pictures = padded.flip(1).permute(0, 2, 3, 1).numpy()  # OpenCV takes BGR
    done = []
    for picture, (quality, down, across) in zip(pictures, draws.tolist(), strict=True):
        top, left = BLOCK - 1 - int(down * BLOCK), BLOCK - 1 - int(across * BLOCK)
        setting = [cv2.IMWRITE_JPEG_QUALITY, low + int(quality * (high - low + 1))]
        _, code = cv2.imencode(".jpg", np.ascontiguousarray(picture[top:, left:]), setting)
        decoded = cv2.imdecode(code, cv2.IMREAD_COLOR)
        assert decoded is not None  # OpenCV reads what it wrote
        y, x = BLOCK - 1 - top, BLOCK - 1 - left
        done.append(torch.from_numpy(decoded[y : y + height, x : x + width]))
    if not done:
        return levels
    return torch.stack(done).permute(0, 3, 1, 2).flip(1).to(levels)


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

    This is what a transposed convolution of stride 2 does. An output pixel sees one, two or four of the inserted
    samples, by its phase; the kernel's weights sum to one within each phase. With one sum for all phases, a flat grey
    would become a chequerboard, unlike the output of any trained generator.
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
    return F.interpolate(image, size=size, mode=mode, antialias=mode in ("bilinear", "bicubic"))


def _filter_each(images: Tensor, kernels: Tensor) -> Tensor:
    """Correlate each of (n, C, H, W) with its own of (n, h, w), without padding."""
    count, channels = images.shape[:2]
    weight = kernels.repeat_interleave(channels, dim=0).unsqueeze(1)
    made = F.conv2d(images.flatten(0, 1).unsqueeze(0), weight, groups=count * channels)
    return made.view(count, channels, *made.shape[-2:])


METHODS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "resample": resample, "zero_insert": zero_insert, "lowpass": lowpass, "smooth": smooth,
}  # fmt: skip
_WIDTH = 2 + DRAWS  # draws per copy that is not recompressed: kind, strength, and those of its kind


class TraceDestroyer(nn.Module):
    """Make a trace-destroyed copy of each image (ours; docs/method.md).

    Each image draws one kind and a strength: the share of the re-synthesised image in its blend with the original. Such
    copies imitate upsampling and smoothing, so they are pseudo-fakes of a kind.

    Args:
        kinds: one or more of :data:`METHODS`: "resample", "zero_insert", "lowpass", "smooth".
        min_strength: least strength, in [0, 1]; strengths are uniform in [min_strength, 1].
        recompress: least and greatest JPEG quality of the copies, for detectors of fakes that are JPEGs, so that the
            lack of JPEG's traces does not set the copies apart; None: they are not compressed.

    Raises:
        UserError: an unknown kind, none at all, a strength outside [0, 1], or no such JPEG quality.
    """

    def __init__(
        self, kinds: Sequence[str] = tuple(METHODS), min_strength: float = 0.4, recompress: Sequence[int] | None = None
    ) -> None:
        super().__init__()
        self.kinds = tuple(choose(kind, METHODS, "model.copies.kinds") for kind in kinds)
        if not self.kinds:
            raise UserError(f"model.copies.kinds: name at least one of {', '.join(METHODS)}")
        if not 0.0 <= min_strength <= 1.0:
            raise UserError(f"model.copies.min_strength: {min_strength} is not between 0 and 1")
        self.min_strength = min_strength
        self.qualities = None if recompress is None else check_qualities(recompress, "model.copies.recompress")

    @property
    def width(self) -> int:
        """Number of uniform draws per copy."""
        return _WIDTH + (GRID if self.qualities else 0)

    @torch.no_grad()
    def forward(self, images: Tensor, generator: torch.Generator | None = None, draws: Tensor | None = None) -> Tensor:
        """Destroy the traces of images; nothing here carries gradients.

        Args:
            images: float RGB (N, 3, H, W) in [0, 1], H and W at least 2.
            generator: on the CPU, so that its draws do not depend on the images' device; None: PyTorch's global one.
            draws: uniform (N, width) in [0, 1) on the CPU, in place of a generator.

        Returns:
            (N, 3, H, W) of the images' dtype, in steps of 1/255 as every stored image is: values between the steps
            would give the copies away without any trace being learned.
        """
        if draws is None:
            draws = torch.rand(len(images), self.width, generator=generator)
        kind = (draws[:, 0] * len(self.kinds)).long()
        strength = self.min_strength + draws[:, 1] * (1.0 - self.min_strength)
        with torch.autocast(images.device.type, enabled=False):
            original = images.float()
            destroyed = torch.empty_like(original)
            for index, name in enumerate(self.kinds):
                rows = (kind == index).nonzero().squeeze(1)
                if len(rows):
                    there = rows.to(images.device)
                    destroyed[there] = METHODS[name](original[there], draws[rows, 2:_WIDTH])
            blend = torch.lerp(original, destroyed, strength.to(original).view(-1, 1, 1, 1))
            levels = (blend.clamp(0.0, 1.0) * 255.0).round()
            if self.qualities is not None:
                levels = recompress(levels, draws[:, _WIDTH:], self.qualities)
            return levels.div(255.0).to(images.dtype)
