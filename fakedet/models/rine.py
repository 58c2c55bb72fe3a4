"""RINE's encoder: the class tokens of all blocks of a frozen CLIP (Koutlis and Papadopoulos, ECCV 2024)."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from fakedet.errors import UserError
from fakedet.models.encoders import TimmEncoder


class RineEncoder(nn.Module):
    """Weigh a frozen CLIP's blocks, for each number of a projection of their class tokens, and two hidden layers.

    With g_l the class token behind the second normalisation of block l, where its MLP begins, and p, q two projections
    of linear layers with ReLU, the embedding is h(q(Σ_l softmax_l(α) · p(g_l))). The parts that are trained have the
    authors' names.

    Args:
        name, pretrained, weights: CLIP's vision transformer; see :class:`fakedet.models.encoders.TimmEncoder`.
        width: of the projections and of the embedding (the paper's d′).
        projections: linear layers in each projection (the paper's q).
        dropout: rate behind each layer, in training.
        kwargs: passed to ``timm.create_model``.

    Raises:
        UserError: a model without such blocks; see also :class:`fakedet.models.encoders.TimmEncoder`.
    """

    def __init__(
        self,
        name: str,
        pretrained: bool = True,
        weights: str | None = None,
        width: int = 1024,
        projections: int = 2,
        dropout: float = 0.5,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        self.backbone = TimmEncoder(name, "clip", pretrained, weights, frozen=True, **kwargs)
        blocks: Any = getattr(self.backbone.model, "blocks", ())
        if not blocks or not all(hasattr(block, "norm2") for block in blocks):
            raise UserError(f"model.encoder.name: '{name}' is no vision transformer, whose blocks have norm2")

        def layers(*widths: int) -> list[nn.Module]:
            return [part for first, last in pairwise(widths)
                    for part in (nn.Linear(first, last), nn.ReLU(), nn.Dropout(dropout))]  # fmt: skip

        inside = [width] * projections
        self.alpha = nn.Parameter(torch.randn(1, len(blocks), width))
        self.proj1 = nn.Sequential(nn.Dropout(dropout), *layers(self.backbone.embedding_dim, *inside))
        self.proj2 = nn.Sequential(nn.Dropout(dropout), *layers(width, *inside))
        self.head = nn.Sequential(*layers(width, width, width))
        self.embedding_dim = width

    def forward(self, images: Tensor) -> Tensor:
        """Embed float RGB (N, 3, H, W) in [0, 1], of the size that CLIP takes, as (N, embedding_dim)."""
        tokens: list[Tensor] = []
        blocks: Any = self.backbone.model.blocks
        hooks = [block.norm2.register_forward_hook(lambda part, inputs, seen: tokens.append(seen[:, 0]))
                 for block in blocks]  # fmt: skip
        try:
            self.backbone(images)
        finally:
            for hook in hooks:
                hook.remove()
        projected = self.proj1(torch.stack(tokens, dim=1).float())
        embedding: Tensor = self.head(self.proj2((self.alpha.softmax(dim=1) * projected).sum(dim=1)))
        return embedding
