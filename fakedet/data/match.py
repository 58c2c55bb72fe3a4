"""data/match"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from fakedet.data.decode import DecodeError, decode_image
from fakedet.data.transforms import random_crop
from fakedet.errors import UserError

LEAST = 16


@dataclass(frozen=True)
class Matcher:
    """Decode, compress once, crop at a random place without resizing, compress again.

    Every image goes through the same steps, whatever it was: what is left has one format, one size, standard
    JPEG tables and qualities drawn from one distribution. The first compression gives pictures that never were
    JPEG a history like that of photographs, and the crop shifts its grid, as a re-saved picture's is shifted.
    Nothing is resized. What an image went through before this, such as the resizing of a website, remains.

    All choices depend on the seed and the name of the file, on nothing else: the same on every machine and in
    every process, on disk and on the fly.

    Raises:
        UserError: a value is out of range.
    """

    size: int
    """Side of the square crop in pixels; smaller images cannot be matched."""
    history: tuple[int, int] | None = (70, 96)
    """Range of the first JPEG's quality, uniform, ends included; None: no first JPEG."""
    quality: tuple[int, int] = (75, 96)
    """Range of the second's."""
    seed: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.size, int) or self.size < LEAST:
            raise UserError(f"match.size={self.size}: a whole number of pixels, at least {LEAST}")
        for name in ("history", "quality"):
            value = getattr(self, name)
            if value is not None or name == "quality":
                object.__setattr__(self, name, _range(name, value))

    def __call__(self, data: bytes, name: str) -> bytes:
        """Match one image.

        Args:
            data: bytes of its file.
            name: its path in the manifest.

        Returns:
            Bytes of a JPEG of ``size`` × ``size``, 4:2:0, standard tables.

        Raises:
            DecodeError: it cannot be read, or is smaller than ``size``.
        """
        image = decode_image(data)
        if min(image.shape[:2]) < self.size:
            raise DecodeError(
                f"{image.shape[1]}x{image.shape[0]} pixels, smaller than the {self.size} that all are matched to"
            )
        digest = hashlib.sha256(f"{self.seed}\x1f{name}".encode("utf-8", "surrogatepass")).digest()
        rng = np.random.default_rng(np.frombuffer(digest, np.uint64))
        # Drawn in any case: another history leaves the crop where it is.
        first, last = (
            int(rng.integers(low, high + 1)) for low, high in (self.history or (1, 1), self.quality)
        )
        if self.history is not None:
            # Only the neighbourhood of the crop would do, but its place in the grid must stay what it is.
            image = decode_image(_jpeg(image, first))
        return _jpeg(random_crop(image, self.size, self.size, rng), last)

    def to_dict(self) -> dict[str, Any]:
        """Give the settings as plain values."""
        return {
            key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()
        }


def make_matcher(settings: dict[str, Any] | None) -> Matcher | None:
    """Make the matcher of a ``data.match`` config; None where its size is null or 0, which turns it off.

    Raises:
        UserError: a value is out of range.
    """
    if not settings or not settings.get("size"):
        return None
    return Matcher(**settings)


def _jpeg(image: NDArray[np.uint8], quality: int) -> bytes:
    flags = [cv2.IMWRITE_JPEG_QUALITY, quality,
             cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420]  # fmt: skip
    done, data = cv2.imencode(".jpg", cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2BGR), flags)
    if not done:
        raise DecodeError("cannot be compressed as JPEG")
    return data.tobytes()


def _range(name: str, value: Any) -> tuple[int, int]:
    ends = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else []
    if len(ends) != 2 or not all(isinstance(end, int) for end in ends) or not 1 <= ends[0] <= ends[1] <= 100:
        raise UserError(f"match.{name}={value}: a range [from, to] of JPEG qualities in 1 to 100")
    return ends[0], ends[1]
