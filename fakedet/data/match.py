"""Matching: bring every image, real or fake, to one format, size and compression."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import cv2
import numpy as np
import pyarrow as pa

from fakedet.data.decode import DecodeError, decode_image
from fakedet.data.sources import Source
from fakedet.data.transforms import Pixels, random_crop
from fakedet.errors import UserError


@dataclass(frozen=True)
class Matcher:
    """Decode, compress as JPEG, crop at a random place without resizing, compress again.

    Every image goes through the same steps, so all have one format, one size, standard JPEG tables and qualities drawn
    from one distribution. The first compression gives images that never were JPEG a history like that of photographs;
    the crop shifts its grid, as re-saving a cropped picture does. Traces of earlier processing, such as the resizing of
    a website, remain.

    The random choices depend only on the seed and the image's path, so they are the same on every machine, in every
    process, on disk and on the fly. A value out of range is a UserError.
    """

    size: int  # Side of the square crop in pixels; smaller images cannot be matched
    history: tuple[int, int] | None = (70, 96)  # Of the first JPEG's quality, ends included; None: no first JPEG
    quality: tuple[int, int] = (75, 96)  # Of the second JPEG's quality
    seed: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.size, int) or self.size < 16:
            raise UserError(f"match.size={self.size}: a whole number of pixels, at least 16")
        for name in ("history", "quality"):
            value = getattr(self, name)
            if value is None and name == "history":
                continue
            ends = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else []
            whole = len(ends) == 2 and all(isinstance(end, int) for end in ends)
            if not whole or not 1 <= ends[0] <= ends[1] <= 100:
                raise UserError(f"match.{name}={value}: a range [from, to] of JPEG qualities in 1 to 100")
            object.__setattr__(self, name, tuple(ends))  # configs give lists

    def __call__(self, data: bytes, path: str) -> bytes:
        """Match one image, given the bytes of its file and its path in the manifest; return the bytes of a JPEG.

        It has ``size`` × ``size`` pixels, 4:2:0, standard tables. An unreadable or smaller image is a DecodeError.
        """
        image = decode_image(data)
        if min(image.shape[:2]) < self.size:
            raise DecodeError(
                f"{image.shape[1]}x{image.shape[0]} pixels, smaller than the {self.size} that all are matched to"
            )
        digest = hashlib.sha256(f"{self.seed}\x1f{path}".encode("utf-8", "surrogatepass")).digest()
        rng = np.random.default_rng(np.frombuffer(digest, np.uint64))
        # Both are always drawn, so that the crop's place does not depend on the history.
        first, second = (int(rng.integers(low, high + 1)) for low, high in (self.history or (1, 1), self.quality))
        if self.history is not None:
            # The whole image: a part of it would lie differently in the JPEG grid.
            image = decode_image(_jpeg(image, first))
        return _jpeg(random_crop(image, self.size, self.size, rng), second)

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as plain values."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}


class MatchedSource:
    """Another source's images, changed by a matcher, whose random choices depend on the ``paths`` of the rows."""

    def __init__(self, source: Source, matcher: Matcher, paths: list[str]) -> None:
        self.source, self.matcher = source, matcher
        self.paths = pa.array(paths, pa.large_string())

    def read(self, row: int) -> bytes:
        """Return the matched image of a row, as the bytes of a JPEG."""
        return self.matcher(self.source.read(row), self.paths[row].as_py())


def _jpeg(image: Pixels, quality: int) -> bytes:
    flags = [cv2.IMWRITE_JPEG_QUALITY, quality,
             cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420]  # fmt: skip
    done, data = cv2.imencode(".jpg", cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2BGR), flags)
    if not done:
        raise DecodeError("cannot be compressed as JPEG")
    return data.tobytes()
