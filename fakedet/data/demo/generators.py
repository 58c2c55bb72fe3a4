"""Simulated generators: small networks that re-make photographs, each with the traces of its own kind."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SEEN = ("transposed", "nearest", "shuffle")
UNSEEN = ("bilinear", "bicubic", "quantised", "denoiser")
CHANNELS = 24
# Levels of the quantised latent.
LEVELS = 7


class AutoEncoder(nn.Module):
    """Halve, and come back up by one kind of upsampling; one level only, because two would blur.

    Args:
        kind: "transposed", "nearest", "shuffle", "bilinear", "bicubic" or "quantised".
    """

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.encoder = nn.Sequential(
            nn.Conv2d(3, CHANNELS, 5, 2, 2, padding_mode="reflect"),
            nn.LeakyReLU(0.1),
            nn.Conv2d(CHANNELS, CHANNELS, 3, 1, 1, padding_mode="reflect"),
        )
        if kind == "transposed":
            self.decoder: nn.Module = nn.Sequential(
                nn.LeakyReLU(0.1),
                nn.ConvTranspose2d(CHANNELS, CHANNELS, 4, 2, 1),
                nn.LeakyReLU(0.1),
                _conv(3),
            )
        elif kind == "shuffle":
            self.decoder = nn.Sequential(nn.LeakyReLU(0.1), _conv(12), nn.PixelShuffle(2))
        else:
            mode = {"quantised": "bilinear"}.get(kind, kind)
            self.decoder = nn.Sequential(
                nn.LeakyReLU(0.1),
                nn.Upsample(scale_factor=2, mode=mode),
                _conv(CHANNELS),
                nn.LeakyReLU(0.1),
                _conv(3),
            )

    def forward(self, images: Tensor) -> Tensor:
        """Re-make images (N, 3, H, W) in [0, 1], H and W even."""
        latent = self.encoder(images - 0.5)
        if self.kind == "quantised":
            soft = torch.tanh(latent) * (LEVELS // 2)
            latent = soft + (soft.round() - soft).detach()
        made: Tensor = self.decoder(latent) + 0.5
        return made


class Denoiser(nn.Module):
    """Predict the clean image from a noisy one and its noise level."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(4, CHANNELS, 3, 1, 1, padding_mode="reflect")]
        for _ in range(2):
            layers += [nn.LeakyReLU(0.1), _conv(CHANNELS)]
        self.layers = nn.Sequential(*layers, nn.LeakyReLU(0.1), _conv(3))

    def forward(self, noisy: Tensor, level: Tensor) -> Tensor:
        """Clean images (N, 3, H, W) of noise with standard deviations (N,)."""
        plane = level.view(-1, 1, 1, 1).expand(-1, 1, *noisy.shape[-2:])
        clean: Tensor = noisy - self.layers(torch.cat([noisy - 0.5, plane], dim=1))
        return clean


Generate = Callable[[Tensor], Tensor]


def train_generator(kind: str, batches: Callable[[], Tensor], steps: int, seed: torch.Generator) -> Generate:
    """Train one simulated generator and give the function that re-makes images with it.

    Args:
        kind: of :data:`SEEN` or :data:`UNSEEN`.
        batches: gives training batches (N, 3, H, W) in [0, 1].
        steps: of Adam.
        seed: of the noise; weights are drawn from the global state, which the caller forks.
    """
    net: nn.Module = Denoiser() if kind == "denoiser" else AutoEncoder(kind)
    optimiser = torch.optim.Adam(net.parameters(), lr=4e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        images = batches()
        if kind == "denoiser":
            level = 0.25 * torch.rand(len(images), generator=seed)
            noise = torch.randn(images.shape, generator=seed) * level.view(-1, 1, 1, 1)
            made = net(images + noise, level)
        else:
            made = net(images)
        loss = F.l1_loss(made, images)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    net.eval()
    return (lambda images: _denoise(net, images, seed)) if kind == "denoiser" else net


def _denoise(net: nn.Module, images: Tensor, seed: torch.Generator) -> Tensor:
    """Noise images, then clean them step by step; each step keeps some noise for the next."""
    levels = [0.15, 0.10, 0.06, 0.03]
    made = images + levels[0] * torch.randn(images.shape, generator=seed)
    for level, following in zip(levels, [*levels[1:], 0.012], strict=True):
        clean = net(made, torch.full((len(images),), level))
        made = clean + following * torch.randn(images.shape, generator=seed)
    return made


def _conv(out: int) -> nn.Conv2d:
    return nn.Conv2d(CHANNELS, out, 3, 1, 1, padding_mode="reflect")
