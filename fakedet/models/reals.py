"""What encoders that are fitted to real photographs share."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from fakedet.errors import UserError


@torch.no_grad()
def rows_of_reals(describe: Callable[[Tensor], Tensor], batches: Iterable[Tensor]) -> Tensor:
    """Describe real photographs, to fit an encoder to them.

    Args:
        describe: maps float RGB (N, 3, H, W) in [0, 1] to (N, D).
        batches: such images, in any number of batches.

    Returns:
        float64 (photographs, D).

    Raises:
        UserError: fewer photographs than two.
    """
    rows = torch.cat([describe(images) for images in batches]).double()
    if len(rows) < 2:
        raise UserError("model.encoder: it is fitted to real photographs, and needs at least two of them")
    return rows
