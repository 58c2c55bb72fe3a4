"""A loss that is no number ends the run before the weights see it, and what led to it is kept."""

from pathlib import Path

import pandas as pd
import pytest
import torch

from fakedet.cli.app import launch
from fakedet.methods.supervised import SupervisedDetector

COMMON = ["model=bce", "data=manifest", "data.crop_size=32", "data.batch_size=8", "data.steps_per_epoch=4", "threads=1",
          "trainer.max_epochs=2", "bootstrap.resamples=0", "header_audit=false", "test_after_fit=false"]  # fmt: skip


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_the_batch_is_kept_and_the_weights_are_not_spoilt(
    value: float,
    tiny_manifest: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    original, steps, seen = SupervisedDetector.training_step, [], {}

    def step(self, batch, batch_idx):
        loss = original(self, batch, batch_idx)
        steps.append(batch)
        seen["weights"] = {key: item.clone() for key, item in self.state_dict().items()}
        seen["method"] = self
        return loss * value if len(steps) == 6 else loss

    monkeypatch.setattr(SupervisedDetector, "training_step", step)
    assert launch("train", [*COMMON, f"data.manifest={tiny_manifest}", f"output_dir={tmp_path / 'run'}"]) == 2
    said = capsys.readouterr().err
    assert "the loss is" in said
    assert "at step 5, epoch 2" in said
    assert "Traceback" not in said
    kept = torch.load(tmp_path / "run" / "bad_batch.pt", weights_only=True)
    assert kept["step"] == 5
    assert torch.equal(kept["id"], steps[-1]["id"])
    assert torch.equal(kept["image"], steps[-1]["image"])
    for key, item in seen["method"].state_dict().items():
        assert torch.equal(item, seen["weights"][key]), key
    assert "the loss is" in (tmp_path / "run" / "failure.json").read_text()


def test_speed_and_waiting_are_logged_each_epoch(tiny_manifest: Path, tmp_path: Path) -> None:
    assert launch("train", [*COMMON, f"data.manifest={tiny_manifest}", f"output_dir={tmp_path / 'run'}"]) == 0
    curves = pd.read_csv(tmp_path / "run" / "logs" / "metrics.csv")
    logged = curves[curves["perf/images_per_second"].notna()]
    assert logged["epoch"].tolist() == [0, 1]
    assert (logged["perf/images_per_second"] > 1).all()
    assert logged["perf/data_wait_share"].between(0, 1).all()
    assert (logged["perf/memory_gb"] > 0.05).all()
