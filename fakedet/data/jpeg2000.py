"""What the headers of a JPEG 2000 codestream (ITU-T T.800) say about the memory that OpenJPEG takes to decode it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

SOC, SIZ, COD, COC, SOT, SOD, EOC = 0xFF4F, 0xFF51, 0xFF52, 0xFF53, 0xFF90, 0xFF93, 0xFFD9
# Files of real programs stay far from these. Each tile, code block and precinct takes memory, however small it is.
MAX_TILES = 10_000
MAX_LAYERS = 100
MIN_AREA = 256  # pixels of a code block, and of a precinct


class Codestream(NamedTuple):
    """The size of an image, its number of components, and the most bits that one of them has."""

    width: int
    height: int
    components: int
    bits: int


def read_codestream(data: bytes) -> Codestream:
    """Read the headers of a .j2k or .jp2 file, up to where ``data`` end.

    ValueError for what is no codestream, and for more tiles or layers, or smaller blocks, than the limits above.
    """
    start = 0 if data.startswith(b"\xff\x4f") else _box(data, b"jp2c")
    segments = _segments(data, start)
    kind, at, size = next(segments, (0, 0, 0))
    if kind != SIZ or size < 39:
        raise ValueError("a codestream without a size")
    right, bottom, left, top, tile_width, tile_height, tile_left, tile_top = (
        _number(data, at + 2 + 4 * place, 4) for place in range(8)
    )
    if not (right > left and bottom > top and tile_width and tile_height):
        raise ValueError("a codestream without pixels")
    tiles = -(-(right - tile_left) // tile_width) * -(-(bottom - tile_top) // tile_height)
    if tiles > MAX_TILES:
        raise ValueError(f"{tiles} tiles, the limit is {MAX_TILES}")
    components = _number(data, at + 34, 2)
    bits = max((1 + (_number(data, at + 36 + 3 * number, 1) & 127) for number in range(components)), default=0)
    for kind, at, _ in segments:
        if kind == COD:
            _check_blocks(data, at + 5, _number(data, at, 1) & 1)
            if (layers := _number(data, at + 2, 2)) > MAX_LAYERS:
                raise ValueError(f"{layers} quality layers, the limit is {MAX_LAYERS}")
        elif kind == COC:
            wide = 1 if components < 257 else 2
            _check_blocks(data, at + wide + 1, _number(data, at + wide, 1) & 1)
    return Codestream(right - left, bottom - top, components, bits)


def _check_blocks(data: bytes, at: int, has_precincts: int) -> None:
    """Refuse tiny code blocks and precincts; ``at``: number of resolutions, code block, style, transform, precincts."""
    areas = [1 << (_number(data, at + 1, 1) & 15) + (_number(data, at + 2, 1) & 15) + 4]
    if has_precincts:
        sizes = [_number(data, at + 5 + level, 1) for level in range(_number(data, at, 1) + 1)]
        areas += [1 << (size & 15) + (size >> 4) for size in sizes]
    if min(areas) < MIN_AREA:
        raise ValueError(f"code blocks or precincts of {min(areas)} pixels, the limit is {MIN_AREA}")


def _number(data: bytes, start: int, size: int) -> int:
    if start + size > len(data):
        raise ValueError("truncated: its header is cut short")
    return int.from_bytes(data[start : start + size], "big")


def _box(data: bytes, wanted: bytes) -> int:
    """Find where the content of a box begins."""
    at = 0
    while at + 8 <= len(data):
        size, begin = _number(data, at, 4), at + 8
        if size == 1:
            size, begin = _number(data, at + 8, 8), at + 16
        if data[at + 4 : at + 8] == wanted:
            return begin
        if size < begin - at:
            break
        at += size
    raise ValueError("no codestream")


def _segments(data: bytes, start: int) -> Iterator[tuple[int, int, int]]:
    """Yield kind, place and size of the content of each marker segment: of the main header and of parts of tiles."""
    at, end = start + 2, len(data)
    while at + 4 <= len(data):
        kind, size = _number(data, at, 2), _number(data, at + 2, 2)
        if kind == SOD:
            at = end
            continue
        if kind == EOC or size < 2:
            return
        if kind == SOT:
            end = at + (_number(data, at + 6, 4) or len(data))
            if end <= at + 12:
                return
        yield kind, at + 4, size - 2
        at += 2 + size
