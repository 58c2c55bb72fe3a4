"""A method of one's own: a transfer that also keeps its projections spread out. A subclass of NTF is an NTF."""

from typing import Any

import torch
from torch import Tensor, nn

from fakedet.methods.base import Detector, Scores
from fakedet.methods.ntf import NaturalTraceForensics


class SpreadForensics(NaturalTraceForensics):
    """Natural Trace Forensics with a penalty on the variance of the logits.

    Args:
        spread_weight: of the penalty.
        **settings: of NaturalTraceForensics.
    """

    def __init__(self, spread_weight: float = 0.01, **settings: Any) -> None:
        super().__init__(**settings)
        self.spread_weight = spread_weight

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Add the penalty to NTF's loss."""
        logits = self.classifier(self.encoder(self.take(batch)[:, 0]))
        return super().training_step(batch, batch_idx) + self.spread_weight * logits.var()


class Hinge(Detector):
    """A method from nothing but the base class: a linear layer and a hinge loss.

    Args:
        encoder: has ``embedding_dim``.
        optimizer: see fakedet.methods.base.configure_optimiser.
    """

    def __init__(self, encoder: nn.Module, optimizer: Any) -> None:
        super().__init__(optimizer)
        self.encoder = encoder
        self.layer = nn.Linear(int(encoder.embedding_dim), 1)  # type: ignore[arg-type]

    def forward(self, images: Tensor) -> Scores:
        """Score float RGB (N, 3, H, W) in [0, 1]."""
        embedding = self.encoder(images)
        logit = self.layer(embedding).squeeze(1)
        return Scores(logit, embedding, torch.full_like(logit, float("nan")))

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Compute the hinge loss of a batch."""
        sign = 2.0 * batch["label"] - 1.0
        loss = (1 - sign * self(self.take(batch)[:, 0]).logit).clamp(min=0).mean()
        self.log_step(loss, len(sign))
        return loss
