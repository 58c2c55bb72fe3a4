"""audit/features"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import cv2
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fakedet.data.decode import DecodeError, decode_image, parse_header

TOLERANCE = 10
"""Levels by which pixels of one colour may differ; JPEG rings."""
OF_ONE_COLOUR = 0.9
"""Share of a line's pixels that must have its colour."""
MOST = 0.4
"""A strip is narrower than this share of the side; what is wider is a sky or a studio's backdrop."""
RINGING = 4
"""Lines over which JPEG smears the edge of a strip."""
LEAST = 3
"""Lines; fewer are an artefact of scaling."""


def strips(image: NDArray[np.uint8]) -> tuple[float, float, float, float]:
    """Measure the strips of one colour at the top, bottom, left and right.

    Args:
        image: (H, W, 3).

    Returns:
        Width of each as a share of the image's side; 0 where there is none.
    """
    down = _strip(image), _strip(image[::-1])
    across = image.transpose(1, 0, 2)
    return (*down, _strip(across), _strip(across[::-1]))


def _strip(image: NDArray[np.uint8]) -> float:
    """Measure the strip at the first lines of an image."""
    limit = int(len(image) * MOST)
    # Every fourth pixel says as much as all of them.
    lines = image[: limit + 1, :: max(1, image.shape[1] // 128)].astype(np.int16)
    if len(lines) <= LEAST:
        return 0.0
    colour = np.median(lines[:LEAST].reshape(-1, 3), axis=0)
    near = (np.abs(lines - colour) <= TOLERANCE).all(axis=2).mean(axis=1)
    width = int(np.argmin(near >= OF_ONE_COLOUR)) if (near < OF_ONE_COLOUR).any() else len(lines)
    # A strip ends at an edge of its own; where the picture fades into the colour there is none.
    if not LEAST <= width <= limit:
        return 0.0
    beyond = lines[min(width + RINGING, len(lines) - 1)]
    if np.abs(beyond - lines[width - 1]).mean() < 2 * TOLERANCE:
        return 0.0
    return width / len(image)


Read = Callable[[int], bytes]
"""Gives the bytes of a row's file; raises DecodeError where it cannot."""

SIDE = 8
"""Of the thumbnail."""
BINS = 8
"""Of the histogram of each colour channel."""
THREADS = 4
CHUNK = 512


@dataclass(frozen=True)
class Looks:
    """What was seen of some rows, in their order."""

    frame: pd.DataFrame
    """Columns problem ("" if none), format, width, height, bytes, jpeg_quality, jpeg_tables and, with pixels,
    sha256, top, bottom, left, right: shares of the side that is a strip of one colour. The index is the id."""
    content: NDArray[np.float32] | None
    """(n, 216) thumbnail and colour histograms in [0, 1]; None without pixels."""
    prints: NDArray[np.uint64] | None
    """(n,) perceptual hashes; 0 for flat images, which all look alike. None without pixels."""


def sample_rows(frame: pd.DataFrame, most: int | None, seed: int = 0) -> NDArray[np.int64]:
    """Choose at most ``most`` rows of each label, generator, source and split, at random; rising ids."""
    ids = frame.index.to_numpy()
    if most is None:
        return ids
    rng = np.random.default_rng(seed)
    shuffled = frame.loc[rng.permutation(ids)]
    kept = shuffled.groupby(["label", "generator", "source", "split"], sort=False, observed=True).head(most)
    return np.sort(kept.index.to_numpy())


def look(
    ids: Sequence[int] | NDArray[np.int64],
    read: Read,
    pixels: bool,
    seen: Callable[[int], None] = lambda n: None,
) -> Looks:
    """Look at images.

    Args:
        ids: rows of the manifest.
        read: gives their bytes.
        pixels: decode them too.
        seen: called with the number of images done.
    """
    records, contents, prints = [], [], []
    rows = np.asarray(ids).tolist()
    with ThreadPoolExecutor(THREADS) as pool:
        for start in range(0, len(rows), CHUNK):
            part = rows[start : start + CHUNK]
            for record, content, mark in pool.map(lambda row: _look(row, read, pixels), part):
                records.append(record)
                contents.append(content)
                prints.append(mark)
            seen(len(records))
    frame = pd.DataFrame.from_records(records, index=pd.Index(rows, name="id"), columns=_columns(pixels))
    if not pixels:
        return Looks(frame, None, None)
    width = SIDE * SIDE * 3 + BINS * 3
    return Looks(frame, np.array(contents, np.float32).reshape(-1, width), np.array(prints, np.uint64))


def _columns(pixels: bool) -> list[str]:
    facts = ["problem", "format", "width", "height", "bytes", "jpeg_quality", "jpeg_tables"]
    return facts + (["sha256", "top", "bottom", "left", "right"] if pixels else [])


def _look(row: int, read: Read, pixels: bool) -> tuple[tuple[object, ...], NDArray[np.float32], int]:
    content = np.zeros(SIDE * SIDE * 3 + BINS * 3, np.float32)
    nothing = ("", *(0.0,) * 4) if pixels else ()
    try:
        data = read(row)
        header = parse_header(data)
        facts = (
            header.format,
            header.width,
            header.height,
            len(data),
            header.jpeg_quality,
            header.jpeg_tables,
        )
        if not pixels:
            return ("", *facts), content, 0
        image = decode_image(data)
    except DecodeError as error:
        return (error.reason, "", 0, 0, 0, 0, "", *nothing), content, 0
    digest = hashlib.sha256(data).hexdigest()
    return ("", *facts, digest, *strips(image)), describe_content(image), fingerprint(image)


def describe_content(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Describe what an image shows, roughly: an 8×8 thumbnail and a histogram of each channel, in [0, 1]."""
    small = cv2.resize(image, (SIDE, SIDE), interpolation=cv2.INTER_AREA).astype(np.float32) / 255
    counts = [
        np.bincount(image[..., channel].ravel() >> 5, minlength=BINS) / image[..., channel].size
        for channel in range(3)
    ]
    return np.concatenate([small.ravel(), *counts]).astype(np.float32)


def fingerprint(image: NDArray[np.uint8]) -> int:
    """Hash what an image looks like: is each of 8×9 grey cells brighter than its right neighbour? 64 bits.

    The difference hash of N. Krawetz: re-encoding and resizing change few bits. An image that is nearly flat
    has no print, 0: noise alone would decide its bits.
    """
    grey = cv2.resize(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), (9, 8), interpolation=cv2.INTER_AREA)
    grey = grey.astype(np.int16)
    if int(grey.max()) - int(grey.min()) < 16:
        return 0
    bits = grey[:, 1:] > grey[:, :-1]
    return int.from_bytes(np.packbits(bits).tobytes(), "big")
