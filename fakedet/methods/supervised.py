"""methods/supervised"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fakedet.losses import supervised_contrastive_loss
from fakedet.methods.base import Detector, Scores, gather_rows
from fakedet.models.backbones import load_linear_head
from fakedet.models.heads import Classifier, ProjectionHead


class SupervisedDetector(Detector):
    """Train encoder and classifier with L = BCE(ℓ) + λ SupCon(z); λ = 0 is plain cross-entropy.

    SupCon is Khosla et al. 2020, eq. 2 (L_out), over the labels real and fake.

    Args:
        encoder: maps float RGB images to embeddings; has ``embedding_dim``.
        contrastive_weight: λ.
        hidden_dim: width of the projection head.
        projection_dim: dimension of z.
        temperature: τ of SupCon.
        head: a file with a linear classifier's ``weight`` (1, D) and ``bias`` (1), as UnivFD publishes; None: drawn.
        optimizer: see :func:`fakedet.methods.base.configure_optimiser`.
    """

    def __init__(
        self,
        encoder: nn.Module,
        contrastive_weight: float,
        hidden_dim: int,
        projection_dim: int,
        temperature: float,
        optimizer: Mapping[str, Any],
        head: str | None = None,
    ) -> None:
        super().__init__(optimizer)
        self.save_hyperparameters(ignore=["encoder"])
        self.encoder = encoder
        embedding_dim = int(encoder.embedding_dim)  # type: ignore[arg-type]
        self.classifier = Classifier(embedding_dim)
        if head is not None:
            load_linear_head(self.classifier, head)
        self.projection: nn.Module | None = None
        if contrastive_weight > 0:
            self.projection = ProjectionHead(embedding_dim, hidden_dim, projection_dim)
        self.contrastive_weight = contrastive_weight
        self.temperature = temperature

    def forward(self, images: Tensor) -> Scores:
        """Score images by the logit; there is no trace distance."""
        embedding = self.encoder(images)
        logit = self.classifier(embedding)
        return Scores(logit, embedding.float(), torch.full_like(logit, float("nan")))

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Compute the cross-entropy and the contrastive term over the global batch."""
        images, labels = self.take(batch)[:, 0], batch["label"]
        embedding = self.encoder(images)
        loss = F.binary_cross_entropy_with_logits(self.classifier(embedding), labels.float())
        if self.projection is not None:
            z, y = gather_rows(self, self.projection(embedding)), gather_rows(self, labels)
            loss = loss + self.contrastive_weight * supervised_contrastive_loss(z, y, self.temperature)
        self.log("train/loss", loss, prog_bar=True, on_step=True, on_epoch=False, batch_size=len(labels))
        return loss
