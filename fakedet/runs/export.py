"""Write a detector to hand on: ONNX or torch.export for use without fakedet, safetensors with a model card for it."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import logging
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from omegaconf import DictConfig
from torch import Tensor, nn

from fakedet import build, published
from fakedet.data.index.write import replacing
from fakedet.errors import UserError
from fakedet.methods.detector import Detector
from fakedet.runs import operating
from fakedet.runs.card import write_card
from fakedet.runs.folder import provenance, write_json

log = logging.getLogger("fakedet")

ENDINGS = (".onnx", ".pt2", published.ENDING)
KEY = "fakedet"
"""Metadata of an ONNX file that holds the description."""
TOLERANCE = 1e-4
"""Of a logit, or of its own size where that is above 1: a trace distance as the score may be tens."""
BATCH = 50
MOST = 4096
"""Images at a time that an exported model takes."""
Run = Callable[[NDArray[np.float32]], NDArray[np.float32]]


class Exported(nn.Module):
    """A detector with plain tensors out.

    Args:
        method: the detector.
    """

    def __init__(self, method: Detector) -> None:
        super().__init__()
        method.freeze_for_export()
        self.method = method

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Give logits and trace distances, (N,) each, of RGB images (N, 3, S, S) in [0, 1]."""
        scores = self.method(images)
        return scores.logit.float(), scores.trace_distance.float()


def export(config: DictConfig, overrides: list[str]) -> tuple[Path, float]:
    """Write ``output`` and ``<output>.json``, its description, and check both against the checkpoint.

    Returns:
        The file, and the largest difference of a logit on ``check`` images, in parts of its size where that is above 1.

    Raises:
        UserError: another ending, a library that is missing, a model that cannot be exported, or one whose logits
            differ by more than 1e-4.
    """
    output = Path(config.output)
    if output.suffix not in ENDINGS:
        raise UserError(f"output={output}: name a {', a '.join(ENDINGS[:-1])} or a {ENDINGS[-1]} file")
    if config.check < 1:
        raise UserError(f"check={config.check}: at least one image")
    method = build.load_detector(config.checkpoint).eval()
    described = describe(method, overrides)
    size = int(method.identity["crop_size"])
    model = Exported(method).eval()
    images = np.random.default_rng(0).random((config.check, 3, size, size), dtype=np.float32)
    with replacing(output) as temporary:
        run = WRITERS[output.suffix](model, size, temporary, described)
        worst = _compare(model, run, images)
        if not worst <= TOLERANCE:
            raise UserError(
                f"the exported logits differ from PyTorch's by up to {worst:g}, more than {TOLERANCE:g}"
            )
    write_json(
        output.with_name(f"{output.name}.json"),
        {**described, "largest_difference": worst, "checked_on": config.check},
    )
    if output.suffix == published.ENDING:
        write_card(method, Path(config.checkpoint), output)
    return output, worst


def describe(method: Detector, overrides: list[str]) -> dict[str, Any]:
    """Say what goes in, what comes out and what it means."""
    identity = {key: value for key, value in method.identity.items() if key != operating.KEY}
    size = method.identity["crop_size"]
    point = method.identity.get(operating.KEY)
    return {
        "input": {
            "name": "images", "shape": ["batch", 3, size, size], "type": "float32", "range": [0, 1], "colours": "RGB",
            "decoding": "EXIF orientation applied, transparency on white, 16-bit to 8 by the high byte, greyscale in "
                        "three channels, divided by 255",
            "crop": f"{method.identity['eval_policy']}: see fakedet.data.crop.evaluation_views; nothing is resized "
                    "unless the policy is 'resize'; smaller images are padded by reflection; logits of several crops "
                    "are averaged",
        },
        "output": {
            "logit": "float32 (batch,); sigmoid is not a probability before calibration",
            "trace_distance": "float32 (batch,); NaN where the method has none",
        },
        "use": "fake if logit > operating_point.threshold (null: never); P(fake) for as many reals as fakes by "
               "operating_point.calibration; p-value among reals by operating_point.reference: see docs/evaluation.md",
        "operating_point": point,
        "detector": identity,
        "run": provenance(["fakedet", "export", *overrides]),
    }  # fmt: skip


def _traced(model: Exported, size: int) -> Any:
    example = torch.rand(2, 3, size, size)
    batch = torch.export.Dim("batch", min=1, max=MOST)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.export.export(model, (example,), dynamic_shapes={"images": {0: batch}})
    except Exception as error:  # torch.export raises all sorts of things
        raise UserError(
            f"torch.export cannot export this model: {' '.join(str(error).split())[:300]}"
        ) from error


def _write_pt2(model: Exported, size: int, path: Path, described: dict[str, Any]) -> Run:
    torch.export.save(_traced(model, size), path.with_suffix(".pt2"))
    os.replace(path.with_suffix(".pt2"), path)  # torch wants the ending
    with open(path, "rb") as file:
        loaded = torch.export.load(io.BytesIO(file.read())).module()
    return lambda images: loaded(torch.from_numpy(images))[0].detach().numpy()


def _write_onnx(model: Exported, size: int, path: Path, described: dict[str, Any]) -> Run:
    onnx, runtime = _needed("onnx"), _needed("onnxruntime")
    _needed("onnxscript")
    traced = _traced(model, size)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            traced, dynamo=True, output_names=["logit", "trace_distance"], verbose=False
        )
        assert program is not None
        content = program.model_proto
    content.metadata_props.add(key=KEY, value=json.dumps(described))
    onnx.save(content, str(path))
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda images: np.asarray(session.run(["logit"], {"images": images})[0])


def _write_safetensors(model: Exported, size: int, path: Path, described: dict[str, Any]) -> Run:
    published.write_published(path, model.method.state_dict(), model.method.identity)
    loaded = Exported(build.detector_of(published.read_published(path), path)).eval()
    return lambda images: loaded(torch.from_numpy(images))[0].detach().numpy()


WRITERS = {".onnx": _write_onnx, ".pt2": _write_pt2, published.ENDING: _write_safetensors}


def _compare(model: Exported, run: Run, images: NDArray[np.float32]) -> float:
    worst = 0.0
    for start in range(0, len(images), BATCH):
        part = images[start : start + BATCH]
        with torch.no_grad():
            original = model(torch.from_numpy(part))[0].numpy()
        difference = np.abs(run(part) - original) / np.maximum(np.abs(original), 1.0)
        worst = float(np.maximum(worst, difference.max()))  # max() would lose a NaN
    return worst


def _needed(name: str) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module(name)
    except ImportError as error:
        raise UserError(
            f'ONNX is written with {name}, which cannot be imported ({error}); pip install "fakedet[export]"'
        ) from error
