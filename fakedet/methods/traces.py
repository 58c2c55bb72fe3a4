"""Fit what is fitted to real training photographs before training: encoders that ask for it, and the bank of traces."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pandas as pd
import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from fakedet.models.trace_bank import TraceBank
from fakedet.models.trace_residual import HALVES, TraceResidual

log = logging.getLogger("fakedet")

FITTED_REALS = 4096
"""Most photographs that an encoder is fitted to."""


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


def fit_residual(residual: TraceResidual, encoder: Any, module: LightningModule) -> None:
    """Fit ``residual`` on the features of training reals and fakes; photographs of one group stay in one half.

    Args:
        residual: what is fitted.
        encoder: has ``features``.
        module: the LightningModule, whose attached data module gives the images.
    """
    data = module.trainer.datamodule  # type: ignore[attr-defined]
    rows, ids = {}, {}
    for label, limit in ((0, HALVES * residual.size), (1, residual.size)):
        batches = [batch for batch in data.bank_dataloader(limit, label) if len(batch["id"])]
        rows[label] = torch.cat([encoder.features(_first_view(batch).to(module.device)) for batch in batches])
        ids[label] = torch.cat([batch["id"] for batch in batches]).cpu().numpy()
    groups, _ = pd.factorize(data.manifest.frame["group"].loc[ids[0]])
    residual.fit(rows[0], torch.from_numpy(groups % HALVES).to(module.device), rows[1])


def fit_encoder(encoder: Any, module: LightningModule) -> None:
    """Show an encoder that has a ``fit_reals`` real training photographs, seen as evaluation sees them.

    Args:
        encoder: any; those without ``fit_reals`` are left as they are.
        module: the LightningModule, whose attached data module gives the photographs.
    """
    if hasattr(encoder, "fit_reals"):
        log.info("the encoder is fitted to training photographs; a trunk that is new to them takes a while")
        loader = module.trainer.datamodule.bank_dataloader(FITTED_REALS)  # type: ignore[attr-defined]
        encoder.fit_reals(_first_view(batch).to(module.device) for batch in loader if len(batch["id"]))


def _first_view(batch: dict[str, Any]) -> Tensor:
    image: Tensor = batch["image"][:, 0]
    return image.float().div(255.0)
