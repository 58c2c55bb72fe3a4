"""Progress for those who do not watch a terminal: a log line an epoch, and a small file to poll."""

from __future__ import annotations

import json
import logging
import math
import os
import time
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

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
        temporary = self.file.with_suffix(".tmp")
        temporary.write_text(json.dumps(content), encoding="utf-8")
        os.replace(temporary, self.file)
