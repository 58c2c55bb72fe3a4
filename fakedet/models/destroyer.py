"""Trace-destroyed copies: the content stays, the low-level statistics are re-synthesised."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fakedet.errors import UserError, choose
from fakedet.models.recompress import GRID, check_qualities, recompress
from fakedet.models.resynthesis import DRAWS, METHODS

_WIDTH = 2 + DRAWS
"""Uniform draws that a copy takes: kind, strength, and those of its kind."""


class TraceDestroyer(nn.Module):
    """Make a trace-destroyed copy of each image (ours; docs/method.md).

    Each image draws one kind and a strength: the share of the re-synthesised image in its blend with the
    original. Such copies imitate upsampling and smoothing, so they are pseudo-fakes of a kind.

    Args:
        kinds: one or more of "resample", "zero_insert", "lowpass", "smooth"; see
            :mod:`fakedet.models.resynthesis`.
        min_strength: least strength, in [0, 1]; strengths are uniform in [min_strength, 1].
        recompress: least and greatest JPEG quality of the copies; None: they are not compressed. Where the fakes
            to come are JPEGs, copies without JPEG's own traces teach another lesson than theirs.

    Raises:
        UserError: an unknown kind, none at all, a strength outside [0, 1], or no such JPEG quality.
    """

    def __init__(
        self,
        kinds: Sequence[str] = tuple(METHODS),
        min_strength: float = 0.4,
        recompress: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.kinds = tuple(choose(kind, METHODS, "model.destroyers") for kind in kinds)
        if not self.kinds:
            raise UserError(f"model.destroyers: name at least one of {', '.join(METHODS)}")
        if not 0.0 <= min_strength <= 1.0:
            raise UserError(f"model.min_strength: {min_strength} is not between 0 and 1")
        self.min_strength = min_strength
        self.qualities = None if recompress is None else check_qualities(recompress, "model.recompress")

    @property
    def width(self) -> int:
        """Uniform draws that a copy takes."""
        return _WIDTH + (GRID if self.qualities else 0)

    @torch.no_grad()
    def forward(
        self, images: Tensor, generator: torch.Generator | None = None, draws: Tensor | None = None
    ) -> Tensor:
        """Destroy the traces of images; nothing here carries gradients.

        Args:
            images: float RGB (N, 3, H, W) in [0, 1], H and W at least 2.
            generator: a CPU generator, whose draws are the same whatever the images' device; None takes
                PyTorch's global one.
            draws: uniform (N, width) in [0, 1) on the CPU instead.

        Returns:
            (N, 3, H, W) of the images' dtype, in steps of 1/255 as every stored image is: values between the
            steps would give the copies away without any trace being learned.
        """
        if draws is None:
            draws = torch.rand(len(images), self.width, generator=generator)
        kind = (draws[:, 0] * len(self.kinds)).long()
        strength = self.min_strength + draws[:, 1] * (1.0 - self.min_strength)
        with torch.autocast(images.device.type, enabled=False):
            original = images.float()
            destroyed = torch.empty_like(original)
            for index, name in enumerate(self.kinds):
                rows = (kind == index).nonzero().squeeze(1)
                if len(rows):
                    there = rows.to(images.device)
                    destroyed[there] = METHODS[name](original[there], draws[rows, 2:_WIDTH])
            blend = torch.lerp(original, destroyed, strength.to(original).view(-1, 1, 1, 1))
            levels = (blend.clamp(0.0, 1.0) * 255.0).round()
            if self.qualities is not None:
                levels = recompress(levels, draws[:, _WIDTH:], self.qualities)
            return levels.div(255.0).to(images.dtype)
