"""Stage 2: transfer the traces into a detector with the soft contrastive loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn

from fakedet.errors import UserError, choose
from fakedet.losses.soft_contrastive import soft_contrastive_loss
from fakedet.methods.detector import Detector, Scores
from fakedet.methods.draws import copy_draws
from fakedet.methods.gather import gather_rows
from fakedet.methods.traces import fill_bank, fit_residual
from fakedet.models.destroyer import TraceDestroyer
from fakedet.models.heads import Classifier, ProjectionHead
from fakedet.models.trace_bank import TraceBank
from fakedet.models.trace_residual import TraceResidual
from fakedet.models.trace_source import TraceMemory, TraceSource


class ContrastiveTransfer(Detector):
    """Draw reals to the frozen source's traces and push fakes away, beside a cross-entropy on the logit.

    Natural Trace Forensics (Liang et al., AAAI 2025), stage 2, in our reading: docs/method.md.
    L = BCE(ℓ) + λ (L_R + L_F).

    Args:
        encoder: the detector's encoder; has ``embedding_dim``.
        source: the frozen stage-1 encoder and homogeneous head; gives the traces t.
        trace_dim: dimension of the traces, and so of the projection z.
        hidden_dim: width of the projection head.
        temperature: τ.
        weight_temperature: τ_w of the soft positives' weights.
        weights: "soft", or "hard" for uniform weights (ablation).
        contrastive_weight: λ.
        real_weight: weight of L_R within the contrastive term.
        fake_weight: weight of L_F within the contrastive term.
        bank_size: traces kept of real training photographs.
        distance: how the distance of z to the bank is measured, "knn" or "prototype".
        optimizer: see :func:`fakedet.methods.optimiser.configure_optimiser`.
        copies_per_real: trace-destroyed copies that join a batch's fakes, per real photograph in it (ours); they
            and the fakes together weigh as much as the reals. 0: none.
        destroyers: kinds of those copies; see :class:`TraceDestroyer`.
        min_strength: least share of a destroyed copy in its blend with the original.
        recompress: JPEG qualities of those copies; None: they are not compressed.
        score: what ranks images, and is calibrated, validated and kept by: "logit", the classifier's, or
            "trace_distance", that distance in the spread of the bank's.
        residual: ``weight`` of the evidence of a :class:`TraceResidual` in the logit (ours; 0: none) and its settings;
            needs an encoder with ``features``, on a frozen trunk.
        train_source: the source is trained along (ablation) instead of frozen.

    Raises:
        UserError: ``copies_per_real`` is not between 0 and 1, settings of the copies that cannot be, or a score by
            distance without the contrastive term that trains it.
    """

    def __init__(
        self,
        encoder: nn.Module,
        source: TraceSource,
        trace_dim: int,
        hidden_dim: int,
        temperature: float,
        weight_temperature: float,
        weights: str,
        contrastive_weight: float,
        real_weight: float,
        fake_weight: float,
        bank_size: int,
        distance: str,
        optimizer: Mapping[str, Any],
        copies_per_real: float = 0.0,
        destroyers: Sequence[str] = (),
        min_strength: float = 0.4,
        recompress: Sequence[int] | None = None,
        score: str = "logit",
        residual: Mapping[str, Any] | None = None,
        train_source: bool = False,
    ) -> None:
        super().__init__(optimizer)
        self.save_hyperparameters(ignore=["encoder", "source"])
        self.encoder = encoder
        self.source = source
        if train_source:
            source.let_learn()
        embedding_dim = int(encoder.embedding_dim)  # type: ignore[arg-type]
        self.projection = ProjectionHead(embedding_dim, hidden_dim, trace_dim)
        self.classifier = Classifier(embedding_dim)
        self.bank = TraceBank(trace_dim, bank_size)
        self.temperatures = (temperature, weight_temperature)
        self.hard = choose(weights, ("soft", "hard"), "model.weights") == "hard"
        self.contrastive_weight = contrastive_weight
        self.term_weights = (real_weight, fake_weight)
        self.distance = distance
        self.by_distance = choose(score, ("logit", "trace_distance"), "model.score") == "trace_distance"
        if self.by_distance and contrastive_weight * (real_weight + fake_weight) == 0:
            raise UserError(
                "model.score=trace_distance needs the contrastive term, which trains it: model.contrastive_weight and "
                "model.real_weight or model.fake_weight above 0"
            )
        if not 0.0 <= copies_per_real <= 1.0:
            raise UserError(
                f"model.copies_per_real={copies_per_real}: between 0 (none) and 1 (one of each real)"
            )
        self.copies_per_real = copies_per_real
        self.destroyer = (
            TraceDestroyer(tuple(destroyers), min_strength, recompress) if copies_per_real else None
        )
        self.residual_weight, self.residual = _make_residual(encoder, dict(residual or {}))
        self._memory: TraceMemory | None = None

    def forward(self, images: Tensor) -> Scores:
        """Score images by the logit or what takes its place, and beside it by the distance of z from the traces."""
        if self.residual is None:
            embedding, evidence = self.encoder(images), 0.0
        else:
            features = self.encoder.features(images)  # type: ignore[operator]
            embedding = self.encoder.embed(features)  # type: ignore[operator]
            evidence = self.residual_weight * self.residual(features)
        z = self.projection(embedding)
        logit = self.bank.standardised(z, self.distance) if self.by_distance else self.classifier(embedding)
        logit = logit + evidence
        return Scores(logit, z.float(), self.bank.distance(z, self.distance))

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Compute L over the global batch's contrastive rows, destroyed copies among its fakes if asked for."""
        images, labels = self.take(batch)[:, 0], batch["label"]
        copies = self._copies(images, labels)
        pictures = torch.cat([images, copies]) if len(copies) else images
        is_fake = torch.cat([labels, labels.new_ones(len(copies))])
        embedding = self.encoder(pictures)
        bce = self._cross_entropy(self.classifier(embedding), is_fake, len(labels))
        if self.contrastive_weight == 0:
            self.log("train/loss", bce, prog_bar=True, batch_size=len(labels))
            return bce
        z = gather_rows(self, self.projection(embedding))
        t = gather_rows(self, self._traces(images, copies, batch))
        real = gather_rows(self, is_fake) == 0
        terms = soft_contrastive_loss(
            z[real], t[real], z[~real], t[~real], *self.temperatures, hard=self.hard
        )
        contrastive = self.term_weights[0] * terms.real + self.term_weights[1] * terms.fake
        loss = bce + self.contrastive_weight * contrastive
        self._log_training(loss, bce, terms.real, terms.fake)
        return loss

    def _copies(self, images: Tensor, labels: Tensor) -> Tensor:
        """Make destroyed copies of a batch's reals: as many on every rank, of whatever reals it has.

        A rank that has fewer reals than that copies fakes as well; a destroyed fake is no photograph either.
        """
        if self.destroyer is None:
            return images[:0]
        count = round(self.copies_per_real * len(labels) / 2)
        reals_first = torch.argsort(labels, stable=True)[:count]
        return self.destroyer(images[reals_first], copy_draws(self, count, self.destroyer.width))

    def _cross_entropy(self, logits: Tensor, is_fake: Tensor, rows: int) -> Tensor:
        """Average over a batch in which copies and fakes together weigh as much as the reals."""
        target = is_fake.float()
        if self.destroyer is None:
            return F.binary_cross_entropy_with_logits(logits, target)
        weight = torch.where(is_fake == 0, 1.0, 1.0 / (1.0 + self.copies_per_real))
        return F.binary_cross_entropy_with_logits(logits, target, weight, reduction="sum") / rows

    def _traces(self, images: Tensor, copies: Tensor, batch: dict[str, Any]) -> Tensor:
        if self._memory is None:
            traces: Tensor = self.source(torch.cat([images, copies]))
            return traces
        known = self._memory(images, batch["id"])
        return torch.cat([known, self.source(copies)]) if len(copies) else known

    def _log_training(self, loss: Tensor, bce: Tensor, real: Tensor, fake: Tensor) -> None:
        self.log("train/loss", loss, prog_bar=True, on_step=True, on_epoch=False, batch_size=1)
        trainer = self.trainer
        if self.global_step % trainer.log_every_n_steps and not trainer.is_last_batch:  # type: ignore[attr-defined]
            return
        self.log_dict({"train/bce": bce, "train/loss_real": real, "train/loss_fake": fake}, batch_size=1)

    def on_fit_start(self) -> None:
        """Fill the bank, once if the source is frozen. Where images never change, their traces are kept too."""
        super().on_fit_start()
        if self.trainer.datamodule.views_repeat and not self.source.learns:  # type: ignore[attr-defined]
            self._memory = TraceMemory(self.source)
        with torch.no_grad():
            fill_bank(self.bank, self.source, self)
            if self.residual is not None:
                fit_residual(self.residual, self.encoder, self)

    def on_validation_epoch_start(self) -> None:
        """Refill the bank where the source learns."""
        if self.source.learns and self.trainer.state.fn == TrainerFn.FITTING:
            fill_bank(self.bank, self.source, self)


def _make_residual(encoder: nn.Module, settings: dict[str, Any]) -> tuple[float, TraceResidual | None]:
    weight = float(settings.pop("weight", 0.0))
    if weight == 0:
        return 0.0, None
    if not hasattr(encoder, "features"):
        raise UserError(
            f"model.residual.weight={weight}: needs features that training leaves alone: model/encoder=frozen or clip"
        )
    return weight, TraceResidual(int(encoder.feature_dim), **settings)  # type: ignore[arg-type]
