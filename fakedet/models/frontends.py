"""Frontends: the fixed transforms of an image before an encoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fakedet.errors import choose

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)

# Residuals of photographs have a standard deviation of 0.02 to 0.1 (scikit-image's and scikit-learn's bundled ones;
# images in [0, 1]); this brings them near the unit scale that encoders are initialised for. Before a first layer with
# batch normalisation the value has no effect at all.
RESIDUAL_GAIN = 30.0


class RgbFrontend(nn.Module):
    """Normalise the colours by a mean and a standard deviation per channel."""

    out_channels = 3
    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Normalise float RGB (N, 3, H, W) in [0, 1] to (N, 3, H, W)."""
        return (images - self.mean) / self.std


class NprFrontend(nn.Module):
    """Keep neighbouring-pixel relations: x − up(down(x)), nearest, factor 2 (Tan et al., CVPR 2024).

    Within each 2×2 block the upper left pixel is subtracted from all four. The factor is 2/3 · ``gain``, one number or
    one for each colour; the authors' code divides the colours by ImageNet's standard deviations before, so that its
    gains are their inverses.
    """

    out_channels = 3
    factor: Tensor

    def __init__(self, gain: float | Sequence[float] = RESIDUAL_GAIN) -> None:
        super().__init__()
        factor = torch.tensor(gain, dtype=torch.float64).view(1, -1, 1, 1) * (2.0 / 3.0)
        self.register_buffer("factor", factor.float(), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Compute the residual of float RGB (N, 3, H, W) in [0, 1]; an odd last row or column is cut off."""
        height, width = images.shape[-2:]
        images = images[..., : height - height % 2, : width - width % 2]
        nearest = images[..., ::2, ::2].repeat_interleave(2, dim=-1).repeat_interleave(2, dim=-2)
        return (images - nearest) * self.factor


class HighPassFrontend(nn.Module):
    """Filter each colour by three fixed residual filters of steganalysis (SRM, Fridrich and Kodovský 2012).

    The second difference along rows and the 3×3 and 5×5 square filters, with SRM's divisors 2, 4 and 12.
    """

    out_channels = 9
    kernels: Tensor

    def __init__(self, gain: float = RESIDUAL_GAIN) -> None:
        super().__init__()
        line = torch.zeros(5, 5)
        line[2, 1:4] = torch.tensor([1.0, -2.0, 1.0])
        square3 = torch.zeros(5, 5)
        square3[1:4, 1:4] = torch.tensor([[-1.0, 2.0, -1.0], [2.0, -4.0, 2.0], [-1.0, 2.0, -1.0]])
        square5 = torch.tensor([
            [-1.0, 2.0, -2.0, 2.0, -1.0],
            [2.0, -6.0, 8.0, -6.0, 2.0],
            [-2.0, 8.0, -12.0, 8.0, -2.0],
            [2.0, -6.0, 8.0, -6.0, 2.0],
            [-1.0, 2.0, -2.0, 2.0, -1.0],
        ])  # fmt: skip
        bank = torch.stack([line / 2, square3 / 4, square5 / 12]).unsqueeze(1)
        self.register_buffer("kernels", gain * bank.repeat(3, 1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Filter float RGB (N, 3, H, W) in [0, 1] to (N, 9, H, W): three of red, of green, of blue."""
        # Under autocast bfloat16's eight bits would round the image to steps as large as the residual.
        with torch.autocast(images.device.type, enabled=False):
            padded = F.pad(images.float(), (2, 2, 2, 2), mode="reflect")
            return F.conv2d(padded, self.kernels.float(), groups=3)


class WaveletFrontend(nn.Module):
    """Keep the diagonal details of a wavelet transform, brought back to the image's size (SAFE; Li et al., KDD 2025).

    The biorthogonal wavelet 1.3: its high-pass analysis filter is Haar's with zeros around it, so that the band is
    (a − b − c + d) / 2 of each 2×2 block. The filters have six taps, so the band has an additional mirrored block at
    either end; it is resized to the image's size, bilinear. The authors' ``gain`` is 1.
    """

    out_channels = 3

    def __init__(self, gain: float = 1.0) -> None:
        super().__init__()
        self.gain = gain

    def forward(self, images: Tensor) -> Tensor:
        """Compute the details of float RGB (N, 3, H, W) in [0, 1] as (N, 3, H, W)."""
        height, width = images.shape[-2:]
        with torch.autocast(images.device.type, enabled=False):
            # Symmetric extension: the edge twice.
            x = images.float()
            x = torch.cat([x[..., :2, :].flip(-2), x, x[..., -3:, :].flip(-2)], dim=-2)
            x = torch.cat([x[..., :2].flip(-1), x, x[..., -3:].flip(-1)], dim=-1)
            rows, columns = (height + 5) // 2 * 2, (width + 5) // 2 * 2
            x = x[..., :rows, :columns]
            band = x[..., ::2, ::2] - x[..., ::2, 1::2] - x[..., 1::2, ::2] + x[..., 1::2, 1::2]
            resized = F.interpolate(band / 2, size=(height, width), mode="bilinear", antialias=True)
            return resized * self.gain


FRONTENDS: dict[str, Callable[[], nn.Module]] = {
    "rgb": RgbFrontend, "clip": lambda: RgbFrontend(CLIP_MEAN, CLIP_STD), "npr": NprFrontend,
    "npr_imagenet": lambda: NprFrontend([1 / std for std in IMAGENET_STD]), "highpass": HighPassFrontend,
    "wavelet": WaveletFrontend,
}  # fmt: skip


def build_frontend(name: str) -> nn.Module:
    """Build a frontend, which has ``out_channels``, by its name in :data:`FRONTENDS`; UserError for another name."""
    return FRONTENDS[choose(name, FRONTENDS, "model.encoder.frontend")]()
