"""Signs of collapse: whether projections still tell images apart."""

from __future__ import annotations

import torch
from torch import Tensor

from fakedet.losses.precision import full_precision


@torch.no_grad()
@full_precision
def collapse_statistics(a: Tensor) -> dict[str, Tensor]:
    """Measure how far normalised projections have collapsed; nothing here carries gradients.

    Args:
        a: (M, D) L2-normalised by the caller.

    Returns:
        Scalars ``mean_cosine`` among different rows, in [-1, 1]; 1 is total collapse.
        ``std`` per dimension, averaged over dimensions; 0 is total collapse, 1/√D an even spread.
        ``effective_rank``, in [1, min(M, D)]: exp of the entropy of the normalised singular values (Roy and
        Vetterli 2007). The rows are not centred, so that a collapse to one point shows as 1.
        With fewer than two rows all are NaN: there is nothing to compare.
    """
    rows = len(a)
    if rows < 2:
        undefined = a.new_tensor(float("nan"))
        return {"mean_cosine": undefined, "std": undefined, "effective_rank": undefined}
    total = a.sum(dim=0)
    mean_cosine = (total @ total - (a * a).sum()) / (rows * (rows - 1))
    singular = torch.linalg.svdvals(a)
    entropy = torch.special.entr(singular / singular.sum()).sum()
    return {"mean_cosine": mean_cosine, "std": a.std(dim=0).mean(), "effective_rank": entropy.exp()}
