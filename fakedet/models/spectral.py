"""An encoder of residual statistics: block spectra, whitened by real photographs, and a small net on them."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from fakedet.errors import UserError
from fakedet.models.reals import rows_of_reals

CHUNK = 4
"""Images whose blocks are looked at together on a CPU."""
FLOOR = 0.1
"""Added to the power of a frequency, in squared grey levels, before the logarithm: below it is rounding."""


class BlockSpectra(nn.Module):
    """Describe images by the mean and the spread of the log power of each spatial frequency over their blocks (ours).

    The colour planes are cut into overlapping blocks, each with a Hann window and without its mean. Frequencies that
    flips and quarter turns map onto each other are averaged: nothing is learned of a picture's orientation, and
    there are eight times fewer numbers.

    Args:
        block: side of a block in pixels, even.
    """

    orbit: Tensor
    weight: Tensor
    window: Tensor

    def __init__(self, block: int = 32) -> None:
        super().__init__()
        if block < 4 or block % 2:
            raise UserError(
                f"model.encoder.block={block}: needs an even number of at least 4 pixels; 32 is usual"
            )
        self.block = block
        rows = (torch.fft.fftfreq(block) * block).abs().round()
        columns = (torch.fft.rfftfreq(block) * block).abs().round()
        high = torch.maximum(rows[:, None], columns[None])
        low = torch.minimum(rows[:, None], columns[None])
        names, orbit = torch.unique(high * block + low, return_inverse=True)
        window = torch.hann_window(block, periodic=False)
        window = window[:, None] * window[None]
        orbit = orbit.flatten()
        # A real image's FFT keeps half of the plane: all but the first and last column stand for two frequencies.
        times = torch.full((block, block // 2 + 1), 2.0)
        times[:, [0, -1]] = 1.0
        totals = torch.zeros(len(names)).index_add(0, orbit, times.flatten())
        self.register_buffer("orbit", orbit, persistent=False)
        self.register_buffer("weight", times.flatten() / totals[orbit], persistent=False)
        self.register_buffer("window", window / window.square().sum().sqrt(), persistent=False)
        self.orbits = len(names)
        self.out_dim = 2 * 3 * self.orbits

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Describe float RGB (N, 3, H, W) in [0, 1] as (N, out_dim) without gradients.

        Raises:
            UserError: the images are smaller than a block.
        """
        side = self.block
        if min(images.shape[-2:]) < side:
            raise UserError(
                f"model.encoder.block={side}: images of {images.shape[-2]}×{images.shape[-1]} are smaller; set "
                "data.crop_size to at least a block"
            )
        with torch.autocast(images.device.type, enabled=False):
            if images.device.type != "cpu" or torch.compiler.is_compiling():
                return self._describe(images)
            # A few images at a time stay in the caches and need no fresh memory: three times faster.
            return torch.cat([self._describe(some) for some in images.split(CHUNK)])

    def _describe(self, images: Tensor) -> Tensor:
        side = self.block
        blocks = (images.float() * 255.0).unfold(2, side, side // 2).unfold(3, side, side // 2).flatten(2, 3)
        blocks = (blocks - blocks.mean(dim=(-2, -1), keepdim=True)) * self.window
        waves = torch.fft.rfft2(blocks)
        # Squared by hand and the spread in two passes: half the time of abs() and std() on a CPU.
        power = torch.log(waves.real.square() + waves.imag.square() + FLOOR)
        mean = power.mean(dim=2)
        spread = (power - mean[:, :, None]).square().mean(dim=2).sqrt()
        return torch.cat([self._orbits(mean), self._orbits(spread)], dim=1)

    def _orbits(self, spectrum: Tensor) -> Tensor:
        flat = spectrum.flatten(2) * self.weight
        return flat.new_zeros(*flat.shape[:2], self.orbits).index_add(2, self.orbit, flat).flatten(1)


class SpectralEncoder(nn.Module):
    """Embed images by their block spectra: whitened by real photographs, then one hidden layer.

    The whitening is the simplest trace of all: mean and covariance of the spectra of real training photographs, in
    which a direction counts by how far an image leaves what reals do. It is fitted once, on reals alone
    (:meth:`fit_reals`), and travels in the checkpoint. A detector of these is quick to train and hard to beat on few
    images; what no block's spectrum shows (content, faces that are wrong) it cannot see.

    Args:
        block: see :class:`BlockSpectra`.
        components: directions of the reals' covariance that are kept.
        hidden: of the net, and dimension of the embedding.
        dropout: of the whitened components in training.
        noise: standard deviation of Gaussian noise on them in training.

    Raises:
        UserError: a value out of range.
    """

    mean: Tensor
    whitening: Tensor
    fitted: Tensor

    def __init__(
        self,
        block: int = 32,
        components: int = 250,
        hidden: int = 256,
        dropout: float = 0.5,
        noise: float = 0.5,
    ) -> None:
        super().__init__()
        self.spectra = BlockSpectra(block)
        size = self.spectra.out_dim
        if not 1 <= components <= size:
            raise UserError(f"model.encoder.components={components}: valid are 1 to {size}")
        if hidden < 1 or not 0.0 <= dropout < 1.0 or not noise >= 0.0:
            raise UserError(
                f"model.encoder: hidden={hidden}, dropout={dropout}, noise={noise}: needs at least one hidden unit, a "
                "dropout from 0 to below 1, and noise of at least 0"
            )
        self.components, self.noise = components, noise
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("whitening", torch.eye(size, components))
        self.register_buffer("fitted", torch.tensor(False))
        self.layers = nn.Sequential(
            nn.Dropout(dropout), nn.Linear(components, hidden), nn.ReLU(), nn.Dropout(dropout)
        )
        self.embedding_dim = hidden

    def forward(self, images: Tensor) -> Tensor:
        """Embed float RGB (N, 3, H, W) in [0, 1] as (N, embedding_dim)."""
        whitened = self.whiten(self.spectra(images))
        if self.training and self.noise > 0:
            whitened = whitened + self.noise * torch.randn_like(whitened)
        embedding: Tensor = self.layers(whitened)
        return embedding.float()

    def whiten(self, spectra: Tensor) -> Tensor:
        """Express spectra (N, S) by how many of the reals' standard deviations they lie off along each component."""
        return (spectra - self.mean) @ self.whitening

    @torch.no_grad()
    def fit_reals(self, batches: Iterable[Tensor]) -> None:
        """Fit the whitening to real photographs; once fitted it stays.

        Args:
            batches: float RGB (N, 3, H, W) in [0, 1].

        Raises:
            UserError: fewer photographs than two.
        """
        if bool(self.fitted):
            return
        rows = rows_of_reals(self.spectra, batches)
        scale = rows.std(dim=0) + 1e-6
        mean = rows.mean(dim=0)
        _, singular, directions = torch.linalg.svd((rows - mean) / scale, full_matrices=False)
        spread = singular / (len(rows) - 1) ** 0.5
        # With few photographs there are fewer directions than components; the others see nothing.
        kept = min(self.components, int((spread > 1e-6 * spread[0]).sum()))
        self.whitening.zero_()
        self.whitening[:, :kept] = ((directions[:kept] / spread[:kept, None]).T / scale[:, None]).float()
        self.mean.copy_(mean.float())
        self.fitted.fill_(True)
