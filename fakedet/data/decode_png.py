"""The checksums of a PNG's pixels, which PIL does not look at."""

from __future__ import annotations

import zlib

from fakedet.data.decode_error import DecodeError

SIGNATURE = 8
"""Bytes before the first chunk."""


def check_pixels(data: bytes) -> None:
    """Check the chunks that hold the pixels, as libpng does when OpenCV decodes.

    Raises:
        DecodeError: one is not what was written.
    """
    view, position = memoryview(data), SIGNATURE
    while position + 12 <= len(data):
        end = position + 8 + int.from_bytes(view[position : position + 4], "big")
        kind = data[position + 4 : position + 8]
        wrong = kind == b"IDAT" and zlib.crc32(view[position + 4 : end]) != int.from_bytes(
            view[end : end + 4], "big"
        )
        if wrong:
            raise DecodeError("damaged PNG: the checksum of its pixels is wrong")
        if kind == b"IEND":
            return
        position = end + 4
