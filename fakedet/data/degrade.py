"""data/degrade"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from fakedet.data.transforms import evaluation_views, pad_to
from fakedet.errors import UserError, nearest

Pixels = NDArray[np.uint8]
ORIGINAL = "original"
BLOCK = 16
"""Pixels of a JPEG's unit: windows begin at multiples of it, so that their grid is the whole image's."""
MARGIN = 32
"""Pixels around a crop that blur and blocks may reach in from."""


class View(NamedTuple):
    """One way of degrading."""

    family: str
    severity: float

    @property
    def name(self) -> str:
        """Name it as predictions do, such as ``jpeg/75``."""
        return f"{self.family}/{self.severity:g}" if self.family != ORIGINAL else ORIGINAL


def _encoded(image: Pixels, extension: str, flag: int, quality: float) -> Pixels:
    data = cv2.imencode(extension, cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [flag, int(quality)])[1]
    return np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR_RGB), dtype=np.uint8)


def _jpeg(image: Pixels, quality: float, rng: np.random.Generator) -> Pixels:
    return _encoded(image, ".jpg", cv2.IMWRITE_JPEG_QUALITY, quality)


def _webp(image: Pixels, quality: float, rng: np.random.Generator) -> Pixels:
    return _encoded(image, ".webp", cv2.IMWRITE_WEBP_QUALITY, quality)


def _blur(image: Pixels, sigma: float, rng: np.random.Generator) -> Pixels:
    return np.asarray(
        cv2.GaussianBlur(image, (0, 0), sigma, borderType=cv2.BORDER_REFLECT_101), dtype=np.uint8
    )


def _resize(image: Pixels, factor: float, rng: np.random.Generator) -> Pixels:
    height, width = (max(1, round(side * factor)) for side in image.shape[:2])
    way = cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(image, (width, height), interpolation=way), dtype=np.uint8)


def _noise(image: Pixels, sigma: float, rng: np.random.Generator) -> Pixels:
    noisy = rng.standard_normal(image.shape, dtype=np.float32)
    noisy *= sigma
    noisy += image
    np.clip(np.rint(noisy, out=noisy), 0, 255, out=noisy)
    return noisy.astype(np.uint8)


def _brightness(image: Pixels, factor: float, rng: np.random.Generator) -> Pixels:
    return np.asarray(cv2.convertScaleAbs(image, alpha=factor), dtype=np.uint8)


def _contrast(image: Pixels, factor: float, rng: np.random.Generator) -> Pixels:
    # About middle grey, so that it depends on no other part of the image.
    return np.clip(np.rint((image.astype(np.float32) - 128) * factor + 128), 0, 255).astype(np.uint8)


def _screenshot(image: Pixels, factor: float, rng: np.random.Generator) -> Pixels:
    """Show scaled on a screen and save what is seen: bilinear scaling, a slight change of gamma, no compression."""
    height, width = (max(1, round(side * factor)) for side in image.shape[:2])
    shown = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
    return np.rint(255 * (shown / 255.0) ** 0.95).astype(np.uint8)


def _social(image: Pixels, factor: float, rng: np.random.Generator) -> Pixels:
    """Upload to a social network: shrink, sharpen a little, JPEG at quality 75."""
    small = _resize(image, factor, rng)
    soft = cv2.GaussianBlur(small, (0, 0), 1.0)
    return _jpeg(np.asarray(cv2.addWeighted(small, 1.3, soft, -0.3, 0), dtype=np.uint8), 75, rng)


def _forwarded(image: Pixels, times: float, rng: np.random.Generator) -> Pixels:
    """Send from phone to phone: each time shrink to nine tenths and JPEG at quality 70."""
    for _ in range(int(times)):
        image = _jpeg(_resize(image, 0.9, rng), 70, rng)
    return image


class Family(NamedTuple):
    """Degradations of one kind."""

    apply: Callable[[Pixels, float, np.random.Generator], Pixels]
    low: float
    high: float
    scale: Callable[[float], float] = lambda severity: 1.0
    """By how much a severity changes the size."""


FAMILIES: dict[str, Family] = {
    "jpeg": Family(_jpeg, 1, 100), "webp": Family(_webp, 1, 100), "blur": Family(_blur, 0.1, 20),
    "resize": Family(_resize, 0.1, 8, lambda factor: factor), "noise": Family(_noise, 0.1, 100),
    "brightness": Family(_brightness, 0.1, 5), "contrast": Family(_contrast, 0.1, 5),
    "screenshot": Family(_screenshot, 0.1, 4, lambda factor: factor),
    "social": Family(_social, 0.1, 2, lambda factor: factor),
    "forwarded": Family(_forwarded, 1, 10, lambda times: 0.9 ** int(times)),
    "crop": Family(lambda image, share, rng: _cut(image, share), 0.1, 1),
}  # fmt: skip


def make_views(families: Mapping[str, Sequence[float]]) -> list[View]:
    """List the views of a robustness config, the original first.

    Raises:
        UserError: no such family, or a severity out of its range.
    """
    given = [(family, severity) for family, severities in families.items() for severity in severities]
    return [View(ORIGINAL, 0), *(_checked(family, severity, "robustness") for family, severity in given)]


def parse_view(name: str, key: str) -> View:
    """Read a view from its name, such as ``jpeg/75``.

    Args:
        name: family and severity.
        key: of the config that names it, for messages.

    Raises:
        UserError: no such family, or a severity out of its range.
    """
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

    Under the policy "crop" only a window around the crop is degraded; its pixels are those of the whole image degraded,
    but for the rounding of positions under scaling.

    Args:
        image: (H, W, 3).
        view: how.
        size: side of a crop.
        policy: see :func:`fakedet.data.transforms.evaluation_views`.
        seed: of the noise; the image's id.
    """
    if view.family == ORIGINAL:
        return evaluation_views(image, size, policy)
    family = FAMILIES[view.family]
    rng = np.random.default_rng((seed, 97))
    if policy != "crop" or view.family == "crop":
        return evaluation_views(family.apply(image, view.severity, rng), size, policy)
    scale = family.scale(view.severity)
    if scale != 1.0:
        window = _middle(image, int(np.ceil(size / scale)) + 2 * MARGIN)
        return evaluation_views(family.apply(window, view.severity, rng), size, policy)
    window, top, left = _window(pad_to(image, size, size), size)
    done = family.apply(window, view.severity, rng)
    return [done[top : top + size, left : left + size]]


def _window(image: Pixels, size: int) -> tuple[Pixels, int, int]:
    """Cut out the centre crop with a margin, from multiples of a block; give its place in the window."""
    starts, stops, places = [], [], []
    for side in image.shape[:2]:
        crop = max(0, side - size) // 2
        start = max(0, crop - MARGIN) // BLOCK * BLOCK
        starts.append(start)
        stops.append(min(side, crop + size + MARGIN))
        places.append(crop - start)
    return np.ascontiguousarray(image[starts[0] : stops[0], starts[1] : stops[1]]), places[0], places[1]


def _middle(image: Pixels, size: int) -> Pixels:
    """Cut out the middle, so that its centre is the image's."""
    top, left = (max(0, side - size) // 2 for side in image.shape[:2])
    return np.ascontiguousarray(image[top : top + size, left : left + size])


def _cut(image: Pixels, share: float) -> Pixels:
    """Keep the upper left share of both sides: what is left has another centre."""
    return image[: max(1, round(image.shape[0] * share)), : max(1, round(image.shape[1] * share))]
