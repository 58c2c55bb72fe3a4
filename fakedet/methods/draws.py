"""The randomness of trace-destroyed copies: a function of seed, step and place in the batch, or of the image alone."""

from __future__ import annotations

import numpy as np
import torch
from lightning.pytorch import LightningModule
from torch import Tensor


def copy_draws(module: LightningModule, count: int, width: int) -> torch.Generator:
    """Give the generator of this rank's copies in this step, the same draws however many ranks share the batch.

    Args:
        module: that trains; its data module has the seed.
        count: copies that each rank makes.
        width: uniform draws a copy takes.
    """
    seed = int(module.trainer.datamodule.seed)  # type: ignore[attr-defined]
    state = np.random.SeedSequence([seed, module.global_step, 0]).generate_state(1, np.uint64)
    generator = torch.Generator().manual_seed(int(state[0] >> 1))
    torch.rand(module.global_rank * count, width, generator=generator)  # those of the ranks before this one
    return generator


def fixed_draws(ids: Tensor, width: int) -> Tensor:
    """Give each image draws that are its own, the same in every step and run.

    Args:
        ids: (N,) rows in the manifest.
        width: uniform draws a copy takes.

    Returns:
        (N, width) in [0, 1), on the CPU.
    """
    rows = [torch.rand(width, generator=torch.Generator().manual_seed(int(row))) for row in ids.tolist()]
    return torch.stack(rows) if rows else torch.empty(0, width)
