"""Every kind of pixel against arrays made by hand: no decoder is its own judge."""

import base64
import io
import struct
import zlib
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image, ImageCms

from fakedet.data.decode import DecodeError, decode_image

RNG = np.random.default_rng(0)
HEIGHT, WIDTH = 20, 32
GREY, ALPHA = (RNG.integers(0, 256, (HEIGHT, WIDTH), dtype=np.uint8) for _ in range(2))
RGB = RNG.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
GREY16, ALPHA16 = (RNG.integers(0, 2**16, (HEIGHT, WIDTH), dtype=np.uint16) for _ in range(2))
RGB16 = RNG.integers(0, 2**16, (HEIGHT, WIDTH, 3), dtype=np.uint16)
INKS = np.repeat(np.array([(200, 30, 60, 20), (0, 0, 0, 0), (0, 0, 0, 255), (10, 120, 250, 100)], np.uint8), 8, axis=0)
INKS = np.repeat(INKS[None], 16, axis=0)  # (16, 32, 4): blocks of one colour, which JPEG keeps
PRINTED = (255.0 - INKS[..., :3]) * (255.0 - INKS[..., 3:]) / 255.0


def saved(image: Any, fmt: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, fmt, **options)
    return buffer.getvalue()


def on_white(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    share = alpha / 255.0 if colour.ndim == 2 else alpha[..., None] / 255.0
    return colour * share + 255.0 * (1 - share)


def check(data: bytes, expected: np.ndarray, tolerance: float = 0) -> None:
    if expected.ndim == 2:
        expected = np.repeat(expected[..., None], 3, axis=2)
    pixels = decode_image(data)
    assert (pixels.shape, pixels.dtype) == (expected.shape, np.uint8)
    assert pixels.flags["C_CONTIGUOUS"]
    assert pixels.flags["WRITEABLE"]
    assert np.abs(pixels - expected.astype(np.float64)).max() <= tolerance


def png(depth: int, colour: int, samples: np.ndarray, *chunks: tuple[bytes, bytes]) -> bytes:
    """Write a PNG by hand; samples (H, W) or (H, W, C), of less than 8 bits grey only."""
    if depth == 16:
        rows = [row.astype(">u2").tobytes() for row in samples]
    else:
        bits = ((samples[..., None] >> np.arange(depth - 1, -1, -1)) & 1).astype(np.uint8)
        rows = [np.packbits(row).tobytes() for row in bits.reshape(len(samples), -1)]
    head = struct.pack(">IIBBBBB", samples.shape[1], samples.shape[0], depth, colour, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    parts = [(b"IHDR", head), *chunks, (b"IDAT", pixels), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in parts
    )


def tiff(bits: int, photometric: int, data: bytes, samples: int = 1, *tags: tuple[int, int]) -> bytes:
    """Write an uncompressed little-endian TIFF of one strip by hand."""
    count = 10 + len(tags)
    directory = 8 + len(data)
    behind = directory + 2 + 12 * count + 4
    values = {256: WIDTH, 257: HEIGHT, 259: 1, 262: photometric, 273: 8, 277: samples, 278: HEIGHT,
              279: len(data), 284: 1, **dict(tags)}  # fmt: skip
    entries = [struct.pack("<HHII", tag, 4, 1, value) for tag, value in values.items()]
    entries.append(struct.pack("<HHII", 258, 3, samples, bits if samples == 1 else behind))
    entries.sort(key=lambda entry: entry[:2][::-1])
    body = data + struct.pack("<H", count) + b"".join(entries) + bytes(4) + struct.pack("<H", bits) * samples
    return b"II*\0" + struct.pack("<I", directory) + body


@pytest.mark.parametrize("fmt", ["PNG", "TIFF", "WEBP"])
def test_alpha_is_laid_on_white(fmt: str) -> None:
    options = {"lossless": True, "exact": True} if fmt == "WEBP" else {}
    check(saved(np.dstack([RGB, ALPHA]), fmt, **options), on_white(RGB, ALPHA), 1)
    if fmt != "WEBP":
        grey = Image.merge("LA", [Image.fromarray(GREY), Image.fromarray(ALPHA)])
        check(saved(grey, fmt), on_white(GREY, ALPHA), 1)


def test_deep_alpha_is_laid_on_white() -> None:
    expected = on_white(RGB16 >> 8, ALPHA16 >> 8)
    check(png(16, 6, np.dstack([RGB16, ALPHA16])), expected, 1)
    check(png(16, 4, np.dstack([GREY16, ALPHA16])), on_white(GREY16 >> 8, ALPHA16 >> 8), 1)
    check(tiff(16, 2, np.dstack([RGB16, ALPHA16]).astype("<u2").tobytes(), 4, (338, 2)), expected, 1)


def test_associated_alpha_is_not_applied_twice_and_an_unspecified_sample_is_no_alpha() -> None:
    colour = (RGB.astype(int) * ALPHA[..., None] // 255).astype(np.uint8)
    check(tiff(8, 2, np.dstack([colour, ALPHA]).tobytes(), 4, (338, 1)), on_white(RGB, ALPHA), 3)
    check(tiff(8, 2, np.dstack([RGB, ALPHA]).tobytes(), 4, (338, 0)), RGB)


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_a_transparent_grey_is_meant_in_the_file_s_own_samples(depth: int) -> None:
    samples = GREY16 if depth == 16 else GREY >> (8 - depth)
    value = int(samples[3, 4])
    grey = samples >> 8 if depth == 16 else samples.astype(int) * 255 // (2**depth - 1)
    check(png(depth, 0, samples), grey)
    check(png(depth, 0, samples, (b"tRNS", struct.pack(">H", value))), np.where(samples == value, 255, grey))


@pytest.mark.parametrize("depth", [8, 16])
def test_a_transparent_colour_is_meant_in_the_file_s_own_samples(depth: int) -> None:
    samples = RGB16 if depth == 16 else RGB
    value = samples[3, 4]
    data = png(depth, 2, samples, (b"tRNS", struct.pack(">HHH", *map(int, value))))
    check(data, np.where((samples == value).all(-1)[..., None], 255, samples >> (depth - 8)))


def palette(colours: int) -> tuple[Image.Image, np.ndarray, np.ndarray]:
    image = Image.fromarray(RGB).quantize(colours)
    return image, np.asarray(image), np.array(image.getpalette()).reshape(-1, 3)


def test_palettes_of_all_sizes_are_looked_up() -> None:
    for bits in (1, 2, 4, 8):
        image, indices, colours = palette(2**bits)
        check(saved(image, "PNG", bits=bits), colours[indices])
    for fmt in ("TIFF", "BMP", "GIF"):
        check(saved(image, fmt), colours[indices])


def test_a_palette_s_transparency_is_laid_on_white() -> None:
    image, indices, colours = palette(16)
    alpha = RNG.integers(0, 256, 16, dtype=np.uint8)
    check(saved(image, "PNG", transparency=alpha.tobytes()), on_white(colours[indices], alpha[indices]), 1)
    for fmt in ("PNG", "GIF"):
        one = np.where(indices == 3, 0, 255)
        check(saved(image, fmt, transparency=3), on_white(colours[indices], one))


@pytest.mark.parametrize("fmt", ["PNG", "TIFF", "BMP", "GIF", "PPM"])
def test_one_bit_is_black_or_white(fmt: str) -> None:
    check(saved(Image.fromarray(GREY > 127), fmt), (GREY > 127) * 255)


def test_deep_samples_keep_their_high_byte() -> None:
    check(png(16, 0, GREY16), GREY16 >> 8)
    check(png(16, 2, RGB16), RGB16 >> 8)
    check(saved(GREY16, "TIFF"), GREY16 >> 8)
    check(tiff(16, 1, GREY16.astype("<u2").tobytes()), GREY16 >> 8)
    for packing in (1, 5, 8):  # none, LZW, deflate
        data = cv2.imencode(".tiff", RGB16[..., ::-1], [cv2.IMWRITE_TIFF_COMPRESSION, packing])[1].tobytes()
        check(data, RGB16 >> 8)
    check(b"P5 32 20 65535\n" + GREY16.astype(">u2").tobytes(), GREY16 >> 8)
    twelve = GREY16 >> 4
    pairs = twelve.reshape(-1, 2).astype(int)
    packed = bytes(byte for a, b in pairs for byte in (a >> 4, (a & 15) << 4 | b >> 8, b & 255))
    check(tiff(12, 1, packed), twelve >> 4)


def test_white_may_be_zero() -> None:
    check(tiff(8, 0, GREY.tobytes()), 255 - GREY)
    check(tiff(16, 0, GREY16.astype("<u2").tobytes()), (0xFFFF - GREY16) >> 8)


def test_samples_without_a_known_range_are_refused() -> None:
    small = np.arange(HEIGHT * WIDTH, dtype=np.uint32)
    for data in (tiff(32, 1, small.tobytes()), tiff(16, 1, small.astype("<i2").tobytes(), 1, (339, 2))):
        with pytest.raises(DecodeError, match="32-bit or signed"):
            decode_image(data)
    with pytest.raises(DecodeError, match="floating-point"):
        decode_image(tiff(32, 1, small.astype("<f4").tobytes(), 1, (339, 3)))


def cmyk(samples: np.ndarray) -> bytes:
    """Write a JPEG that holds these samples, marked as Adobe's."""
    inverted = 255 - np.ascontiguousarray(samples)  # PIL inverts what it writes
    return saved(Image.frombuffer("CMYK", (32, 16), inverted.tobytes()), "JPEG", quality=100)


def test_cmyk_is_inverted_where_adobe_says_so_and_nowhere_else() -> None:
    check(cmyk(255 - INKS), PRINTED, 6)
    data = cmyk(INKS)
    adobe = data.find(b"Adobe") - 4
    check(data[:adobe] + data[adobe + 16 :], PRINTED, 6)
    check(saved(Image.frombuffer("CMYK", (32, 16), INKS.tobytes()), "TIFF"), PRINTED, 1)


def test_ycck_is_converted() -> None:
    inverted = 255 - INKS
    luma = np.asarray(Image.fromarray(255 - inverted[..., :3]).convert("YCbCr"))
    data = cmyk(np.dstack([luma, inverted[..., 3]]))
    transform = data.find(b"Adobe") + 11
    check(data[:transform] + b"\2" + data[transform + 1 :], PRINTED, 8)


def test_arithmetic_coding_is_read() -> None:
    # By jpegtran -arithmetic; 16x16 of quality 90: red and blue above, light blue below.
    data = base64.b64decode(
        "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAAMCAgMCAgMDAwMEAwMEBQgFBQQEBQoHBwYIDAoMDAsKCwsNDhIQDQ4RDgsLEBYQERMUFRUV"
        "DA8XGBYUGBIUFRT/2wBDAQMEBAUEBQkFBQkUDQsNFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQU"
        "FBT/yQARCAAQABADASIAAhEBAxEB/8wACgAQEAUBEBEF/9oADAMBAAIRAxEAPwD/AM48V+T9y5iqOeLPSsOkyQztBcLcloqSBWZe/wCe"
        "FxTvBdaddMfrddnw/9k="
    )
    pixels = decode_image(data).astype(int)
    for row, column, colour in ((2, 2, (196, 32, 57)), (2, 12, (7, 0, 2)), (12, 5, (21, 120, 224))):
        assert np.abs(pixels[row, column] - colour).max() <= 2


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("fmt", ["TIFF", "TIFF packed", "TIFF by hand", "MPO", "AVIF", "CMYK"])
def test_orientation_is_applied_in_the_rarer_formats(orientation: int, fmt: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = cv2.GaussianBlur(RGB, (0, 0), 3)
    if fmt == "TIFF by hand":
        data, plain = (tiff(8, 2, image.tobytes(), 3, (274, turn)) for turn in (orientation, 1))
    elif fmt == "AVIF" and "AVIF" not in Image.SAVE:
        pytest.skip("this PIL has no AVIF")
    else:
        name = {"CMYK": "JPEG"}.get(fmt, fmt.split()[0])
        picture = Image.fromarray(image).convert("CMYK") if fmt == "CMYK" else Image.fromarray(image)
        options = {"compression": "tiff_lzw"} if fmt == "TIFF packed" else {}
        data, plain = saved(picture, name, exif=exif, **options), saved(picture, name, **options)
    upright = decode_image(plain)
    turned = {1: lambda a: a, 2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1],
              5: lambda a: a.transpose(1, 0, 2), 6: lambda a: np.rot90(a, -1),
              7: lambda a: a[::-1, ::-1].transpose(1, 0, 2), 8: lambda a: np.rot90(a, 1)}  # fmt: skip
    check(data, turned[orientation](upright))


@pytest.mark.parametrize("fmt", ["GIF", "WEBP", "PNG", "TIFF", "MPO", "AVIF"])
def test_of_several_frames_the_first_counts(fmt: str) -> None:
    if fmt not in Image.SAVE_ALL:
        pytest.skip(f"this PIL writes no {fmt} of several frames")
    frames = [Image.fromarray(np.full((20, 32, 3), value, np.uint8)) for value in (50, 200, 90)]
    check(saved(frames[0], fmt, save_all=True, append_images=frames[1:]), np.full((20, 32, 3), 50), 1)


@pytest.mark.parametrize("profile", ["sRGB", "LAB", "broken"])
@pytest.mark.parametrize("fmt", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_colour_profiles_are_ignored(fmt: str, profile: str, capfd: pytest.CaptureFixture[str]) -> None:
    icc = b"broken" * 50
    if profile != "broken":
        icc = ImageCms.ImageCmsProfile(ImageCms.createProfile(profile)).tobytes()
    options = {"lossless": True} if fmt == "WEBP" else {}
    check(saved(RGB, fmt, icc_profile=icc, **options), decode_image(saved(RGB, fmt, **options)))
    assert capfd.readouterr().err == ""


def test_a_png_s_gamma_is_ignored() -> None:
    gamma = (b"gAMA", struct.pack(">I", 100_000))
    check(png(8, 2, RGB, gamma), RGB)
    check(png(8, 0, GREY, gamma, (b"sRGB", b"\0")), GREY)


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
def test_the_first_picture_of_several_is_pil_s(subsampling: str) -> None:
    image = Image.fromarray(RGB)
    data = saved(image, "MPO", save_all=True, append_images=[image.rotate(180)], subsampling=subsampling)
    assert Image.open(io.BytesIO(data)).format == "MPO"
    check(data, np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


def test_junk_between_a_jpeg_s_segments_is_skipped() -> None:
    data = saved(RGB, "JPEG")
    table = data.find(b"\xff\xdb")
    for junk in (b"\0", b"junk", b"\xff\0\xff\0"):
        check(data[:table] + junk + data[table:], decode_image(data))
