"""Decode what only PIL reads: transparency, palettes, deep samples, CMYK, and the rarer formats."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops

from fakedet.data.decode_error import DecodeError, said
from fakedet.data.decode_png import check_pixels

BITS_PER_SAMPLE, PHOTOMETRIC, WHITE_IS_ZERO = 258, 262, 0


def decode_pil(image: Image.Image, data: bytes) -> NDArray[np.uint8]:
    """Decode an opened image by the rules of :func:`fakedet.data.decode.read_image`, but for its orientation.

    Args:
        image: opened, not yet loaded.
        data: the file that it was opened from.

    Returns:
        (H, W, 3) uint8, writable and contiguous.

    Raises:
        DecodeError: truncated, damaged, or of a kind without a rule.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of damaged metadata
            image.load()
    except Exception as error:  # truncated or damaged in any of the ways that PIL's readers know
        reason = said(error)
        raise DecodeError(reason if "truncated" in reason else f"truncated or damaged: {reason}") from None
    if image.format == "PNG":
        check_pixels(data)
    try:
        # Byte 24 of a PNG is its bit depth, which PIL does not tell.
        depth = data[24] if image.format == "PNG" else 8
        return np.array(_to_rgb(image, depth), order="C")  # PIL's own buffer is read-only
    except DecodeError:
        raise
    except Exception as error:
        raise DecodeError(f"cannot be converted to RGB: {said(error)}") from None


def _to_rgb(image: Image.Image, png_depth: int) -> NDArray[np.uint8]:
    if image.mode in ("F", "I") or image.mode.startswith("I;16"):
        return _high_byte(image)
    if image.mode == "CMYK" and image.format in ("JPEG", "MPO") and "adobe" not in image.info:
        # Adobe alone writes inks inverted; PIL takes all files for Adobe's.
        image = ImageChops.invert(image)
    transparent = image.info.get("transparency")
    if "A" in image.mode or "a" in image.mode or transparent is not None:
        if image.format == "PNG" and png_depth != 8 and image.mode in ("L", "RGB"):
            image.info["transparency"] = _as_8_bit(transparent, png_depth)
        layered = image.convert("RGBA")
        white = Image.new("RGBA", layered.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, layered)
    return np.asarray(image.convert("RGB"))


def _as_8_bit(colour: Any, depth: int) -> Any:
    """Give a PNG's transparent colour in the samples that PIL made of the file's.

    Of 16-bit colour PIL keeps high bytes, so that all colours that share them are transparent.
    """
    if isinstance(colour, tuple):
        return tuple(_as_8_bit(sample, depth) for sample in colour)
    return colour >> 8 if depth == 16 else colour * 255 // (2**depth - 1)


def _high_byte(image: Image.Image) -> NDArray[np.uint8]:
    """Reduce deep grey samples to 8 bits."""
    if image.mode == "F":
        raise DecodeError("floating-point pixels: their range is not known")
    values, bits = np.asarray(image), 16
    tags = getattr(image, "tag_v2", {})
    if image.format == "TIFF":
        bits = int(tags.get(BITS_PER_SAMPLE, (16,))[0])
    if (
        bits > 16
        or (image.format == "TIFF" and image.mode == "I")
        or values.min() < 0
        or values.max() > 0xFFFF
    ):
        raise DecodeError("32-bit or signed pixels: their range is not known")
    grey = (values >> (bits - 8)).astype(np.uint8)
    if image.format == "TIFF" and tags.get(PHOTOMETRIC) == WHITE_IS_ZERO:
        grey = 255 - grey
    if "transparency" in image.info:  # of a 16-bit grey PNG
        grey[values == image.info["transparency"]] = 255
    return np.repeat(grey[..., None], 3, axis=2)
