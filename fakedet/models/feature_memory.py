"""What frozen nets have said of images, remembered by the images' content."""

from __future__ import annotations

import atexit
import hashlib
from typing import Any

import torch
from torch import Tensor

from fakedet.models.feature_store import FeatureStore

CAPACITY = 65_536
"""Images remembered by a process; some 250 MB of features. The oldest are forgotten first."""

_known: dict[bytes, Tensor] = {}
_stores: dict[bytes, FeatureStore | None] = {}
"""Of each net: the file that was read for it."""


class FeatureMemory:
    """Ask a frozen net once for each image that comes again.

    All nets of a process with the same weights share what they said, so that the jobs of a study do; with a
    :class:`FeatureStore`, other processes too. An image is its bytes: another crop, or one grey level of
    difference, is another image.
    """

    def __init__(self) -> None:
        self._name: bytes | None = None

    def features(self, net: Any, image: Tensor) -> Tensor:
        """Give the features (D,) of an image (3, H, W) on the CPU.

        Args:
            net: has ``describe``, which maps (1, 3, H, W) to (1, D), ``levels``, ``input_size`` and ``responses``.
            image: float.
        """
        if self._name is None:
            self._name = _fingerprint(net)
        if self._name not in _stores:
            _open_store(self._name)
        content = hashlib.sha256(image.contiguous().view(-1).numpy().data)
        content.update(repr((self._name, tuple(image.shape))).encode())
        key = content.digest()
        known = _known.get(key)
        if known is None:
            known = net.describe(image[None])[0].clone()
            _remember(key, known)
            store = _stores[self._name]
            if store is not None:
                store.put(self._name, key, known)
        return known

    def forget(self) -> None:
        """Say that the net has other weights now."""
        self._name = None


def _remember(key: bytes, features: Tensor) -> None:
    while len(_known) >= CAPACITY:
        del _known[next(iter(_known))]
    _known[key] = features


def _open_store(net: bytes) -> None:
    """Read what earlier processes stored of a net, and write what is new at the latest when this one ends."""
    store = _stores[net] = FeatureStore.from_environment()
    if store is not None:
        for key, features in store.of(net):
            _remember(key, features)
        atexit.register(store.flush)


def _fingerprint(net: Any) -> bytes:
    """Name weights and settings; 16 bytes."""
    digest = hashlib.blake2b(repr(net).encode(), digest_size=16)
    digest.update(repr([net.levels, net.input_size, net.responses]).encode())
    for name, value in net.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.digest()
