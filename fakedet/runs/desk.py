"""A detector made ready to say of single images what it can: shared by ``predict`` and ``serve``."""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from omegaconf import DictConfig

from fakedet import build
from fakedet.data.degrade import parse_view
from fakedet.errors import UserError
from fakedet.methods.detector import Detector
from fakedet.metrics.operating_point import OperatingPoint
from fakedet.prediction.desk import Rules, resolution
from fakedet.prediction.examiner import Examiner
from fakedet.runs import operating

log = logging.getLogger("fakedet")


def open_detector(config: DictConfig) -> tuple[Detector, OperatingPoint]:
    """Load the checkpoint, check the desk's settings, and say what the detector knows.

    Raises:
        UserError: no such checkpoint, or one without an operating point, or settings out of range.
    """
    _check_numbers(config)
    for name in config.views:
        parse_view(str(name), "views")
    method = build.load_detector(config.checkpoint)
    point = operating.of(method)
    if point is None:
        raise UserError(
            f"checkpoint={config.checkpoint} has no operating point, so nothing can be said of single images; train it "
            "anew with this version, or use `fakedet evaluate`"
        )
    _introduce(method, point, Rules(config.false_alarm, config.miss))
    return method.eval().to(_device(config.device)), point


def make_examiner(
    config: DictConfig,
    method: Detector,
    point: OperatingPoint,
    draw: Callable[[str, NDArray[np.uint8]], None] | None,
) -> Examiner:
    """Give the examiner that the desk's settings describe."""
    views = [parse_view(str(name), "views") for name in config.views]
    rules = Rules(config.false_alarm, config.miss)
    return Examiner(method, point, rules, views, config.tiles, config.batch_size, draw)


def _check_numbers(config: DictConfig) -> None:
    for name in ("false_alarm", "miss"):
        if not 0 < config[name] < 1:
            raise UserError(f"{name}={config[name]}: a share between 0 and 1, such as 0.05")
    for name, least in (
        ("tiles", 0),
        ("batch_size", 1),
        ("images_at_a_time", 1),
        ("max_mb", 1),
        ("per_minute", 1),
    ):
        if name in config and config[name] < least:
            raise UserError(f"{name}={config[name]}: must be at least {least}")


def _introduce(method: Detector, point: OperatingPoint, rules: Rules) -> None:
    """Say what the detector knows, and what it cannot promise."""
    data = method.identity.get("training_data") or {}
    log.info("detector '%s', trained on fakes of: %s", method.identity["name"],
             ", ".join(method.identity["seen_generators"]) or "none (it knows reals only)")  # fmt: skip
    if data:
        log.info("and on reals of the sources: %s", ", ".join(data["real"]))
    log.info("of photographs like its %d validation reals (the same sources) about %g %% are called fake; of fakes "
             "like its %d validation fakes about %g %% are called real; of other photographs and generators nothing "
             "is promised",
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
