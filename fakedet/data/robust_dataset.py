"""A dataset that decodes each image once and gives all its degraded views."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from fakedet.data.crop import POLICIES
from fakedet.data.decode import DecodeError, decode_image
from fakedet.data.degrade import View, degraded_views
from fakedet.data.sampler import Draw
from fakedet.data.sources import Source


class RobustDataset(Dataset[dict[str, Any]]):
    """Read images and degrade them.

    Args:
        source: gives the bytes.
        views: V ways of degrading.
        policy: see :func:`fakedet.data.crop.evaluation_views`; gives P crops.
        size: side of a crop.
    """

    def __init__(self, source: Source, views: list[View], policy: str, size: int) -> None:
        self.source, self.views, self.policy, self.size = source, views, policy, size
        self.crops = POLICIES[policy]

    def __getitem__(self, draw: Draw) -> dict[str, Any]:
        """Read one row: ``image`` (V, P, 3, H, W) uint8 or the reason why there is none, and decodings done."""
        try:
            data = self.source.read(draw.id)
            image = decode_image(data)
        except DecodeError as error:
            return {"id": draw.id, "image": None, "reason": error.reason, "decoded": 0}
        crops = [degraded_views(image, view, self.size, self.policy, draw.id) for view in self.views]
        pixels: NDArray[np.uint8] = np.asarray(crops, dtype=np.uint8).transpose(0, 1, 4, 2, 3)
        return {"id": draw.id, "image": np.ascontiguousarray(pixels), "reason": "", "decoded": 1}

    def collate(self, items: list[dict[str, Any]]) -> dict[str, Any]:
        """Stack items: image (B, V, P, 3, H, W), id (B,), quarantined, and the number of decodings."""
        whole = [item for item in items if item["image"] is not None]
        shape = (0, len(self.views), self.crops, 3, self.size, self.size)
        pixels = np.stack([item["image"] for item in whole]) if whole else np.zeros(shape, np.uint8)
        return {
            "image": torch.from_numpy(pixels),
            "id": torch.tensor([item["id"] for item in whole], dtype=torch.int64),
            "quarantined": [
                {"id": item["id"], "reason": item["reason"]} for item in items if item["image"] is None
            ],
            "decoded": sum(item["decoded"] for item in items),
        }
