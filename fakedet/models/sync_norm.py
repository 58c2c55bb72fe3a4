"""Batch normalisation over the batch of all processes, on CPUs, where PyTorch has none."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class _AllSum(torch.autograd.Function):
    """Sum over the processes, forth and back: each process's rows move the others' losses too."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:  # type: ignore[override]
        total = values.clone()
        torch.distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        total = gradient.clone()
        torch.distributed.all_reduce(total)
        return total


class _Synced(nn.modules.batchnorm._BatchNorm):
    """Normalise by mean and variance of all processes' rows; outside of training as its parent does."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalise (N, C, ...); every process passes the same N."""
        if not (self.training and torch.distributed.is_initialized()):
            return super().forward(input)
        self._check_input_dim(input)
        dims = [0, *range(2, input.dim())]
        shape = [1, -1] + [1] * (input.dim() - 2)
        count = input.numel() // input.shape[1] * torch.distributed.get_world_size()
        mean = _AllSum.apply(input.sum(dims)) / count
        centred = input - mean.view(shape)
        variance = _AllSum.apply(centred.square().sum(dims)) / count
        self._remember(mean.detach(), variance.detach() * count / max(1, count - 1))
        normed = centred * torch.rsqrt(variance + self.eps).view(shape)
        return normed * self.weight.view(shape) + self.bias.view(shape) if self.affine else normed

    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        if not self.track_running_stats:
            return
        assert self.num_batches_tracked is not None
        assert self.running_mean is not None
        assert self.running_var is not None
        self.num_batches_tracked += 1
        share = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(variance, share)


class _Synced1d(_Synced, nn.BatchNorm1d):
    pass


class _Synced2d(_Synced, nn.BatchNorm2d):
    pass


KINDS: dict[type[nn.Module], type[nn.Module]] = {nn.BatchNorm1d: _Synced1d, nn.BatchNorm2d: _Synced2d}


def synchronise(model: nn.Module) -> nn.Module:
    """Let every batch normalisation of a model (of exactly PyTorch's own classes) see all processes' rows."""
    for module in model.modules():
        if type(module) in KINDS:
            module.__class__ = KINDS[type(module)]
    return model


def release(model: nn.Module) -> nn.Module:
    """Undo :func:`synchronise`."""
    plain = {synced: own for own, synced in KINDS.items()}
    for module in model.modules():
        if type(module) in plain:
            module.__class__ = plain[type(module)]
    return model
