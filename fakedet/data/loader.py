"""DataLoaders of images: the same batches with any number of workers, and readable errors out of them."""

from __future__ import annotations

import os
import warnings
from typing import Any

import cv2
import torch
from torch.utils.data import DataLoader

from fakedet.data.picture_memory import PictureMemory
from fakedet.data.stall import Reading, StallWatch
from fakedet.errors import UserError

# Workers beyond this many a core only cost memory; a number that large is a slip.
MOST_WORKERS_A_CORE = 4


class ImageLoader(DataLoader[Any]):
    """A DataLoader that passes on a worker's message for the person without the worker's traceback.

    Its iterators begin when their first batch is asked for. PyTorch's let the workers fetch ahead at once;
    Lightning makes the first iterator before it sets the epoch, and would resume with batches of epoch 0.
    """

    stall_seconds: float = 300.0
    """A batch that takes longer is told of, with the files that are being read."""

    def __iter__(self) -> Any:
        watch = StallWatch(self.stall_seconds, self._waited_for)
        try:
            batches = super().__iter__()
            while True:
                with watch.waiting():
                    batch = next(batches, None)
                if batch is None:
                    return
                yield batch
        except UserError as error:
            raise UserError(str(error).rsplit("UserError: ", 1)[-1].strip()) from None

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
    with warnings.catch_warnings():
        # More workers than cores can pay where reading waits for a disk.
        warnings.filterwarnings("ignore", "This DataLoader will create")
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
