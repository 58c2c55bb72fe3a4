"""What frozen nets have said of images, remembered by the images' content."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor

CAPACITY = 65_536
"""Images remembered by a process; some 150 MB of features. The oldest are forgotten first."""

_known: dict[bytes, Tensor] = {}


class FeatureMemory:
    """Ask a frozen net once for each image that comes again.

    All nets of a process with the same weights share what they said, so that the jobs of a study do. An image is its
    bytes: another crop, or one grey level of difference, is another image.
    """

    def __init__(self) -> None:
        self._name: bytes | None = None

    def features(self, net: Any, image: Tensor) -> Tensor:
        """Give the features (D,) of an image (3, H, W) on the CPU.

        Args:
            net: has ``describe``, which maps (1, 3, H, W) to (1, D), ``levels`` and ``input_size``.
            image: float.
        """
        if self._name is None:
            self._name = _fingerprint(net)
        content = hashlib.blake2b(image.contiguous().numpy().tobytes(), digest_size=16, key=self._name)
        key = content.digest() + str(tuple(image.shape)).encode()
        known = _known.get(key)
        if known is None:
            known = net.describe(image[None])[0].clone()
            while len(_known) >= CAPACITY:
                del _known[next(iter(_known))]
            _known[key] = known
        return known

    def forget(self) -> None:
        """Say that the net has other weights now."""
        self._name = None


def _fingerprint(net: Any) -> bytes:
    """Name weights and settings; 16 bytes."""
    digest = hashlib.blake2b(repr(net).encode(), digest_size=16)
    digest.update(repr([net.levels, net.input_size]).encode())
    for name, value in net.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.digest()
