"""Stop when the learning rate has fallen so far that nothing more is learned."""

from __future__ import annotations

from lightning.pytorch import Callback, LightningModule, Trainer


class RateFloor(Callback):
    """End the training at the first epoch whose learning rate is below a floor (CNNDetection; Wang et al. 2020).

    Args:
        rate: the floor.
    """

    def __init__(self, rate: float) -> None:
        self.rate = rate

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at the rate."""
        if (
            max(group["lr"] for optimiser in trainer.optimizers for group in optimiser.param_groups)
            < self.rate
        ):
            trainer.should_stop = True
