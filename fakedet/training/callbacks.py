"""training/callbacks"""

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


log = logging.getLogger("fakedet")

SECONDS_BETWEEN_WRITES = 0.5


class RunProgress(Callback):
    """Log one line an epoch and keep ``file`` up to date with the steps done and the steps in all.

    Lightning's own bar serves an interactive terminal; this serves log files, clusters and the study command,
    which draws one bar a job from these files.

    Args:
        file: where to write the progress as JSON; null for nowhere.
    """

    def __init__(self, file: str | None = None) -> None:
        self.file = Path(file) if file else None
        self._last_write = 0.0
        self._epoch_start = 0.0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note when the epoch began."""
        self._epoch_start = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write the progress, a few times a second at most."""
        now = time.perf_counter()
        if (
            self.file is not None
            and trainer.is_global_zero
            and now - self._last_write > SECONDS_BETWEEN_WRITES
        ):
            self._last_write = now
            self._write(trainer, batch_idx + 1)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the epoch's numbers; validation has already run."""
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
        """Write that the training is done."""
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
    """End the training at the first epoch whose learning rate is below a floor (CNNDetection; Wang et al. 2020).

    Args:
        rate: the floor.
    """

    def __init__(self, rate: float) -> None:
        self.rate = rate

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at the rate."""
        if (
            max(group["lr"] for optimiser in trainer.optimizers for group in optimiser.param_groups)
            < self.rate
        ):
            trainer.should_stop = True
