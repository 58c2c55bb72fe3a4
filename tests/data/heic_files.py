"""HEIC files for tests: written by pillow-heif, and put together as telephones do, from tiles."""

import io
import struct
from collections.abc import Iterator, Sequence

import numpy as np
import pillow_heif
from PIL import Image


def heic(image: np.ndarray, **options: object) -> bytes:
    """Write (H, W), (H, W, 3) or (H, W, 4), uint8 or, for 10 bits, uint16, as a HEIC of one part."""
    buffer = io.BytesIO()
    if image.dtype == np.uint16:
        size = (image.shape[1], image.shape[0])
        mode = {2: "I;16"}.get(image.ndim) or {3: "RGB;16", 4: "RGBA;16"}[image.shape[2]]
        made = pillow_heif.from_bytes(mode=mode, size=size, data=image.tobytes())
    else:
        made = pillow_heif.from_pillow(Image.fromarray(image))
    made.save(buffer, **options)
    return buffer.getvalue()


def box(kind: bytes, *content: bytes) -> bytes:
    return struct.pack(">I", 8 + sum(map(len, content))) + kind + b"".join(content)


def full_box(kind: bytes, version: int, *content: bytes) -> bytes:
    return box(kind, bytes([version, 0, 0, 0]), *content)


def places(data: bytes, kind: bytes, start: int = 0, end: int | None = None) -> Iterator[tuple[int, int]]:
    """Yield where boxes of a kind begin and end, at any depth."""
    end = len(data) if end is None else end
    while start + 8 <= end:
        size, found = int.from_bytes(data[start : start + 4], "big"), data[start + 4 : start + 8]
        if found == kind:
            yield start, start + size
        elif found in (b"meta", b"iprp", b"ipco"):
            yield from places(data, kind, start + 8 + 4 * (found == b"meta"), start + size)
        start += size


def contents(data: bytes, kind: bytes) -> bytes:
    start, end = next(places(data, kind))
    return data[start:end]


def grid(
    tiles: Sequence[bytes], rows: int, columns: int, width: int, height: int, properties: Sequence[bytes] = ()
) -> bytes:
    """Put HEICs of equal size together to one image, the last of them repeated; ``properties`` turn the whole."""
    count = rows * columns
    shared = [contents(tiles[0], kind) for kind in (b"hvcC", b"ispe")]
    whole, payloads = (
        full_box(b"ispe", 0, struct.pack(">II", width, height)),
        [contents(one, b"mdat")[8:] for one in tiles],
    )
    of_tile, item = [min(number, len(tiles) - 1) for number in range(count)], count + 1
    layout = bytes([0, 1, rows - 1, columns - 1]) + struct.pack(">II", width, height)

    def entry(number: int, kind: bytes) -> bytes:
        return full_box(b"infe", 2, struct.pack(">HH", number, 0), kind, b"\0")

    entries = [*(entry(number, b"hvc1") for number in range(1, item)), entry(item, b"grid")]
    links = [struct.pack(">HB", number, 2) + b"\x81\x02" for number in range(1, item)]
    links.append(struct.pack(">HB", item, 1 + len(properties)) + bytes([3, *range(0x84, 0x84 + len(properties))]))

    def head(start: int) -> bytes:
        begins = start + np.cumsum([0, *map(len, payloads)])
        data = [struct.pack(">HHHHII", number + 1, 0, 0, 1, begins[tile], len(payloads[tile]))
                for number, tile in enumerate(of_tile)]  # fmt: skip
        data.append(struct.pack(">HHHHII", item, 1, 0, 1, 0, len(layout)))
        many = struct.pack(">H", item)
        return box(b"ftyp", b"heic", bytes(4), b"mif1heic") + full_box(
            b"meta", 0, full_box(b"hdlr", 0, bytes(4), b"pict", bytes(13)), full_box(b"pitm", 0, many),
            full_box(b"iloc", 1, b"\x44\x00", many, *data), full_box(b"iinf", 0, many, *entries),
            full_box(b"iref", 0, box(b"dimg", struct.pack(f">HH{count}H", item, *range(count, item), *range(1, item)))),
            box(b"iprp", box(b"ipco", *shared, whole, *properties),
                full_box(b"ipma", 0, struct.pack(">I", item), *links)),
            box(b"idat", layout),
        )  # fmt: skip

    return head(len(head(0)) + 8) + box(b"mdat", *payloads)
