"""The torchmetrics metric that collects scored rows on every rank and gives exact AP and AUC per generator."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.distributed import gather_all_tensors

from fakedet.errors import UserError
from fakedet.metrics.ranking import mean_of_defined, rank, running_sum, weighted_statistics


class GeneratorAveragePrecision(Metric):
    """Collect the scored rows of every rank and measure AP and AUC generator by generator.

    torchmetrics' own exact AP applies a sigmoid, and its gather fails on a rank without rows. Here the rows of a rank
    are packed into one int64 matrix, so that ids and float32 bits survive on every backend, and gathered by one
    all_gather, however uneven the ranks. If several ranks report a row (padded samplers), the lowest rank's is used.
    :meth:`compute` and :meth:`rows` are collective: under DDP every rank calls them.

    Args:
        cells: name of each generator code. A name may occur twice: once for its fakes, once for its reals.
        is_fake: for each code, whether its images are fakes.
        counterparts: code of fakes -> codes of the reals that they are measured against.
        kwargs: of :class:`torchmetrics.Metric`.

    Raises:
        ValueError: the arguments contradict each other.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    packed: list[Tensor]

    def __init__(
        self, cells: Sequence[str], is_fake: Sequence[bool], counterparts: Mapping[int, Sequence[int]], **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.cells = [str(name) for name in cells]
        self.is_fake = [bool(flag) for flag in is_fake]
        self.counterparts = {int(fake): tuple(map(int, reals)) for fake, reals in counterparts.items()}
        if len(self.cells) != len(self.is_fake):
            raise ValueError(f"{len(self.cells)} cells and {len(self.is_fake)} values of is_fake")
        fakes = [name for name, fake in zip(self.cells, self.is_fake, strict=True) if fake]
        if len(set(fakes)) < len(fakes):
            raise ValueError("two cells of fakes have the same name; their values could not be told apart")
        for fake, reals in self.counterparts.items():
            if not all(0 <= code < len(self.cells) for code in (fake, *reals)):
                raise ValueError(f"counterparts {fake}: {reals} name a code beyond the {len(self.cells)} cells")
            if not self.is_fake[fake] or any(self.is_fake[code] for code in reals):
                raise ValueError(f"counterparts {fake}: {reals} should lead from a cell of fakes to cells of reals")
        self._rows: dict[str, NDArray[Any]] | None = None
        self.add_state("packed", default=[], dist_reduce_fx="cat")

    def update(
        self, ids: Tensor, labels: Tensor, generators: Tensor, logits: Tensor, distances: Tensor | None = None
    ) -> None:
        """Keep the rows of a batch; ValueError if the lengths differ.

        Args:
            ids: (B,) int64 row of the manifest; B may be 0.
            labels: (B,) int64, 0 = real, 1 = fake.
            generators: (B,) int64 codes of ``cells``.
            logits: (B,), kept as float32, as are the (B,) distances from the natural traces; NaN where None.
        """
        if distances is None:
            distances = torch.full_like(logits, float("nan"), dtype=torch.float32)
        columns = (ids, labels, generators, logits, distances)
        if len({column.numel() for column in columns}) > 1:
            raise ValueError(f"columns of different lengths: {[tuple(column.shape) for column in columns]}")
        whole = [column.detach().reshape(-1).to(self.device, torch.int64) for column in columns[:3]]
        floats = [column.detach().reshape(-1).to(self.device, torch.float32) for column in columns[3:]]
        bits = torch.stack(floats, dim=1).view(torch.int64)
        self.packed.append(torch.cat([torch.stack(whole, dim=1), bits], dim=1))
        self._rows = None

    def compute(self) -> dict[str, float]:
        """Measure all rows of all ranks.

        Returns:
            {"map", "mauc", "ap/<generator>", "auc/<generator>"} for the generators that have fakes among the rows;
            NaN without reals. The means are over those that are defined, NaN if none is.

        Raises:
            UserError: logits are NaN.
            ValueError: a code is unknown, or a label contradicts its cell.
        """
        rows = self._gathered()
        codes = rows["generator"]
        if len(codes) and not (codes.min() >= 0 and codes.max() < len(self.cells)):
            raise ValueError(f"generator codes {codes.min()} to {codes.max()} for {len(self.cells)} cells")
        if not np.array_equal(np.asarray(self.is_fake, dtype=np.int64)[codes], rows["label"]):
            raise ValueError("some labels contradict the cell of their generator code")
        if missing := int(np.isnan(rows["logit"]).sum()):
            raise UserError(
                f"{missing} of {len(codes)} logits are NaN and cannot be ranked: the detector diverged; try a lower "
                "learning rate, gradient clipping or fp32"
            )
        values: dict[str, float] = {}
        for code, (ap, auc) in self._per_cell(rows).items():
            values |= {f"ap/{self.cells[code]}": ap, f"auc/{self.cells[code]}": auc}
        for mean, part in (("map", "ap/"), ("mauc", "auc/")):
            values[mean] = mean_of_defined([values[key] for key in values if key.startswith(part)])
        return values

    def rows(self) -> dict[str, Tensor]:
        """Return the rows of all ranks, each once, by rising id; after :meth:`compute` without a further exchange.

        They are CPU tensors (n,): id, label, generator (int64), logit, distance (float32).
        """
        # With sync_on_compute=False, the cached rows may come from a manual sync that was undone since.
        if self._rows is None or not (self._to_sync or self._is_synced):
            # After a manual sync, ``packed`` already holds the rows of all ranks.
            own = not self._is_synced
            with self.sync_context(self.dist_sync_fn, should_sync=self._to_sync and own, should_unsync=own):
                self._gathered()
        assert self._rows is not None
        return {name: torch.from_numpy(values.copy()) for name, values in self._rows.items()}

    def reset(self) -> None:
        """Forget all rows."""
        super().reset()
        self._rows = None

    def set_dtype(self, dst_type: str | torch.dtype) -> Metric:
        """Leave the rows as they are: a cast would destroy the ids and the bits."""
        return self

    def _sync_dist(
        self, dist_sync_fn: Callable[..., Any] = gather_all_tensors, process_group: Any | None = None
    ) -> None:
        self.packed = list(dist_sync_fn(self._local(), group=process_group or self.process_group))
        self._rows = None

    def _reduce_states(self, incoming_state: dict[str, Any]) -> None:
        super()._reduce_states(incoming_state)
        self._rows = None

    def _local(self) -> Tensor:
        # id, label, generator code, and one int64 that holds the two float32 numbers (logit, distance).
        empty = torch.zeros((0, 4), dtype=torch.int64, device=self.device)
        # compute_on_cpu may have left the rows on the CPU, where NCCL cannot gather them.
        return torch.cat([empty, *(part.to(self.device) for part in self.packed)])

    def _gathered(self) -> dict[str, NDArray[Any]]:
        packed = self._local().cpu().numpy()
        ids = packed[:, 0]
        if not (ids[1:] > ids[:-1]).all():
            # return_index names the first of equal ids: the one of the lowest rank.
            ids, first = np.unique(ids, return_index=True)
            packed = packed[first]
        columns = (ids, packed[:, 1], packed[:, 2], *np.ascontiguousarray(packed[:, 3:]).view(np.float32).T)
        names = ("id", "label", "generator", "logit", "distance")
        self._rows = {name: np.ascontiguousarray(part) for name, part in zip(names, columns, strict=True)}
        return self._rows

    def _per_cell(self, rows: dict[str, NDArray[Any]]) -> dict[int, tuple[float, float]]:
        codes = rows["generator"].astype(np.min_scalar_type(len(self.cells)))
        # Fast: small integers are sorted by counting, then each short segment of float32 by itself.
        logits = rows["logit"][np.argsort(codes, kind="stable")]
        bounds = np.cumsum(np.bincount(codes, minlength=len(self.cells)))[:-1]
        segments = [np.sort(-segment) for segment in np.split(logits, bounds)]
        sums: dict[tuple[int, ...], tuple[NDArray[Any], NDArray[Any]]] = {}
        found = {}
        for code, segment in enumerate(segments):
            if not (self.is_fake[code] and len(segment)):
                continue
            reals = self.counterparts.get(code, ())
            if reals not in sums:
                # The stable sort detects sorted runs and merges them, which is cheap.
                merged = np.sort(np.concatenate([logits[:0], *(segments[r] for r in reals)]), kind="stable")
                sums[reals] = merged, running_sum(np.ones((1, len(merged)), dtype=np.int32))
            real_keys, real_sums = sums[reals]
            ones = np.ones((1, len(segment)), dtype=np.int32)
            (ap,), (auc,) = weighted_statistics(rank(segment, real_keys), ones, real_sums)
            found[code] = float(ap), float(auc)
        return found
