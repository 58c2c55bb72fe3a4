"""Decoding: image files to 8-bit RGB by fixed rules, and what their headers say.

OpenCV decodes plain 8-bit JPEG, PNG, WebP and BMP, libheif HEIC, PIL everything else (JPEG 2000 by OpenJPEG); where
both can, they agree bit for bit. A file that cannot be read is a :class:`DecodeError` with a short reason, never a
crash.
"""

from __future__ import annotations

import hashlib
import io
import os
import stat
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import product
from threading import Condition
from typing import Any

import cv2
import numpy as np
import pi_heif
from numpy.typing import NDArray
from PIL import Image, ImageChops
from PIL.ExifTags import Base as Tag

from fakedet.data.boxes import Heic
from fakedet.data.jpeg2000 import read_codestream
from fakedet.data.kinds import FIRST, what_is

MAX_PIXELS = 100_000_000  # Images with more pixels are refused before they are decoded
MAX_BYTES = 256 * 2**20  # Larger files are refused before they are read
MAX_MEMORY = 1_500_000_000  # Bytes: images whose decoding takes more are refused
STRIP = 1 << 20  # Pixels of a decoded image that are converted at a time
HEADER_BYTES = 1 << 18  # Of a file's beginning; most headers fit
# PIL registers some of its readers only when a file needs them; the list must not depend on that.
Image.init()
# Of a HEIC file only the primary image is looked at; one thread, so that its memory is known.
pi_heif.register_heif_opener(thumbnails=False, depth_images=False, aux_images=False, decode_threads=1)
# One block for an image: blocks above 32 MB go back to the system when they are freed, smaller ones may not.
Image.core.set_block_size(1 << 30)
# What PIL may try. Its other readers are rare, slow, or run programs (EPS).
TRIED = ("JPEG", "MPO", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM", "AVIF", "HEIF", "JPEG2000")
FORMATS = tuple(name for name in TRIED if name in Image.OPEN)
JPEG = ("JPEG", "MPO")
PNG = b"\x89PNG\r\n\x1a\n"
PNG_DEPTH_BYTE = 24  # Place of a PNG's bit depth, which PIL does not tell
ORIENTATION = Tag.Orientation


class DecodeError(Exception):
    """An image file cannot be read; ``reason`` says why in a few words, on one line."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def _one_line(error: Exception) -> str:
    """Return a library's message as one short printable line; the files that it quotes may hold anything."""
    if isinstance(error, MemoryError):
        return "not enough memory"
    text = " ".join("".join(c if c.isprintable() else " " for c in str(error)).split())
    return text[:200] or type(error).__name__


@contextmanager
def _damaged(what: str) -> Iterator[None]:
    """Tell any error of the block as a DecodeError: readers raise errors of many types on damaged files."""
    try:
        with warnings.catch_warnings(action="ignore"):  # about damaged metadata, and large images: see max_pixels
            yield
    except DecodeError:
        raise
    except Exception as error:
        reason = _one_line(error)
        raise DecodeError(reason if "truncated" in reason else f"{what}: {reason}") from None


class Budget:
    """An amount of memory that threads share: a thread that asks for more than is left waits until it is free."""

    def __init__(self, total: int) -> None:
        self.total = self._left = total
        self._changed = Condition()

    @contextmanager
    def take(self, count: int) -> Iterator[None]:
        """Take ``count`` bytes while the block runs; with more than the total, the block runs alone."""
        count = min(count, self.total)
        with self._changed:
            self._changed.wait_for(lambda: self._left >= count)
            self._left -= count
        try:
            yield
        finally:
            with self._changed:
                self._left += count
                self._changed.notify_all()


def memory_to_read(source: str | os.PathLike[str] | bytes, budget: Budget, each: float = 0.0) -> int:
    """Return how many bytes of memory a file, or its bytes, take to read and decode; 0 for one that will be refused.

    Most headers stand at the beginning of a file; for others ``budget`` lends the memory to read all of it. On ``each``
    see :func:`memory_to_decode`.
    """
    try:
        size = len(source) if isinstance(source, bytes) else os.stat(source).st_size
    except (OSError, ValueError):
        return 0
    for count in (HEADER_BYTES, size):
        with suppress(DecodeError), budget.take(2 * count):
            data = source if isinstance(source, bytes) else read_bytes(source, count)
            return 2 * size + memory_to_decode(_open(data, MAX_PIXELS, budget.total, each)[0], each)
    return 0


def memory_to_decode(image: Image.Image, each: float = 0.0) -> int:
    """Return the most bytes of memory that decoding an opened image takes, apart from its file (measured).

    ``each``: bytes per pixel that the use of the decoded image takes.
    """
    decoding = {"WEBP": 17, "AVIF": 20, "TIFF": 9, "PPM": 16}.get(str(image.format), 8)
    if image.format in JPEG and "progressive" in image.info:
        decoding = 16 if image.mode == "CMYK" else 12
    area = image.width * image.height
    if image.format == "JPEG2000":  # OpenJPEG holds numbers of 32 bits
        decoding = 4 + 8 * len(image.getbands())
    if image.format == "HEIF":
        decoding = 12 if image.info.get("bit_depth") == 8 else 22
        area += image.info.get("largest_part", 0)  # a tile may be larger than the image
    need = int(max(each, decoding) * area)
    tags = getattr(image, "tag_v2", None)
    if tags is not None:  # of a TIFF, whose strips and tiles are decoded as a whole
        width, length = (int(tags.get(tag) or 0) for tag in (Tag.TileWidth, Tag.TileLength))
        if not width:
            width, length = image.width, min(int(tags.get(Tag.RowsPerStrip) or image.height), image.height)
        bits = int(max(tags.get(Tag.BitsPerSample) or (8,))) * int(tags.get(Tag.SamplesPerPixel) or 1)
        if min(width, length, bits) <= 0:
            raise DecodeError(f"damaged header: strips or tiles of {width}x{length} pixels of {bits} bits")
        need += width * length * (bits + 7) // 8
    return need


def digest_of(path: str | os.PathLike[str]) -> str:
    """Give the SHA-256 of a file; errors as of :func:`read_bytes`."""
    return hashlib.sha256(read_bytes(path)).hexdigest()


def read_bytes(path: str | os.PathLike[str], count: int = -1) -> bytes:
    """Read a file, or its first ``count`` bytes.

    A DecodeError if it is missing, may not be read, is not a regular file, or is too large. The last two are checked
    before anything is read, because reading a pipe would never end.
    """
    try:
        found = os.stat(path)
        if stat.S_ISDIR(found.st_mode):
            may_enter = os.access(path, os.R_OK | os.X_OK)
            raise DecodeError("a folder, not a file" if may_enter else "a folder without permission to read it")
        if not stat.S_ISREG(found.st_mode):
            raise DecodeError("not a regular file")
        if count < 0 and found.st_size > MAX_BYTES:
            raise DecodeError(f"too large: {found.st_size} bytes, the limit is {MAX_BYTES}")
        with open(path, "rb") as file:
            return file.read(count)
    except FileNotFoundError:
        raise DecodeError("no such file") from None
    except PermissionError:
        raise DecodeError("no permission to read it") from None
    except OSError as error:  # a name that is too long, say
        raise DecodeError(f"cannot be read: {error.strerror}") from None
    except ValueError as error:  # a NUL byte in the name
        raise DecodeError(f"cannot be read: {_one_line(error)}") from None


def read_image(path: str | os.PathLike[str]) -> NDArray[np.uint8]:
    """Read an image file as 8-bit RGB; errors as for :func:`read_bytes` and :func:`decode_image`."""
    return decode_image(read_bytes(path))


@_damaged("truncated or damaged")
def decode_image(data: bytes, max_pixels: int = MAX_PIXELS, max_memory: int = MAX_MEMORY) -> NDArray[np.uint8]:
    """Decode the bytes of an image file as 8-bit RGB, by these rules:

    * EXIF orientation is applied.
    * Transparent images are laid on white.
    * Greyscale is replicated to three channels; palettes are looked up.
    * 16-bit samples keep their high byte, 12-bit ones their upper 8 bits; deeper and signed ones are refused.
    * CMYK is converted, inverted where Adobe says so; embedded colour profiles are ignored everywhere.
    * The first frame of an animation is taken, of several pictures (MPO, TIFF) the first, of a HEIC the primary one.
    * JPEG 2000 is decoded at its full resolution and quality; colours of more than 8 bits are refused.
    * A HEIC is turned and mirrored as its properties irot and imir say; its EXIF orientation, which repeats them, is
      not applied. Its 10-bit samples keep their upper 8 bits.
    * What follows a JPEG's end (the film of a motion photo, a gain map) is not looked at.
    * A JPEG whose data end before its end marker is refused, though decoders would fill it up silently.
    * Other metadata are not looked at; their size and their damage do not matter.

    Returns (H, W, 3) uint8, RGB, contiguous, writable. A DecodeError if the data are empty, truncated, no image, or
    their header names more than ``max_pixels`` or pixels that take more than ``max_memory`` bytes to decode, which is
    checked before decoding.
    """
    header, data = _open(data, max_pixels, max_memory)
    if missing := what_is_missing(header.format, data):
        raise DecodeError(missing)
    if _is_plain(header, data):
        pixels = _decode_opencv(data)
        if pixels is not None and pixels.shape == (header.height, header.width, 3):
            return pixels
    pixels, orientation = _decode_pil(header, data), _orientation(header)
    del header  # frees PIL's copy of the pixels before they are turned
    return _turned(pixels, orientation)


@_damaged("truncated or damaged")
def decode_opened(image: Image.Image) -> NDArray[np.uint8]:
    """Convert an image that PIL opened or made, by the rules of :func:`decode_image`; the errors are the same."""
    return _turned(_decode_pil(image), _orientation(image))


@dataclass(frozen=True, slots=True)
class Header:
    """What an image file's header says; no pixel is decoded for it."""

    format: str  # PIL's name: JPEG, PNG, WEBP, ...
    width: int
    height: int
    jpeg_quality: int  # 1 ... 100: the quality of the IJG library whose luminance table is nearest; 0 if not a JPEG
    jpeg_tables: str  # Equal names, equal quantisation tables and chroma subsampling; "" if not a JPEG


def parse_header(data: bytes, max_memory: int = MAX_MEMORY, each: float = 0.0) -> Header:
    """Read the header of an image file; the beginning of its bytes is enough where it holds no long metadata.

    A file that is empty, no image, damaged, or too large for :func:`decode_image` is a DecodeError; so is one too large
    for what follows, which takes ``each`` bytes a pixel.
    """
    return header_of(_open(data, MAX_PIXELS, max_memory, each)[0])


# ITU-T T.81, Annex K, table K.1: the luminance table that the IJG library scales by its quality.
LUMINANCE = np.array([
    16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55, 14, 13, 16, 24, 40, 57, 69, 56,
    14, 17, 22, 29, 51, 87, 80, 62, 18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92,
    49, 64, 78, 87, 103, 121, 120, 101, 72, 92, 95, 98, 112, 100, 103, 99,
])  # fmt: skip
QUALITIES = np.arange(1, 101)
SCALES = np.where(QUALITIES < 50, 5000 // QUALITIES, 200 - 2 * QUALITIES)
STANDARD_TABLES = np.clip((LUMINANCE[None] * SCALES[:, None] + 50) // 100, 1, 255)


@_damaged("damaged header")
def header_of(image: Image.Image) -> Header:
    """Return the header of an image that PIL opened; the format of one that was made in memory is ""."""
    kind, quality = str(image.format or ""), 0
    if kind not in JPEG:
        return Header(kind, *image.size, 0, "")
    tables: dict[int, list[int]] = getattr(image, "quantization", None) or {}
    # PIL holds each component as (id, horizontal sampling, vertical sampling, table).
    layers = [layer[1:3] for layer in getattr(image, "layer", [])]
    name = hashlib.sha256(repr((sorted(tables.items()), layers)).encode()).hexdigest()[:12]
    if luminance := tables.get(0) or next(iter(tables.values()), None):
        quality = int(np.argmin(np.abs(STANDARD_TABLES - luminance[:64]).sum(axis=1))) + 1
    return Header(kind, *image.size, quality, name)


@_damaged("damaged header")
def _open(data: bytes, max_pixels: int, max_memory: int, each: float = 0.0) -> tuple[Image.Image, bytes]:
    """Open an image; also return its bytes as they are to be decoded, without metadata that stop decoders."""
    if not data:
        raise DecodeError("empty file")
    data = _bare_png(data)
    try:
        try:
            image = Image.open(io.BytesIO(data), formats=FORMATS)
        except Exception:
            if not data.startswith(b"\xff\xd8"):
                raise
            data = _bare_jpeg(data)
            image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError:
        raise DecodeError(f"too many pixels: the limit is {max_pixels}") from None
    except Image.UnidentifiedImageError:
        raise DecodeError(_unidentified(what_is(data[:FIRST]))) from None
    width, height = image.size
    if width * height > max_pixels:
        raise DecodeError(f"too many pixels: {width}x{height}, the limit is {max_pixels}")
    _check_container(image, data, max_pixels)
    if (need := memory_to_decode(image, each)) > max_memory:
        raise DecodeError(f"too large: {width}x{height} pixels of this {image.format or 'image'} take up to "
                          f"{need / 1e6:.0f} MB of memory, the limit is {max_memory / 1e6:.0f} MB")  # fmt: skip
    return image, data


def _check_container(image: Image.Image, data: bytes, max_pixels: int) -> None:
    """Refuse what takes more memory or time than the size of the image says, where decoders would not."""
    if image.format == "HEIF":
        image.info["largest_part"], pixels = Heic(data).parts(most := 2 * max_pixels)  # the alpha plane counts too
        if pixels > most:
            raise DecodeError(f"too many pixels: the parts of the image have more than {most}")
    if image.format == "JPEG2000":
        *found, bits = read_codestream(data)
        if found != [*image.size, len(image.getbands())]:
            raise DecodeError("damaged header: its pixels are not of the size or the colours that it names")
        if bits > 8 and len(image.getbands()) > 1:  # PIL rounds the highest values up to 256, which is 0
            raise DecodeError(f"JPEG 2000 with colours of {bits} bits is not read: convert it to PNG, or to 8 bits")


def _unidentified(what: str) -> str:
    """Say why PIL does not know an image, of what it begins like."""
    if what == "a JPEG XL image":
        return "JPEG XL is not read: convert it to PNG or JPEG, without making it smaller"
    if what and not what.endswith(" image"):
        return f"not an image, but {what}"
    return "not an image of a known format, or its header is truncated"


def _bare_png(data: bytes) -> bytes:
    """Leave out the chunks of a PNG that do not say how its first image looks: texts, profiles, frames, ..."""
    if not data.startswith(PNG):
        return data
    chunks = list(_png_chunks(data))
    kinds = [kind for kind, _, _ in chunks]
    if b"IEND" in kinds and b"IDAT" not in kinds:
        raise DecodeError("damaged PNG: it has no pixels")
    # Critical chunks begin with a capital letter.
    kept = [
        kind[:1].isupper() or kind == b"tRNS" or (kind == b"eXIf" and end + 4 <= len(data)) or not kind.isalpha()
        for kind, _, end in chunks
    ]
    if all(kept) and b"IDAT" in kinds:
        return data
    view = memoryview(data)
    parts = [view[start - 4 : end + 4] for (_, start, end), keep in zip(chunks, kept, strict=True) if keep]
    # Where only the beginning of a file is given, what PIL reads up to may lie beyond.
    return b"".join([PNG, *parts, b"" if b"IDAT" in kinds else b"\0\0\0\0IDAT"])


def _bare_jpeg(data: bytes) -> bytes:
    """Leave out the comments and application segments of a JPEG, except for what says how it looks."""
    kept, last = [b"\xff\xd8"], 2
    for marker, start, end in _jpeg_segments(data):
        content = data[start + 4 : start + 18]
        is_kept = content.startswith(b"Exif\0\0") or (content.startswith(b"Adobe") and end - start >= 16)
        if is_kept or not (0xE0 <= marker <= 0xEF or marker == 0xFE):
            kept.append(data[start:end])
        last = end
    return b"".join([*kept, data[last:]])


@_damaged("truncated or damaged")
def what_is_missing(kind: str | None, data: bytes) -> str:
    """Say what is missing of a file of this format where decoders would fill it up in silence; "" if nothing is."""
    if kind in JPEG and not jpeg_ends(data):
        return "truncated JPEG: its end marker is missing"
    if kind == "HEIF" and not Heic(data).ends():
        return "truncated HEIC: a part of its pixels is missing"
    return ""


def jpeg_ends(data: bytes) -> bool:
    """Return whether the end marker follows the scan; the one of an embedded thumbnail does not count."""
    # Entropy-coded data cannot hold an end marker by chance. It is almost always the last two bytes.
    return any(marker == 0xDA and data.rfind(b"\xff\xd9", start) >= 0 for marker, start, _ in _jpeg_segments(data))


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield the marker, beginning and end of each segment of a JPEG up to the first start of scan, 0xDA."""
    position = 2
    while position + 4 <= len(data):
        marker = data[position + 1]
        if data[position] != 0xFF or marker in (0x00, 0xFF):  # junk between segments, which decoders skip; a fill byte
            if (position := data.find(b"\xff", position + 1)) < 0:
                return
            continue
        end = position + 2 + int.from_bytes(data[position + 2 : position + 4], "big")
        yield marker, position, end
        if marker == 0xDA:
            return
        position = end


def _orientation(header: Image.Image) -> int:
    if header.format == "HEIF":  # libheif turns it as its properties irot and imir say; its EXIF does not count
        return 1
    with suppress(Exception), warnings.catch_warnings(action="ignore"):  # damaged metadata say nothing about the pixels
        if "exif" in header.info:
            return int(header.getexif().get(ORIENTATION, 1))
    return 1


def _is_plain(header: Image.Image, data: bytes) -> bool:
    """Return whether OpenCV decodes this image exactly as PIL does."""
    if header.format not in ("JPEG", "PNG", "WEBP", "BMP") or header.mode not in ("L", "RGB"):
        return False
    if "transparency" in header.info or getattr(header, "n_frames", 1) > 1 or max(header.size) > 1_000_000:
        return False
    if header.format != "PNG":
        return _orientation(header) == 1
    if data[PNG_DEPTH_BYTE] != 8:  # 16-bit RGB has the mode RGB too
        return False
    # Without its last chunk the file is truncated, and PIL says so without libpng's output. EXIF may turn it.
    kinds = [kind for kind, _, _ in _png_chunks(data)]
    return kinds[-1:] == [b"IEND"] and b"eXIf" not in kinds


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield the kind of each chunk of a PNG up to IEND, where its kind begins, and where its data end."""
    position = len(PNG)
    while position + 12 <= len(data):
        end = position + 8 + int.from_bytes(data[position : position + 4], "big")
        kind = data[position + 4 : position + 8]
        yield kind, position + 4, end
        if kind == b"IEND":
            return
        position = end + 4


def _decode_opencv(data: bytes) -> NDArray[np.uint8] | None:
    """Decode with OpenCV; None where it cannot, so that PIL finds the reason."""
    level = cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error:
        return None
    finally:
        cv2.utils.logging.setLogLevel(level)
    return None if pixels is None else pixels.astype(np.uint8, copy=False)


def _decode_pil(image: Image.Image, data: bytes = b"") -> NDArray[np.uint8]:
    """Decode an opened image by the rules of :func:`decode_image`, except for its orientation; ``data`` is its file."""
    image.load()
    depth, view = 8, memoryview(data)
    if image.format == "PNG" and data:
        depth = data[PNG_DEPTH_BYTE]
        for kind, start, end in _png_chunks(data):  # libpng checks the pixels' checksums too, when OpenCV decodes
            if kind == b"IDAT" and zlib.crc32(view[start:end]) != int.from_bytes(view[end : end + 4], "big"):
                raise DecodeError("damaged PNG: the checksum of its pixels is wrong")
    with _damaged("cannot be converted to RGB"):
        colour = image.info.get("transparency")
        if depth != 8 and colour is not None and image.mode in ("L", "RGB"):  # PIL converts the samples, but not this
            is_rgb = image.mode == "RGB"  # of 16 bits, of which the high byte stays
            colour = tuple(sample >> 8 for sample in colour) if is_rgb else colour * 255 // (2**depth - 1)
            image.info["transparency"] = colour
        width, height = image.size
        pixels = np.empty((height, width, 3), np.uint8)
        columns = min(width, STRIP)
        rows = max(1, STRIP // columns)  # part by part: a whole copy for each step would take gigabytes
        for top, left in product(range(0, height, rows), range(0, width, columns)):
            part = pixels[top : top + rows, left : left + columns]
            part[:] = _to_rgb(image, image.crop((left, top, left + part.shape[1], top + part.shape[0])))
        return pixels


def _to_rgb(image: Image.Image, part: Image.Image) -> NDArray[np.uint8]:
    """Convert a part of a decoded image to RGB."""
    if image.mode in ("F", "I") or image.mode.startswith("I;16"):
        return np.repeat(_deep_to_grey(image, np.asarray(part))[..., None], 3, axis=2)
    if image.mode == "CMYK" and image.format in JPEG and "adobe" not in image.info:
        part = ImageChops.invert(part)  # only Adobe writes inks inverted; PIL takes all files for Adobe's
    if "A" in image.mode or "a" in image.mode or image.info.get("transparency") is not None:
        layered = part.convert("RGBA")
        part = Image.alpha_composite(Image.new("RGBA", layered.size, (255, 255, 255, 255)), layered)
    return np.asarray(part.convert("RGB"))


def _deep_to_grey(image: Image.Image, values: NDArray[Any]) -> NDArray[np.uint8]:
    """Reduce grey samples of 9 to 16 bits, a part of an image, to 8 bits."""
    if image.mode == "F":
        raise DecodeError("floating-point pixels: their range is not known")
    is_tiff, transparent = image.format == "TIFF", image.info.get("transparency")
    tags: Any = getattr(image, "tag_v2", {}) if is_tiff else {}
    bits = int(tags.get(Tag.BitsPerSample, (16,))[0])
    if bits > 16 or (is_tiff and image.mode == "I") or values.min() < 0 or values.max() > 0xFFFF:
        raise DecodeError("32-bit or signed pixels: their range is not known")
    grey = (values >> (bits - 8)).astype(np.uint8)
    if tags.get(Tag.PhotometricInterpretation) == 0:  # white is zero
        grey = 255 - grey
    if transparent is not None:  # of a 16-bit grey PNG
        grey[values == transparent] = 255
    return grey


def _turned(pixels: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Apply an EXIF orientation: 5 to 8 swap rows and columns; mirroring comes after."""
    if 5 <= orientation <= 8:
        pixels = pixels.transpose(1, 0, 2)
    rows = -1 if orientation in (3, 4, 7, 8) else 1
    columns = -1 if orientation in (2, 3, 6, 7) else 1
    return np.ascontiguousarray(pixels[::rows, ::columns])
