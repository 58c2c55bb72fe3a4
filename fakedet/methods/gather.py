"""What every rank holds, brought together: rows for a contrastive loss, records for a report."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule


def gather_rows(module: LightningModule, rows: torch.Tensor) -> torch.Tensor:
    """Concatenate the rows of all ranks, with gradients; the identity on one rank.

    Every rank computes the same loss over all rows; the gradient of the gather sums over ranks and DDP
    averages over them, which together give the gradient of a single process with the whole batch.

    Args:
        module: the LightningModule, whose trainer knows the ranks.
        rows: (B, ...) of this rank; every rank has the same B.

    Returns:
        (world size · B, ...) in the order of the ranks.
    """
    trainer = module._trainer
    if trainer is None or trainer.world_size == 1:
        return rows
    gathered = module.all_gather(rows, sync_grads=rows.requires_grad)
    assert isinstance(gathered, torch.Tensor)
    return gathered.flatten(0, 1)


def gather_records(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Join plain records of all ranks; collective under DDP, the same list on one rank."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return records
    gathered: list[list[dict[str, Any]]] = [[] for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather_object(gathered, records)
    return [record for of_rank in gathered for record in of_rank]
