"""A run that is told to stop before its training has begun ends in one line and loses nothing that it computed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from lightning.pytorch import Callback
from torch import Tensor

import fakedet
from fakedet.errors import Preempted
from fakedet.models.backbones import FrozenBackbone
from fakedet.models.features import FeatureCache


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="looks there for what is imported")
@pytest.mark.parametrize("library", ["_multiarray_umath", "libtorch_cpu", "libarrow."])
def test_an_interrupt_during_the_imports_is_one_line(library: str, tmp_path: Path) -> None:
    run = subprocess.Popen([sys.executable, "-m", "fakedet", "predict", "checkpoint=demo", "source=-"], cwd=tmp_path,
                           stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                           preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler))  # fmt: skip
    while library not in Path(f"/proc/{run.pid}/maps").read_text():
        assert run.poll() is None
        time.sleep(0.01)
    run.send_signal(signal.SIGINT)
    _, errors = run.communicate(timeout=120)
    assert run.returncode == 130
    assert errors == "fakedet: interrupted\n"


def test_a_stop_while_a_backbone_looks_for_the_first_time_loses_no_features(
    tiny_manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FAKEDET_FEATURES", raising=False)
    describe, looked = FrozenBackbone.describe, list[int]()

    def train(folder: str, stop_at: int = -1) -> int:
        """Train as a process of its own would; return how many images were looked at."""
        FeatureCache.clear()
        looked.clear()

        def look(backbone: FrozenBackbone, images: Tensor) -> Tensor:
            looked.append(len(images))
            if len(looked) == stop_at:
                os.kill(os.getpid(), signal.SIGTERM)
            return describe(backbone, images)

        monkeypatch.setattr(FrozenBackbone, "describe", look)
        fakedet.train(
            "experiment=frozen", "model=bce", f"data.manifest={tiny_manifest}", "data.crop_size=32",
            "model.encoder.name=test_efficientnet", "model.encoder.pretrained=false", "model.encoder.weights=null",
            "model.encoder.input_size=null", "model.encoder.hidden=8", "trainer.max_epochs=1", "header_audit=false",
            "test_after_fit=false", "threads=1", output_dir=tmp_path / folder,
        )  # fmt: skip
        return sum(looked)

    whole = train("whole")
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Preempted, match="stopped by signal 15 after writing what was computed"):
        train("stopped", stop_at=10)
    first = sum(looked)
    assert first < whole / 2, "it was stopped while the encoder was fitted"
    assert first + train("stopped") <= whole + 3, "only what it was looking at is looked at again"
    assert not (tmp_path / "stopped" / "features.pt").exists()
    assert signal.getsignal(signal.SIGTERM) is before


class Stopped(Callback):
    """Is told to stop while Hydra makes it: what a target raises there, Hydra takes for a failure of the target."""

    def __init__(self) -> None:
        os.kill(os.getpid(), signal.SIGTERM)


def test_a_stop_while_components_are_built_is_no_failure(tiny_manifest: Path, tmp_path: Path) -> None:
    with pytest.raises(Preempted, match="stopped by signal 15"):
        fakedet.train(
            "model=bce", "data=manifest", f"data.manifest={tiny_manifest}", "data.crop_size=32", "header_audit=false",
            "trainer.max_epochs=1", "threads=1", f"+callbacks.own._target_={__name__}.Stopped",
            output_dir=tmp_path / "run",
        )  # fmt: skip
    assert not list((tmp_path / "run").glob("failure*"))
