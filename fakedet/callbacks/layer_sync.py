"""Lightning's hook for batch normalisation over all processes, filled for CPUs."""

from __future__ import annotations

from lightning.pytorch.plugins.layer_sync import LayerSync
from torch import nn

from fakedet.models.sync_norm import release, synchronise


class CpuLayerSync(LayerSync):
    """What ``sync_batchnorm`` is on GPUs, for processes on CPUs: two ranks learn as one with their batch would."""

    def apply(self, model: nn.Module) -> nn.Module:
        """Synchronise a model's batch normalisation."""
        return synchronise(model)

    def revert(self, model: nn.Module) -> nn.Module:
        """Undo :meth:`apply`."""
        return release(model)
