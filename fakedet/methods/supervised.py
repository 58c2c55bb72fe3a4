"""The method of the baselines: cross-entropy and, if configured, a contrastive loss beside it."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fakedet.methods.base import Detector, Scores, gather_rows, sum_of_terms
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
        head: a file with a linear classifier's ``weight`` (1, D) and ``bias`` (1), as UnivFD publishes; None: random.
    """

    def __init__(
        self,
        encoder: nn.Module,
        loss: nn.Module,
        optimizer: Any,
        contrastive_weight: float,
        hidden_dim: int,
        projection_dim: int,
        head: str | None = None,
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
        self.contrastive_weight = contrastive_weight

    def forward(self, images: Tensor) -> Scores:
        """Score images (N, 3, H, W) by the logit; there is no trace distance."""
        embedding = self.encoder(images)
        logit = self.classifier(embedding)
        return Scores(logit, embedding.float(), torch.full_like(logit, float("nan")))

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Compute the cross-entropy, and the contrastive term over the global batch."""
        images, labels = self.take(batch)[:, 0], batch["label"]
        embedding = self.encoder(images)
        loss = F.binary_cross_entropy_with_logits(self.classifier(embedding), labels.float())
        if self.projection is not None:
            z, y = gather_rows(self, self.projection(embedding)), gather_rows(self, labels)
            contrastive, _ = sum_of_terms(self.loss(z, y, None))
            loss = loss + self.contrastive_weight * contrastive
        self.log_step(loss, len(labels))
        return loss
