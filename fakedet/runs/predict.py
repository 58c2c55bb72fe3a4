"""Say of images whether they are real, fake, or can't be told: what ``fakedet predict`` does."""

from __future__ import annotations

import logging
import math
from collections import Counter
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from fakedet import build
from fakedet.data.degrade import parse_view
from fakedet.errors import UserError
from fakedet.methods.detector import Detector
from fakedet.metrics.operating_point import OperatingPoint
from fakedet.prediction.desk import Rules, resolution
from fakedet.prediction.examiner import Examiner, shown_path
from fakedet.prediction.files import list_images
from fakedet.prediction.sink import Sink
from fakedet.runs import operating
from fakedet.runs.bar import bar
from fakedet.runs.checks import check_config
from fakedet.runs.folder import provenance, write_json
from fakedet.runs.threads import threads

log = logging.getLogger("fakedet")


@dataclass(frozen=True)
class Predicted:
    """What a run said."""

    output: Path
    counts: Counter[str]
    resumed: int
    """Images that were done before."""


def predict(config: DictConfig, overrides: list[str]) -> Predicted:
    """Look at every image that ``source`` names, and write a row for each.

    Raises:
        UserError: anything wrong with checkpoint, source, settings or output; single files never.
    """
    check_config(config)
    sources = [config.source] if isinstance(config.source, str) else [str(item) for item in config.source]
    views = [parse_view(str(name), "views") for name in config.views]
    _check_numbers(config)
    method = build.load_detector(config.checkpoint)
    point = operating.of(method)
    if point is None:
        raise UserError(
            f"checkpoint={config.checkpoint} has no operating point, so nothing can be said of single images; train it "
            "anew with this version, or use `fakedet evaluate`"
        )
    rules = Rules(config.false_alarm, config.miss)
    _introduce(method, point, rules)
    heatmaps = Path(config.heatmaps) if config.heatmaps else None
    method = method.eval().to(_device(config.device))
    desk = Examiner(method, point, rules, views, config.tiles, config.batch_size, heatmaps)
    output = Path(config.output)
    with Sink(output, config.resume) as sink, threads(config.threads), bar("looking at images") as shown:
        todo = (path for path in list_images(sources) if shown_path(path) not in sink.done)
        resumed, done = len(sink.done), 0
        write_json(output.with_name(f"{output.name}.about.json"), _about(config, overrides, method, point))
        while part := list(islice(todo, config.images_at_a_time)):
            sink.write(desk.rows(part))
            done += len(part)
            shown.show(done, ", ".join(f"{count} {what}" for what, count in sorted(sink.counts.items())))
    return Predicted(output, sink.counts, resumed)


def _check_numbers(config: DictConfig) -> None:
    for name in ("false_alarm", "miss"):
        if not 0 < config[name] < 1:
            raise UserError(f"{name}={config[name]}: a share between 0 and 1, such as 0.05")
    for name, least in (("tiles", 0), ("batch_size", 1), ("images_at_a_time", 1)):
        if config[name] < least:
            raise UserError(f"{name}={config[name]}: must be at least {least}")
    if config.heatmaps and not config.tiles:
        raise UserError("heatmaps are made of tiles; tiles=0 leaves nothing to draw")


def _introduce(method: Detector, point: OperatingPoint, rules: Rules) -> None:
    """Say what the detector knows, and what it cannot promise."""
    data = method.identity.get("training_data") or {}
    log.info("detector '%s', trained on fakes of: %s", method.identity["name"],
             ", ".join(method.identity["seen_generators"]) or "none (it knows reals only)")  # fmt: skip
    if data:
        log.info("and on reals of: %s", ", ".join(data["real"]))
    log.info("of photographs like its %d validation reals at most %g %% are called fake; of fakes like its %d "
             "validation fakes at most %g %% are called real; of other generators nothing is promised",
             point.n_real, 100 * rules.false_alarm, point.n_fake, 100 * rules.miss)  # fmt: skip
    if resolution(point) > rules.false_alarm:
        log.warning("with %d validation reals no p-value can be below %.3f: nothing will be called fake",
                    point.n_real, resolution(point))  # fmt: skip


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device={name}: {str(error).splitlines()[0]}; valid: auto, cpu, cuda") from error
    return device


def _about(
    config: DictConfig, overrides: list[str], method: Detector, point: OperatingPoint
) -> dict[str, Any]:
    identity = {key: value for key, value in method.identity.items() if key != operating.KEY}
    return {
        "config": OmegaConf.to_container(config, resolve=True), "detector": identity,
        "operating_point": {
            "rate": point.rate, "n_real": point.n_real, "n_fake": point.n_fake, "calibration": point.calibration.kind,
            "threshold": point.threshold if math.isfinite(point.threshold) else None,
        },
        "run": provenance(["fakedet", "predict", *overrides]),
    }  # fmt: skip
