"""Collect the traces of real training photographs into a bank."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from fakedet.models.trace_bank import TraceBank


def fill_bank(bank: TraceBank, trace_of: Callable[[Tensor], Tensor], module: LightningModule) -> None:
    """Fit ``bank`` on the traces of real training photographs, seen as evaluation sees them.

    Args:
        bank: what is filled.
        trace_of: maps float images (N, 3, H, W) in [0, 1] to traces (N, D).
        module: the LightningModule, whose attached data module gives the photographs.
    """
    loader = module.trainer.datamodule.bank_dataloader(bank.size)  # type: ignore[attr-defined]
    was_training = module.training
    module.eval()
    rows = []
    with torch.no_grad():
        for batch in loader:
            rows.append(trace_of(_first_view(batch).to(module.device)).float())
    module.train(was_training)
    bank.fit(torch.cat(rows))


def _first_view(batch: dict[str, Any]) -> Tensor:
    image: Tensor = batch["image"][:, 0]
    return image.float().div(255.0)
