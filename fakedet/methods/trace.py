"""Stage 1: learn natural traces from real photographs alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn

from fakedet.losses.collapse import collapse_statistics
from fakedet.losses.trace import heterogeneous_loss, homogeneous_loss
from fakedet.methods.detector import Detector, Scores
from fakedet.methods.draws import copy_draws, fixed_draws
from fakedet.methods.gather import gather_rows
from fakedet.methods.traces import fill_bank
from fakedet.models.copy_memory import CopyMemory
from fakedet.models.destroyer import TraceDestroyer
from fakedet.models.heads import ProjectionHead
from fakedet.models.trace_bank import TraceBank


class TracePretraining(Detector):
    """Learn homogeneous features (natural traces, shared by all reals) apart from heterogeneous ones.

    Natural Trace Forensics (Liang et al., AAAI 2025), stage 1, in our reading: docs/method.md. Scored as a
    detector, its logit is the trace distance standardised over real photographs: it has never seen a fake, so
    the logit ranks images but is not a calibrated probability.

    Args:
        encoder: maps float RGB images to embeddings; has ``embedding_dim``.
        projection_dim: dimension of both projections.
        hidden_dim: width of the projection heads.
        temperature: τ of both losses.
        heterogeneous_weight: weight of L_het.
        homogeneous_weight: weight of L_hom.
        destroyers: kinds of trace-destroyed copies that serve as negatives; empty for none.
        min_strength: least share of a destroyed copy in its blend with the original.
        bank_size: traces kept of real training photographs.
        distance: how the distance to the bank is measured, "knn" or "prototype".
        optimizer: see :func:`fakedet.methods.optimiser.configure_optimiser`.
        recompress: JPEG qualities of the destroyed copies; see :class:`TraceDestroyer`.
        fixed_copies: each photograph has one destroyed copy, the same in every epoch and run, so that an encoder on
            a frozen trunk looks at it once; else a new one in each step.
    """

    def __init__(
        self,
        encoder: nn.Module,
        projection_dim: int,
        hidden_dim: int,
        temperature: float,
        heterogeneous_weight: float,
        homogeneous_weight: float,
        destroyers: Sequence[str],
        min_strength: float,
        bank_size: int,
        distance: str,
        optimizer: Mapping[str, Any],
        recompress: Sequence[int] | None = None,
        fixed_copies: bool = False,
    ) -> None:
        super().__init__(optimizer)
        self.save_hyperparameters(ignore=["encoder"])
        self.encoder = encoder
        embedding_dim = int(encoder.embedding_dim)  # type: ignore[arg-type]
        self.homogeneous = ProjectionHead(embedding_dim, hidden_dim, projection_dim)
        self.heterogeneous = ProjectionHead(embedding_dim, hidden_dim, projection_dim)
        self.bank = TraceBank(projection_dim, bank_size)
        self.destroyer = TraceDestroyer(tuple(destroyers), min_strength, recompress) if destroyers else None
        self.fixed_copies = fixed_copies
        self._memory: CopyMemory | None = None
        self.temperature = temperature
        self.weights = (heterogeneous_weight, homogeneous_weight)
        self.distance = distance

    def trace(self, images: Tensor) -> Tensor:
        """Give the normalised homogeneous projection a of images (N, 3, H, W): (N, projection_dim)."""
        projected: Tensor = self.homogeneous(self.encoder(images))
        return projected

    def forward(self, images: Tensor) -> Scores:
        """Score images by their distance from the traces of real photographs."""
        a = self.trace(images)
        return Scores(
            self.bank.standardised(a, self.distance), a.float(), self.bank.distance(a, self.distance)
        )

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Sum both losses over two views of each real image and a trace-destroyed copy of each."""
        pictures = self.take(batch)
        views = pictures.transpose(0, 1).flatten(0, 1)
        n = len(views)
        images = views
        if self.destroyer is not None:
            images = torch.cat([views, self._copies(self.destroyer, pictures[:, 0], batch)])
        embedding = self.encoder(images)
        projected = self.homogeneous(embedding)
        a, destroyed = self._all_views(projected[:n]), None
        if self.destroyer is not None:
            destroyed = gather_rows(self, projected[n:])
        b = self._all_views(self.heterogeneous(embedding[:n]))
        het = heterogeneous_loss(b, self.temperature)
        hom = homogeneous_loss(a, b, destroyed, self.temperature)
        loss: Tensor = self.weights[0] * het + self.weights[1] * hom
        self._log_training(loss, het, hom, a.detach())
        return loss

    def _copies(self, destroyer: TraceDestroyer, images: Tensor, batch: dict[str, Any]) -> Tensor:
        if self.fixed_copies:
            draws = fixed_draws(batch["id"], destroyer.width)
            if self._memory is not None:
                return self._memory(images, batch["id"], draws)
            return destroyer(images, draws=draws)
        return destroyer(images, copy_draws(self, len(images), destroyer.width))

    def _all_views(self, rows: Tensor) -> Tensor:
        """Gather (2B, D) of every rank so that rows i and i + N stay the two views of one image."""
        first, second = rows.chunk(2)
        return torch.cat([gather_rows(self, first), gather_rows(self, second)])

    def _log_training(self, loss: Tensor, het: Tensor, hom: Tensor, a: Tensor) -> None:
        n = len(a) // 2
        self.log("train/loss", loss, prog_bar=True, on_step=True, on_epoch=False, batch_size=n)
        trainer = self.trainer
        if self.global_step % trainer.log_every_n_steps and not trainer.is_last_batch:  # type: ignore[attr-defined]
            return
        values = {"train/loss_heterogeneous": het, "train/loss_homogeneous": hom}
        values |= {f"collapse/{key}": value for key, value in collapse_statistics(a).items()}
        self.log_dict(values, batch_size=n)

    def on_fit_start(self) -> None:
        """Keep each photograph's copy where it has one, and always looks the same itself."""
        super().on_fit_start()
        if self.fixed_copies and self.destroyer and self.trainer.datamodule.views_repeat:  # type: ignore[attr-defined]
            self._memory = CopyMemory(self.destroyer)

    def on_validation_epoch_start(self) -> None:
        """Refill the bank, so that every checkpoint holds the traces of its own weights."""
        if self.trainer.state.fn == TrainerFn.FITTING:
            fill_bank(self.bank, self.trace, self)
