"""A method whose loss is no number at its sixth step, as a user's package could hold one."""

from typing import Any, ClassVar

import torch

from fakedet.methods.supervised import SupervisedDetector


class Diverging(SupervisedDetector):
    """Record its batches, and the weights before the last step that it computed."""

    value: ClassVar[float] = float("nan")
    batches: ClassVar[list[dict[str, Any]]] = []
    latest: "ClassVar[Diverging]"
    weights: ClassVar[dict[str, torch.Tensor]] = {}

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> torch.Tensor:
        loss = super().training_step(batch, batch_idx)
        cls = type(self)
        cls.batches.append(batch)
        cls.latest, cls.weights = self, {key: item.clone() for key, item in self.state_dict().items()}
        return loss * cls.value if len(cls.batches) == 6 else loss
