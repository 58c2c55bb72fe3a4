"""Callbacks of a training: stop at a bad loss, measure the speed, show progress, stop at a low learning rate."""

from __future__ import annotations

import logging
import math
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from fakedet.errors import UserError
from fakedet.utils import Bar, write_json

log = logging.getLogger("fakedet")


class LossGuard(Callback):
    """End the run at the first loss that is NaN or infinite, before it reaches the weights, and save its batch.

    Args:
        path: file for the batch: images, labels, rows of the manifest, step and loss.
        every_steps: steps between two checks, each of which waits for the GPU.
    """

    def __init__(self, path: str, every_steps: int = 1) -> None:
        self.path, self.every_steps = Path(path), every_steps
        self._batch: Any = None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Hold on to the batch."""
        self._batch = batch

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: torch.Tensor) -> None:
        """Raise UserError if the loss is NaN or infinite."""
        if trainer.global_step % self.every_steps or math.isfinite(value := float(loss.detach())):
            return
        path = self.path
        if trainer.world_size > 1:  # each rank saves its own, because any of them may have the bad loss
            path = path.with_stem(f"{path.stem}-rank{trainer.global_rank}")
        kept = {key: item.cpu() for key, item in self._batch.items() if isinstance(item, torch.Tensor)}
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save({**kept, "step": trainer.global_step, "loss": value}, path)
        raise UserError(f"the loss is {value} at step {trainer.global_step}, epoch {trainer.current_epoch + 1}; its "
                        f"batch is kept in {path}. Try a lower model.optimizer.lr, a tighter "
                        "trainer.gradient_clip_val, trainer.precision=32-true, or trainer.detect_anomaly=true to "
                        "see where it comes from")  # fmt: skip


class Throughput(Callback):
    """Log the speed of a training, its share of time spent waiting for data, and its memory, once an epoch.

    ``perf/images_per_second`` over all ranks, ``perf/data_wait_share`` in [0, 1], ``perf/memory_gb`` (peak, of the
    GPU or the process).
    """

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reset the counts."""
        self._images, self._waited = 0, 0.0
        self._start = self._step_end = time.perf_counter()

    on_train_start = on_train_epoch_start  # an epoch that is resumed has no start

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Add the time spent waiting for data."""
        self._waited += time.perf_counter() - self._step_end

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Count the images, and log at the epoch's last batch, because validation comes next."""
        self._step_end = time.perf_counter()
        self._images += len(batch["id"])
        if batch_idx + 1 < trainer.num_training_batches:
            return
        seconds = self._step_end - self._start
        of_process = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        memory = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else of_process
        speed = self._images * trainer.world_size / seconds
        values = {"perf/images_per_second": speed, "perf/data_wait_share": self._waited / seconds,
                  "perf/memory_gb": memory, "epoch": trainer.current_epoch}  # fmt: skip
        for logger in trainer.loggers:
            logger.log_metrics(dict(values), trainer.global_step)


class RunProgress(Callback):
    """Log a line an epoch, more in long ones, and keep the steps done and of all steps in a JSON file, if one is named.

    Lightning's own bar serves an interactive terminal; this serves log files and clusters.
    """

    def __init__(self, file: str | None = None) -> None:
        self.file, self._last_write = Path(file) if file else None, 0.0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record when the epoch began."""
        self._epoch_start = time.perf_counter()
        self._bar = Bar(f"epoch {trainer.current_epoch + 1}, steps", int(trainer.num_training_batches))

    on_train_start = on_train_epoch_start  # an epoch that is resumed has no start

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Show the progress, and write it, at most twice a second."""
        if trainer.is_global_zero and not sys.stdout.isatty():
            self._bar.show(batch_idx + 1)
        if time.perf_counter() - self._last_write > 0.5:
            self._write(trainer, batch_idx + 1)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the epoch's values; validation has already run."""
        if not trainer.is_global_zero:
            return
        keys = ("train/loss", "val/loss", "val/map", "collapse/mean_cosine")
        values = {key: float(trainer.callback_metrics.get(key, math.nan)) for key in keys}
        shown = "  ".join(f"{key} {value:.4f}" for key, value in values.items() if math.isfinite(value))
        seconds = time.perf_counter() - self._epoch_start
        log.info("epoch %d/%d  %s  %.1f s", trainer.current_epoch + 1, trainer.max_epochs or 0, shown, seconds)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write that the training has ended."""
        self._write(trainer, 0)

    def _write(self, trainer: Trainer, batches_done: int) -> None:
        if self.file is None or not trainer.is_global_zero:
            return
        self._last_write = time.perf_counter()
        epoch, batches = trainer.current_epoch, int(trainer.num_training_batches)
        total = (trainer.max_epochs or 1) * batches
        write_json(self.file, {"done": epoch * batches + batches_done, "total": total, "epoch": epoch})


class RateFloor(Callback):
    """End the training after the first epoch whose learning rate is below ``rate`` (CNNDetection; Wang et al. 2020)."""

    def __init__(self, rate: float) -> None:
        self.rate = rate

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check the learning rate."""
        rates = [group["lr"] for optimiser in trainer.optimizers for group in optimiser.param_groups]
        if max(rates) < self.rate:
            trainer.should_stop = True
