"""An exported detector gives the original's logits, and says all that is needed to use it."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import fakedet
from fakedet.cli.app import launch
from fakedet.metrics.decisions import OperatingPoint

onnxruntime = pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def checkpoints(tiny_manifest_module: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root, found = tmp_path_factory.mktemp("export"), {}
    for model in ("bce", "ntf"):
        assert launch("train", [
            f"model={model}", "data=manifest", "data.crop_size=32", "data.batch_size=16", "trainer.max_epochs=1",
            "threads=1", "bootstrap.resamples=0", "header_audit=false", f"data.manifest={tiny_manifest_module}",
            f"output_dir={root}/{model}", "stage1_cache=null",
        ]) == 0  # fmt: skip
        found[model] = root / model / "checkpoints" / "best.ckpt"
    return found


@pytest.mark.parametrize("model", ["bce", "ntf"])
@pytest.mark.parametrize("ending", [".onnx", ".pt2"])
def test_logits_and_distances_are_the_originals(
    checkpoints: dict[str, Path], model: str, ending: str, tmp_path: Path
) -> None:
    output = tmp_path / f"detector{ending}"
    assert launch("export", [f"checkpoint={checkpoints[model]}", f"output={output}"]) == 0
    images = np.random.default_rng(5).random((7, 3, 32, 32), dtype=np.float32)  # another number than it was traced with
    module = fakedet.load(checkpoints[model], "cpu").module
    with torch.no_grad():
        expected = module(torch.from_numpy(images))
    if ending == ".onnx":
        session = onnxruntime.InferenceSession(str(output), providers=["CPUExecutionProvider"])
        logit, distance = session.run(["logit", "trace_distance"], {"images": images})
        inside = json.loads(session.get_modelmeta().custom_metadata_map["fakedet"])
    else:
        logit, distance = (
            part.detach().numpy() for part in torch.export.load(output).module()(torch.from_numpy(images))
        )
        inside = None
    np.testing.assert_allclose(logit, expected.logit, atol=1e-4)
    np.testing.assert_allclose(distance, expected.trace_distance, atol=1e-4)
    beside = json.loads((tmp_path / f"detector{ending}.json").read_text())
    assert beside["checked_on"] == 200
    assert beside["largest_difference"] <= 1e-4
    assert beside["input"]["shape"] == ["batch", 3, 32, 32]
    assert beside["detector"]["seen_generators"] == ["gen_a", "gen_b"]
    point = torch.load(checkpoints[model], weights_only=True)["fakedet"]["operating_point"]
    assert OperatingPoint.from_dict(beside["operating_point"]) == OperatingPoint.from_dict(point)
    assert inside is None or inside["operating_point"] == beside["operating_point"]


def test_mistakes_are_one_line_and_leave_nothing(
    checkpoints: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert launch("export", [f"checkpoint={checkpoints['bce']}", f"output={tmp_path}/m.tflite"]) == 2
    assert "name a .onnx, a .pt2 or a .safetensors file" in capsys.readouterr().err
    monkeypatch.setattr("fakedet.export.TOLERANCE", -1.0)
    assert launch("export", [f"checkpoint={checkpoints['bce']}", f"output={tmp_path}/m.onnx"]) == 2
    assert "the exported logits differ from PyTorch's by up to" in capsys.readouterr().err
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    assert launch("export", [f"checkpoint={checkpoints['bce']}", f"output={tmp_path}/m.onnx"]) == 2
    assert 'pip install "fakedet[export]"' in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
