"""What frozen nets have said of images, remembered by the images' content."""

from __future__ import annotations

import atexit
import functools
import hashlib
from typing import Any

import torch
from torch import Tensor

from fakedet.models.feature_store import FeatureStore

CAPACITY = 65_536
"""Images remembered by a process; some 250 MB of features. The oldest are forgotten first."""
FORMAT = 2
"""Of what is remembered; to be raised where the same settings come to mean other features."""

_known: dict[bytes, Tensor] = {}


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
            net: has ``describe``, which maps (1, 3, H, W) to (1, D), ``levels``, ``input_size``,
                ``responses`` and ``pool``.
            image: float.
        """
        if self._name is None:
            self._name = fingerprint(net)
        content = hashlib.sha256(image.contiguous().view(-1).numpy().data)
        content.update(repr((self._name, tuple(image.shape))).encode())
        key = content.digest()
        known = _known.get(key)
        if known is None:
            known = self._ask(net, image, self._name, key)
            while len(_known) >= CAPACITY:
                del _known[next(iter(_known))]
            _known[key] = known
        return known

    @staticmethod
    def _ask(net: Any, image: Tensor, name: bytes, key: bytes) -> Tensor:
        store = _open_store()
        stored = store.get(name, key) if store else None
        if stored is not None:
            return stored
        features: Tensor = net.describe(image[None])[0].clone()
        if store:
            store.put(name, key, features)
        return features

    def forget(self) -> None:
        """Say that the net has other weights now."""
        self._name = None


@functools.cache
def _open_store() -> FeatureStore | None:
    """Open this process's file of features, if it has one; what waits is written at the latest when it ends."""
    store = FeatureStore.from_environment()
    if store is not None:
        atexit.register(store.flush)
    return store


def fingerprint(net: Any) -> bytes:
    """Name weights and settings; 16 bytes."""
    digest = hashlib.blake2b(repr(net).encode(), digest_size=16)
    digest.update(repr([FORMAT, net.levels, net.input_size, net.responses, net.pool]).encode())
    # Not state_dict(): mean and std of what the trunk sees are buffers that it leaves out.
    for name, value in (*net.named_parameters(), *net.named_buffers()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.digest()
