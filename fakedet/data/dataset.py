"""The datasets: from a draw to the views of an image, whatever the file is like."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from fakedet.data.augment import Augmentation
from fakedet.data.crop import POLICIES, evaluation_views
from fakedet.data.decode import DecodeError, decode_image
from fakedet.data.manifest import Manifest
from fakedet.data.picture_memory import PictureMemory
from fakedet.data.sampler import Draw
from fakedet.data.sources import Source, make_source
from fakedet.data.stall import Reading
from fakedet.errors import UserError, choose

TRIES = 20
"""Images tried for one draw before giving up."""


class _Images(Dataset[dict[str, Any]]):
    """What both datasets know of the manifest, and how they read a row of it."""

    def __init__(
        self, manifest: Manifest, codes: NDArray[np.int64], views: int, size: int, source: Source | None
    ) -> None:
        self.root, self.codes = manifest.shards or manifest.root, codes
        self.source = source or make_source(manifest)
        # Arrow: a list of Python strings would be copied into every worker, page by page, as it is read.
        self.paths = pa.array(manifest.frame["path"].tolist(), pa.large_string())
        self.labels = manifest.frame["label"].to_numpy()
        self.views, self.size = views, size
        # Set anew by the loader, which knows how many workers there are.
        self.reading, self.memory = Reading(0), PictureMemory(0)

    def path_of(self, row: int) -> str:
        """Name the file of a row."""
        return f"{self.root}/{self.paths[row].as_py()}"

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def collate(self) -> partial[dict[str, Any]]:
        """Give the collate function, which knows the shape of a batch without images."""
        return partial(collate, views=self.views, size=self.size)

    def read(self, row: int) -> NDArray[np.uint8] | dict[str, Any]:
        """Give the pixels of a row, or its record for the quarantine."""
        kept = self.memory.get(row)
        if kept is not None:
            return kept
        try:
            with self.reading.of(row):
                pixels = decode_image(self.source.read(row))
        except DecodeError as error:
            return {"id": row, "path": self.paths[row].as_py(), "reason": error.reason}
        self.memory.keep(row, pixels)
        return pixels

    def item(
        self, row: int, views: list[NDArray[np.uint8]], quarantined: list[dict[str, Any]]
    ) -> dict[str, Any]:
        """Give what :func:`collate` takes."""
        return {
            "id": row,
            "label": int(self.labels[row]),
            "generator": int(self.codes[row]),
            "views": views,
            "quarantined": quarantined,
        }


class ImageDataset(_Images):
    """Read images for training: augmented random crops, any number of views.

    An image that cannot be read is replaced by another training image of its generator or collection, else of
    its class, chosen by the draw's seed; it is reported with the item.

    Args:
        manifest: the rows.
        codes: metric cell of each row.
        augment: makes a view.
        size: side of a view.
        views: views of each image.
        pool: the rows that may stand in for others; None: those of the split "train".
        source: gives the bytes; None: the manifest's files or shards.
    """

    def __init__(
        self,
        manifest: Manifest,
        codes: NDArray[np.int64],
        augment: Augmentation,
        size: int,
        views: int,
        pool: NDArray[np.int64] | None = None,
        source: Source | None = None,
    ) -> None:
        super().__init__(manifest, codes, views, size, source)
        train = np.flatnonzero((manifest.frame["split"] == "train").to_numpy())
        self.augment, self.pool = augment, train if pool is None else np.asarray(pool)

    def __getitem__(self, draw: Draw) -> dict[str, Any]:
        """Read one draw; all randomness comes from ``draw.seed``.

        Raises:
            UserError: neither the image nor any of those tried in its place can be read.
        """
        quarantined: list[dict[str, Any]] = []
        for row in self._candidates(draw):
            image = self.read(row)
            if isinstance(image, dict):
                quarantined.append(image)
                continue
            seeds = np.random.SeedSequence(draw.seed).generate_state(self.views, np.uint64)
            return self.item(row, [self.augment(image, self.size, int(seed)) for seed in seeds], quarantined)
        files = "; ".join(f"{record['path']} ({record['reason']})" for record in quarantined[:5])
        more = f" and {len(quarantined) - 5} more" if len(quarantined) > 5 else ""
        raise UserError(
            f"no training image could be read in the place of {quarantined[0]['path']} under {self.root}: "
            f"{files}{more}; is data.root right, and are the files whole?"
        )

    def _candidates(self, draw: Draw) -> Iterator[int]:
        """Yield the drawn row, then others: at first those of its cell, then those of its class."""
        yield draw.id
        rng = np.random.default_rng((draw.seed, 1))
        others = self.pool[(self.pool != draw.id) & (self.labels[self.pool] == self.labels[draw.id])]
        own = self.codes[others] == self.codes[draw.id]
        # Half of the tries are kept for the class: a generator may be broken as a whole.
        alike = rng.permutation(others[own])[: TRIES // 2]
        rest = rng.permutation(others[~own])[: TRIES - 1 - len(alike)]
        yield from alike.tolist()
        yield from rest.tolist()


class EvaluationDataset(_Images):
    """Read images for evaluation: no randomness; an image that cannot be read is left out and reported.

    Args:
        manifest: the rows.
        codes: metric cell of each row.
        policy: see :func:`fakedet.data.crop.evaluation_views`.
        size: side of a view.
        source: gives the bytes; None: the manifest's files or shards.
    """

    def __init__(
        self,
        manifest: Manifest,
        codes: NDArray[np.int64],
        policy: str,
        size: int,
        source: Source | None = None,
    ) -> None:
        views = POLICIES[choose(policy, POLICIES, "data.eval_policy")]
        super().__init__(manifest, codes, views, size, source)
        self.policy = policy

    def __getitem__(self, draw: Draw) -> dict[str, Any]:
        """Read one row."""
        image = self.read(draw.id)
        if isinstance(image, dict):
            return self.item(draw.id, [], [image])
        return self.item(draw.id, evaluation_views(image, self.size, self.policy), [])


def collate(items: list[dict[str, Any]], views: int, size: int) -> dict[str, Any]:
    """Stack items into a batch; items without views only report their quarantined files.

    Args:
        items: of one of the datasets; may be empty.
        views: V.
        size: H and W.

    Returns:
        image (B, V, 3, H, W) uint8, label, generator and id (B,) int64, quarantined (list of dicts). B is 0
        where no image of the batch could be read.
    """
    whole = [item for item in items if item["views"]]
    pixels = np.empty((len(whole), views, 3, size, size), dtype=np.uint8)
    for row, item in enumerate(whole):
        for view, image in enumerate(item["views"]):
            pixels[row, view] = image.transpose(2, 0, 1)
    columns = {
        key: torch.tensor([item[key] for item in whole], dtype=torch.int64)
        for key in ("label", "generator", "id")
    }
    quarantined = [record for item in items for record in item["quarantined"]]
    return {"image": torch.from_numpy(pixels), **columns, "quarantined": quarantined}
