"""A loss that is no number ends the run before the weights see it, and what led to it is kept."""

from pathlib import Path

import pandas as pd
import pytest
import torch

from fakedet.cli.app import launch
from tests.diverging import Diverging

COMMON = ["model=bce", "data=manifest", "data.crop_size=32", "data.batch_size=8", "data.steps_per_epoch=4", "threads=1",
          "trainer.max_epochs=2", "bootstrap.resamples=0", "header_audit=false", "test_after_fit=false"]  # fmt: skip


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_the_batch_is_kept_and_the_weights_are_not_spoilt(
    value: float, tiny_manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Diverging.value, Diverging.batches = value, []
    arguments = [*COMMON, "model._target_=tests.diverging.Diverging", f"data.manifest={tiny_manifest}"]
    assert launch("train", [*arguments, f"output_dir={tmp_path / 'run'}"]) == 2
    said = capsys.readouterr().err
    assert "the loss is" in said
    assert "at step 5, epoch 2" in said
    assert "Traceback" not in said
    kept = torch.load(tmp_path / "run" / "bad_batch.pt", weights_only=True)
    assert kept["step"] == 5
    assert torch.equal(kept["id"], Diverging.batches[-1]["id"])
    assert torch.equal(kept["image"], Diverging.batches[-1]["image"])
    for key, item in Diverging.latest.state_dict().items():
        assert torch.equal(item, Diverging.weights[key]), key
    assert "the loss is" in (tmp_path / "run" / "failure.json").read_text()


def test_speed_and_waiting_are_logged_each_epoch(tiny_manifest: Path, tmp_path: Path) -> None:
    assert launch("train", [*COMMON, f"data.manifest={tiny_manifest}", f"output_dir={tmp_path / 'run'}"]) == 0
    curves = pd.read_csv(tmp_path / "run" / "logs" / "metrics.csv")
    logged = curves[curves["perf/images_per_second"].notna()]
    assert logged["epoch"].tolist() == [0, 1]
    assert (logged["perf/images_per_second"] > 1).all()
    assert logged["perf/data_wait_share"].between(0, 1).all()
    assert (logged["perf/memory_gb"] > 0.05).all()
