"""Callbacks of a training: stop at a bad loss, measure the speed, show progress, stop at a low learning rate."""

from __future__ import annotations

import logging
import math
import resource
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from fakedet.errors import UserError
from fakedet.utils import write_json

log = logging.getLogger("fakedet")

SECONDS_BETWEEN_WRITES = 0.5


class LossGuard(Callback):
    """End the run at the first loss that is NaN or infinite, before it reaches the weights, and save its batch.

    Args:
        path: file for the batch: images, labels, rows of the manifest, step and loss.
        every_steps: steps between two checks; a check waits for the GPU.
    """

    def __init__(self, path: str, every_steps: int = 1) -> None:
        self.path, self.every_steps = Path(path), every_steps
        self._batch: Any = None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Hold on to the batch."""
        self._batch = batch

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: torch.Tensor) -> None:
        """Check the loss.

        Raises:
            UserError: it is NaN or infinite.
        """
        if trainer.global_step % self.every_steps:
            return
        value = float(loss.detach())
        if math.isfinite(value):
            return
        path = self.path
        if trainer.world_size > 1:  # each rank saves its own, because any of them may have the bad loss
            path = path.with_stem(f"{path.stem}-rank{trainer.global_rank}")
        kept = {key: item.cpu() for key, item in self._batch.items() if isinstance(item, torch.Tensor)}
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save({**kept, "step": trainer.global_step, "loss": value}, path)
        raise UserError(
            f"the loss is {value} at step {trainer.global_step}, epoch {trainer.current_epoch + 1}; its batch is kept "
            f"in {path}. Try a lower model.optimizer.lr, a tighter trainer.gradient_clip_val, "
            "trainer.precision=32-true, or trainer.detect_anomaly=true to see where it comes from"
        )


class Throughput(Callback):
    """Log the speed of a training, its share of time spent waiting for data, and its memory, once an epoch.

    ``perf/images_per_second`` over all ranks, ``perf/data_wait_share`` in [0, 1], ``perf/memory_gb`` (peak, of the
    GPU or the process).
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reset the counts; an epoch that is resumed has no start."""
        self.on_train_epoch_start(trainer, pl_module)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reset the counts."""
        self._images = 0
        self._waited = self._worked = 0.0
        self._last = time.perf_counter()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Add the time spent waiting for data."""
        now = time.perf_counter()
        self._waited += now - self._last
        self._last = now

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Add the time of the step, and log at the end of the epoch."""
        now = time.perf_counter()
        self._worked += now - self._last
        self._last = now
        self._images += len(batch["id"])
        # At the last batch, because validation comes next.
        if batch_idx + 1 == trainer.num_training_batches and self._waited + self._worked > 0:
            seconds = self._waited + self._worked
            if torch.cuda.is_available():
                memory = torch.cuda.max_memory_allocated() / 2**30
            else:
                memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
            values = {
                "perf/images_per_second": self._images * trainer.world_size / seconds,
                "perf/data_wait_share": self._waited / seconds,
                "perf/memory_gb": memory,
            }
            for logger in trainer.loggers:
                logger.log_metrics({**values, "epoch": trainer.current_epoch}, trainer.global_step)


class RunProgress(Callback):
    """Log one line an epoch, and keep a file with the number of steps done and of all steps.

    Lightning's own bar serves an interactive terminal; this serves log files and clusters.

    Args:
        file: where to write the progress as JSON; None for nowhere.
    """

    def __init__(self, file: str | None = None) -> None:
        self.file = Path(file) if file else None
        self._last_write = 0.0
        self._epoch_start = 0.0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record when the epoch began."""
        self._epoch_start = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write the progress, at most twice a second."""
        now = time.perf_counter()
        if self.file is not None and trainer.is_global_zero and now - self._last_write > SECONDS_BETWEEN_WRITES:
            self._last_write = now
            self._write(trainer, batch_idx + 1)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the epoch's values; validation has already run."""
        if not trainer.is_global_zero:
            return
        shown = []
        for key in ("train/loss", "val/loss", "val/map", "collapse/mean_cosine"):
            value = trainer.callback_metrics.get(key)
            if value is not None and math.isfinite(float(value)):
                shown.append(f"{key} {float(value):.4f}")
        seconds = time.perf_counter() - self._epoch_start
        log.info("epoch %d/%d  %s  %.1f s", trainer.current_epoch + 1, trainer.max_epochs or 0,
                 "  ".join(shown), seconds)  # fmt: skip

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write that the training has ended."""
        if self.file is not None and trainer.is_global_zero:
            self._write(trainer, 0)

    def _write(self, trainer: Trainer, batches_done: int) -> None:
        assert self.file is not None
        batches = int(trainer.num_training_batches)
        content = {
            "done": trainer.current_epoch * batches + batches_done,
            "total": (trainer.max_epochs or 1) * batches,
            "epoch": trainer.current_epoch,
        }
        write_json(self.file, content)


class RateFloor(Callback):
    """End the training after the first epoch whose learning rate is below a floor (CNNDetection; Wang et al. 2020).

    Args:
        rate: the floor.
    """

    def __init__(self, rate: float) -> None:
        self.rate = rate

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check the learning rate."""
        rates = [group["lr"] for optimiser in trainer.optimizers for group in optimiser.param_groups]
        if max(rates) < self.rate:
            trainer.should_stop = True
