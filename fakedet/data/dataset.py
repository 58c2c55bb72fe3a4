"""The dataset: from a draw to views of an image, whatever the file is like."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from fakedet.data.augment import Augmentation
from fakedet.data.crop import POLICIES, evaluation_views
from fakedet.data.decode import DecodeError, read_image
from fakedet.data.manifest import Manifest
from fakedet.data.sampler import Draw
from fakedet.errors import UserError, choose

TRIES = 20


class ImageDataset(Dataset[dict[str, Any]]):
    """Read images for training: augmented random crops, any number of views.

    An image that cannot be read is replaced by another of its generator and class and reported with the item.

    Args:
        manifest: the rows.
        codes: metric cell of each row.
        augment: makes a view.
        size: side of a view.
        views: views of each image.
    """

    def __init__(
        self, manifest: Manifest, codes: NDArray[np.int64], augment: Augmentation, size: int, views: int
    ) -> None:
        self.root, self.codes = manifest.root, codes
        self.paths = manifest.frame["path"].to_numpy()
        self.labels = manifest.frame["label"].to_numpy()
        self.splits = manifest.frame["split"].to_numpy()
        self.augment, self.size, self.views = augment, size, views

    def __getitem__(self, draw: Draw) -> dict[str, Any]:
        """Read one draw; all randomness comes from ``draw.seed``."""
        quarantined: list[dict[str, Any]] = []
        for row in self._candidates(draw):
            try:
                image = read_image(self.root / self.paths[row])
            except DecodeError as error:
                quarantined.append({"id": row, "path": str(self.paths[row]), "reason": str(error)})
                continue
            seeds = np.random.SeedSequence(draw.seed).generate_state(self.views, np.uint64)
            views = [self.augment(image, self.size, int(seed)) for seed in seeds]
            return _item(row, int(self.labels[row]), int(self.codes[row]), views, quarantined)
        raise UserError(
            f"{len(quarantined)} images of one generator in a row could not be read, last "
            f"{quarantined[-1]['path']}: "
            f"{quarantined[-1]['reason']}; is data.root right, and the disk well?"
        )

    def _candidates(self, draw: Draw) -> Iterator[int]:
        """Yield the drawn row, then others of its generator, class and split, in an order of the draw's own."""
        yield draw.id
        alike = np.flatnonzero((self.codes == self.codes[draw.id]) & (self.splits == self.splits[draw.id]))
        others = alike[alike != draw.id]
        yield from np.random.default_rng(draw.seed).permutation(others)[: TRIES - 1].tolist()


class EvaluationDataset(Dataset[dict[str, Any]]):
    """Read images for evaluation: no randomness; an image that cannot be read is left out and reported.

    Args:
        manifest: the rows.
        codes: metric cell of each row.
        policy: see :func:`fakedet.data.crop.evaluation_views`.
        size: side of a view.
    """

    def __init__(self, manifest: Manifest, codes: NDArray[np.int64], policy: str, size: int) -> None:
        self.root, self.codes = manifest.root, codes
        self.paths = manifest.frame["path"].to_numpy()
        self.labels = manifest.frame["label"].to_numpy()
        self.policy, self.size = choose(policy, POLICIES, "data.eval_policy"), size

    def __getitem__(self, draw: Draw) -> dict[str, Any]:
        """Read one row."""
        row = draw.id
        label, code = int(self.labels[row]), int(self.codes[row])
        try:
            image = read_image(self.root / self.paths[row])
        except DecodeError as error:
            record = {"id": row, "path": str(self.paths[row]), "reason": str(error)}
            return _item(row, label, code, [], [record])
        return _item(row, label, code, evaluation_views(image, self.size, self.policy), [])


def collate(items: list[dict[str, Any]]) -> dict[str, Any]:
    """Stack items into a batch; items without views only report their quarantined files.

    Returns:
        image (B, V, 3, H, W) uint8, label, generator and id (B,) int64, quarantined (list of dicts). B is 0 where
        no image of the batch could be read.
    """
    whole = [item for item in items if item["views"]]
    if whole:
        stacked = np.stack([np.stack(item["views"]) for item in whole])
        image = torch.from_numpy(np.ascontiguousarray(stacked.transpose(0, 1, 4, 2, 3)))
    else:
        image = torch.zeros((0, 1, 3, 1, 1), dtype=torch.uint8)
    batch: dict[str, Any] = {
        key: torch.tensor([item[key] for item in whole], dtype=torch.int64)
        for key in ("label", "generator", "id")
    }
    return {
        "image": image,
        **batch,
        "quarantined": [record for item in items for record in item["quarantined"]],
    }


def _item(
    row: int, label: int, code: int, views: list[NDArray[np.uint8]], quarantined: list[dict[str, Any]]
) -> dict[str, Any]:
    return {"id": int(row), "label": label, "generator": code, "views": views, "quarantined": quarantined}
