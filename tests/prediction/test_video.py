"""Videos: frames spread over the clip, one row, never a promise; broken, silent and endless ones say so."""

import os
import struct
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

import fakedet
from fakedet.cli.app import launch
from fakedet.data import video
from fakedet.data.decode import DecodeError
from fakedet.data.video import frames_of


def write(path: Path, codec: str, frames: int = 80, size: tuple[int, int] = (320, 240)) -> Path:
    """Write a clip of 10 frames a second, whose brightness is the number of the frame."""
    clip = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter_fourcc(*codec), 10, size)
    if not clip.isOpened():
        pytest.skip(f"this OpenCV writes no {codec}")
    for number in range(frames):
        clip.write(np.full((size[1], size[0], 3), number, np.uint8))
    clip.release()
    return path


CODECS = {"clip.mp4": "mp4v", "clip.mov": "mp4v", "clip.avi": "MJPG", "clip.webm": "VP80", "clip.mkv": "FFV1"}


@pytest.mark.parametrize("name", CODECS)
def test_frames_are_spread_evenly(name: str, tmp_path: Path) -> None:
    found = list(frames_of(write(tmp_path / name, CODECS[name]), 8, 10**9))
    # The middles of eight parts of 80 frames.
    assert [seconds for seconds, _ in found] == pytest.approx([0.5 + number for number in range(8)], abs=0.11)
    for seconds, pixels in found:
        assert pixels.shape == (240, 320, 3)
        assert abs(float(pixels.mean()) - 10 * seconds) < 5
    assert len(list(frames_of(tmp_path / name, 1, 10**9))) == 1


def test_a_stream_without_length_is_counted(tmp_path: Path) -> None:
    data = write(tmp_path / "clip.webm", "VP80").read_bytes()
    # Neither a duration nor an index, as a browser's recorder writes: their elements are made void.
    at = data.index(b"\x44\x89")
    data = data[:at] + b"\xec" + bytes([0x80 | (data[at + 2] & 0x7F) + 1]) + data[at + 3 :]
    data = data.replace(b"\x1c\x53\xbb\x6b", b"\x1a\x45\xdf\xa4")
    (tmp_path / "stream.webm").write_bytes(data)
    seconds = [at for at, _ in frames_of(tmp_path / "stream.webm", 4, 10**9)]
    assert len(seconds) >= 2
    assert seconds == sorted(seconds)


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return write(tmp_path / "clip.mp4", "mp4v")


BROKEN: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: data[:0],
    "header only": lambda data: data[:40],
    "no index": lambda data: data[: len(data) // 2],
    "zeros": lambda data: data[:32] + bytes(len(data) - 32),
    "no samples": lambda data: data.replace(b"stsz", b"free").replace(b"stco", b"free"),
    "sound only": lambda data: data.replace(b"vide", b"soun"),
    "a list of other files": lambda data: b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n",
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_clips_say_so_at_once(kind: str, clip: Path) -> None:
    broken = clip.with_name("broken.mp4")
    broken.write_bytes(BROKEN[kind](clip.read_bytes()))
    started = time.monotonic()
    with pytest.raises(DecodeError, match="a video of which no frame can be decoded"):
        list(frames_of(broken, 8, 10**9))
    assert time.monotonic() - started < 20


def test_random_damage_never_crashes(clip: Path) -> None:
    whole, rng = clip.read_bytes(), np.random.default_rng(0)
    for number in range(8):
        damaged = np.frombuffer(whole, np.uint8).copy()
        damaged[rng.integers(0, len(whole) if number % 2 else 400, 20)] = rng.integers(0, 256, 20)
        clip.write_bytes(damaged.tobytes())
        try:
            assert len(list(frames_of(clip, 4, 10**9))) <= 4
        except DecodeError as error:
            assert error.reason == "a video of which no frame can be decoded"  # noqa: PT017


def test_memory_and_time_are_bounded(clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DecodeError, match="no frame can be decoded"):
        list(frames_of(clip, 8, 100_000))
    with pytest.raises(DecodeError, match=r"not decoded within 0\.001 seconds"):
        list(frames_of(clip, 8, 10**9, seconds=0.001))
    monkeypatch.setattr(video, "MAX_PIXELS", 320 * 240 - 1)
    with pytest.raises(DecodeError, match="no frame can be decoded"):
        list(frames_of(clip, 8, 10**9))


def test_a_clip_gets_one_row_that_promises_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "desk"
    folder.mkdir()
    write(folder / "clip.mp4", "mp4v")
    (folder / "broken.mov").write_bytes(struct.pack(">I", 20) + b"ftypqt  " + bytes(90))
    (folder / "sound.webm").write_bytes(b"\x1a\x45\xdf\xa3")
    cv2.imwrite(str(folder / "a.png"), np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8))
    detector = fakedet.load("demo", "cpu")
    table = detector.predict(folder, tiles=0, views=[], frames=4).set_index("path")
    table.index = [os.path.basename(path) for path in table.index]
    row = table.loc["clip.mp4"]
    assert (row["verdict"], row["format"], row["width"], row["height"]) == ("undecided", "MP4", 320, 240)
    assert row["reason"].startswith("a video, and the detector was tested with pictures only; ")
    # Oracle: the mean of the frames, each judged as a picture.
    frames = [pixels for _, pixels in frames_of(folder / "clip.mp4", 4, 10**9)]
    logits = detector.predict(frames, tiles=0, views=[])["logit"]
    assert row["logit"] == pytest.approx(logits.mean(), abs=1e-4)
    above = logits > detector.require_operating_point().threshold
    assert f"{above.sum()} of 4 frames look fake" in row["reason"]
    same = above == (row["logit"] > detector.require_operating_point().threshold)
    assert row["stability"] == pytest.approx(same.mean())
    for name in ("broken.mov", "sound.webm"):
        assert table.loc[name, "error"] == "a video of which no frame can be decoded"
    assert table.loc["a.png", "verdict"]
    assert detector.predict(str(folder / "clip.mp4"), frames=0).error == "not looked at: a video (MP4), and frames=0"
    for name in ("broken.mov", "sound.webm"):
        (folder / name).unlink()
    command = ["checkpoint=demo", f"source={folder}", f"output={tmp_path}/p.csv", "frames=0"]
    assert launch("predict", command) == 0
    assert "not looked at: a video (MP4), and frames=0" in (tmp_path / "p.csv").read_text()
    assert launch("predict", [*command[:3], "frames=-1"]) == 2


def test_the_frames_that_look_fake_are_named(tmp_path: Path) -> None:
    from fakedet.detector import _told_frames

    assert _told_frames({"frame/0:03": 2.0, "frame/0:05": -1.0, "frame/1:07": 3.0}, 0.5) == (
        "2 of 3 frames look fake, at 0:03, 1:07"
    )
