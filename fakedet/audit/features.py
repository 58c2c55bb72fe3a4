"""Facts of images that are no traces of a generator: header, thumbnail, strips of one colour.

:func:`look` reads images in threads and returns a table of these facts; everything else in the audit works on it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fakedet.data.decode import DecodeError, decode_image, parse_header

Read = Callable[[int], bytes]  # returns the bytes of a row's file; raises DecodeError where it cannot

SIDE = 8  # of the thumbnail
BINS = 8  # of the histogram of each colour channel
CONTENT = SIDE * SIDE * 3 + BINS * 3  # numbers that describe an image's content
CHUNK = 512
TOLERANCE = 10  # levels by which pixels of a strip of one colour may differ, since JPEG changes them
NARROWEST = 3  # lines of a strip; fewer are an artefact of scaling


@dataclass(frozen=True)
class Looks:
    """The facts of some rows, in their order."""

    # By id: problem ("" if none), format, width, height, bytes, jpeg_quality, jpeg_tables and, with pixels, sha256 and
    # top, bottom, left, right: width of the strip of one colour as a share of the side.
    frame: pd.DataFrame
    # (n, 216) thumbnail and colour histograms in [0, 1]; None without pixels.
    content: NDArray[np.float32] | None
    # (n,) perceptual hashes; 0 for flat images, which all look alike. None without pixels.
    prints: NDArray[np.uint64] | None

    @property
    def problems(self) -> pd.Series:
        """The reason of each unreadable row, by id."""
        return self.frame.loc[self.frame["problem"] != "", "problem"]


def sample_rows(frame: pd.DataFrame, most: int | None, seed: int = 0) -> NDArray[np.int64]:
    """Choose at most ``most`` rows of each label, generator, source and split, at random; rising ids."""
    ids = frame.index.to_numpy()
    if most is None:
        return ids
    shuffled = frame.loc[np.random.default_rng(seed).permutation(ids)]
    kept = shuffled.groupby(["label", "generator", "source", "split"], sort=False, observed=True).head(most)
    return np.sort(kept.index.to_numpy())


def look(
    ids: Sequence[int] | NDArray[np.int64],
    read: Read,
    pixels: bool,
    progress: Callable[[int], None] = lambda done: None,
) -> Looks:
    """Look at the images of some rows, at their ``pixels`` only if asked; report the number done to ``progress``."""

    def one(row: int) -> tuple[tuple[object, ...], NDArray[np.float32], int]:
        blank = np.zeros(CONTENT, np.float32)
        try:
            data = read(row)
            head = parse_header(data)
            facts: tuple[object, ...] = ("", head.format, head.width, head.height, len(data),
                                         head.jpeg_quality, head.jpeg_tables)  # fmt: skip
            if not pixels:
                return facts, blank, 0
            image = decode_image(data)
        except DecodeError as error:
            nothing = ("", 0.0, 0.0, 0.0, 0.0) if pixels else ()
            return (error.reason, "", 0, 0, 0, 0, "", *nothing), blank, 0
        facts = (*facts, hashlib.sha256(data).hexdigest(), *strips(image))
        # The content: an 8×8 thumbnail and a histogram of each channel, in [0, 1].
        small = cv2.resize(image, (SIDE, SIDE), interpolation=cv2.INTER_AREA).astype(np.float32) / 255
        channels = [image[..., channel].ravel() for channel in range(3)]
        counts = [np.bincount(channel >> 5, minlength=BINS) / channel.size for channel in channels]
        return facts, np.concatenate([small.ravel(), *counts]).astype(np.float32), fingerprint(image)

    rows = np.asarray(ids).tolist()
    seen: list[tuple[Any, ...]] = []
    with ThreadPoolExecutor(4) as pool:
        for start in range(0, len(rows), CHUNK):
            seen.extend(pool.map(one, rows[start : start + CHUNK]))
            progress(len(seen))
    columns = ["problem", "format", "width", "height", "bytes", "jpeg_quality", "jpeg_tables"]
    columns += ["sha256", "top", "bottom", "left", "right"] if pixels else []
    frame = pd.DataFrame.from_records([part for part, _, _ in seen], index=pd.Index(rows, name="id"), columns=columns)
    if not pixels:
        return Looks(frame, None, None)
    content = np.array([part for _, part, _ in seen], np.float32).reshape(-1, CONTENT)
    return Looks(frame, content, np.array([mark for _, _, mark in seen], np.uint64))


def fingerprint(image: NDArray[np.uint8]) -> int:
    """Compute a perceptual hash of 64 bits of an (H, W, 3) image: which of 8×9 grey cells get brighter to the right.

    The difference hash of N. Krawetz: re-encoding and resizing change few bits. A nearly flat image gets 0, since noise
    alone would decide its bits.
    """
    grey = cv2.resize(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), (9, 8), interpolation=cv2.INTER_AREA)
    if int(grey.max()) - int(grey.min()) < 16:
        return 0
    return int.from_bytes(np.packbits(grey[:, 1:] > grey[:, :-1]).tobytes(), "big")


def strips(image: NDArray[np.uint8]) -> tuple[float, float, float, float]:
    """Measure strips of one colour at top, bottom, left and right of an (H, W, 3) image: shares of the side, or 0."""
    across = image.transpose(1, 0, 2)
    return _strip(image), _strip(image[::-1]), _strip(across), _strip(across[::-1])


def _strip(image: NDArray[np.uint8]) -> float:
    limit = int(len(image) * 0.4)  # anything wider is a sky or a studio backdrop
    # About 128 pixels of each line say as much as all of them.
    lines = image[: limit + 1, :: max(1, image.shape[1] // 128)].astype(np.int16)
    if len(lines) <= NARROWEST:
        return 0.0
    colour = np.median(lines[:NARROWEST].reshape(-1, 3), axis=0)
    mixed = (np.abs(lines - colour) <= TOLERANCE).all(axis=2).mean(axis=1) < 0.9
    width = int(np.argmax(mixed)) if mixed.any() else len(lines)
    if not NARROWEST <= width <= limit:
        return 0.0
    # A strip ends at an edge, which JPEG smears over 4 lines; a picture that fades into the colour has none.
    beyond = lines[min(width + 4, len(lines) - 1)]
    return 0.0 if np.abs(beyond - lines[width - 1]).mean() < 2 * TOLERANCE else width / len(image)
