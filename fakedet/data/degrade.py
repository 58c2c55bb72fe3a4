"""Degradations that robustness is measured under, such as JPEG, blur, resizing and what social networks do."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch

from fakedet.data.decode import DecodeError
from fakedet.data.transforms import JPEG_SIDE, Pixels, evaluation_views, pad_to
from fakedet.errors import UserError, nearest

ORIGINAL = "original"
BLOCK = 16  # Pixels of a JPEG's unit: windows begin at multiples of it, so that their grid is that of the whole image
WEBP_SIDE = 16_383  # The longest side that a WebP can have
MARGIN = 32  # Pixels around a crop from which blur and blocks may reach into it


class View(NamedTuple):
    """One degradation of one severity."""

    family: str
    severity: float

    @property
    def name(self) -> str:
        """Its name in predictions, such as ``jpeg/75``."""
        return f"{self.family}/{self.severity:g}" if self.family != ORIGINAL else ORIGINAL


def _compress(
    image: Pixels, quality: float, rng: np.random.Generator, ending: str = ".jpg", flag: int = cv2.IMWRITE_JPEG_QUALITY
) -> Pixels:
    data = cv2.imencode(ending, cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [flag, int(quality)])[1]
    return np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR_RGB), dtype=np.uint8)


def _resize(image: Pixels, factor: float, rng: np.random.Generator, interpolation: int | None = None) -> Pixels:
    height, width = (max(1, round(side * factor)) for side in image.shape[:2])
    if interpolation is None:
        interpolation = cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(image, (width, height), interpolation=interpolation), dtype=np.uint8)


def _noise(image: Pixels, sigma: float, rng: np.random.Generator) -> Pixels:
    noisy = np.empty_like(image)
    for row, clean in zip(noisy, image, strict=True):
        row[:] = np.clip(np.rint(rng.standard_normal(clean.shape, dtype=np.float32) * sigma + clean), 0, 255)
    return noisy


def _contrast(image: Pixels, factor: float, rng: np.random.Generator) -> Pixels:
    # About middle grey, so that it depends on no other part of the image.
    changed = np.clip(np.rint((np.arange(256, dtype=np.float32) - 128) * factor + 128), 0, 255)
    return np.asarray(cv2.LUT(image, changed.astype(np.uint8)), dtype=np.uint8)


def _screenshot(image: Pixels, factor: float, rng: np.random.Generator) -> Pixels:
    """Show the image scaled and save the screen: bilinear scaling, a slight change of gamma, no compression."""
    gamma = np.rint(255 * (np.arange(256) / 255.0) ** 0.95).astype(np.uint8)
    return np.asarray(cv2.LUT(_resize(image, factor, rng, cv2.INTER_LINEAR), gamma), dtype=np.uint8)


def _social(image: Pixels, factor: float, rng: np.random.Generator) -> Pixels:
    """Upload to a social network: shrink, sharpen a little, JPEG at quality 75."""
    small = _resize(image, factor, rng)
    soft = cv2.GaussianBlur(small, (0, 0), 1.0)
    return _compress(np.asarray(cv2.addWeighted(small, 1.3, soft, -0.3, 0), dtype=np.uint8), 75, rng)


def _forwarded(image: Pixels, times: float, rng: np.random.Generator) -> Pixels:
    """Forward from phone to phone: each time shrink to nine tenths and compress at quality 70."""
    for _ in range(int(times)):
        image = _compress(_resize(image, 0.9, rng), 70, rng)
    return image


def _regenerated(crop: Pixels, times: float, rng: np.random.Generator) -> Pixels:
    """Pass through a second generator: a diffusion model's auto-encoder encodes and decodes it so many times."""
    padded = pad_to(crop, *(-(-side // 8) * 8 for side in crop.shape[:2]))
    top, left = ((wide - side) // 2 for wide, side in zip(padded.shape, crop.shape[:2], strict=False))
    images = torch.from_numpy(padded.copy()).permute(2, 0, 1)[None]
    for _ in range(int(times)):
        with torch.inference_mode():
            images = (_autoencoder()(images.float() / 255).clamp(0, 1) * 255).round().to(torch.uint8)
    made: Pixels = images[0].permute(1, 2, 0).numpy()
    return made[top : top + crop.shape[0], left : left + crop.shape[1]]


@cache
def _autoencoder() -> Any:
    if not (folder := os.environ.get("FAKEDET_VAE")):
        raise UserError("robustness: regenerated needs an auto-encoder: put NAME_encoder.pth and NAME_decoder.pth of "
                        "github.com/madebyollin/taesd into a folder, and export FAKEDET_VAE=FOLDER")  # fmt: skip
    from fakedet.models.autoencoders import TinyAutoencoder  # few need it

    return TinyAutoencoder(folder)


def _keep_corner(image: Pixels, share: float, rng: np.random.Generator) -> Pixels:
    """Keep the upper left share of both sides, so that the centre is another one."""
    return image[: max(1, round(image.shape[0] * share)), : max(1, round(image.shape[1] * share))]


class Family(NamedTuple):
    """Degradations of one kind, which differ in severity."""

    apply: Callable[[Pixels, float, np.random.Generator], Pixels]
    low: float
    high: float
    scale: Callable[[float], float] = lambda severity: 1.0  # The factor by which a severity changes the image's size


FAMILIES: dict[str, Family] = {
    "jpeg": Family(_compress, 1, 100),
    "blur": Family(lambda image, sigma, rng: np.asarray(cv2.GaussianBlur(image, (0, 0), sigma), np.uint8), 0.1, 20),
    "webp": Family(partial(_compress, ending=".webp", flag=cv2.IMWRITE_WEBP_QUALITY), 1, 100),
    "resize": Family(_resize, 0.1, 8, lambda factor: factor), "noise": Family(_noise, 0.1, 100),
    "brightness": Family(lambda image, by, rng: np.asarray(cv2.convertScaleAbs(image, alpha=by), np.uint8), 0.1, 5),
    "contrast": Family(_contrast, 0.1, 5), "screenshot": Family(_screenshot, 0.1, 4, lambda factor: factor),
    "social": Family(_social, 0.1, 2, lambda factor: factor),
    "forwarded": Family(_forwarded, 1, 10, lambda times: 0.9 ** int(times)),
    "crop": Family(_keep_corner, 0.1, 1), "regenerated": Family(_regenerated, 1, 10),
}  # fmt: skip


def make_views(families: Mapping[str, Sequence[float]]) -> list[View]:
    """List the views of a robustness config, the original first; a bad family or severity is a UserError."""
    given = [(family, severity) for family, severities in families.items() for severity in severities]
    return [View(ORIGINAL, 0), *(_checked(family, severity, "robustness") for family, severity in given)]


def parse_view(name: str, key: str) -> View:
    """Read a view from its name, such as ``jpeg/75``; a UserError names the config key if it is not one."""
    family, _, severity = name.partition("/")
    try:
        return _checked(family, float(severity), key)
    except ValueError:
        return _checked(family, severity, key)


def _checked(family: str, severity: object, key: str) -> View:
    if family not in FAMILIES:
        raise UserError(f"{key}: there is no family '{family}'; {nearest(family, FAMILIES)}")
    kind = FAMILIES[family]
    if not isinstance(severity, int | float) or not kind.low <= severity <= kind.high:
        raise UserError(f"{key}: {family}/{severity}: a number from {kind.low:g} to {kind.high:g}")
    return View(family, float(severity))


def degraded_views(image: Pixels, view: View, size: int, policy: str, seed: int) -> list[Pixels]:
    """Degrade an image and take the crops of an evaluation policy.

    Under the policy "crop" only a window around the crop is degraded. Its pixels are those of the degraded whole image,
    except that scaling rounds positions. An image that is too long to be degraded as a whole is a
    :class:`fakedet.data.decode.DecodeError`. On image, size and policy see
    :func:`fakedet.data.transforms.evaluation_views`; ``seed``, of the noise, is the image's row number.
    """
    if view.family == ORIGINAL:
        return evaluation_views(image, size, policy)
    family = FAMILIES[view.family]
    rng = np.random.default_rng((seed, 97))
    if view.family == "regenerated":  # whose net sees far: what the detector looks at passes it, not the whole image
        return [family.apply(crop, view.severity, rng) for crop in evaluation_views(image, size, policy)]
    if policy != "crop" or view.family == "crop":
        longest = WEBP_SIDE if view.family == "webp" else JPEG_SIDE
        if max(image.shape) > longest and view.family != "crop":
            raise DecodeError(f"too long for an altered copy: {max(image.shape)} pixels, the limit is {longest}")
        return evaluation_views(family.apply(image, view.severity, rng), size, policy)
    scale = family.scale(view.severity)
    if scale != 1.0:
        # A window of the same centre, large enough for the crop after scaling.
        side = int(np.ceil(size / scale)) + 2 * MARGIN
        top, left = (max(0, length - side) // 2 for length in image.shape[:2])
        window = np.ascontiguousarray(image[top : top + side, left : left + side])
        return evaluation_views(family.apply(window, view.severity, rng), size, policy)
    # A window that begins at a block of the JPEG grid. Cut, then pad: a single row may have a million pixels.
    top, left = (max(0, length - size) // 2 for length in image.shape[:2])
    first, begin = (max(0, start - MARGIN) // BLOCK * BLOCK for start in (top, left))
    window = pad_to(image[first : top + size + MARGIN, begin : left + size + MARGIN], size, size)
    done = family.apply(np.ascontiguousarray(window), view.severity, rng)
    return [done[top - first :, left - begin :][:size, :size]]
