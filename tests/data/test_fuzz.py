"""No file may stop, hang or mislead a run: thousands of damaged ones, and every bad one named."""

import io
import os
import struct
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from heic_files import grid, heic
from numpy.typing import NDArray
from PIL import Image

from fakedet.data.datamodule import ImageDataModule
from fakedet.data.decode import MAX_PIXELS, DecodeError, decode_image, read_image
from fakedet.data.index import Settings, index_folder
from fakedet.data.manifest import Quarantine, load_manifest
from fakedet.data.transforms import Augmentation
from fakedet.errors import UserError

SECONDS = 2.0
"""Longest that one small file may take."""


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def seeds() -> dict[str, bytes]:
    """Give small whole files of every format and mode."""
    rng = np.random.default_rng(0)
    smooth = np.kron(rng.integers(0, 256, (6, 5, 3)), np.ones((8, 8, 1))).astype(np.uint8)
    rgb = Image.fromarray(smooth)
    turned = Image.Exif()
    turned[0x0112] = 6
    frames = [rgb, rgb.transpose(Image.Transpose.FLIP_LEFT_RIGHT)]
    deep = Image.fromarray(rng.integers(0, 2**16, (48, 40), dtype=np.uint16))
    return {
        "jpeg": encoded(rgb, "JPEG", quality=85), "grey.jpeg": encoded(rgb.convert("L"), "JPEG"),
        "progressive.jpeg": encoded(rgb, "JPEG", progressive=True), "cmyk.jpeg": encoded(rgb.convert("CMYK"), "JPEG"),
        "exif.jpeg": encoded(rgb, "JPEG", exif=turned), "png": encoded(rgb, "PNG"),
        "alpha.png": encoded(rgb.convert("RGBA"), "PNG"), "palette.png": encoded(rgb.convert("P"), "PNG"),
        "bits.png": encoded(rgb.convert("1"), "PNG"), "deep.png": encoded(deep, "PNG"),
        "exif.png": encoded(rgb, "PNG", exif=turned), "webp": encoded(rgb, "WEBP", quality=80),
        "lossless.webp": encoded(rgb.convert("RGBA"), "WEBP", lossless=True),
        "moving.webp": encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:]),
        "gif": encoded(rgb.convert("P"), "GIF"),
        "moving.gif": encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]),
        "bmp": encoded(rgb, "BMP"), "tif": encoded(rgb, "TIFF"),
        "lzw.tif": encoded(rgb, "TIFF", compression="tiff_lzw"),
        "pages.tif": encoded(frames[0], "TIFF", save_all=True, append_images=frames[1:]), "ppm": encoded(rgb, "PPM"),
        "jp2": encoded(rgb, "JPEG2000"), "heic": heic(smooth), "grid.heic": grid([heic(smooth)] * 2, 1, 2, 64, 40),
    }  # fmt: skip


def damaged(data: bytes, rng: np.random.Generator) -> Iterator[tuple[str, bytes]]:
    """Yield one file of each kind of damage."""
    size = len(data)
    yield "truncated", data[: int(rng.integers(0, size))]
    for name, flips in (("bit", 1), ("bits", int(rng.integers(2, 200)))):
        array = np.frombuffer(data, np.uint8).copy()
        np.bitwise_xor.at(array, rng.integers(0, size, flips), (1 << rng.integers(0, 8, flips)).astype(np.uint8))
        yield f"{name} flipped", array.tobytes()
    start = int(rng.integers(0, size))
    stop = start + int(rng.integers(1, max(2, size // 4)))
    yield "range of zeros", data[:start] + bytes(len(data[start:stop])) + data[stop:]
    yield "range removed", data[:start] + data[stop:]
    yield "range inserted", data[:start] + rng.bytes(int(rng.integers(1, 400))) + data[start:]
    yield "header flipped", _flip(data, int(rng.integers(0, min(64, size))), int(rng.integers(1, 256)))
    yield "concatenated", data + data[: int(rng.integers(0, size))]


def _flip(data: bytes, at: int, with_: int) -> bytes:
    return data[:at] + bytes([data[at] ^ with_]) + data[at + 1 :]


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def bitmap(width: int, height: int) -> bytes:
    """Give the header of a BMP and nothing else."""
    return b"BM" + struct.pack("<IIIIiiHHIIiiII", 100, 0, 54, 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)


def oddities() -> dict[str, bytes]:
    """Give files that lie about what they are."""
    huge = struct.pack(">II", 50_000, 50_000)
    png = b"\x89PNG\r\n\x1a\n"
    header = chunk(b"IHDR", struct.pack(">II", 8, 8) + b"\x08\x02\0\0\0")
    bomb = zlib.compress(bytes(200_000_000), 9)
    jpeg = bytearray(seeds()["jpeg"])
    place = jpeg.index(b"\xff\xc0") + 5
    jpeg[place : place + 4] = b"\xff\xff\xff\xff"
    return {
        "empty.png": b"", "text.jpg": b"just text, no image\n", "page.jpg": b"<!doctype html><title>403</title>",
        "answer.webp": b'{"error": "rate limit"}', "zeros.png": bytes(4096), "ones.jpg": b"\xff" * 4096,
        "huge.png": png + chunk(b"IHDR", huge + b"\x08\x02\0\0\0") + chunk(b"IDAT", b"x") + chunk(b"IEND", b""),
        "huge.jpg": bytes(jpeg),
        "huge.gif": b"GIF89a" + struct.pack("<HH", 65535, 65535) + b"\x80\0\0" + bytes(20),
        "huge.bmp": bitmap(2**31 - 1, 2**31 - 1), "negative.bmp": bitmap(-5, -7), "none.bmp": bitmap(0, 0),
        "none.png": png + chunk(b"IHDR", bytes(8) + b"\x08\x02\0\0\0") + chunk(b"IEND", b""),
        "text bomb.png": png + header + chunk(b"zTXt", b"k\0\0" + bomb) + chunk(b"IEND", b""),
        "profile bomb.png": png + header + chunk(b"iCCP", b"k\0\0" + bomb) + chunk(b"IEND", b""),
        "pixel bomb.png": png + header + chunk(b"IDAT", bomb) + chunk(b"IEND", b""),
        "script.jpg": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "vector.png": b"<svg xmlns='x'/>",
    }  # fmt: skip


# More data than its 64 pixels need: what is decoded stays small, and the rest is never unpacked.
HARMLESS = ("pixel bomb.png",)


def files() -> dict[str, bytes]:
    """Give at least two thousand bad and doubtful files by name."""
    rng, made = np.random.default_rng(7), dict(oddities())
    for name, data in seeds().items():
        for number in range(13):
            for damage, content in damaged(data, rng):
                made[f"{damage} {number} of {name}"] = content
        # The content is right and the name is not.
        made[f"{name}.wrong.{'png' if 'jp' in name else 'jpg'}"] = data
    return made


def test_no_file_crashes_hangs_or_chatters(capfd: pytest.CaptureFixture[str]) -> None:
    made = files()
    assert len(made) >= 2000
    outcomes: Counter[str] = Counter()
    reasons: dict[str, str] = {}
    for name, data in made.items():
        started = time.perf_counter()
        try:
            pixels = decode_image(data)
        except DecodeError as error:
            outcomes["refused"] += 1
            reasons[name] = error.reason
        else:
            outcomes["decoded"] += 1
            assert pixels.dtype == np.uint8, name
            assert pixels.ndim == 3, name
            assert pixels.shape[2] == 3, name
            assert pixels.shape[0] * pixels.shape[1] <= MAX_PIXELS, name
        assert time.perf_counter() - started < SECONDS, name
    assert [name for name, reason in reasons.items() if not reason.strip() or "\n" in reason] == []
    captured = capfd.readouterr()
    assert captured.out == ""
    # libjpeg, libpng and libtiff remark on damage themselves, a line each, and cannot be kept from it.
    assert "Traceback" not in captured.err
    assert "terminate" not in captured.err
    # Neither everything nor nothing is refused: both halves of the test have something to say.
    assert outcomes["refused"] > 800
    assert outcomes["decoded"] > 300


def test_whole_files_are_decoded_whatever_their_name() -> None:
    for name, data in seeds().items():
        with Image.open(io.BytesIO(data)) as image:
            width, height = image.size
        expected = (width, height) if name.startswith("exif") else (height, width)
        assert decode_image(data).shape == (*expected, 3), name


@pytest.mark.parametrize("name", [name for name in oddities() if name not in HARMLESS])
def test_liars_are_refused(name: str) -> None:
    with pytest.raises(DecodeError):
        decode_image(oddities()[name])


def coloured(label: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Give a fake in reds or a real in blues: the picture itself tells its label."""
    image = rng.integers(0, 60, (40, 40, 3), dtype=np.uint8)
    image[..., 0 if label else 2] += 150
    return image


ODD_NAMES = [
    "plain", "with space", "dots.in.it", "ünïcödé 图像", "new\nline", "#hash%20", "-dash", "a" * 200,
    "tab\t", "quote'\"",
]  # fmt: skip


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, set[str]]:
    """Give the manifest of intact and of damaged images, and the names of the intact ones."""
    root, rng = tmp_path_factory.mktemp("mixed"), np.random.default_rng(0)
    rows, intact = [], set()
    for split in ("train", "val", "test"):
        for label, generator in ((0, "photos"), (1, "gan"), (1, "dead")):
            for number in range(20):
                whole = encoded(Image.fromarray(coloured(label, rng)), ("JPEG", "PNG", "WEBP")[number % 3])
                bad = number >= 14 or generator == "dead"
                content = next(damaged(whole, rng))[1] if bad else whole
                name = f"{split}/{generator}/{ODD_NAMES[number % 10]}/{ODD_NAMES[number // 2]}_{number}.img"
                (root / name).parent.mkdir(parents=True, exist_ok=True)
                (root / name).write_bytes(content)
                rows.append((name, label, generator, split))
                if not bad:
                    intact.add(name)
    special = root / "test" / "gan"
    os.mkfifo(special / "pipe.img")
    (special / "folder.img").mkdir()
    (special / "loop.img").symlink_to(special / "loop.img")
    rows += [(f"test/gan/{name}.img", 1, "gan", "test") for name in ("pipe", "folder", "loop", "missing")]
    pd.DataFrame(rows, columns=["path", "label", "generator", "split"]).to_parquet(root / "m.parquet")
    return root / "m.parquet", intact


@pytest.mark.parametrize("workers", [0, 2])
def test_labels_stay_with_their_pictures_and_every_bad_file_is_named(
    mixed: tuple[Path, set[str]], workers: int
) -> None:
    path, intact = mixed
    data = ImageDataModule(
        str(path),
        crop_size=32,
        batch_size=8,
        num_workers=workers,
        max_quarantine=1.0,
        augment=Augmentation("light"),
    )
    frame = data.manifest.frame
    named: dict[int, str] = {}
    batches = [batch for split in ("train", "val", "test") for batch in data.eval_dataloader(split)]
    batches += list(data.train_dataloader())
    for batch in batches:
        named |= {record["id"]: record["reason"] for record in batch["quarantined"]}
        for row, label, image in zip(batch["id"].tolist(), batch["label"].tolist(), batch["image"], strict=True):
            assert frame["label"][row] == label
            if frame["path"][row] in intact:
                red, _, blue = image.float().mean(dim=(0, 2, 3)).tolist()
                assert (red > blue) == (label == 1), frame["path"][row]
    assert not {frame["path"][row] for row in named} & intact
    # Each file that read_image refuses is named, with its reason, and no other.
    refused = {}
    for row, name in enumerate(frame["path"]):
        try:
            read_image(path.parent / name)
        except DecodeError as error:
            refused[row] = error.reason
    assert named == refused
    assert len(refused) > 70
    quarantine = Quarantine.from_records(
        [{"id": row, "reason": reason} for row, reason in named.items()],
        data.manifest,
        ("train", "val", "test"),
    )
    summary = quarantine.summary()
    dead = frame.index[frame["generator"] == "dead"]
    assert summary["per_generator"]["dead"] == len(set(dead) & set(named))
    assert summary["n"] == summary["n_real"] + summary["n_fake"] == len(refused)
    with pytest.raises(UserError, match=r"more than data\.max_quarantine=0\.05"):
        quarantine.check(0.05)


def test_index_names_every_bad_file_of_a_folder(tmp_path: Path) -> None:
    root = tmp_path / "data"
    (root / "real").mkdir(parents=True)
    (root / "gan").mkdir()
    rng = np.random.default_rng(0)
    for number in range(5):
        for label, kind in ((0, "real"), (1, "gan")):
            content = encoded(Image.fromarray(coloured(label, rng)), "PNG")
            (root / kind / f"{ODD_NAMES[number]}.png").write_bytes(content)
    for name, content in oddities().items():
        (root / "gan" / f"{name}.jpg").write_bytes(content)
    with open(os.fsencode(root / "gan") + b"/caf\xe9.png", "wb") as file:
        file.write(b"x")
    found = index_folder(root, tmp_path / "m.parquet", Settings())
    table = pd.read_csv(found.rejected)
    # What only decoding can tell is left to the run: a header alone is whole.
    headers_are_whole = {"pixel bomb.png"}
    assert set(table["path"]) >= {f"gan/{name}.jpg" for name in oddities() if name not in headers_are_whole} | {
        "gan/caf\\udce9.png"
    }
    frame = load_manifest(found.manifest).frame
    assert (frame["label"] == (frame["generator"] == "gan")).all()
    assert set(frame.loc[frame["label"] == 0, "path"]) == {f"real/{name}.png" for name in ODD_NAMES[:5]}
