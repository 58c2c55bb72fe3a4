"""Decoding against PIL as the oracle, and damaged files against the promise that none passes silently."""

import io
import logging
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageFile

from fakedet.data.decode import (
    HEADER_BYTES,
    ORIENTATION,
    Budget,
    DecodeError,
    decode_image,
    memory_to_decode,
    memory_to_read,
    parse_header,
    read_image,
)
from fakedet.utils import quiet_libraries


def picture(height: int = 61, width: int = 47) -> np.ndarray:
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return np.asarray(cv2.GaussianBlur(noise, (0, 0), 1.0))


def encoded(image, fmt: str, **options) -> bytes:
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, fmt, **options)
    return buffer.getvalue()


def by_pil(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


PLAIN = {
    **{f"jpeg {sub} {prog}": ("JPEG", {"quality": 80, "subsampling": sub, "progressive": prog})
       for sub in (0, 1, 2) for prog in (False, True)},
    "png": ("PNG", {}), "webp": ("WEBP", {"quality": 80}), "lossless webp": ("WEBP", {"lossless": True}),
    "bmp": ("BMP", {}), "tiff": ("TIFF", {}),
}  # fmt: skip


@pytest.mark.parametrize("kind", PLAIN)
@pytest.mark.parametrize("grey", [False, True])
def test_pixels_are_bit_identical_to_pil(kind: str, grey: bool) -> None:
    fmt, options = PLAIN[kind]
    image = picture()[..., 0] if grey else picture()
    if grey:
        options = {key: value for key, value in options.items() if key != "subsampling"}
    data = encoded(image, fmt, **options)
    pixels = decode_image(data)
    assert pixels.dtype == np.uint8
    assert pixels.shape == (61, 47, 3)
    assert pixels.flags["C_CONTIGUOUS"]
    np.testing.assert_array_equal(pixels, by_pil(data))


def test_png_orientation_is_found_after_the_pixels_too() -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    data = encoded(picture(), "PNG", exif=exif)
    at = data.index(b"eXIf") - 4
    end = at + 12 + int.from_bytes(data[at : at + 4], "big")
    last = data.index(b"IEND") - 4
    moved = data[:at] + data[end:last] + data[at:end] + data[last:]
    for order in (data, moved):
        np.testing.assert_array_equal(decode_image(order), np.rot90(picture(), -1))


def test_plain_files_take_the_fast_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda *_: pytest.fail("PIL decoded it"))
    for fmt in ("JPEG", "PNG", "WEBP", "BMP"):
        assert decode_image(encoded(picture(), fmt)).shape == picture().shape


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("fmt", ["JPEG", "PNG", "WEBP"])
def test_exif_orientation_is_applied(orientation: int, fmt: str) -> None:
    image = picture()
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(image, fmt, exif=exif, **({"lossless": True} if fmt == "WEBP" else {}))
    # Oracle: what the EXIF standard says of each value, as numpy operations.
    turned = {1: lambda a: a, 2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1],
              5: lambda a: a.transpose(1, 0, 2), 6: lambda a: np.rot90(a, -1),
              7: lambda a: a[::-1, ::-1].transpose(1, 0, 2), 8: lambda a: np.rot90(a, 1)}  # fmt: skip
    np.testing.assert_array_equal(decode_image(data), turned[orientation](by_pil(data)))


def test_transparency_is_laid_on_white() -> None:
    image = picture()
    alpha = np.random.default_rng(1).integers(0, 256, image.shape[:2], dtype=np.uint8)
    data = encoded(np.dstack([image, alpha]), "PNG")
    share = alpha[..., None] / 255.0
    expected = image * share + 255.0 * (1 - share)
    assert np.abs(decode_image(data) - expected).max() <= 1.0


def test_opaque_alpha_changes_nothing() -> None:
    image = picture()
    data = encoded(np.dstack([image, np.full(image.shape[:2], 255, np.uint8)]), "PNG")
    np.testing.assert_array_equal(decode_image(data), image)


def test_a_transparent_colour_is_laid_on_white() -> None:
    image = picture()
    image[3, 4] = (1, 2, 3)
    pixels = decode_image(encoded(image, "PNG", transparency=(1, 2, 3)))
    assert pixels[3, 4].tolist() == [255, 255, 255]
    np.testing.assert_array_equal(pixels[10:], image[10:])


def test_palette_bilevel_and_cmyk_are_converted() -> None:
    palette = Image.fromarray(picture()).quantize(16)
    np.testing.assert_array_equal(decode_image(encoded(palette, "PNG")), np.asarray(palette.convert("RGB")))
    bilevel = Image.fromarray(picture()).convert("1")
    assert set(np.unique(decode_image(encoded(bilevel, "PNG")))) == {0, 255}
    data = encoded(Image.fromarray(picture()).convert("CMYK"), "JPEG", quality=95)
    np.testing.assert_array_equal(decode_image(data), by_pil(data))


def test_16_bit_samples_keep_their_high_byte() -> None:
    values = np.random.default_rng(0).integers(0, 2**16, (20, 30), dtype=np.uint16)
    grey = decode_image(encoded(values, "PNG"))
    np.testing.assert_array_equal(grey, np.repeat((values >> 8)[..., None], 3, axis=2))
    deep = np.random.default_rng(0).integers(0, 2**16, (20, 30, 3), dtype=np.uint16)
    colour = decode_image(cv2.imencode(".png", deep)[1].tobytes())
    np.testing.assert_array_equal(colour, (deep >> 8)[..., ::-1])


def test_floating_point_pixels_are_refused() -> None:
    with pytest.raises(DecodeError, match="floating-point"):
        decode_image(encoded(Image.fromarray(np.zeros((4, 4), np.float32)), "TIFF"))


def test_first_frame_of_an_animation_counts() -> None:
    frames = [Image.fromarray(np.full((20, 20, 3), value, np.uint8)) for value in (50, 200)]
    for fmt, options in (("GIF", {}), ("WEBP", {"lossless": True}), ("PNG", {})):
        data = encoded(frames[0], fmt, save_all=True, append_images=frames[1:], **options)
        assert set(np.unique(decode_image(data))) == {50}, fmt


@pytest.mark.parametrize("fmt", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF"])
@pytest.mark.parametrize("share", [0.01, 0.2, 0.5, 0.8, 0.97])
def test_truncated_files_are_noticed(fmt: str, share: float, capfd: pytest.CaptureFixture[str]) -> None:
    data = encoded(picture(200, 200), fmt)
    with pytest.raises(DecodeError):
        decode_image(data[: int(len(data) * share)])
    if fmt != "TIFF":  # libtiff writes its own warnings
        assert capfd.readouterr().err == ""


def test_a_truncated_jpeg_is_noticed_though_its_thumbnail_is_whole() -> None:
    exif = b"Exif\0\0" + encoded(picture(16, 16), "JPEG")
    data = encoded(picture(200, 200), "JPEG", exif=exif)
    assert decode_image(data).shape == (200, 200, 3)
    for share in (0.4, 0.7, 0.99):
        with pytest.raises(DecodeError, match="truncated"):
            decode_image(data[: int(len(data) * share)])


def test_a_jpeg_whose_tail_is_zeros_is_noticed_and_one_with_something_after_its_end_is_not() -> None:
    data = encoded(picture(200, 200), "JPEG")
    half = len(data) // 2
    with pytest.raises(DecodeError, match="truncated"):
        decode_image(data[:half] + bytes(len(data) - half))
    np.testing.assert_array_equal(decode_image(data + b"\xff\xda trailing notes"), decode_image(data))


def test_a_decoder_that_fills_up_in_silence_does_not_hide_truncation(monkeypatch: pytest.MonkeyPatch) -> None:
    # As OpenCV 4 does: grey where the data end, and no error.
    monkeypatch.setattr(cv2, "imdecode", lambda *_: np.zeros((200, 200, 3), np.uint8))
    exif = b"Exif\0\0" + encoded(picture(16, 16), "JPEG")
    for options in ({}, {"exif": exif}, {"progressive": True}):
        data = encoded(picture(200, 200), "JPEG", **options)
        decode_image(data)
        for end in (len(data) // 2, len(data) - 2):
            with pytest.raises(DecodeError, match="truncated"):
                decode_image(data[:end])


def test_too_many_pixels_are_refused_before_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("OpenCV decoded it"))
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda *_: pytest.fail("PIL decoded it"))
    with pytest.raises(DecodeError, match="too many pixels: 47x61"):
        decode_image(encoded(picture(), "PNG"), max_pixels=47 * 61 - 1)


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def segment(marker: int, content: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content


NOISE = np.random.default_rng(3).bytes(2_000_000)
ZEROS = zlib.compress(bytes(3_000_000))
PNG_METADATA = {
    "large profile": chunk(b"iCCP", b"k\0\0" + ZEROS), "broken profile": chunk(b"iCCP", b"k\0\0" + NOISE),
    "large zTXt": chunk(b"zTXt", b"k\0\0" + ZEROS), "broken zTXt": chunk(b"zTXt", b"k\0\0" + NOISE),
    "large iTXt": chunk(b"iTXt", b"k\0\1\0\0\0" + ZEROS), "empty iTXt": chunk(b"iTXt", b""),
    "large tEXt": chunk(b"tEXt", b"k\0" + bytes(70_000_000)), "wrong checksum": chunk(b"tEXt", b"k\0a")[:-1] + b"x",
    "many texts": b"".join(chunk(b"tEXt", b"k%d\0" % number + bytes(80_000)) for number in range(900)),
    "a text bomb": chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(200_000_000), 9)),
    "large EXIF": chunk(b"eXIf", b"MM\0*\0\0\0\x08" + NOISE), "provenance": chunk(b"caBX", NOISE),
    "short pHYs": chunk(b"pHYs", b"1"), "empty gAMA": chunk(b"gAMA", b""), "short cHRM": chunk(b"cHRM", b"12"),
    "empty sRGB": chunk(b"sRGB", b""), "short acTL": chunk(b"acTL", b"1"),
}  # fmt: skip


@pytest.mark.parametrize("name", PNG_METADATA)
def test_metadata_never_cost_the_pixels_of_a_png(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    data = encoded(picture(), "PNG")
    for place in (33, data.index(b"IEND") - 4):  # after the header, after the pixels
        whole = data[:place] + PNG_METADATA[name] + data[place:]
        np.testing.assert_array_equal(decode_image(whole), picture())
        assert (parse_header(whole).width, parse_header(whole[:HEADER_BYTES]).height) == (47, 61)
    assert capfd.readouterr().err == ""


JPEG_METADATA = {
    "profile": [segment(0xE2, b"ICC_PROFILE\0" + bytes([n + 1, 99]) + NOISE[:65_000]) for n in range(99)],
    "empty profile": [segment(0xE2, b"ICC_PROFILE\0")], "short JFIF": [segment(0xE0, b"JFIF")],
    "short Adobe": [segment(0xEE, b"Adobe")], "EXIF": [segment(0xE1, b"Exif\0\0" + NOISE[:65_000])] * 20,
    "XMP": [segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + NOISE[:65_000])] * 20,
    "comments": [segment(0xFE, NOISE[:65_000])] * 200, "MPF": [segment(0xE2, b"MPF\0" + NOISE[:500])],
    "Photoshop": [segment(0xED, b"Photoshop 3.0\0008BIM\x03\xed\x05ab")],
}  # fmt: skip


@pytest.mark.parametrize("name", JPEG_METADATA)
def test_metadata_never_cost_the_pixels_of_a_jpeg(name: str) -> None:
    data = encoded(picture(), "JPEG")
    whole = data[:2] + b"".join(JPEG_METADATA[name]) + data[2:]
    np.testing.assert_array_equal(decode_image(whole), by_pil(data))
    assert parse_header(whole).width == 47


def test_a_jpeg_without_its_damaged_metadata_keeps_its_orientation_and_inks() -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    for image in (Image.fromarray(picture()), Image.fromarray(picture()).convert("CMYK")):
        data = encoded(image, "JPEG", exif=exif)
        whole = data[:2] + segment(0xE2, b"ICC_PROFILE\0") + data[2:]
        np.testing.assert_array_equal(decode_image(whole), np.rot90(by_pil(data), -1))


@pytest.mark.parametrize("fmt", ["WEBP", "TIFF", "GIF", "AVIF"])
def test_large_metadata_of_other_formats_do_not_matter(fmt: str) -> None:
    options = {"GIF": {"comment": NOISE}, "TIFF": {"icc_profile": NOISE, "description": "a" * 2_000_000}}
    more = {"icc_profile": NOISE, "xmp": NOISE, "exif": b"Exif\0\0MM\0*\0\0\0\x08\0\0\0\0\0\0" + NOISE}
    image = Image.fromarray(picture()).quantize(200) if fmt == "GIF" else Image.fromarray(picture())
    plain, whole = encoded(image, fmt), encoded(image, fmt, **options.get(fmt, more))
    np.testing.assert_array_equal(decode_image(whole), decode_image(plain))


def test_decoding_takes_no_more_memory_than_is_said() -> None:
    side, exif = 3000, Image.Exif()
    exif[ORIENTATION] = 6
    image = Image.fromarray(np.resize(np.arange(256, dtype=np.uint8), (side, side, 4)))
    made = {
        "RGBA": encoded(image, "PNG"), "palette": encoded(image.convert("P"), "PNG", transparency=3),
        "turned": encoded(image.convert("RGB"), "JPEG", exif=exif),
        "progressive": encoded(image.convert("CMYK"), "JPEG", progressive=True),
        "row": encoded(Image.frombytes("RGBA", (side * 1000, 1), bytes(side * 4000)), "PNG"),
    }  # fmt: skip
    for name, data in made.items():
        with Image.open(io.BytesIO(data)) as opened:
            said = memory_to_decode(opened)
        Path("/proc/self/clear_refs").write_text("5")  # forgets the peak
        before = memory("VmRSS")
        decode_image(data)
        assert memory("VmHWM") - before < said + 60_000_000, name


def memory(name: str) -> int:
    """Give a number of bytes that Linux counts for this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(name)).split()[1])


def test_pixels_that_take_too_much_memory_are_refused_before_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda *_: pytest.fail("PIL decoded it"))
    for fmt in ("PNG", "WEBP", "AVIF", "TIFF"):
        with pytest.raises(DecodeError, match=f"too large: 47x61 pixels of this {fmt} .*the limit is 0 MB"):
            decode_image(encoded(picture(), fmt), max_memory=10_000)
    # A file of a few bytes with one tile of 2.7 GB or more.
    tags = {256: 47, 257: 61, 258: 8, 259: 5, 262: 2, 277: 3, 322: 30_000, 323: 30_000, 324: 8, 325: 8}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    with pytest.raises(DecodeError, match="too large: 47x61 pixels of this TIFF take up to 3488 MB"):
        decode_image(b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4))


def tiff(tags: dict[int, tuple[int, bytes]]) -> bytes:
    """Write a grey TIFF of 50 x 50 pixels by hand; ``tags`` are put in or replace others: number → type and value."""
    usual = {256: 50, 257: 50, 258: 8, 259: 1, 262: 1, 273: 200, 277: 1, 278: 50, 279: 2500}
    rows = sorted(({tag: (4, struct.pack("<I", value)) for tag, value in usual.items()} | tags).items())
    written = b"".join(struct.pack("<HHI4s", tag, kind, 1 if kind in (4, 9, 11) else 4, value)
                       for tag, (kind, value) in rows)  # fmt: skip
    return b"II*\0" + struct.pack("<IH", 8, len(rows)) + written + bytes(5004)


ROWS, TILE_WIDTH, TILE_LENGTH, STRIPS = 278, 322, 323, 273
LONG, SIGNED, FLOAT = (4, struct.pack("<I", 2000)), (9, struct.pack("<i", -2_000_000)), 11


@pytest.mark.parametrize("tags", [
    {ROWS: (FLOAT, struct.pack("<f", float("nan")))}, {ROWS: (FLOAT, struct.pack("<f", float("inf")))},
    {ROWS: SIGNED}, {TILE_WIDTH: SIGNED, TILE_LENGTH: LONG}, {TILE_WIDTH: SIGNED, TILE_LENGTH: SIGNED},
    {TILE_WIDTH: (2, b"abc\0"), TILE_LENGTH: LONG}, {TILE_WIDTH: (7, b"abcd"), TILE_LENGTH: LONG},
])  # fmt: skip
def test_a_tiff_whose_strips_are_no_numbers_or_negative_has_a_damaged_header(
    tags: dict[int, tuple[int, bytes]],
) -> None:
    data, budget = tiff(tags), Budget(10**9)
    for read in (parse_header, decode_image):
        with pytest.raises(DecodeError, match=r"^damaged header: "):
            read(data)
    assert memory_to_read(data, budget) == 0
    assert decode_image(tiff({})).shape == (50, 50, 3)


def test_what_pil_says_of_a_file_without_its_name_is_not_told(caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("PIL").setLevel(logging.NOTSET)
    many = tiff({277: (4, struct.pack("<I", 9))})
    with pytest.raises(DecodeError):
        parse_header(many)
    assert len(caplog.records) == 1  # "More samples per pixel than can be decoded: 9"
    quiet_libraries()
    with pytest.raises(DecodeError):
        parse_header(many)
    assert len(caplog.records) == 1


def test_any_error_of_a_library_is_a_reason_why_a_file_cannot_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(picture(), "PNG")
    monkeypatch.setattr(cv2, "imdecode", lambda *_: (_ for _ in ()).throw(ZeroDivisionError("of a library")))
    with pytest.raises(DecodeError, match="of a library"):
        decode_image(data)


def test_every_unreadable_file_has_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "text.png").write_text("<html>404</html>")
    for name, reason in (("empty.jpg", "empty"), ("text.png", "not an image"), ("gone.png", "no such file"),
                         (".", "folder")):  # fmt: skip
        with pytest.raises(DecodeError, match=reason) as caught:
            read_image(tmp_path / name)
        assert reason in caught.value.reason

    def refuse(*arguments: object, **settings: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(DecodeError, match="permission"):
        read_image(tmp_path / "text.png")


@pytest.mark.parametrize("fmt", ["PNG", "WEBP", "TIFF"])
def test_the_first_file_of_a_process_is_read_too(fmt: str, tmp_path: Path) -> None:
    # PIL registers its readers as it goes; a process that has read nothing yet knows none.
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(encoded(picture(), fmt, **({"lossless": True} if fmt == "WEBP" else {})))
    program = "import sys; from fakedet.data.decode import read_image; [read_image(p) for p in sys.argv[1:]]"
    subprocess.run([sys.executable, "-c", program, *map(str, tmp_path.iterdir())], check=True)


def test_random_damage_never_ends_in_another_error() -> None:
    rng = np.random.default_rng(0)
    for fmt in ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF"):
        whole = bytearray(encoded(picture(), fmt))
        for _ in range(40):
            damaged = bytearray(whole)
            for place in rng.integers(0, len(damaged), 3):
                damaged[place] = int(rng.integers(256))
            try:
                pixels = decode_image(bytes(damaged), max_pixels=10**6)
            except DecodeError:
                continue
            assert pixels.dtype == np.uint8
            assert pixels.shape[2] == 3
