"""Frontends: what of an image an encoder gets to see."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fakedet.errors import choose

FRONTENDS = ("rgb", "npr", "highpass")


class RgbFrontend(nn.Module):
    """Pass the colours on, normalised by ImageNet's mean and standard deviation."""

    out_channels = 3

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Normalise float RGB (N, 3, H, W) in [0, 1]."""
        return (images - self.mean) / self.std


class NprFrontend(nn.Module):
    """Keep neighbouring-pixel relations: x − up(down(x)) by nearest neighbour (Tan et al., CVPR 2024).

    Published as (x − up(down(x, 0.5), 2)) · 2/3 on ImageNet-normalised colours; ``gain`` brings the residual of
    photographs near unit variance besides, which small encoders trained from scratch need.
    """

    out_channels = 3

    def __init__(self, gain: float = 10.0) -> None:
        super().__init__()
        self.gain = gain

    def forward(self, images: Tensor) -> Tensor:
        """Give the residual of float RGB (N, 3, H, W) in [0, 1]; odd sizes lose their last row or column."""
        height, width = images.shape[-2:]
        images = images[..., : height - height % 2, : width - width % 2]
        low = images[..., ::2, ::2]
        up = low.repeat_interleave(2, dim=-1).repeat_interleave(2, dim=-2)
        return (images - up) * (2.0 / 3.0 * self.gain)


class HighPassFrontend(nn.Module):
    """Filter each colour by three fixed residual filters of steganalysis (SRM, Fridrich and Kodovský 2012)."""

    out_channels = 9

    def __init__(self, gain: float = 10.0) -> None:
        super().__init__()
        second = torch.zeros(5, 5)
        second[2, 1:4] = torch.tensor([1.0, -2.0, 1.0]) / 2
        square3 = torch.zeros(5, 5)
        square3[1:4, 1:4] = torch.tensor([[-1.0, 2.0, -1.0], [2.0, -4.0, 2.0], [-1.0, 2.0, -1.0]]) / 4
        square5 = torch.tensor([
            [-1.0, 2.0, -2.0, 2.0, -1.0],
            [2.0, -6.0, 8.0, -6.0, 2.0],
            [-2.0, 8.0, -12.0, 8.0, -2.0],
            [2.0, -6.0, 8.0, -6.0, 2.0],
            [-1.0, 2.0, -2.0, 2.0, -1.0],
        ]) / 12  # fmt: skip
        kernels = torch.stack([second, square3, square5]).unsqueeze(1).repeat(3, 1, 1, 1)
        self.register_buffer("kernels", kernels * gain, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Filter float RGB (N, 3, H, W) in [0, 1] to (N, 9, H, W), three filters a colour."""
        padded = F.pad(images, (2, 2, 2, 2), mode="reflect")
        return F.conv2d(padded, self.kernels.to(images.dtype), groups=3)


def build_frontend(name: str) -> nn.Module:
    """Build a frontend by name; it has ``out_channels``.

    Raises:
        UserError: an unknown name.
    """
    choose(name, FRONTENDS, "model.encoder.frontend")
    made: dict[str, type[nn.Module]] = {"rgb": RgbFrontend, "npr": NprFrontend, "highpass": HighPassFrontend}
    return made[name]()
