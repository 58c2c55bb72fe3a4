"""The method of the baselines: cross-entropy and, if configured, a contrastive loss beside it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fakedet.methods.base import Detector, Scores, gather_rows, sum_of_terms
from fakedet.methods.destroy import CopiesAsFakes, TraceDestroyer
from fakedet.models.backbones import load_linear_head
from fakedet.models.heads import Classifier, ProjectionHead


class SupervisedDetector(Detector):
    """Train encoder and classifier with L = BCE(ℓ) + λ L_contrastive(z); λ = 0 is plain cross-entropy.

    Args:
        encoder: maps float RGB images to embeddings; has ``embedding_dim``.
        loss: the contrastive loss, called without traces; see :class:`fakedet.losses.ContrastiveLoss`.
        optimizer: see :func:`fakedet.methods.base.configure_optimiser`.
        contrastive_weight: λ.
        hidden_dim: width of the projection head.
        projection_dim: dimension of z.
        copies, copies_per_real, fixed_copies: trace-destroyed copies among the fakes; see
            :class:`fakedet.methods.destroy.CopiesAsFakes`.
        head: a file with a linear classifier's ``weight`` (1, D) and ``bias`` (1), as UnivFD publishes; None: random.
        penalty_weight: of the encoder's own ``penalty()``, which a tuned subspace has.
    """

    def __init__(
        self,
        encoder: nn.Module,
        loss: nn.Module,
        optimizer: Any,
        contrastive_weight: float,
        hidden_dim: int,
        projection_dim: int,
        copies: TraceDestroyer | None = None,
        copies_per_real: float = 0.0,
        fixed_copies: bool = False,
        head: str | None = None,
        penalty_weight: float = 0.0,
    ) -> None:
        super().__init__(optimizer)
        self.encoder, self.loss = encoder, loss
        embedding_dim = int(encoder.embedding_dim)  # type: ignore[arg-type]
        self.classifier = Classifier(embedding_dim)
        if head is not None:
            load_linear_head(self.classifier, head)
        self.projection: nn.Module | None = None
        if contrastive_weight > 0:
            self.projection = ProjectionHead(embedding_dim, hidden_dim, projection_dim)
        self.contrastive_weight, self.penalty_weight = contrastive_weight, penalty_weight
        self.copies = CopiesAsFakes(copies, copies_per_real, fixed_copies)
        self.features_only = copies_per_real == 0 or fixed_copies

    def forward(self, images: Tensor) -> Scores:
        """Score images (N, 3, H, W) by the logit; there is no trace distance."""
        embedding = self.encoder(images)
        logit = self.classifier(embedding)
        return Scores(logit, embedding.float(), torch.full_like(logit, float("nan")))

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Compute the cross-entropy, and the contrastive term over the global batch."""
        images, labels = self.take(batch)[:, 0], batch["label"]
        joined, is_fake = self.copies.join(self, images, batch, self.encoder)
        embedding = joined.embed(self.encoder)
        loss = self.copies.cross_entropy(self.classifier(embedding), is_fake, len(labels))
        if self.projection is not None:
            z, y = gather_rows(self, self.projection(embedding)), gather_rows(self, is_fake)
            contrastive, _ = sum_of_terms(self.loss(z, y, None))
            loss = loss + self.contrastive_weight * contrastive
        if self.penalty_weight and (penalty := self.encoder.penalty()) is not None:  # type: ignore[operator]
            loss = loss + self.penalty_weight * penalty
        self.log_step(loss, len(labels))
        return loss
