"""data/dataset"""

from __future__ import annotations

import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, get_worker_info

from fakedet.data.decode import DecodeError, decode_image
from fakedet.data.degrade import View, degraded_views
from fakedet.data.manifest import Manifest
from fakedet.data.sampler import Draw
from fakedet.data.sources import Source, make_source
from fakedet.data.transforms import POLICIES, Augmentation, evaluation_views
from fakedet.errors import UserError, choose

PIXELS_KEPT = 512 * 2**20
"""Bytes of pixels kept for a loader."""


class PictureMemory:
    """Keep the pixels of rows until the memory is full: a small set is decoded once, a large one as ever.

    What came first stays. Epochs are drawn anew each time, so that dropping the oldest would keep no more of a set that
    does not fit, and cost as much.

    Args:
        capacity: in bytes; 0: nothing is kept.
    """

    def __init__(self, capacity: int = PIXELS_KEPT) -> None:
        self.left = capacity
        self._pixels: dict[int, NDArray[np.uint8]] = {}

    def get(self, row: int) -> NDArray[np.uint8] | None:
        """Give a copy of a row's pixels, which may be written to, if they are kept."""
        kept = self._pixels.get(row)
        return None if kept is None else kept.copy()

    def keep(self, row: int, pixels: NDArray[np.uint8]) -> None:
        """Keep a copy of a row's pixels if there is room."""
        if pixels.nbytes <= self.left and row not in self._pixels:
            self._pixels[row] = pixels.copy()
            self.left -= pixels.nbytes


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
        policy: see :func:`fakedet.data.transforms.evaluation_views`.
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


class RobustDataset(Dataset[dict[str, Any]]):
    """Read images and degrade them.

    Args:
        source: gives the bytes.
        views: V ways of degrading.
        policy: see :func:`fakedet.data.transforms.evaluation_views`; gives P crops.
        size: side of a crop.
    """

    def __init__(self, source: Source, views: list[View], policy: str, size: int) -> None:
        self.source, self.views, self.policy, self.size = source, views, policy, size
        self.crops = POLICIES[policy]

    def __getitem__(self, draw: Draw) -> dict[str, Any]:
        """Read one row: ``image`` (V, P, 3, H, W) uint8, None where it cannot be read."""
        try:
            image = decode_image(self.source.read(draw.id))
        except DecodeError:
            return {"id": draw.id, "image": None}
        crops = [degraded_views(image, view, self.size, self.policy, draw.id) for view in self.views]
        pixels: NDArray[np.uint8] = np.asarray(crops, dtype=np.uint8).transpose(0, 1, 4, 2, 3)
        return {"id": draw.id, "image": np.ascontiguousarray(pixels)}

    def collate(self, items: list[dict[str, Any]]) -> dict[str, Any]:
        """Stack items: image (B·V, P, 3, H, W), id and number of the view (B·V,); unreadable images are left out."""
        whole = [item for item in items if item["image"] is not None]
        shape = (0, self.crops, 3, self.size, self.size)
        pixels = np.concatenate([item["image"] for item in whole]) if whole else np.zeros(shape, np.uint8)
        ids = torch.tensor([item["id"] for item in whole], dtype=torch.int64)
        return {
            "image": torch.from_numpy(pixels),
            "id": ids.repeat_interleave(len(self.views)),
            "view": torch.arange(len(self.views)).repeat(len(whole)),
        }


log = logging.getLogger("fakedet")

IDLE = -1


class Reading:
    """Which row each worker reads at the moment, in memory that all processes share.

    Args:
        workers: their number; 0 is one, the main process.
    """

    def __init__(self, workers: int) -> None:
        self.rows = torch.full((max(1, workers),), IDLE, dtype=torch.int64).share_memory_()

    @contextmanager
    def of(self, row: int) -> Iterator[None]:
        """Note that this process reads a row."""
        worker = get_worker_info()
        slot = 0 if worker is None or worker.id >= len(self.rows) else worker.id
        self.rows[slot] = row
        try:
            yield
        finally:
            self.rows[slot] = IDLE

    def busy(self) -> list[tuple[int, int]]:
        """List (worker, row) of those that read."""
        return [(worker, row) for worker, row in enumerate(self.rows.tolist()) if row != IDLE]


class StallWatch:
    """Log a warning when a batch takes too long, once for each such batch.

    Args:
        seconds: that a batch may take.
        describe: says what is being waited for.
    """

    def __init__(self, seconds: float, describe: Callable[[], str]) -> None:
        self.seconds, self.describe = seconds, describe
        self._since: float | None = None
        self._told = False
        self._thread: threading.Thread | None = None

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Watch a wait."""
        if self._thread is None:
            # It knows its watch weakly and ends with it.
            self._thread = threading.Thread(
                target=_look, args=(weakref.ref(self), self.seconds / 4), daemon=True
            )
            self._thread.start()
        self._since, self._told = time.monotonic(), False
        try:
            yield
        finally:
            self._since = None

    def look(self) -> None:
        """Tell of a wait that has become too long."""
        since = self._since
        if since is not None and not self._told and time.monotonic() - since > self.seconds:
            self._told = True
            log.warning("no batch for %.0f s: %s", time.monotonic() - since, self.describe())


def _look(watch: weakref.ref[StallWatch], pause: float) -> None:
    while (own := watch()) is not None:
        own.look()
        del own
        time.sleep(pause)


# Workers beyond this many a core only cost memory; a number that large is a slip.
MOST_WORKERS_A_CORE = 4


class ImageLoader(DataLoader[Any]):
    """A DataLoader that passes on a worker's message for the person without the worker's traceback.

    Its iterators begin when their first batch is asked for. PyTorch's let the workers fetch ahead at once;
    Lightning makes the first iterator before it sets the epoch, and would resume with batches of epoch 0.
    """

    stall_seconds: float = 300.0
    """A batch that takes longer is told of, with the files that are being read."""

    taken = 0
    """Batches that the current iterator has given."""

    def __iter__(self) -> Any:
        watch = StallWatch(self.stall_seconds, self._waited_for)
        self.taken = 0
        try:
            batches = super().__iter__()
            while True:
                with watch.waiting():
                    batch = next(batches, None)
                if batch is None:
                    return
                self.taken += 1
                yield batch
        except UserError as error:
            raise UserError(str(error).rsplit("UserError: ", 1)[-1].strip()) from None

    def check_worker_number_rationality(self) -> None:
        """Say nothing: more workers than cores can pay where reading waits for a disk."""

    def _waited_for(self) -> str:
        dataset: Any = self.dataset
        reading = getattr(dataset, "reading", None)
        busy = reading.busy() if reading is not None else []
        if not busy:
            return f"none of the {max(1, self.num_workers)} workers is reading a file; is the machine out of memory?"
        who = "worker {}" if self.num_workers else "the main process"
        return "; ".join(f"{who.format(worker)} reads {dataset.path_of(row)}" for worker, row in busy[:8])


def make_loader(dataset: Any, sampler: Any, num_workers: int, seed: int) -> ImageLoader:
    """Load what ``sampler`` draws from one of the datasets of :mod:`fakedet.data.dataset`."""
    dataset.reading = Reading(num_workers)
    # Workers would each keep what they happened to draw.
    dataset.memory = PictureMemory() if num_workers == 0 else PictureMemory(0)
    return ImageLoader(
        dataset,
        batch_sampler=sampler,
        num_workers=num_workers,
        collate_fn=dataset.collate,
        worker_init_fn=_quiet_worker,
        persistent_workers=num_workers > 0,
        pin_memory=torch.cuda.is_available(),
        # Without one, each new iterator would draw from the global generator, and how often there is a
        # new one depends on the number of workers.
        generator=torch.Generator().manual_seed(seed),
    )


def cores() -> int:
    """Count the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_workers(count: int) -> None:
    """Refuse a number of workers that can only be a slip.

    Raises:
        UserError: the message names the valid range.
    """
    most = MOST_WORKERS_A_CORE * cores()
    if not isinstance(count, int) or not 0 <= count <= most:
        raise UserError(
            f"data.num_workers={count}: this machine has {cores()} cores; valid: 0 (load in the main "
            f"process) to {most}, best about one a core"
        )


def _quiet_worker(_: int) -> None:
    cv2.setNumThreads(0)  # several workers with several threads each would fight for the cores
