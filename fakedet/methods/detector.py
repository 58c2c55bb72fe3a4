"""What every trained method has in common: how it scores images and how it is measured."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from fakedet.methods.optimiser import configure_optimiser
from fakedet.methods.traces import fit_encoder
from fakedet.metrics.average_precision import GeneratorAveragePrecision
from fakedet.models.trace_bank import TraceBank


class Scores(NamedTuple):
    """What a detector says of each image of a batch."""

    logit: Tensor
    """(B,) float32; sigmoid(logit) = P(fake)."""
    embedding: Tensor
    """(B, D) float32; what the embedding map draws."""
    trace_distance: Tensor
    """(B,) float32 distance from the natural traces; NaN where a method has none."""


class Detector(LightningModule):
    """Score images, log the loss, and measure AP per generator on the validation and test splits.

    Subclasses give :meth:`forward` and ``training_step``. ``identity`` travels inside every checkpoint: the
    model's config, the generators seen in training and the crop, all that is needed to build the detector
    again and to say what it knows. It holds plain values only, so that checkpoints load with ``weights_only``.
    """

    encoder: nn.Module

    def __init__(self, optimizer: Mapping[str, Any]) -> None:
        super().__init__()
        self.optimizer_settings = dict(optimizer)
        self.identity: dict[str, Any] = {}
        self.val_metric: nn.Module | None = None
        self.test_metric: nn.Module | None = None
        self.quarantined: list[dict[str, Any]] = []

    @abstractmethod
    def forward(self, images: Tensor) -> Scores:
        """Score float RGB images (N, 3, H, W) in [0, 1]."""

    def freeze_for_export(self) -> None:
        """Turn what depends on values of buffers into constants, so that the forward pass can be traced."""
        for module in self.modules():
            if isinstance(module, TraceBank):
                module.freeze()

    # --- Lightning's hooks -----------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Make the metrics for the generators of the attached data."""
        if self.trainer.datamodule is None:  # type: ignore[attr-defined]
            return
        cells = self.trainer.datamodule.cells  # type: ignore[attr-defined]
        for name in ("val_metric", "test_metric"):
            metric = GeneratorAveragePrecision(cells.names, cells.is_fake, cells.counterparts)
            setattr(self, name, metric.to(self.device))

    def on_fit_start(self) -> None:
        """Fit the encoder to real photographs where it asks for that."""
        fit_encoder(self.encoder, self)

    def configure_optimizers(self) -> Any:
        """Build the optimiser over everything that is not frozen."""
        total = int(self.trainer.estimated_stepping_batches)
        return configure_optimiser(self.parameters(), self.optimizer_settings, total)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Put the identity into the checkpoint."""
        checkpoint["fakedet"] = self.identity

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Collect scores on the validation split."""
        self._collect(self.val_metric, batch, self.score_views(self.take(batch)))

    def on_validation_epoch_end(self) -> None:
        """Log mAP, AP per generator, the loss and the accuracy at logit 0 on the validation split."""
        metric = self.val_metric
        assert isinstance(metric, GeneratorAveragePrecision)
        # From the gathered rows: exact over uneven ranks, and no rank can wait for one that has no rows.
        rows = metric.rows()
        if len(rows["logit"]):
            loss = F.binary_cross_entropy_with_logits(rows["logit"], rows["label"].to(rows["logit"].dtype))
            self.log("val/loss", float(loss), batch_size=1)
            right = (rows["logit"] > 0) == (rows["label"] == 1)
            self.log("val/accuracy", float(right.double().mean()), batch_size=1)
        self._log_metric(metric, "val")

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Collect scores on the test split."""
        self._collect(self.test_metric, batch, self.score_views(self.take(batch)))

    def on_test_epoch_end(self) -> None:
        """Log mAP and AP per generator; the rows stay in ``test_metric`` for the predictions file."""
        self._log_metric(self.test_metric, "test", reset=False)

    # --- parts -----------------------------------------------------------------------------------------

    def take(self, batch: dict[str, Any]) -> Tensor:
        """Give a batch's images as float (B, V, 3, H, W) in [0, 1], and note which files could not be read.

        Images travel to the device as uint8: a quarter of the bytes.
        """
        self.quarantined.extend(batch.get("quarantined", ()))
        image: Tensor = batch["image"]
        return image.float().div_(255.0) if image.dtype == torch.uint8 else image

    def score_views(self, images: Tensor) -> Scores:
        """Score (B, V, 3, H, W) and average each image's V views."""
        batch, views = images.shape[:2]
        if batch == 0:
            empty = images.new_zeros(0)
            return Scores(empty, images.new_zeros(0, 1), empty)
        scores = self(images.flatten(0, 1))
        return Scores(*(value.float().unflatten(0, (batch, views)).mean(dim=1) for value in scores))

    def _collect(self, metric: nn.Module | None, batch: dict[str, Any], scores: Scores) -> None:
        assert isinstance(metric, GeneratorAveragePrecision)
        metric.update(batch["id"], batch["label"], batch["generator"], scores.logit, scores.trace_distance)

    def _log_metric(self, metric: nn.Module | None, prefix: str, reset: bool = True) -> None:
        assert isinstance(metric, GeneratorAveragePrecision)
        # One dictionary at the end of an epoch; logging ten keys on every step would cost milliseconds each.
        values = {f"{prefix}/{key}": float(value) for key, value in metric.compute().items()}
        self.log_dict(values, batch_size=1)
        if reset:
            metric.reset()
