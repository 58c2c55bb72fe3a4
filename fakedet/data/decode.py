"""From an image file to an array of RGB pixels, with one stated rule for every kind of file."""

from __future__ import annotations

import io
import os
import stat
import warnings
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fakedet.data.decode_error import DecodeError, said
from fakedet.data.decode_pil import decode_pil

MAX_PIXELS = 100_000_000
"""Images with more pixels than this are refused before they are decoded."""
MAX_BYTES = 256 * 2**20
"""Files larger than this are refused before they are read."""
# PIL registers some of its readers only when a file needs them; the list must not depend on that.
Image.init()
FORMATS = tuple(
    name for name in ("JPEG", "MPO", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM", "AVIF") if name in Image.OPEN
)
"""What PIL may try. Its other readers are rare, slow, or run programs (EPS)."""
OPENCV_FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
ORIENTATION = 0x0112
JPEG_END = b"\xff\xd9"


def read_image(path: str | Path, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """Read an image file as 8-bit RGB.

    OpenCV decodes plain 8-bit RGB and greyscale JPEG, PNG, WebP and BMP, PIL everything else; where both
    can, they agree bit for bit. The rules:

    * EXIF orientation is applied.
    * Transparent images are laid on white.
    * Greyscale is replicated to three channels; palettes are looked up.
    * 16-bit samples keep their high byte, 12-bit ones their upper 8 bits; deeper and signed ones are refused.
    * CMYK is converted without a colour profile, inverted where Adobe says so; embedded profiles are ignored
      everywhere.
    * Of an animation, the first frame counts.
    * A JPEG whose data end before its end marker is truncated, though decoders would fill it up in silence.

    Args:
        path: the file.
        max_pixels: refuse images with more pixels than this, by their header, before decoding.

    Returns:
        (H, W, 3) uint8, RGB, contiguous.

    Raises:
        DecodeError: missing, no permission, empty, truncated, not an image, or too many pixels.
    """
    return decode_image(read_bytes(path), max_pixels)


def decode_image(data: bytes, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """Decode the bytes of an image file; see :func:`read_image`."""
    if not data:
        raise DecodeError("empty file")
    header = _open(data)
    width, height = header.size
    if width * height > max_pixels:
        raise DecodeError(f"too many pixels: {width}x{height}, the limit is {max_pixels}")
    if header.format in ("JPEG", "MPO") and not jpeg_ends(data):
        raise DecodeError("truncated JPEG: its end marker is missing")
    if _is_plain(header, data):
        pixels = _decode_opencv(data)
        if pixels is not None and pixels.shape == (height, width, 3):
            return pixels
    return _turned(decode_pil(header, data), _orientation(header))


def read_bytes(path: str | Path) -> bytes:
    """Read a file.

    Raises:
        DecodeError: missing, no permission, not a regular file, or too large. The latter two are found before
            anything is read: a pipe would never end.
    """
    try:
        found = os.stat(path)
        if stat.S_ISDIR(found.st_mode):
            raise DecodeError("a folder, not a file")
        if not stat.S_ISREG(found.st_mode):
            raise DecodeError("not a regular file")
        if found.st_size > MAX_BYTES:
            raise DecodeError(f"too large: {found.st_size} bytes, the limit is {MAX_BYTES}")
        return Path(path).read_bytes()
    except FileNotFoundError:
        raise DecodeError("no such file") from None
    except PermissionError:
        raise DecodeError("no permission to read it") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL byte in the name
        raise DecodeError(f"cannot be read: {said(error)}") from None


def _open(data: bytes) -> Image.Image:
    """Parse the header; no pixel is decoded."""
    try:
        with warnings.catch_warnings():
            # PIL warns about large images; the limit here is max_pixels.
            warnings.simplefilter("ignore")
            return Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise DecodeError(f"too many pixels: {said(error)}") from None
    except Image.UnidentifiedImageError:
        raise DecodeError("not an image of a known format, or its header is truncated") from None
    except Exception as error:  # PIL's readers raise whatever a damaged header makes them stumble over
        raise DecodeError(f"damaged header: {said(error)}") from None


def jpeg_ends(data: bytes) -> bool:
    """Say whether the end marker follows the scan; the one of an embedded thumbnail does not count."""
    position = 2
    while position + 4 <= len(data):
        if data[position] != 0xFF:  # junk between segments, which decoders skip
            position = data.find(b"\xff", position)
            if position < 0:
                return False
            continue
        marker = data[position + 1]
        if marker in (0x00, 0xFF):  # a byte of that junk, a fill byte
            position += 1
        elif marker == 0xDA:  # start of scan: entropy-coded data cannot hold an end marker by chance
            return data.rfind(JPEG_END, position) >= 0  # almost always the last two bytes
        else:
            position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return False


def _is_plain(header: Image.Image, data: bytes) -> bool:
    """Say whether OpenCV decodes this image exactly as PIL does."""
    if header.format not in OPENCV_FORMATS or header.mode not in ("L", "RGB"):
        return False
    # With a colour profile libpng may write warnings to the terminal; PIL ignores profiles as we do.
    if header.format == "PNG" and "icc_profile" in header.info:
        return False
    if "transparency" in header.info or getattr(header, "n_frames", 1) > 1:
        return False
    if header.format == "PNG":
        # 16-bit RGB has mode RGB too: the bit depth is byte 24. Without its last chunk the file is
        # truncated, and PIL says so without libpng's noise.
        return data[24] == 8 and _png_chunks_are_plain(data)
    return _orientation(header) == 1


def _png_chunks_are_plain(data: bytes) -> bool:
    """Say whether the chunks lead to the last one, and none holds EXIF; pixels are stepped over."""
    position = 8
    while position + 12 <= len(data):
        kind = data[position + 4 : position + 8]
        if kind in (b"IEND", b"eXIf"):
            return kind == b"IEND"
        position += 12 + int.from_bytes(data[position : position + 4], "big")
    return False


def _orientation(header: Image.Image) -> int:
    if "exif" not in header.info:
        return 1
    try:
        return int(header.getexif().get(ORIENTATION, 1))
    except Exception:  # damaged metadata say nothing about the pixels
        return 1


def _decode_opencv(data: bytes) -> NDArray[np.uint8] | None:
    """Decode with OpenCV; None where it cannot, so that PIL finds the reason."""
    level = cv2.utils.logging.getLogLevel()
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    try:
        flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:
        return None
    finally:
        cv2.utils.logging.setLogLevel(level)
    return None if pixels is None else pixels.astype(np.uint8, copy=False)


def _turned(pixels: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Apply an EXIF orientation: 5 to 8 swap rows and columns, and then come the mirrors."""
    if not 2 <= orientation <= 8:
        return pixels
    if orientation >= 5:
        pixels = pixels.transpose(1, 0, 2)
    rows = -1 if orientation in (3, 4, 7, 8) else 1
    columns = -1 if orientation in (2, 3, 6, 7) else 1
    return np.ascontiguousarray(pixels[::rows, ::columns])
