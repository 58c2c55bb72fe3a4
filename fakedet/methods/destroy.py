"""Trace-destroyed copies of photographs: the content stays, the low-level statistics are re-synthesised (ours).

Each function of :data:`METHODS` maps float images (n, 3, H, W) and uniform draws in [0, 1), (n, DRAWS) on the CPU, to
images of the same shape. An image's result depends on its own draws alone.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from fakedet.errors import UserError, choose
from fakedet.models.features import FeatureCache
from fakedet.utils import fast_dtype

DRAWS = 9  # per image: as many as zero_insert, which needs the most, takes for the weights of its kernel
GRID = 3  # draws per recompressed image: quality, and its offset on JPEG's grid, down and across
BLOCK = 8  # side of JPEG's blocks in pixels
CELL = 8  # side in pixels of what an auto-encoder codes as one place
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
VAE = "vae"  # the kind that an auto-encoder makes
_WIDTH = 2 + DRAWS  # draws per copy that is not recompressed: kind, strength, and those of its kind


class TraceDestroyer(nn.Module):
    """Make a trace-destroyed copy of each image (ours; docs/method.md).

    Each image draws one kind and a strength: the share of the re-synthesised image in its blend with the original. Such
    copies imitate upsampling and smoothing, or a generator's decoder, so they are pseudo-fakes of a kind.

    Args:
        kinds: one or more of :data:`METHODS`, "resample", "zero_insert", "lowpass", "smooth"; and "vae", encoded and
            decoded by the auto-encoder.
        min_strength: least strength, in [0, 1]; strengths are uniform in [min_strength, 1].
        recompress: least and greatest JPEG quality of the copies, for detectors of fakes that are JPEGs, so that the
            lack of JPEG's traces does not set the copies apart; None: they are not compressed.
        autoencoder: for the kind "vae": maps float RGB (N, 3, H, W) in [0, 1], H and W multiples of 8, to RGB of the
            same shape; see :mod:`fakedet.models.autoencoders`. Its weights are not trained, and not in checkpoints.

    Raises:
        UserError: an unknown kind, none at all, a strength outside [0, 1], no such JPEG quality, or an auto-encoder
            that is missing or returns something else.
    """

    def __init__(
        self,
        kinds: Sequence[str] = tuple(METHODS),
        min_strength: float = 0.4,
        recompress: Sequence[int] | None = None,
        autoencoder: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.kinds = tuple(choose(kind, (*METHODS, VAE), "model.copies.kinds") for kind in kinds)
        if not self.kinds:
            raise UserError(f"model.copies.kinds: name at least one of {', '.join((*METHODS, VAE))}")
        self._autoencoder: tuple[nn.Module, ...] = ()  # not a part of the module: checkpoints need no copies
        if VAE in self.kinds:
            if autoencoder is None:
                raise UserError("model.copies.kinds: copies of the kind vae need model.copies.autoencoder")
            self._autoencoder = (autoencoder.eval().requires_grad_(False),)
            made = self._coded(torch.zeros(1, 3, 13, 16))
            if made.shape != (1, 3, 13, 16) or not bool(torch.isfinite(made).all()):
                raise UserError(f"model.copies.autoencoder: {type(autoencoder).__name__} maps black images "
                                f"(1, 3, 16, 16) to {tuple(made.shape)}; it must give finite RGB of the same "
                                "shape")  # fmt: skip
        if not 0.0 <= min_strength <= 1.0:
            raise UserError(f"model.copies.min_strength: {min_strength} is not between 0 and 1")
        self.min_strength = min_strength
        self.qualities = None if recompress is None else check_qualities(recompress, "model.copies.recompress")

    @property
    def width(self) -> int:
        """Number of uniform draws per copy."""
        return _WIDTH + (GRID if self.qualities else 0)

    @cached_property
    def fingerprint(self) -> bytes:
        """What decides, beside the draws, which copy an image has: a hash of settings and weights, 16 bytes."""
        settings = [self.kinds, self.min_strength, self.qualities, [repr(part) for part in self._autoencoder]]
        if self._autoencoder:
            settings.append(str(fast_dtype(torch.device("cpu"))))
        digest = hashlib.blake2b(repr(settings).encode(), digest_size=16)
        for part in self._autoencoder:
            for name, value in part.state_dict().items():
                digest.update(name.encode() + value.cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        return digest.digest()

    def _coded(self, images: Tensor) -> Tensor:
        """Encode and decode images of any size, padded to multiples of 8; on a CPU each alone, whatever its batch."""
        height, width = images.shape[-2:]
        right, below = -width % CELL, -height % CELL
        mode = "reflect" if right < width and below < height else "replicate"
        padded = F.pad(images, (0, right, 0, below), mode=mode).contiguous(memory_format=torch.channels_last)
        model, dtype = self._autoencoder[0].to(images.device), fast_dtype(images.device)
        with torch.autocast(images.device.type, dtype, enabled=dtype != torch.float32):
            parts = padded.split(1 if images.device.type == "cpu" else 32)
            return torch.cat([model(part) for part in parts]).float()[..., :height, :width]

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
                    given = original[there]
                    made = self._coded(given) if name == VAE else METHODS[name](given, draws[rows, 2:_WIDTH])
                    destroyed[there] = made
            blend = torch.lerp(original, destroyed, strength.to(original).view(-1, 1, 1, 1))
            levels = (blend.clamp(0.0, 1.0) * 255.0).round()
            if self.qualities is not None:
                levels = recompress(levels, draws[:, _WIDTH:], self.qualities)
            return levels.div(255.0).to(images.dtype)


# --- copies in a batch, and their randomness ------------------------------------------------------------


class Joined:
    """Images of a training batch and, behind them, trace-destroyed copies of some, embedded in one pass.

    Fixed copies are made only if the features of any are not known: where every encoder is a
    :class:`fakedet.models.backbones.FrozenEncoder`, which looks them up in its cache.

    Args:
        images: float RGB (N, 3, H, W) in [0, 1].
        originals: (M, 3, H, W), what is copied.
        destroyer: makes the copies; None: there are none.
        draws: uniform (M, width), on the CPU.
        fixed: the draws of an original are always the same.
        encoders: all that :meth:`embed` will be called with.
    """

    def __init__(
        self, images: Tensor, originals: Tensor | None = None, destroyer: TraceDestroyer | None = None,
        draws: Tensor | None = None, fixed: bool = False, encoders: Sequence[nn.Module] = (),
    ) -> None:  # fmt: skip
        self.images, self.originals, self.destroyer, self.draws = images, originals, destroyer, draws
        caches = [getattr(getattr(one, "backbone", None), "cache", None) for one in encoders]
        if destroyer is not None and not (fixed and all(isinstance(one, FeatureCache) for one in caches)):
            assert originals is not None
            self.images, self.destroyer = torch.cat([images, destroyer(originals, draws=draws)]), None

    def embed(self, encoder: Any) -> Tensor:
        """Embed images and copies, (N + M, embedding_dim)."""
        if self.destroyer is None:
            return encoder(self.images)  # type: ignore[no-any-return]
        copies = encoder.features(self.originals, self.destroyer, self.draws)
        return encoder.embed(torch.cat([encoder.features(self.images), copies]))  # type: ignore[no-any-return]


class CopiesAsFakes:
    """Trace-destroyed copies of a batch's reals that join its fakes; copies and fakes weigh as much as the reals.

    Args:
        destroyer: makes the copies.
        per_real: how many, per real of the batch, in [0, 1].
        fixed: each photograph has one copy, the same in every epoch and run.

    Raises:
        UserError: a value out of range, or copies without a destroyer.
    """

    def __init__(self, destroyer: TraceDestroyer | None, per_real: float, fixed: bool) -> None:
        if not 0.0 <= per_real <= 1.0:
            raise UserError(f"model.copies_per_real={per_real}: between 0 (none) and 1 (one of each real)")
        if per_real and destroyer is None:
            raise UserError(f"model.copies_per_real={per_real} needs model.copies, which makes them")
        self.destroyer, self.per_real, self.fixed = destroyer if per_real else None, per_real, fixed

    def join(
        self, module: LightningModule, images: Tensor, batch: dict[str, Any], *encoders: nn.Module
    ) -> tuple[Joined, Tensor]:
        """Join copies to a batch's images (N, 3, H, W), as many on every rank; returns them and all labels (N + M,)."""
        labels = batch["label"]
        if self.destroyer is None:
            return Joined(images), labels
        # A rank with too few reals copies fakes as well, which are no photographs either.
        chosen = torch.argsort(labels, stable=True)[: round(self.per_real * len(labels) / 2)]
        draws = draw_copies(module, batch["id"][chosen], self.destroyer.width, self.fixed)
        joined = Joined(images, images[chosen], self.destroyer, draws, self.fixed, encoders)
        return joined, torch.cat([labels, labels.new_ones(len(chosen))])

    def cross_entropy(self, logits: Tensor, is_fake: Tensor, count: int) -> Tensor:
        """Compute the binary cross-entropy of a batch of ``count`` images and its copies, (N + M,) each."""
        if self.destroyer is None:
            return F.binary_cross_entropy_with_logits(logits, is_fake.float())
        weight = torch.where(is_fake == 0, 1.0, 1.0 / (1.0 + self.per_real))
        return F.binary_cross_entropy_with_logits(logits, is_fake.float(), weight, reduction="sum") / count


def copy_draws(module: LightningModule, count: int, width: int) -> torch.Generator:
    """Make the generator of this rank's copies in this step: the same draws however many ranks share the batch.

    Each rank makes ``count`` copies of ``width`` uniform draws each; the seed is that of the module's data.
    """
    seed = int(module.trainer.datamodule.seed)  # type: ignore[attr-defined]
    state = np.random.SeedSequence([seed, module.global_step, 0]).generate_state(1, np.uint64)
    generator = torch.Generator().manual_seed(int(state[0] >> 1))
    torch.rand(module.global_rank * count, width, generator=generator)  # those of the ranks before this one
    return generator


def draw_copies(module: LightningModule, ids: Tensor, width: int, fixed: bool) -> Tensor:
    """Draw (N, width) for copies of the (N,) rows in the manifest: by these if ``fixed``, else anew in each step."""
    if fixed:
        return fixed_draws(ids, width)
    return torch.rand(len(ids), width, generator=copy_draws(module, len(ids), width))


def fixed_draws(ids: Tensor, width: int) -> Tensor:
    """Draw (N, width) uniform numbers in [0, 1) that depend only on the (N,) rows in the manifest, in every run."""
    rows = [torch.rand(width, generator=torch.Generator().manual_seed(int(row))) for row in ids.tolist()]
    return torch.stack(rows) if rows else torch.empty(0, width)
