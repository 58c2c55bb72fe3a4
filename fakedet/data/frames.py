"""The program that :mod:`fakedet.data.video` runs: frames of a video, spread over it evenly, to standard output.

It imports nothing of fakedet, so that it starts at once. Arguments: the file, how many frames, the most pixels of a
frame, and the bytes of memory that it may take.
"""

import os
import struct
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import cv2

COUNTING = 20.0  # seconds in which the frames of a video that does not tell their number are counted


def sample(path: str, count: int, most: int) -> Iterator[tuple[float, Any]]:
    """Yield seconds and pixels (H, W, 3), RGB, of at most ``count`` frames: the middles of as many equal parts."""

    def opened() -> Any:
        clip = cv2.VideoCapture(path, cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
        width, height = clip.get(cv2.CAP_PROP_FRAME_WIDTH), clip.get(cv2.CAP_PROP_FRAME_HEIGHT)
        return clip if clip.isOpened() and 0 < width * height <= most else None

    if (clip := opened()) is None:
        return
    total, found = int(clip.get(cv2.CAP_PROP_FRAME_COUNT)), set[float]()
    for in_order in (False, True):
        if in_order:  # a stream without an index tells no length, or a wrong one, and cannot be entered in its middle
            total, clip = counted(opened()), opened()
        at = 0
        for target in sorted({int((number + 0.5) * total / count) for number in range(count)} if total > 0 else ()):
            if in_order:
                while at < target and clip.grab():
                    at += 1
            else:
                clip.set(cv2.CAP_PROP_POS_FRAMES, target)
            done, frame = clip.read()
            at += 1
            seconds = max(0.0, clip.get(cv2.CAP_PROP_POS_MSEC) / 1000)
            if done and seconds not in found:
                found.add(seconds)
                yield seconds, cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
        if found and 2 * len(found) >= min(count, total):
            return


def counted(clip: Any) -> int:
    """Return the number of frames of a clip, as far as they are found in the time for it."""
    total, until = 0, time.monotonic() + COUNTING
    while clip.grab() and time.monotonic() < until:
        total += 1
    return total


def limit_memory(more: int) -> None:
    """Let this process take so many more bytes; not on systems that have no such limit."""
    with suppress(ImportError, OSError, ValueError):
        import resource

        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * os.sysconf("SC_PAGE_SIZE") + more
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def main() -> None:
    """Write for each frame its time, height and width, and its pixels."""
    path, count, most, memory = sys.argv[1], *map(int, sys.argv[2:])
    limit_memory(memory)
    with suppress(cv2.error, MemoryError, BrokenPipeError):
        for seconds, frame in sample(path, count, most):
            height, width = frame.shape[:2]
            sys.stdout.buffer.write(struct.pack("<dQQ", seconds, height, width))
            sys.stdout.buffer.write(frame.data)
            sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
