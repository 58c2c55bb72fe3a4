"""Parameter-efficient tuning of a pretrained model: few weights are trained, the others stay as they were."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from fakedet.errors import UserError, choose

KINDS = ("lora", "norm", "subspace")


class LowRank(nn.Module):
    """Add a product of two thin matrices to a frozen one: W + (alpha / rank) B A (LoRA; Hu et al., ICLR 2022)."""

    def __init__(self, weight: Tensor, rank: int, alpha: float) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.empty(rank, weight.shape[1]))
        self.up = nn.Parameter(torch.zeros(weight.shape[0], rank))
        nn.init.kaiming_uniform_(self.down, a=5**0.5)
        self.scale = alpha / rank

    def forward(self, weight: Tensor) -> Tensor:
        """Map the frozen weight (out, in) to the tuned one."""
        return weight + self.scale * (self.up @ self.down)


class Subspace(nn.Module):
    """Train the least singular directions of a matrix, the others stay (Effort; Yan et al., ICML 2025, 2411.15633).

    The frozen weight becomes its best approximation of rank min(out, in) − ``rank``; what is left is trained as a
    product U diag(s) V of ``rank`` directions. :meth:`penalty` is ours, after the paper's idea: how far these are from
    being orthonormal, and orthogonal to those that stay.
    """

    def __init__(self, weight: Tensor, rank: int) -> None:
        super().__init__()
        left, values, right = torch.linalg.svd(weight.detach().float(), full_matrices=False)
        self.left, self.right = nn.Parameter(left[:, -rank:].clone()), nn.Parameter(right[-rank:].clone())
        self.values = nn.Parameter(values[-rank:].clone())
        self.register_buffer("kept_left", left[:, :-rank].clone())
        self.register_buffer("kept_right", right[:-rank].clone())
        self.register_buffer("kept", (left[:, :-rank] * values[:-rank]) @ right[:-rank])

    def forward(self, weight: Tensor) -> Tensor:
        """Give the tuned weight (out, in); the one that it was made of is not needed any more."""
        tuned: Tensor = self.kept + (self.left * self.values) @ self.right  # type: ignore[operator]
        return tuned

    def penalty(self) -> Tensor:
        """Sum the squared entries of U'U − I and V V' − I over the kept and the trained directions, per direction."""
        total = self.values.new_zeros(())
        for own, kept in ((self.left, self.kept_left), (self.right.T, self.kept_right.T)):  # type: ignore[operator]
            among = own.T @ own - torch.eye(own.shape[1], device=own.device)
            total = total + (among**2).sum() + ((kept.T @ own) ** 2).sum()  # type: ignore[operator]
        return total / len(self.values)


def tune(model: nn.Module, settings: Mapping[str, Any]) -> None:
    """Freeze a model, in place, but for what a kind of tuning trains.

    Args:
        model: a timm model.
        settings: ``kind`` "lora" or "subspace" (``rank`` and, of LoRA, ``alpha``) of the weights of the linear layers
            whose names match the regular expression ``layers``; or "norm": the weights and biases of all normalisations
            alone.

    Raises:
        UserError: an unknown kind, a rank that does not fit, or layers that are not there.
    """
    kind = choose(str(settings.get("kind")), KINDS, "model.encoder.tune.kind")
    model.requires_grad_(False)
    if kind == "norm":
        found = [part for part in model.modules() if "norm" in type(part).__name__.lower()]
        for part in found:
            part.requires_grad_(True)
        if not found:
            raise UserError("model.encoder.tune.kind=norm: the model has no normalisation")
        return
    pattern, rank = re.compile(str(settings.get("layers", r"attn\.(qkv|proj)$"))), int(settings.get("rank", 8))
    layers = [part for name, part in model.named_modules() if isinstance(part, nn.Linear) and pattern.search(name)]
    if not layers:
        raise UserError(f"model.encoder.tune.layers={pattern.pattern}: no linear layer of the model has such a name")
    for layer in layers:
        if not 0 < rank < min(layer.weight.shape):
            raise UserError(f"model.encoder.tune.rank={rank}: from 1 to {min(layer.weight.shape) - 1} for these layers")
        made = LowRank(layer.weight, rank, float(settings.get("alpha", rank))) if kind == "lora" else Subspace(
            layer.weight, rank)  # fmt: skip
        parametrize.register_parametrization(layer, "weight", made, unsafe=kind == "subspace")
