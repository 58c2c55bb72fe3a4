"""The traces of real training photographs, and how far an image lies from them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fakedet.errors import UserError, choose

DISTANCES = ("knn", "prototype")


class TraceBank(nn.Module):
    """Keep up to ``size`` traces of reals and measure cosine distances to them.

    Everything is in buffers of a fixed shape, so a checkpoint carries the bank into a fresh, unfitted one.

    Args:
        dim: dimension of the traces.
        size: most traces that are kept.
        neighbours: k of the "knn" distance; all traces where there are fewer.
    """

    bank: Tensor
    count: Tensor
    mean: Tensor
    std: Tensor

    def __init__(self, dim: int, size: int = 1024, neighbours: int = 10) -> None:
        super().__init__()
        if size < 2 or neighbours < 1:
            raise UserError(f"model.bank_size: a trace bank keeps 2 traces or more, not {size}")
        self.size, self.neighbours = size, neighbours
        self._fixed: int | None = None
        self.register_buffer("bank", torch.zeros(size, dim))
        self.register_buffer("count", torch.zeros((), dtype=torch.long))
        # Of the kept traces' distances, each to the others; one value for each of DISTANCES.
        self.register_buffer("mean", torch.zeros(len(DISTANCES)))
        self.register_buffer("std", torch.ones(len(DISTANCES)))

    @torch.no_grad()
    def fit(self, traces: Tensor) -> None:
        """Keep L2-normalised traces (M, D), evenly spaced ones where M exceeds ``size``, in place of the old.

        Raises:
            UserError: fewer than two traces, or values that are not finite.
        """
        if len(traces) < 2:
            raise UserError(f"the trace bank needs at least 2 real training photographs, got {len(traces)}")
        if not bool(torch.isfinite(traces).all()):
            raise UserError("the traces hold NaN or infinity: training diverged; lower model.optimizer.lr")
        kept = min(len(traces), self.size)
        spaced = torch.arange(kept, device=traces.device) * len(traces) // kept
        self.bank.zero_()
        self.bank[:kept] = traces[spaced]
        self.count.fill_(kept)
        for index, distances in enumerate((self._own_knn(), self._own_prototype())):
            self.mean[index] = distances.mean()
            # A collapsed trace has no spread; the floor keeps standardised distances finite.
            self.std[index] = distances.std().clamp(min=1e-6)

    def distance(self, z: Tensor, kind: str = "knn") -> Tensor:
        """Measure the cosine distance of L2-normalised z (N, D) from the bank.

        Args:
            z: (N, D).
            kind: "knn", 1 − mean cosine to the nearest ``neighbours``; or "prototype", 1 − cosine to the
                normalised mean.

        Returns:
            (N,) float32 in [0, 2].

        Raises:
            RuntimeError: the bank is empty.
            UserError: an unknown kind.
        """
        choose(kind, DISTANCES, "model.distance")
        bank = self._members()
        with torch.autocast(z.device.type, enabled=False):
            if kind == "prototype":
                return 1.0 - z.float() @ F.normalize(bank.mean(dim=0), dim=0)
            cosine = z.float() @ bank.T
        return 1.0 - cosine.topk(min(self.neighbours, len(bank)), dim=1).values.mean(dim=1)

    def standardised(self, z: Tensor, kind: str = "knn") -> Tensor:
        """Measure the distance (N,) in standard deviations above that of the bank's own members."""
        distance = self.distance(z, kind)
        index = DISTANCES.index(kind)
        return (distance - self.mean[index]) / self.std[index]

    def freeze(self) -> None:
        """Take the number of traces for a constant, as tracing for export needs it; no fit may follow."""
        self._fixed = int(self.count)

    def _members(self) -> Tensor:
        count = int(self.count) if self._fixed is None else self._fixed
        if count == 0:
            raise RuntimeError("the trace bank is empty: fit it on traces of real photographs first")
        return self.bank[:count].float()

    def _own_knn(self) -> Tensor:
        bank = self._members()
        with torch.autocast(bank.device.type, enabled=False):
            cosine = (bank @ bank.T).fill_diagonal_(float("-inf"))
        return 1.0 - cosine.topk(min(self.neighbours, len(bank) - 1), dim=1).values.mean(dim=1)

    def _own_prototype(self) -> Tensor:
        bank = self._members()
        others = F.normalize(bank.sum(dim=0) - bank, dim=1)
        return 1.0 - (bank * others).sum(dim=1)
