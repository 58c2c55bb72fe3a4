"""Frames of a video, decoded by OpenCV's FFmpeg in a process of its own, which no file can crash, hang or fill up."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fakedet.data.decode import DecodeError

MAX_PIXELS = 8192 * 4320  # of a frame
SECONDS = 120.0  # after which the process is ended
PROGRAM = Path(__file__).with_name("frames.py")


def frames_of(
    path: str | os.PathLike[str], count: int, max_memory: int, seconds: float = SECONDS
) -> Iterator[tuple[float, NDArray[np.uint8]]]:
    """Yield the time in seconds and the pixels (H, W, 3), RGB, of at most ``count`` frames spread over a video evenly.

    Where frames are damaged there are fewer. A DecodeError if there are none: no video, only sound, larger than 8192 x
    4320 pixels, more than ``max_memory`` bytes to decode, or not done after ``seconds``.
    """
    # Isolated: no module beside the user's files is imported.
    command = [sys.executable, "-I", str(PROGRAM), os.path.abspath(path), *map(str, (count, MAX_PIXELS, max_memory))]
    # FFmpeg may open this file only, whatever its content names.
    alone = {**os.environ, "OPENCV_FFMPEG_CAPTURE_OPTIONS": "protocol_whitelist;file"}
    found, late = 0, threading.Event()
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=alone
    ) as child:
        stream: Any = child.stdout

        def end() -> None:
            late.set()
            child.kill()

        watch = threading.Timer(seconds, end)
        watch.daemon = True
        watch.start()
        try:
            while len(head := stream.read(24)) == 24:
                time, height, width = struct.unpack("<dQQ", head)
                pixels = np.empty((height, width, 3), np.uint8)
                if stream.readinto(pixels.data.cast("B")) < pixels.size:
                    break
                found += 1
                yield time, pixels
        finally:
            watch.cancel()
            child.kill()
    if not found:
        raise DecodeError(f"a video that is not decoded within {seconds:g} seconds" if late.is_set() else
                          "a video of which no frame can be decoded")  # fmt: skip
