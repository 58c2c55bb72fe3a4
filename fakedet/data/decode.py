"""Decoding: any image file to RGB, or the reason why not.

The rules: EXIF orientation is applied; transparency is laid on white; palettes are expanded; 16-bit samples are
scaled to 8; CMYK is converted to RGB; greyscale fills all three channels; of animated files the first frame counts.
"""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

MAX_PIXELS = 100_000_000

# Formats that OpenCV decodes to the same pixels as PIL (libjpeg-turbo, libpng), only faster.
FAST_FORMATS = {"JPEG", "PNG", "BMP"}
JPEG_START_OF_SCAN, JPEG_END = b"\xff\xda", b"\xff\xd9"


class DecodeError(Exception):
    """An image that cannot be read; the message is the reason."""


def read_image(path: str | Path, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """Read an image file as RGB.

    Args:
        path: the file.
        max_pixels: refuse larger images before decoding them: a small file can claim to be huge.

    Returns:
        (H, W, 3) uint8.

    Raises:
        DecodeError: missing, no permission, empty, not an image, truncated, damaged or too large.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise DecodeError(error.strerror or str(error)) from error
    return decode_image(data, max_pixels)


def decode_image(data: bytes, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """Decode an image file's bytes as RGB; see :func:`read_image`."""
    if not data:
        raise DecodeError("empty file")
    try:
        with warnings.catch_warnings():
            # PIL warns of large images and damaged EXIF; size is checked here, damage is raised on load.
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(data))
            if image.width * image.height > max_pixels:
                raise DecodeError(f"{image.width}×{image.height} is more than {max_pixels} pixels")
            if image.format == "JPEG" and data.rfind(JPEG_END) < data.rfind(JPEG_START_OF_SCAN):
                raise DecodeError("truncated JPEG")
            if image.format in FAST_FORMATS and image.mode in ("RGB", "L"):
                fast = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
                if fast is not None:
                    return np.ascontiguousarray(fast, dtype=np.uint8)
            return _with_pil(image)
    except DecodeError:
        raise
    except UnidentifiedImageError as error:
        raise DecodeError("not an image") from error
    except Exception as error:  # decoders raise all sorts of things on damaged files
        raise DecodeError(f"{type(error).__name__}: {' '.join(str(error).split())[:200]}") from error


def _with_pil(image: Image.Image) -> NDArray[np.uint8]:
    image.load()
    image = ImageOps.exif_transpose(image) or image
    if image.mode.startswith(("I", "F")):
        return _from_wide(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (255, 255, 255, 255)), image)
    return np.asarray(image.convert("RGB"), dtype=np.uint8)


def _from_wide(image: Image.Image) -> NDArray[np.uint8]:
    """Scale 16-bit (or wider) greyscale to 8 bits by its format's range."""
    values = np.asarray(image, dtype=np.float64)
    top = 65535.0 if image.mode.startswith("I") else max(1.0, float(values.max()))
    grey = np.clip(values / top * 255.0 + 0.5, 0, 255).astype(np.uint8)
    return np.repeat(grey[:, :, None], 3, axis=2)
