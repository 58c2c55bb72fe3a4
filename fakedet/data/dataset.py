"""Datasets, which turn rows of a manifest into uint8 batches, and the loader that draws them.

A sampler (:mod:`fakedet.data.sampler`) yields lists of :class:`~fakedet.data.sampler.Draw`. A dataset reads the bytes
of a drawn row from a source (:mod:`fakedet.data.sources`), decodes and crops them. ``collate`` stacks the results.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypedDict

import cv2
import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from fakedet.data.decode import DecodeError, decode_image
from fakedet.data.degrade import View, degraded_views
from fakedet.data.manifest import Manifest
from fakedet.data.sampler import Draw
from fakedet.data.sources import FileSource, Source
from fakedet.data.transforms import Augment, evaluation_views, views_of
from fakedet.errors import UserError
from fakedet.models.features import Pictures

log = logging.getLogger("fakedet")

TRIES = 20  # Images tried for one draw before training gives up
IDLE = -1  # Of a worker that reads no row


class Batch(TypedDict):
    """What every loader of a data module yields. B is 0 if no image of the batch could be read."""

    image: Tensor  # (B, V, 3, H, W) uint8 RGB: V views of each image; or (B, V, 1) int64, handles of Pictures
    label: Tensor  # (B,) int64: 0 real, 1 fake
    generator: Tensor  # (B,) int64: each image's code in :class:`fakedet.data.manifest.Cells`
    id: Tensor  # (B,) int64: each image's row in the manifest
    quarantined: list[dict[str, Any]]  # id, path and reason of each image that could not be read


def collate(items: list[dict[str, Any]], views: int, size: int) -> Batch:
    """Stack any number of items into a batch of V ``views``; items without views only report.

    H and W are ``size``, except under a policy that shows whole pictures, one in a batch.
    """
    whole = [item for item in items if item["views"]]
    pixels: NDArray[Any]
    handles = [[view for view in item["views"] if isinstance(view, int)] for item in whole]
    if whole and all(len(of) == views for of in handles):
        pixels = np.array(handles, dtype=np.int64)[..., None]
    else:
        first = next((view for item in whole for view in item["views"] if not isinstance(view, int)), None)
        height, width = (size, size) if first is None else first.shape[:2]
        pixels = np.empty((len(whole), views, 3, height, width), dtype=np.uint8)
        for row, item in enumerate(whole):
            for view, image in enumerate(item["views"]):
                shown = Pictures.pixels(image) if isinstance(image, int) else image
                pixels[row, view] = shown.transpose(2, 0, 1)
    label, generator, ids = (
        torch.tensor([item[key] for item in whole], dtype=torch.int64) for key in ("label", "generator", "id")
    )
    quarantined = [record for item in items for record in item["quarantined"]]
    return Batch(image=torch.from_numpy(pixels), label=label, generator=generator, id=ids, quarantined=quarantined)


class _Images(Dataset[dict[str, Any]]):
    """What the datasets of training and evaluation share: the manifest's columns and reading a row."""

    def __init__(self, manifest: Manifest, codes: NDArray[np.int64], source: Source, views: int, size: int) -> None:
        self.root, self.codes, self.source = manifest.shards or manifest.root, codes, source
        # Arrow: a list of Python strings would be copied into every worker, page by page, as it is read.
        self.paths = pa.array(manifest.frame["path"].tolist(), pa.large_string())
        self.labels = manifest.frame["label"].to_numpy()
        self.views, self.size = views, size
        self.reading = Reading(0)  # replaced by make_loader, which knows the number of workers
        self.by_handle = False  # whether files whose views are all the whole picture are given by their handles

    def __len__(self) -> int:
        return len(self.labels)

    def path_of(self, row: int) -> str:
        """Return the full path of a row's file, for messages."""
        return f"{self.root}/{self.paths[row].as_py()}"

    def collate(self, items: list[dict[str, Any]]) -> Batch:
        """Stack items of this dataset; see :func:`collate`."""
        return collate(items, self.views, self.size)

    def read(self, row: int) -> NDArray[np.uint8] | dict[str, Any]:
        """Return the pixels (H, W, 3) of a row, or its record for the quarantine."""
        try:
            with self.reading.of(row):
                return decode_image(self.source.read(row))
        except DecodeError as error:
            return {"id": row, "path": self.paths[row].as_py(), "reason": error.reason}

    def handle_of(self, row: int, image: NDArray[np.uint8] | None = None) -> int | None:
        """Return the handle of a row's file, a new one if its pixels are given; None if it has or gets none."""
        source = self.source
        if not self.by_handle or type(source) is not FileSource:  # others may change what a file holds
            return None
        try:
            path = source.root / self.paths[row].as_py()
            facts = path.stat()
        except OSError:
            return None
        key = str(path), facts.st_mtime_ns, facts.st_size, self.size
        if image is None or key in Pictures.known or image.shape[:2] != (self.size, self.size):
            return Pictures.known.get(key)
        return Pictures.add(key, image, lambda: decode_image(source.read(row)))

    def item(
        self, row: int, views: Sequence[NDArray[np.uint8] | int], quarantined: list[dict[str, Any]]
    ) -> dict[str, Any]:
        """Return an item for :func:`collate`."""
        codes = {"id": row, "label": int(self.labels[row]), "generator": int(self.codes[row])}
        return {**codes, "views": views, "quarantined": quarantined}


class ImageDataset(_Images):
    """Training images: augmented random crops, any number of views.

    An image that cannot be read is reported, and replaced by another training image of its generator or collection,
    or else of its class. The draw's seed chooses the replacement.

    Args:
        manifest, source: the table of images, and what gives the bytes of a row.
        codes: (n,) cell of each row; see :class:`fakedet.data.manifest.Cells`.
        augment, size, views: makes one view of an image; its side; number of views of each image.
        pool: rows that may replace others.
    """

    def __init__(
        self, manifest: Manifest, codes: NDArray[np.int64], source: Source, augment: Augment, size: int,
        views: int, pool: NDArray[np.int64],
    ) -> None:  # fmt: skip
        super().__init__(manifest, codes, source, views, size)
        self.augment, self.pool = augment, pool

    def __getitem__(self, draw: Draw) -> dict[str, Any]:
        """Read one draw, whose seed all randomness comes from; a UserError if none of those tried can be read."""
        quarantined: list[dict[str, Any]] = []
        for row in self._candidates(draw):
            if (handle := self.handle_of(row)) is not None:
                return self.item(row, [handle] * self.views, quarantined)
            if not isinstance(image := self.read(row), dict):
                if (handle := self.handle_of(row, image)) is not None:
                    return self.item(row, [handle] * self.views, quarantined)
                seeds = np.random.SeedSequence(draw.seed).generate_state(self.views, np.uint64)
                return self.item(row, [self.augment(image, self.size, int(seed)) for seed in seeds], quarantined)
            quarantined.append(image)
        files = "; ".join(f"{record['path']} ({record['reason']})" for record in quarantined[:5])
        more = f" and {len(quarantined) - 5} more" if len(quarantined) > 5 else ""
        raise UserError(
            f"no training image could be read in the place of {quarantined[0]['path']} under {self.root}: "
            f"{files}{more}; is data.root right, and are the files whole?"
        )

    def _candidates(self, draw: Draw) -> Iterator[int]:
        """Yield the drawn row, then replacements: first of its cell, then of its class."""
        yield draw.id
        rng = np.random.default_rng((draw.seed, 1))
        others = self.pool[(self.pool != draw.id) & (self.labels[self.pool] == self.labels[draw.id])]
        same_cell = self.codes[others] == self.codes[draw.id]
        # Half of the tries are kept for the class, because every file of a generator may be broken.
        near = rng.permutation(others[same_cell])[: TRIES // 2]
        yield from near.tolist()
        yield from rng.permutation(others[~same_cell])[: TRIES - 1 - len(near)].tolist()


class EvaluationDataset(_Images):
    """Evaluation images: the fixed crops of a policy; an image that cannot be read is left out and reported.

    Arguments as for :class:`ImageDataset`; on the policy see :func:`fakedet.data.transforms.evaluation_views`.
    """

    def __init__(self, manifest: Manifest, codes: NDArray[np.int64], source: Source, policy: str, size: int) -> None:
        super().__init__(manifest, codes, source, views_of(policy), size)
        self.policy = policy

    def __getitem__(self, draw: Draw) -> dict[str, Any]:
        """Read one row."""
        if (handle := self.handle_of(draw.id)) is not None:
            return self.item(draw.id, [handle] * self.views, [])
        if isinstance(image := self.read(draw.id), dict):
            return self.item(draw.id, [], [image])
        if (handle := self.handle_of(draw.id, image)) is not None:
            return self.item(draw.id, [handle] * self.views, [])
        return self.item(draw.id, evaluation_views(image, self.size, self.policy), [])


class RobustDataset(Dataset[dict[str, Any]]):
    """Evaluation images under V degradations, the ``views``; each image is decoded once.

    The policy, see :func:`fakedet.data.transforms.evaluation_views`, takes P crops, squares of side ``size``; under one
    that shows whole pictures there is one degradation, and one picture in a batch.
    """

    def __init__(self, source: Source, views: list[View], policy: str, size: int) -> None:
        self.source, self.views, self.policy, self.size = source, views, policy, size
        self.crops = views_of(policy)

    def __getitem__(self, draw: Draw) -> dict[str, Any]:
        """Read one row: ``image`` is (V, P, 3, H, W) uint8; None if it cannot be read."""
        try:
            image = decode_image(self.source.read(draw.id))
            crops = [degraded_views(image, view, self.size, self.policy, draw.id) for view in self.views]
        except DecodeError:
            return {"id": draw.id, "image": None}
        return {"id": draw.id, "image": np.ascontiguousarray(np.asarray(crops, np.uint8).transpose(0, 1, 4, 2, 3))}

    def collate(self, items: list[dict[str, Any]]) -> dict[str, Any]:
        """Stack items: image (B·V, P, 3, H, W), id and number of the view (B·V,); unreadable images are left out."""
        whole = [item for item in items if item["image"] is not None]
        none = np.zeros((0, self.crops, 3, self.size, self.size), np.uint8)
        pixels = np.concatenate([item["image"] for item in whole] or [none])
        ids = torch.tensor([item["id"] for item in whole], dtype=torch.int64).repeat_interleave(len(self.views))
        view = torch.arange(len(self.views)).repeat(len(whole))
        return {"image": torch.from_numpy(pixels), "id": ids, "view": view}


class Reading:
    """The row that each worker (or the main process, without workers) is reading, in memory that processes share."""

    def __init__(self, workers: int) -> None:
        self.rows = torch.full((max(1, workers),), IDLE, dtype=torch.int64).share_memory_()

    @contextmanager
    def of(self, row: int) -> Iterator[None]:
        """Note that this process reads a row."""
        worker = get_worker_info()
        slot = min(worker.id if worker else 0, len(self.rows) - 1)
        self.rows[slot] = row
        try:
            yield
        finally:
            self.rows[slot] = IDLE


class ImageLoader(DataLoader[Any]):
    """A DataLoader that reports a stalled worker, and a worker's UserError without the worker's traceback.

    Its workers start with the first batch. PyTorch starts them with the iterator, but Lightning makes the first
    iterator before it sets the epoch, so a resumed run would begin with batches of epoch 0.
    """

    stall_seconds: float = 300.0  # A batch that takes longer is reported in the log, with the files that are being read
    taken = 0  # Batches that the current iterator has given

    def __iter__(self) -> Any:
        self.taken = 0
        try:
            batches = super().__iter__()
            while True:
                alarm = threading.Timer(self.stall_seconds, self._report_stall)
                alarm.daemon = True
                alarm.start()
                try:
                    batch = next(batches, None)
                finally:
                    alarm.cancel()
                if batch is None:
                    return
                self.taken += 1
                yield batch
        except UserError as error:
            raise UserError(str(error).rsplit("UserError: ", 1)[-1].strip()) from None

    def check_worker_number_rationality(self) -> None:
        """Silence PyTorch's warning: more workers than cores are useful where reading waits for a disk."""

    def _report_stall(self) -> None:
        dataset: Any = self.dataset
        rows = dataset.reading.rows.tolist()
        who = "worker {}" if self.num_workers else "the main process"
        busy = [f"{who.format(worker)} reads {dataset.path_of(row)}" for worker, row in enumerate(rows) if row != IDLE]
        idle = f"none of the {len(rows)} workers is reading a file; is the machine out of memory?"
        log.warning("no batch for %.0f s: %s", self.stall_seconds, "; ".join(busy[:8]) or idle)


def make_loader(dataset: Any, sampler: Any, num_workers: int, seed: int) -> ImageLoader:
    """Load the batches that a batch sampler draws from one of this module's datasets."""
    dataset.reading = Reading(num_workers)
    # Without a generator of its own, each new iterator would draw from the global one, and how often there is a new
    # iterator depends on the number of workers.
    generator = torch.Generator().manual_seed(seed)
    return ImageLoader(
        dataset, batch_sampler=sampler, collate_fn=dataset.collate, generator=generator,
        num_workers=num_workers, persistent_workers=num_workers > 0, worker_init_fn=_start_worker,
        pin_memory=torch.cuda.is_available(),
    )  # fmt: skip


def _start_worker(_: int) -> None:
    cv2.setNumThreads(0)  # several workers with several threads each would compete for the cores


def cores() -> int:
    """Return the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
