"""The model card of a detector: what it is, what it was trained on, how well it does, and what it cannot do."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import fakedet
from fakedet.evaluation.table import text
from fakedet.methods.detector import Detector
from fakedet.metrics.bootstrap import Interval
from fakedet.runs import operating

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
        lines.append(f"| {name} ({seen}) | {counts} | {_cell(row['ap'])} | {_cell(row['auc'])} |")
    for kind in ("seen", "unseen"):
        ap, auc = metrics[f"map_{kind}"], metrics[f"mauc_{kind}"]
        lines.append(f"| **mean, {kind}** | | {_cell(ap)} | {_cell(auc)} |")
    return "\n".join(lines)


def _point(method: Detector) -> str:
    point = operating.of(method)
    if point is None:
        return "## Operating point\n\nNone: it ranks images, and says nothing of single ones."
    return (
        f"## Operating point\n\nAn image is called fake above a logit of {point.threshold:.3f}, which {point.rate:.0%} "
        f"of {point.n_real} real validation images may exceed; calibration `{point.calibration.kind}`, fitted to these "
        f"and {point.n_fake} fakes."
    )


def _cell(entry: Mapping[str, Any]) -> str:
    if entry["value"] is None:
        return "–"
    nan = float("nan")
    low, high = (nan if entry[key] is None else entry[key] for key in ("low", "high"))
    return text(Interval(entry["value"], low, high))
