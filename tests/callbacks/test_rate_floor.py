"""Training ends when its learning rate has fallen below the floor."""

from pathlib import Path

import pandas as pd

from fakedet.training.train import train
from tests.runs.test_training import composed


def test_training_ends_below_the_floor(tiny_manifest: Path, tmp_path: Path) -> None:
    config = composed(
        tmp_path / "run", "model=cnndet", "model.encoder.name=resnet10t", "model.encoder.pretrained=false",
        f"data.manifest={tiny_manifest}", "header_audit=false", "test_after_fit=false", "trainer.max_epochs=30",
        "model.optimizer.patience=0", "model.optimizer.lr=1e-5", "data.steps_per_epoch=1",
        "+callbacks.rate_floor._target_=fakedet.training.callbacks.RateFloor", "+callbacks.rate_floor.rate=1e-6",
        "trainer.log_every_n_steps=1",
    )  # fmt: skip
    train(config)
    curves = pd.read_csv(tmp_path / "run" / "logs" / "metrics.csv")
    assert curves["val/accuracy"].between(0, 1).sum() < 30
