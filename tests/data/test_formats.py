"""The rarer formats of archives and telephones: JPEG 2000, several pictures in a file, a film behind a picture."""

import io
import struct
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageFile

from fakedet.data import decode, jpeg2000
from fakedet.data.decode import MAX_MEMORY, MAX_PIXELS, DecodeError, decode_image, memory_to_decode, parse_header
from fakedet.data.kinds import FIRST, not_looked_at, what_is


def picture(seed: int = 0, height: int = 64, width: int = 48) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return np.asarray(cv2.GaussianBlur(noise, (0, 0), 2.0))


def encoded(image: np.ndarray | Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("options", [{}, {"no_jp2": True}, {"tile_size": (32, 32)}, {"quality_layers": [40, 20, 0]}])
def test_lossless_jpeg_2000_gives_the_pixels_that_were_written(options: dict[str, object]) -> None:
    image = picture()
    if "quality_layers" in options:
        options = {**options, "quality_mode": "rates", "quality_layers": [40, 20, 1]}
    data = encoded(image, "JPEG2000", **options)
    np.testing.assert_array_equal(decode_image(data), image)
    header = parse_header(data)
    assert (header.format, header.width, header.height) == ("JPEG2000", 48, 64)


def test_grey_alpha_deep_and_luminance_samples_of_jpeg_2000() -> None:
    image = picture()
    grey = encoded(image[..., 0], "JPEG2000")
    np.testing.assert_array_equal(decode_image(grey), np.repeat(image[..., :1], 3, axis=2))
    alpha = np.tile(np.linspace(0, 255, 48, dtype=np.uint8), (64, 1))
    found = decode_image(encoded(np.dstack([image, alpha]), "JPEG2000"))
    share = alpha[..., None] / 255
    assert np.abs(found - (image * share + 255 * (1 - share))).max() <= 1
    deep = np.random.default_rng(0).integers(0, 2**16, (64, 48), dtype=np.uint16)
    np.testing.assert_array_equal(decode_image(encoded(deep, "JPEG2000"))[..., 0], deep >> 8)
    ycc = decode_image(encoded(Image.fromarray(image).convert("YCbCr"), "JPEG2000"))
    assert np.abs(ycc.astype(int) - image).max() <= 4


@pytest.mark.skipif(not cv2.haveImageWriter("x.jp2"), reason="this OpenCV writes no JPEG 2000")
def test_deep_colours_of_jpeg_2000_are_refused_not_wrapped() -> None:
    white = np.full((64, 48, 3), 65535, np.uint16)  # which PIL gives as black
    data = cv2.imencode(".jp2", white, [cv2.IMWRITE_JPEG2000_COMPRESSION_X1000, 1000])[1].tobytes()
    with pytest.raises(DecodeError, match="JPEG 2000 with colours of 16 bits is not read: convert it"):
        decode_image(data)


@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.9, 0.999])
def test_truncated_jpeg_2000_is_noticed(share: float) -> None:
    for options in ({}, {"tile_size": (32, 32)}, {"irreversible": True, "quality_layers": [5]}):
        data = encoded(picture(0, 200, 200), "JPEG2000", **options)
        end = int(share * len(data))
        for damaged in (data[:end], data[:end] + bytes(len(data) - end)):
            with pytest.raises(DecodeError):
                decode_image(damaged)


def test_jpeg_2000_that_takes_more_than_its_size_says_is_refused_before_decoding(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda *_: pytest.fail("it was decoded"))
    data = encoded(picture(), "JPEG2000")
    size, style = data.index(b"\xff\x51") + 4, data.index(b"\xff\x52") + 4

    def changed(place: int, content: bytes) -> bytes:
        return data[:place] + content + data[place + len(content) :]

    bombs = {
        "too many pixels": changed(data.index(b"ihdr") + 4, struct.pack(">II", 10**7, 48)),
        "its pixels are not of the size": changed(size + 2, struct.pack(">II", 50, 90)),
        "3072 tiles, the limit is 3000": changed(size + 18, struct.pack(">II", 1, 1)),
        "50000 quality layers": changed(style + 2, struct.pack(">H", 50_000)),
        "code blocks or precincts of 16 pixels": changed(style + 6, b"\0\0"),
        "too large: 48x64": data,
    }
    monkeypatch.setattr(jpeg2000, "MAX_TILES", 3000)
    for reason, bomb in bombs.items():
        with pytest.raises(DecodeError, match=reason):
            decode_image(bomb, max_memory=1000 if bomb is data else MAX_MEMORY)


MEMORY = """
import sys
from pathlib import Path
from fakedet.data.decode import decode_image

def memory(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(name)).split()[1])

data = Path(sys.argv[1]).read_bytes()
before = memory("VmRSS")
decode_image(data)
print(memory("VmHWM") - before)
"""


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
def test_decoding_jpeg_2000_takes_no_more_memory_than_is_said(mode: str, tmp_path: Path) -> None:
    image = Image.new("RGBA", (2000, 1500), (10, 200, 30, 99)).convert(mode)
    data = encoded(image, "JPEG2000", codeblock_size=(16, 16))
    (tmp_path / "large.jp2").write_bytes(data)
    said = memory_to_decode(decode._open(data, MAX_PIXELS, MAX_MEMORY)[0])
    run = subprocess.run([sys.executable, "-c", MEMORY, tmp_path / "large.jp2"], capture_output=True, check=True)
    assert said / 4 < int(run.stdout) < said + 20_000_000


def test_random_damage_of_jpeg_2000_never_ends_in_another_error() -> None:
    rng, outcomes = np.random.default_rng(0), set()
    for options in ({}, {"no_jp2": True}, {"tile_size": (32, 32)}):
        whole = encoded(picture(), "JPEG2000", **options)
        for number in range(100):
            damaged = np.frombuffer(whole, np.uint8).copy()
            end = len(whole) if number % 2 else 220  # the headers stand first
            damaged[rng.integers(0, end, 3)] = rng.integers(0, 256, 3)
            try:
                outcomes.add(decode_image(damaged.tobytes(), max_pixels=10**6).dtype.name)
            except DecodeError as error:
                outcomes.add(error.reason)
    assert "uint8" in outcomes
    assert len(outcomes) > 5
    assert all(reason and "\n" not in reason for reason in outcomes)


def test_of_several_pictures_in_a_jpeg_the_first_is_read() -> None:
    first, second = (Image.fromarray(picture(seed)) for seed in (0, 1))
    data = encoded(first, "MPO", save_all=True, append_images=[second], quality=90)
    with Image.open(io.BytesIO(data)) as opened:
        assert (opened.format, opened.n_frames) == ("MPO", 2)
    np.testing.assert_array_equal(decode_image(data), decode_image(encoded(first, "JPEG", quality=90)))
    with pytest.raises(DecodeError, match="truncated"):
        decode_image(data[: data.index(b"\xff\xda") + 200])


def test_what_follows_a_jpeg_is_not_looked_at() -> None:
    data = encoded(picture(), "JPEG", quality=90)
    film = b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom" + np.random.default_rng(0).bytes(5000)  # a motion photo
    for rest in (film, b"MotionPhoto_Data" + film, data):
        np.testing.assert_array_equal(decode_image(data + rest), decode_image(data))


def test_jpeg_xl_says_what_to_do() -> None:
    for data in (b"\xff\x0a" + bytes(99), b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(99)):
        with pytest.raises(DecodeError, match="JPEG XL is not read: convert it to PNG or JPEG"):
            decode_image(data)


def test_a_file_is_named_by_its_content_first() -> None:
    for kind in ("JPEG", "PNG", "GIF", "WEBP", "TIFF", "AVIF", "JPEG2000"):
        data = encoded(picture(), kind)[:FIRST]
        assert what_is(data).endswith(" image"), kind
        assert not_looked_at(data, "notes.pdf") == "", kind
    assert what_is(b"PK\x03\x04", "a.docx") == "an Office document"
    assert what_is(b"PK\x03\x04", "a.zip") == "a ZIP archive"
    assert what_is("Grüße\n".encode()) == "a text file"
    assert what_is(("ü" * FIRST).encode()[: FIRST - 1]) == "a text file"  # cut inside of a letter
    assert what_is(b"<svg xmlns='x'/>") == "a drawing (SVG)"
    assert what_is(b"\0\1\2", "film.mpg") == "a video (MPG)"
    assert what_is(b"\0\1\2") == ""
    assert not_looked_at(b"\0\1\2", "photo.JPG") == ""
    assert not_looked_at(b"\0\1\2", "data") == "not looked at: it is no image"
