"""HEIC: the primary image, turned once, in 8 bits; what is missing, too large or a lie is refused."""

import io
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pillow_heif
import pytest
from heic_files import box, full_box, grid, heic, places
from PIL import Image, ImageFile

from fakedet.data import decode
from fakedet.data.decode import MAX_MEMORY, MAX_PIXELS, DecodeError, decode_image, memory_to_decode, parse_header
from fakedet.data.index import Settings, index_folder


def smooth(height: int = 64, width: int = 64, channels: int = 3, seed: int = 0) -> np.ndarray:
    """Give an image that compression hardly changes."""
    levels = np.random.default_rng(seed).integers(30, 226, (2, 2, channels))
    rows, columns = (np.linspace(0, 1, side)[:, None, None] for side in (height, width))
    across = levels[:, :1] + (levels[:, 1:] - levels[:, :1]) * columns[None, :, 0]
    return (across[0] + (across[1] - across[0]) * rows).round().astype(np.uint8)


def tiles(side: int = 64, count: int = 4) -> list[bytes]:
    return [heic(smooth(side, side, seed=seed), quality=90) for seed in range(count)]


def test_pixels_are_those_that_were_written() -> None:
    image = smooth(61, 47)
    for options in ({}, {"chroma": 444}):
        found = decode_image(heic(image, quality=95, **options))
        assert found.shape == (61, 47, 3)
        assert np.abs(found.astype(int) - image).max() <= 6
    grey = decode_image(heic(image[..., 0], quality=95))
    assert np.abs(grey.astype(int) - image[..., :1]).max() <= 4
    header = parse_header(heic(image))
    assert (header.format, header.width, header.height, header.jpeg_quality) == ("HEIF", 47, 61, 0)


def test_tiles_are_put_together_and_cut_to_the_size_of_the_image() -> None:
    made = tiles()
    found = decode_image(grid(made, 2, 2, 120, 100))
    whole = [decode_image(tile) for tile in made]
    expected = np.vstack([np.hstack(whole[:2]), np.hstack(whole[2:])])[:100, :120]
    assert np.abs(found.astype(int) - expected).max() <= 2


@pytest.mark.parametrize("angle", range(4))
@pytest.mark.parametrize("axis", [None, 0, 1])
def test_an_image_is_turned_once_as_its_properties_say(angle: int, axis: int | None) -> None:
    properties = [box(b"irot", bytes([angle]))] + ([] if axis is None else [box(b"imir", bytes([axis]))])
    upright = decode_image(grid(tiles(), 2, 2, 120, 100))
    # Oracle, ISO 23008-12: anticlockwise by 90 degrees times the angle; then top and bottom change places (0), or left
    # and right (1).
    expected = np.rot90(upright, angle)
    if axis is not None:
        expected = expected[::-1] if axis == 0 else expected[:, ::-1]
    np.testing.assert_array_equal(decode_image(grid(tiles(), 2, 2, 120, 100, properties)), expected)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_that_repeats_the_orientation_does_not_turn_it_twice(orientation: int) -> None:
    image, exif = smooth(40, 56), Image.Exif()
    exif[decode.ORIENTATION] = orientation
    # pillow-heif writes the orientation as irot and imir too, as telephones do.
    found = decode_image(heic(image, quality=95, exif=exif.tobytes()))
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", exif=exif)
    np.testing.assert_allclose(found.astype(int), decode_image(buffer.getvalue()), atol=6)


def test_exif_alone_turns_nothing() -> None:
    image, exif = smooth(40, 56), Image.Exif()
    exif[decode.ORIENTATION] = 6
    upright = heic(image, quality=95, exif=exif.tobytes())
    for kind in (b"irot", b"imir"):
        for start, end in places(upright, kind):  # properties that turn nothing in their place
            upright = upright[:start] + box(b"irot", b"\0") + upright[end:]
    with Image.open(io.BytesIO(upright)) as opened:
        assert opened.info["original_orientation"] == 6
    assert decode_image(upright).shape == (40, 56, 3)


def test_deep_samples_keep_their_upper_8_bits() -> None:
    image = smooth()
    deep = image.astype(np.uint16) * 257
    for given in (deep, deep[..., 0].copy(), np.dstack([deep, np.full((64, 64), 65535, np.uint16)])):
        data = heic(given, quality=95)
        with Image.open(io.BytesIO(data)) as opened:
            assert opened.info["bit_depth"] == 10
        expected = image if given.ndim == 3 else image[..., :1]
        assert np.abs(decode_image(data).astype(int) - expected).max() <= 4


def test_transparency_is_laid_on_white_and_profiles_are_ignored() -> None:
    image, alpha = smooth(), np.tile(np.linspace(0, 255, 64, dtype=np.uint8), (64, 1))
    found = decode_image(heic(np.dstack([image, alpha]), quality=-1, chroma=444))
    share = alpha[..., None] / 255
    assert np.abs(found - (image * share + 255 * (1 - share))).max() <= 4
    buffer, made = io.BytesIO(), Image.fromarray(image)
    made.info["icc_profile"] = b"no profile at all"
    pillow_heif.from_pillow(made).save(buffer, quality=90)
    np.testing.assert_array_equal(decode_image(buffer.getvalue()), decode_image(heic(image, quality=90)))


def test_of_several_images_the_primary_one_is_read() -> None:
    made = pillow_heif.from_pillow(Image.fromarray(smooth(seed=1)))
    made.add_from_pillow(Image.fromarray(smooth(32, 32, seed=2)))
    for primary, side in ((0, 64), (1, 32)):
        buffer = io.BytesIO()
        made.save(buffer, quality=90, primary_index=primary)
        assert decode_image(buffer.getvalue()).shape == (side, side, 3)


@pytest.mark.parametrize("kind", ["one", "grid"])
def test_truncated_files_are_noticed(kind: str) -> None:
    rng = np.random.default_rng(0)
    noise = [heic(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8), quality=80) for _ in range(4)]
    data = noise[0] if kind == "one" else grid(noise, 2, 2, 128, 128)
    decode_image(data)
    for share in (0.01, 0.3, 0.6, 0.9, 0.999):
        end = int(share * len(data))
        with pytest.raises(DecodeError):
            decode_image(data[:end])
        if end < len(data) - 64:
            with pytest.raises(DecodeError):
                decode_image(data[:end] + bytes(len(data) - end))


def test_index_names_a_truncated_file(tmp_path: Path) -> None:
    for kind, seeds in (("real", (0, 1, 2)), ("fake", (3, 4, 5))):
        (tmp_path / "data" / kind).mkdir(parents=True)
        for seed in seeds:
            (tmp_path / "data" / kind / f"{seed}.heic").write_bytes(heic(smooth(seed=seed)))
    cut = tmp_path / "data" / "real" / "cut.HEIC"
    cut.write_bytes(grid(tiles(), 2, 2, 128, 100)[:-40])
    found = index_folder(tmp_path / "data", tmp_path / "m.parquet", Settings())
    assert "real/cut.HEIC,truncated HEIC: a part of its pixels is missing" in found.rejected.read_text()
    assert found.reasons.total() == 1


def test_bombs_are_refused_before_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    large, tile = heic(np.zeros((1500, 2000, 3), np.uint8), quality=10), tiles(count=1)
    bombs = {
        "more pixels": (grid(tile, 2, 2, 20_000, 20_000), "too many pixels"),
        "large tiles of a small image": (grid([large], 16, 16, 64, 64), "the parts of the image have more than"),
        "no size": (grid(tile, 2, 2, 128, 128).replace(b"ispe", b"free", 1), "a part of the image has no size"),
    }
    with monkeypatch.context() as patch:
        patch.setattr(ImageFile.ImageFile, "load", lambda *_: pytest.fail("it was decoded"))
        for data, reason in bombs.values():
            with pytest.raises(DecodeError, match=reason):
                decode_image(data)
        with pytest.raises(DecodeError, match="too large: 64x64 pixels of this HEIF take up to 36 MB"):
            decode_image(grid([large], 2, 2, 64, 64), max_memory=1_000_000)
    # A stream larger than the file says: libheif refuses it.
    start, _ = next(places(large, b"ispe"))
    for size in ((64, 64), (2000, 64), (2000, 1499), (2004, 1500)):
        with pytest.raises(DecodeError, match=r"maximum image size|size signaled"):
            decode_image(large[: start + 12] + struct.pack(">II", *size) + large[start + 20 :])


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


@pytest.mark.parametrize("kind", ["8 bits", "10 bits", "grid"])
def test_decoding_heic_takes_no_more_memory_than_is_said(kind: str, tmp_path: Path) -> None:
    large = np.full((2000, 3000, 4), 99, np.uint8)
    if kind == "grid":
        data = grid([heic(np.zeros((1000, 1000, 3), np.uint8), chroma=444)], 2, 3, 3000, 2000, [box(b"irot", b"\1")])
    else:
        data = heic(large if kind == "8 bits" else large.astype(np.uint16) * 257, quality=10, chroma=444)
    (tmp_path / "large.heic").write_bytes(data)
    said = memory_to_decode(decode._open(data, MAX_PIXELS, MAX_MEMORY)[0])
    run = subprocess.run([sys.executable, "-c", MEMORY, tmp_path / "large.heic"], capture_output=True, check=True)
    assert said / 4 < int(run.stdout) < said + 20_000_000


def test_random_damage_never_ends_in_another_error() -> None:
    rng, outcomes = np.random.default_rng(0), set()
    for whole in (heic(smooth()), heic(smooth(channels=4)), grid(tiles(), 2, 2, 120, 100)):
        for number in range(150):
            damaged = np.frombuffer(whole, np.uint8).copy()
            end = len(whole) if number % 2 else 600  # the boxes stand first
            damaged[rng.integers(0, min(end, len(whole)), 3)] = rng.integers(0, 256, 3)
            try:
                pixels = decode_image(damaged.tobytes(), max_pixels=10**6)
            except DecodeError as error:
                outcomes.add(error.reason)
                continue
            assert pixels.dtype == np.uint8
            assert pixels.shape[2] == 3
            outcomes.add("decoded")
    assert "decoded" in outcomes
    assert all(reason and "\n" not in reason for reason in outcomes)


def test_an_unknown_box_does_not_matter_and_boxes_twice_are_refused() -> None:
    whole = heic(smooth())
    assert decode_image(whole + full_box(b"what", 0, b"x")).shape == (64, 64, 3)
    start, end = next(places(whole, b"meta"))
    with pytest.raises(DecodeError):
        decode_image(whole + whole[start:end])
