"""The traces of real training photographs, and how far an image lies from them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fakedet.errors import choose

DISTANCES = ("knn", "prototype")


class TraceBank(nn.Module):
    """Keep up to ``size`` traces of reals and measure cosine distances to them.

    Everything is in buffers, so a checkpoint carries the bank.

    Args:
        dim: dimension of the traces.
        size: most traces that are kept.
        neighbours: k of the "knn" distance.
    """

    rows: Tensor
    count: Tensor
    moments: Tensor

    def __init__(self, dim: int, size: int = 1024, neighbours: int = 10) -> None:
        super().__init__()
        self.size, self.neighbours = size, neighbours
        self.register_buffer("rows", torch.zeros(size, dim))
        self.register_buffer("count", torch.zeros((), dtype=torch.long))
        # (distance kind, mean or std): of the kept traces' own distances, each left out of the bank in turn.
        self.register_buffer("moments", torch.zeros(len(DISTANCES), 2))

    def fit(self, traces: Tensor) -> None:
        """Keep traces (M, D), M ≥ 2, evenly thinned to ``size``."""
        if len(traces) < 2:
            raise ValueError(f"a trace bank needs at least two traces, got {len(traces)}")
        if len(traces) > self.size:
            traces = traces[torch.linspace(0, len(traces) - 1, self.size, device=traces.device).long()]
        self.rows.zero_()
        self.rows[: len(traces)] = traces
        self.count.fill_(len(traces))
        for row, kind in enumerate(DISTANCES):
            own = self._distance(traces, kind, leave_out=True)
            self.moments[row, 0], self.moments[row, 1] = own.mean(), own.std().clamp(min=1e-6)

    def distance(self, z: Tensor, kind: str = "knn") -> Tensor:
        """Measure 1 − cosine of z (N, D) to its nearest traces ("knn") or to their mean ("prototype"): (N,)."""
        return self._distance(z, choose(kind, DISTANCES, "model.distance"), leave_out=False)

    def standardised(self, z: Tensor, kind: str = "knn") -> Tensor:
        """Measure the distance in standard deviations from what the bank's own traces have: (N,)."""
        mean, std = self.moments[DISTANCES.index(choose(kind, DISTANCES, "model.distance"))]
        return (self.distance(z, kind) - mean) / std

    def _distance(self, z: Tensor, kind: str, leave_out: bool) -> Tensor:
        count = int(self.count)
        if count == 0:
            raise RuntimeError("the trace bank is empty: fit it on traces of real photographs first")
        z, rows = z.float(), self.rows[:count]
        if kind == "prototype":
            return 1.0 - z @ F.normalize(rows.mean(dim=0), dim=0)
        cosine = z @ rows.T
        if leave_out:
            cosine.fill_diagonal_(float("-inf"))
        nearest = cosine.topk(min(self.neighbours, count - leave_out), dim=1).values
        return 1.0 - nearest.mean(dim=1)
