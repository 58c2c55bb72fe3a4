"""How far features lie outside the directions of photographs, weighed by what that means for like content (ours)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fakedet.errors import UserError

HALVES = 2
KINDS = ("real", "fake")
TINY = 1e-12


class TraceResidual(nn.Module):
    """Tell fakes by the energy of their features outside the principal directions of real photographs (ours).

    The centre c and the principal directions V are fitted to one half of the training reals. The other half, which they
    were not fitted to, gives mean m and spread s of the residual r(x) = log(|x − c|² − |V(x − c)|²) of photographs. The
    distance is d(x) = (r(x) − m) / s, clipped to ±``bound``, so that one odd photograph counts as no more than that.

    A large distance alone does not mean fake: GANs' faces vary less than real faces. So it is weighed by known images
    of similar content: g(x) = (mean r of the fakes − mean r of the other half's reals) / s, each over the nearest
    ``neighbours`` by the cosine of V(x − c). The evidence is g(x) d(x), averaged over both assignments of the halves.
    It is negative, for example, where fakes of such content have smaller residuals than reals and d(x) is large.

    Known fakes say little about content that only known photographs share. With ``reach``, g(x) is multiplied by
    exp(−max(0, c_real − c_fake) / reach), where c is the mean cosine to the nearest images of a class.

    Args:
        features: dimension D of the features.
        dims: number of principal directions.
        neighbours: nearest images of each class that g is computed from.
        size: most images kept of each half of the reals, and of the fakes.
        bound: of d; None: none.
        reach: a cosine; None: the nearest fakes count in full, however far they are.

    Raises:
        UserError: a number below 1, a bound or reach that is not above 0, or no fewer directions than features.
    """

    center: Tensor
    basis: Tensor
    real_place: Tensor
    real_residual: Tensor
    fake_place: Tensor
    fake_residual: Tensor
    counts: Tensor
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        features: int,
        dims: int = 100,
        neighbours: int = 30,
        size: int = 2048,
        bound: float | None = None,
        reach: float | None = None,
    ) -> None:
        super().__init__()
        for name, value in (("bound", bound), ("reach", reach)):
            if value is not None and (not isinstance(value, int | float) or not value > 0):
                raise UserError(f"model.residual: {name}={value}: a number above 0, or null for none")
        whole = all(isinstance(value, int) for value in (dims, neighbours, size))
        if not (whole and 1 <= dims < features and 1 <= neighbours <= size):
            raise UserError(
                f"model.residual: dims={dims}, neighbours={neighbours}, size={size}: needs 1 to {features - 1} "
                "directions and as many images as neighbours"
            )
        self.neighbours, self.size = neighbours, size
        self.bound = math.inf if bound is None else bound
        self.reach = math.inf if reach is None else reach
        self.register_buffer("center", torch.zeros(HALVES, features))
        self.register_buffer("basis", torch.zeros(HALVES, features, dims))
        for kind in KINDS:
            self.register_buffer(f"{kind}_place", torch.zeros(HALVES, size, dims))
            self.register_buffer(f"{kind}_residual", torch.zeros(HALVES, size))
        self.register_buffer("counts", torch.zeros(HALVES, 2, dtype=torch.long))
        self.register_buffer("mean", torch.zeros(HALVES))
        self.register_buffer("std", torch.ones(HALVES))

    @torch.no_grad()
    def fit(self, reals: Tensor, half: Tensor, fakes: Tensor) -> None:
        """Fit directions and references to the features of training images, reals (M, D) and fakes (K, D).

        ``half`` is (M,) of 0 or 1; photographs of one group belong in one half.

        Raises:
            UserError: fewer images than directions or neighbours ask for, or features that are not finite.
        """
        least = max(self.basis.shape[2] + 1, self.neighbours)
        smaller = min(int((half == side).sum()) for side in range(HALVES))
        if smaller < least or len(fakes) < self.neighbours:
            raise UserError(
                f"model.residual: each half of the training reals must hold {least} or more for so many directions and "
                f"neighbours, and there must be {self.neighbours} fakes; here are {smaller} and {len(fakes)}; lower "
                "model.residual.dims and model.residual.neighbours, or set model.residual.weight=0"
            )
        if not (reals.isfinite().all() and fakes.isfinite().all()):
            raise UserError(
                "model.residual: the encoder gives features that are not finite (NaN or infinite) for training images; "
                "look at its weights (model.encoder.weights) and trainer.precision"
            )
        for side in range(HALVES):
            own, others = reals[half == side].double(), _thinned(reals[half != side], self.size)
            self.center[side] = own.mean(dim=0)
            directions = torch.linalg.svd(own - own.mean(dim=0), full_matrices=False).Vh
            self.basis[side] = directions[: self.basis.shape[2]].T
            for index, (kind, rows) in enumerate(zip(KINDS, (others, _thinned(fakes, self.size)), strict=True)):
                place, residual = self._look(rows, side)
                getattr(self, f"{kind}_place")[side, : len(rows)] = F.normalize(place, dim=1)
                getattr(self, f"{kind}_residual")[side, : len(rows)] = residual
                self.counts[side, index] = len(rows)
                if kind == "real":
                    self.mean[side], self.std[side] = residual.mean(), residual.std().clamp(min=1e-6)

    def forward(self, features: Tensor) -> Tensor:
        """Return the evidence (N,) that features (N, D) are a fake's, 0 for none; RuntimeError before a fit."""
        if not torch.compiler.is_compiling() and int(self.counts.min()) == 0:
            raise RuntimeError("the trace residual is not fitted: fit it on training images first")
        with torch.autocast(features.device.type, enabled=False):
            sides = [self._evidence(features.float(), side) for side in range(HALVES)]
        return torch.stack(sides).mean(dim=0)

    def _evidence(self, features: Tensor, side: int) -> Tensor:
        place, residual = self._look(features, side)
        place = F.normalize(place, dim=1)
        real, real_cosine = self._nearest(place, "real", side)
        fake, fake_cosine = self._nearest(place, "fake", side)
        known = torch.exp(-(real_cosine - fake_cosine).clamp(min=0) / self.reach)
        distance = ((residual - self.mean[side]) / self.std[side]).clamp(-self.bound, self.bound)
        return known * (fake - real) / self.std[side] * distance

    def _nearest(self, place: Tensor, kind: str, side: int) -> tuple[Tensor, Tensor]:
        """Average the residuals of the nearest known images and the cosines to them, (N,) each."""
        places, residuals = getattr(self, f"{kind}_place")[side], getattr(self, f"{kind}_residual")[side]
        # The cosine −2 keeps unused rows from being the nearest.
        unused = torch.arange(self.size, device=place.device) >= self.counts[side, KINDS.index(kind)]
        nearest = (place @ places.T).masked_fill(unused, -2.0).topk(self.neighbours, dim=1)
        return residuals[nearest.indices].mean(dim=1), nearest.values.mean(dim=1)

    def _look(self, rows: Tensor, side: int) -> tuple[Tensor, Tensor]:
        """Return the coordinates of rows along the directions, (N, dims), and the log energy outside, (N,)."""
        centred = rows.float() - self.center[side]
        place = centred @ self.basis[side]
        outside = centred.square().sum(dim=1) - place.square().sum(dim=1)
        return place, outside.clamp(min=TINY).log()


def _thinned(rows: Tensor, most: int) -> Tensor:
    kept = min(len(rows), most)
    return rows[torch.arange(kept, device=rows.device) * len(rows) // kept]
