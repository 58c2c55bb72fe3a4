"""What an image file says of itself before its pixels: format, size, compression."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fakedet.data.decode import FORMATS, MAX_PIXELS, DecodeError

# ITU-T T.81, Annex K, table K.1: the luminance table that the IJG's library scales by its quality.
LUMINANCE = np.array([
    16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55, 14, 13, 16, 24, 40, 57, 69, 56,
    14, 17, 22, 29, 51, 87, 80, 62, 18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92,
    49, 64, 78, 87, 103, 121, 120, 101, 72, 92, 95, 98, 112, 100, 103, 99,
])  # fmt: skip
JPEG = ("JPEG", "MPO")


@dataclass(frozen=True, slots=True)
class Header:
    """Facts of an image file that need no pixel."""

    format: str
    """PIL's name: JPEG, PNG, WEBP, ..."""
    width: int
    height: int
    jpeg_quality: int
    """1 ... 100: the quality of the IJG's library whose luminance table is nearest; 0 if not a JPEG."""
    jpeg_tables: str
    """A name for the quantisation tables and chroma subsampling: equal names, equal encoder settings; "" if
    not a JPEG."""


def parse_header(data: bytes) -> Header:
    """Read the header of an image file.

    Args:
        data: the file's bytes; for formats other than JPEG its beginning is enough.

    Raises:
        DecodeError: empty, not an image, damaged, or too many pixels.
    """
    if not data:
        raise DecodeError("empty file")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError:
        raise DecodeError(f"too many pixels: the limit is {MAX_PIXELS}") from None
    except Image.UnidentifiedImageError:
        raise DecodeError("not an image of a known format, or its header is truncated") from None
    except Exception as error:  # PIL's readers raise whatever a damaged header makes them stumble over
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DecodeError(f"damaged header: {reason}") from None
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise DecodeError(f"too many pixels: {width}x{height}, the limit is {MAX_PIXELS}")
    kind = str(image.format)
    quality, tables = _jpeg(image) if kind in JPEG else (0, "")
    return Header(kind, width, height, quality, tables)


def _jpeg(image: Image.Image) -> tuple[int, str]:
    found: dict[int, list[int]] = getattr(image, "quantization", None) or {}
    # PIL knows the sampling factors of each component as (id, horizontal, vertical, table).
    layers = [layer[1:3] for layer in getattr(image, "layer", [])]
    name = hashlib.sha256(repr((sorted(found.items()), layers)).encode()).hexdigest()[:12]
    luminance = found.get(0) or next(iter(found.values()), None)
    return (nearest_quality(tuple(luminance)) if luminance else 0), name


@lru_cache(maxsize=4096)
def nearest_quality(table: tuple[int, ...]) -> int:
    """Name the quality, 1 ... 100, of the standard luminance table that lies nearest to a table of 64."""
    distance = np.abs(_standard_tables() - np.asarray(table[:64])).sum(axis=1)
    return int(np.argmin(distance)) + 1


@lru_cache(maxsize=1)
def _standard_tables() -> NDArray[np.int64]:
    qualities = np.arange(1, 101)
    scale = np.where(qualities < 50, 5000 // qualities, 200 - 2 * qualities)
    scaled: NDArray[np.int64] = np.clip((LUMINANCE[None] * scale[:, None] + 50) // 100, 1, 255)
    return scaled
