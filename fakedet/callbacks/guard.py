"""Stop a training that has diverged, with what is needed to find out why."""

from __future__ import annotations

import math
import resource
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from fakedet.errors import UserError


class LossGuard(Callback):
    """End the run at the first loss that is NaN or infinite, before it reaches the weights, and keep its batch.

    The last resume point is from before; weights that were once spoilt would stay so.

    Args:
        path: the file for the batch: images, labels, rows of the manifest, step and loss.
        every_steps: steps between two looks; a look waits for the GPU.
    """

    def __init__(self, path: str, every_steps: int = 1) -> None:
        self.path, self.every_steps = Path(path), every_steps
        self._batch: Any = None

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Keep hold of the batch."""
        self._batch = batch

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: torch.Tensor) -> None:
        """Look at the loss.

        Raises:
            UserError: it is NaN or infinite.
        """
        if trainer.global_step % self.every_steps:
            return
        value = float(loss.detach())
        if math.isfinite(value):
            return
        path = self.path
        if trainer.world_size > 1:  # each rank its own: the wrong one may not be rank zero
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
    """Log how fast a training is, how much of its time it waits for data, and its memory, once an epoch.

    ``perf/images_per_second`` over all ranks, ``perf/data_wait_share`` in [0, 1], ``perf/memory_gb`` (peak, of the
    GPU or the process).
    """

    def __init__(self) -> None:
        self._clear()

    def _clear(self) -> None:
        self._images = 0
        self._waited = self._worked = 0.0
        self._last = math.nan

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin anew."""
        self._clear()
        self._last = _now()

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Count what was waited."""
        now = _now()
        self._waited += now - self._last
        self._last = now

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count what was worked."""
        now = _now()
        self._worked += now - self._last
        self._last = now
        self._images += len(batch["id"])
        # At the last batch: validation comes next, and its time is not training's.
        if batch_idx + 1 == trainer.num_training_batches and self._waited + self._worked > 0:
            seconds = self._waited + self._worked
            values = {
                "perf/images_per_second": self._images * trainer.world_size / seconds,
                "perf/data_wait_share": self._waited / seconds,
                "perf/memory_gb": _memory(),
            }
            for logger in trainer.loggers:
                logger.log_metrics({**values, "epoch": trainer.current_epoch}, trainer.global_step)


def _now() -> float:
    return time.perf_counter()


def _memory() -> float:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
