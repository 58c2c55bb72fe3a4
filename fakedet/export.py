"""Write a detector for other programs (ONNX, torch.export) or for other users of fakedet (safetensors), checked."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import shlex
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import fakedet
from fakedet.checkpoint import SAFETENSORS, detector_of, read_published, write_published
from fakedet.detector import Detector
from fakedet.errors import UserError
from fakedet.methods import base
from fakedet.metrics.bootstrap import Interval
from fakedet.metrics.decisions import percent
from fakedet.utils import provenance, replacing, write_json

# Largest difference of a logit, relative where the logit is above 1: a trace distance as the score may be tens.
TOLERANCE = 1e-4
Run = Callable[[NDArray[np.float32]], NDArray[np.float32]]  # images (N, 3, S, S) → logits (N,)


class Exported(nn.Module):
    """A detector with plain tensors out; buffer values that its forward pass depends on become constants."""

    def __init__(self, module: base.Detector) -> None:
        super().__init__()
        module.freeze_for_export()
        self.module = module

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Give logits and trace distances, (N,) each, of RGB images (N, 3, S, S) in [0, 1]; NaN outside of it."""
        scores = self.module(images)
        is_image = (images.amin(dim=(1, 2, 3)) >= 0) & (images.amax(dim=(1, 2, 3)) <= 1)
        logit, distance = (torch.where(is_image, value.float(), torch.nan) for value in scores[::2])
        return logit, distance


def export_detector(detector: Detector, output: Path, check: int = 200, overrides: Sequence[str] = ()) -> float:
    """Write a detector, on the CPU, to a .onnx, .pt2 or .safetensors file and its description to ``<output>.json``.

    A safetensors file gets a model card too. Before an export takes its name it is loaded again: returns the largest
    difference of its logits from the original's on ``check`` random images, relative where the logit is above 1.
    ``overrides`` of the command line are written down. UserError: another ending, a library that is missing, a model
    that cannot be exported, or one whose logits differ by more than 1e-4.
    """
    if output.suffix not in WRITERS:
        *first, last = WRITERS
        raise UserError(f"output={output}: name a {', a '.join(first)} or a {last} file")
    if check < 1:
        raise UserError(f"check={check}: at least one image")
    size, described = detector.crop_size, describe(detector, overrides)
    model = Exported(detector.module).eval()
    images = np.random.default_rng(0).random((check, 3, size, size), dtype=np.float32)
    with replacing(output) as temporary:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            run = WRITERS[output.suffix](model, size, temporary, described)
        worst = 0.0
        for part in np.split(images, range(50, check, 50)):  # 50 images at a time
            with torch.no_grad():
                original = model(torch.from_numpy(part))[0].numpy()
            difference = np.abs(run(part) - original) / np.maximum(np.abs(original), 1.0)
            worst = float(np.maximum(worst, difference.max()))  # max() would lose a NaN
        if not worst <= TOLERANCE:
            raise UserError(f"the exported logits differ from PyTorch's by up to {worst:g}, more than {TOLERANCE:g}")
    described |= {"largest_difference": worst, "checked_on": check}
    write_json(output.with_name(f"{output.name}.json"), described)
    if output.suffix == SAFETENSORS:
        output.with_suffix(".md").write_text(model_card(detector, output.stem), encoding="utf-8")
    return worst


def describe(detector: Detector, overrides: Sequence[str]) -> dict[str, Any]:
    """Say what goes in, what comes out and what it means, as plain values."""
    size = detector.crop_size
    return {
        "input": {
            "name": "images", "shape": ["batch", 3, size, size], "type": "float32", "range": [0, 1], "colours": "RGB",
            "decoding": "EXIF orientation applied, transparency on white, 16-bit to 8 by the high byte, greyscale in "
                        "three channels, divided by 255",
            "crop": f"{detector.crop_policy}: see fakedet.data.transforms.evaluation_views; nothing is resized unless "
                    "the policy says so; smaller images are padded by reflection; logits of several crops are "
                    "averaged"},
        "output": {
            "logit": "float32 (batch,); sigmoid is not a probability before calibration; NaN for an image with values "
                     "outside of the range",
            "trace_distance": "float32 (batch,); NaN where the method has none"},
        "use": "fake if logit > operating_point.threshold (null: never); P(fake) for as many real as fake images by "
               "operating_point.calibration; p-value among real images by operating_point.reference: see "
               "docs/evaluation.md",
        "operating_point": detector.info.get("operating_point"),
        "detector": _without_folders({key: one for key, one in detector.info.items() if key != "operating_point"}),
        "run": provenance(["fakedet", "export", *overrides]),
    }  # fmt: skip


def _without_folders(node: Any) -> Any:
    """Leave the user's own folders out of plain values: of an absolute path, the file's name is kept."""
    if isinstance(node, Mapping):
        return {key: _without_folders(value) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [_without_folders(value) for value in node]
    return Path(node).name if isinstance(node, str) and Path(node).is_absolute() else node


def _traced(model: Exported, size: int) -> Any:
    batch = torch.export.Dim("batch", min=1, max=4096)  # images at a time that an exported model takes
    try:
        return torch.export.export(model, (torch.rand(2, 3, size, size),), dynamic_shapes={"images": {0: batch}})
    except Exception as error:  # torch.export raises all sorts of things
        raise UserError(f"torch.export cannot export this model: {' '.join(str(error).split())[:300]}") from error


def _write_pt2(model: Exported, size: int, path: Path, described: Mapping[str, Any]) -> Run:
    content = io.BytesIO()
    torch.export.save(_traced(model, size), content)
    path.write_bytes(content.getbuffer())
    loaded = torch.export.load(io.BytesIO(path.read_bytes())).module()
    return lambda images: loaded(torch.from_numpy(images))[0].detach().numpy()


def _write_onnx(model: Exported, size: int, path: Path, described: Mapping[str, Any]) -> Run:
    libraries = []
    for name in ("onnx", "onnxruntime", "onnxscript"):
        try:
            libraries.append(importlib.import_module(name))
        except ImportError as error:
            raise UserError(f"ONNX is written with {name}, which cannot be imported ({error}); pip install "
                            '"fakedet[export]"') from error  # fmt: skip
    onnx, runtime, _ = libraries
    traced = _traced(model, size)
    with contextlib.redirect_stdout(io.StringIO()):
        program = torch.onnx.export(traced, dynamo=True, output_names=["logit", "trace_distance"], verbose=False)
        assert program is not None
        content = program.model_proto
    content.metadata_props.add(key="fakedet", value=json.dumps(described))
    onnx.save(content, str(path))
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda images: np.asarray(session.run(["logit"], {"images": images})[0])


def _write_safetensors(model: Exported, size: int, path: Path, described: Mapping[str, Any]) -> Run:
    module = model.module
    write_published(path, module.own_weights(module.state_dict()), _without_folders(module.info))
    loaded = Exported(detector_of(read_published(path), path, module.trust, module.backbone)).eval()
    return lambda images: loaded(torch.from_numpy(images))[0].detach().numpy()


# Ending → writes the file and gives a function that runs it.
WRITERS = {".onnx": _write_onnx, ".pt2": _write_pt2, SAFETENSORS: _write_safetensors}


CARD = """\
# {name}: a detector of AI-generated images

fakedet {version}, method `{method}`, {encoder}, {parameters:,} parameters, seed {seed}. Label 0 = real, 1 = fake;
score = P(fake).{more}

## Training data

{data}

{results}

## Operating point

{point}

## Limits

- It knows the generators it was trained on and what resembles them. On others it may be no better than a guess; the
  table shows those that were tried.
- Screenshots, resizing, filters and repeated compression remove what it looks at.
- It looks at crops of {size} pixels; an edit elsewhere in an image is not seen.
- Its operating point and p-values hold for photographs like those it was fitted on. Use `fakedet predict`, which
  answers "undecided" where that is the truth, and do not accuse anyone by its answer alone.
"""


def model_card(detector: Detector, name: str) -> str:
    """Write a detector's model card as Markdown, with command and results of its checkpoint's run, if there are any."""
    info, encoder, point = detector.info, detector.info["model"]["encoder"], detector.operating_point
    more, weights = "", encoder.get("weights")
    if weights or encoder.get("pretrained"):
        source = f"`{Path(weights).name}`" if weights else "timm's weights of that name"
        more = (f"\n\nIts encoder is timm's `{encoder.get('name')}`, pretrained ({source}): it has also seen what "
                "those weights were trained on, and their licence holds for this file as well.")  # fmt: skip
        if info["backbones"]:
            more += " This file leaves them out: it needs them as `backbone=FILE`, or from timm."
    if run := of_run(detector.path, "run.json"):
        places = ("output_dir=", "stage1_cache=", "stage1_checkpoint=", "data.root=")  # of the user's own folders
        command = shlex.join(word for word in run["command"] if not word.startswith(places))
        more += f"\n\nTrained by `{command}`" + (f", at commit {run['git']['commit'][:12]}." if run.get("git") else ".")
    data = info["training_data"] or {"manifest": "?"}
    lines = [f"Manifest `{data['manifest']}`, sha256 {info['manifest_sha256']}.", "", "| | images |", "|---|---:|"]
    lines += [f"| {kind}: {key} | {count} |" for kind in ("real", "fake") for key, count in data.get(kind, {}).items()]
    if not detector.generators:
        lines += ["", "It was trained on photographs alone, and has seen no fakes."]
    results = "## Results\n\nNo metrics.json lies in the run's folder; run `fakedet evaluate` on data of your own."
    if metrics := of_run(detector.path, "metrics.json"):
        results = _results(metrics)
    told = "None: it ranks images and cannot judge single ones."
    if point is not None:
        told = (f"An image is called fake above a logit of {point.threshold:.3f}, which {point.rate:.0%} of "
                f"{point.n_real} real validation images may exceed; calibration `{point.calibration.kind}`, fitted to "
                f"these and {point.n_fake} fakes.")  # fmt: skip
    if point is not None and point.left_out is not None:
        each = sorted(point.left_out.shares.items(), key=lambda item: -item[1])
        listed = ", ".join(f"{key} {percent(share)} % of {point.left_out.sizes[key]}" for key, share in each)
        told = (f"An image is called fake above a logit of {point.threshold:.3f}. It was fitted by detectors that were "
                f"trained without the family of the image, to {point.n_real} photographs and {point.n_fake} fakes, "
                f"each collection and each family counting the same. Called fake: {point.left_out}. By collection: "
                f"{listed}. Calibration `{point.calibration.kind}`, fitted to the same.")  # fmt: skip
    return CARD.format(
        name=name, version=fakedet.__version__, method=info["model"]["name"], seed=info["seed"], more=more,
        encoder=str(encoder["_target_"]).rsplit(".", 1)[-1], data="\n".join(lines), results=results, point=told,
        parameters=sum(parameter.numel() for parameter in detector.module.parameters()), size=detector.crop_size,
    )  # fmt: skip


def of_run(checkpoint: Path, name: str) -> dict[str, Any] | None:
    """Read a file of the run that a checkpoint lies in, if it is there."""
    try:
        return json.loads((checkpoint.parent.parent / name).read_text(encoding="utf-8"))  # type: ignore[no-any-return]
    except (OSError, ValueError):
        return None


def _results(metrics: Mapping[str, Any]) -> str:
    def both(*values: Mapping[str, Any]) -> str:
        return " | ".join(Interval.from_dict(value).text() for value in values)

    told = "; ".join(f"{name} {both(row['acc_real'])} ({row['n_real']})"
                     for name, row in metrics.get("per_collection", {}).items())  # fmt: skip
    lines = ["## Results on the test split", "", "AP and AUC with 95 % intervals over photographs.",
             f"Reals called real at the stored threshold: {told or 'not measured'}.", "",
             "| generator | real / fake | AP | AUC |", "|---|---:|---:|---:|"]  # fmt: skip
    for name, row in sorted(metrics["per_generator"].items(), key=lambda item: (not item[1]["seen"], item[0])):
        seen = "seen" if row["seen"] else "unseen"
        lines.append(f"| {name} ({seen}) | {row['n_real']} / {row['n_fake']} | {both(row['ap'], row['auc'])} |")
    for kind in ("seen", "unseen"):
        lines.append(f"| **mean, {kind}** | | {both(metrics[f'map_{kind}'], metrics[f'mauc_{kind}'])} |")
    return "\n".join(lines)
