"""export"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import logging
import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from omegaconf import DictConfig
from torch import Tensor, nn

import fakedet
from fakedet.build import detector_of, load_detector
from fakedet.checkpoint import SAFETENSORS, read_published, write_published
from fakedet.errors import UserError
from fakedet.methods.base import Detector
from fakedet.metrics.bootstrap import Interval
from fakedet.utils import provenance, replacing, write_json

LIMITS = """\
- It knows the generators it was trained on and what resembles them. Of others it may be no better than a guess; the
  table says so for those that were tried.
- Screenshots, resizing, filters and repeated compression take away what it looks at.
- It looks at crops of {size} pixels; an edit elsewhere in a picture is not seen.
- Its operating point and p-values hold for photographs like those it was fitted on. Ask `fakedet predict`, which says
  "can't tell" where that is the truth, and do not accuse anyone by its answer alone.
"""


def write_card(method: Detector, checkpoint: Path, output: Path) -> Path:
    """Write ``<output>.md`` beside a published detector.

    The metrics are those of the run that the checkpoint lies in; without them the card says that there are none.
    """
    identity = method.identity
    path = output.with_suffix(".md")
    parts = [
        f"# {output.stem}: a detector of AI-generated images",
        _origin(identity, method) + _command(_of_run(checkpoint, "run.json")),
        _data(identity),
        _results(_of_run(checkpoint, "metrics.json")),
        _point(method),
        "## Limits\n\n" + LIMITS.format(size=identity["crop_size"]),
    ]
    path.write_text("\n\n".join(part.rstrip() for part in parts) + "\n", encoding="utf-8")
    return path


def _origin(identity: Mapping[str, Any], method: Detector) -> str:
    settings = identity["model"]["encoder"]
    encoder = str(settings["_target_"]).rsplit(".", 1)[-1]
    count = sum(parameter.numel() for parameter in method.parameters())
    return (
        f"fakedet {fakedet.__version__}, method `{identity['model']['name']}`, {encoder}, {count:,} parameters, seed "
        f"{identity['seed']}. Label 0 = real, 1 = fake; score = P(fake).{_pretraining(settings)}"
    )


def _pretraining(encoder: Mapping[str, Any]) -> str:
    """Say which weights the encoder began with or kept: their licence, and what they saw, hold for the detector too."""
    weights = encoder.get("weights")
    if not weights and not encoder.get("pretrained"):
        return ""
    source = f"`{Path(weights).name}`" if weights else "timm's weights of that name"
    return (
        f"\n\nIts encoder is timm's `{encoder.get('name')}`, pretrained ({source}): what those weights were "
        "trained on, it has seen too, and their licence holds for this file as well."
    )


def _data(identity: Mapping[str, Any]) -> str:
    data = identity["training_data"]
    lines = ["## Training data", "", f"Manifest `{data['manifest']}`, sha256 {identity['manifest_sha256']}.", "",
             "| | images |", "|---|---:|"]  # fmt: skip
    for kind in ("real", "fake"):
        lines += [f"| {kind}: {name} | {count} |" for name, count in data.get(kind, {}).items()]
    if not identity["seen_generators"]:
        lines += ["", "It was trained on photographs alone, and has seen no fakes."]
    return "\n".join(lines)


def _of_run(checkpoint: Path, name: str) -> dict[str, Any] | None:
    """Read a file of the run that a checkpoint lies in, if it is there."""
    try:
        found: dict[str, Any] = json.loads((checkpoint.parent.parent / name).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found


def _command(run: Mapping[str, Any] | None) -> str:
    """Say how to train it again, without the folders that it was trained in."""
    if run is None:
        return ""
    places = ("output_dir=", "trace_cache=", "trace_checkpoint=", "data.root=")
    command = " ".join(word for word in run["command"] if not word.startswith(places))
    commit = f", at commit {run['git']['commit'][:12]}" if run.get("git") else ""
    return f"\n\nTrained by `{command}`{commit}."


def _results(metrics: Mapping[str, Any] | None) -> str:
    if metrics is None:
        return "## Results\n\nNo metrics.json lies in the run's folder; run `fakedet evaluate` on data of your own."
    lines = ["## Results on the test split", "", "AP and AUC with 95 % intervals over photographs.", "",
             "| generator | real / fake | AP | AUC |", "|---|---:|---:|---:|"]  # fmt: skip
    for name, row in sorted(
        metrics["per_generator"].items(), key=lambda item: (not item[1]["seen"], item[0])
    ):
        seen = "seen" if row["seen"] else "unseen"
        counts = f"{row['n_real']} / {row['n_fake']}"
        ap, auc = (Interval.from_dict(row[key]).text() for key in ("ap", "auc"))
        lines.append(f"| {name} ({seen}) | {counts} | {ap} | {auc} |")
    for kind in ("seen", "unseen"):
        ap, auc = metrics[f"map_{kind}"], metrics[f"mauc_{kind}"]
        lines.append(
            f"| **mean, {kind}** | | {Interval.from_dict(ap).text()} | {Interval.from_dict(auc).text()} |"
        )
    return "\n".join(lines)


def _point(method: Detector) -> str:
    point = method.operating_point
    if point is None:
        return "## Operating point\n\nNone: it ranks images, and says nothing of single ones."
    return (
        f"## Operating point\n\nAn image is called fake above a logit of {point.threshold:.3f}, which {point.rate:.0%} "
        f"of {point.n_real} real validation images may exceed; calibration `{point.calibration.kind}`, fitted to these "
        f"and {point.n_fake} fakes."
    )


log = logging.getLogger("fakedet")

ENDINGS = (".onnx", ".pt2", SAFETENSORS)
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


def export_detector(config: DictConfig, overrides: list[str]) -> tuple[Path, float]:
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
    method = load_detector(config.checkpoint).eval()
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
    if output.suffix == SAFETENSORS:
        write_card(method, Path(config.checkpoint), output)
    return output, worst


def describe(method: Detector, overrides: list[str]) -> dict[str, Any]:
    """Say what goes in, what comes out and what it means."""
    identity = {key: value for key, value in method.identity.items() if key != "operating_point"}
    size = method.identity["crop_size"]
    point = method.identity.get("operating_point")
    return {
        "input": {
            "name": "images", "shape": ["batch", 3, size, size], "type": "float32", "range": [0, 1], "colours": "RGB",
            "decoding": "EXIF orientation applied, transparency on white, 16-bit to 8 by the high byte, greyscale in "
                        "three channels, divided by 255",
            "crop": f"{method.identity['eval_policy']}: see fakedet.data.transforms.evaluation_views; nothing is "
                    "resized unless the policy is 'resize'; smaller images are padded by reflection; logits of "
                    "several crops are averaged",
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
    write_published(path, model.method.state_dict(), model.method.identity)
    loaded = Exported(detector_of(read_published(path), path)).eval()
    return lambda images: loaded(torch.from_numpy(images))[0].detach().numpy()


WRITERS = {".onnx": _write_onnx, ".pt2": _write_pt2, SAFETENSORS: _write_safetensors}


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
