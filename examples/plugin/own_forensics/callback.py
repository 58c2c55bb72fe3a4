"""A callback of one's own."""

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback


class CountSteps(Callback):
    """Write how many training steps were taken.

    Args:
        path: of the file.
    """

    def __init__(self, path: str) -> None:
        self.path = Path(path)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Write the number."""
        self.path.write_text(str(trainer.global_step))
