"""Published detectors: built from a config in conf/detector/, with their authors' weights, and used as published.

A config says how the model is built, how its published weights are named, and how its authors prepare an image. The
weights are read as tensors alone: nothing that a file names is called.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import logging
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import hydra
import torch
from huggingface_hub import hf_hub_download, try_to_load_from_cache
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from fakedet.checkpoint import CheckpointInfo, Model, TrainingData, load_detector
from fakedet.config import build, check_command_line, target_of, without_hydra
from fakedet.errors import UserError, one_line
from fakedet.methods.base import TRAINING_KEYS, Detector
from fakedet.metrics.calibration import Calibration
from fakedet.metrics.decisions import PUBLISHED, OperatingPoint
from fakedet.models.backbones import MissingWeights, read_weights
from fakedet.shipped import unreachable
from fakedet.utils import plain

log = logging.getLogger("fakedet")


def open_method(config: DictConfig) -> Detector:
    """Load the detector that a verb's config names: ``checkpoint``, or ``detector`` with its ``weights``.

    UserError as in :func:`fakedet.checkpoint.load_detector` and :func:`load_published`.
    """
    if published := config.get("detector"):  # the group's key is missing where it is null
        if OmegaConf.select(config, "checkpoint", throw_on_missing=False) is not None:
            raise UserError(f"checkpoint={config.checkpoint} and detector={published.name}: name one of them")
        return load_published(plain(published), config.weights, config.backbone)
    if config.weights:
        raise UserError("weights=FILE is of a published detector: name it too, as in detector=univfd")
    return load_detector(config.checkpoint, config.trust, config.backbone)


def settings_of(name: str) -> dict[str, Any]:
    """Read the config of a published detector, conf/detector/NAME.yaml; UserError for a name that there is none of."""
    with without_hydra():
        check_command_line("predict", words := [f"detector={name}", "source=-"])
        with hydra.initialize_config_module("fakedet.conf", version_base="1.3"):
            return dict(plain(hydra.compose("predict", overrides=words).detector))


def load_published(
    settings: Mapping[str, Any], weights: str | os.PathLike[str] | None,
    backbone: str | os.PathLike[str] | None = None,
) -> Detector:  # fmt: skip
    """Build a published detector with its authors' weights, in evaluation mode on the CPU.

    Args:
        settings: a config of conf/detector/. ``model`` is built as in training; ``rename`` lists [pattern, replacement]
            of regular expressions that turn the file's names of weights into the model's, in this order, where a name
            that becomes "" is left out; ``convert`` may name a function that is given the file's weights, by name,
            before that; ``fake_class`` is the output of a classifier of two classes that means fake,
            null where it has one; ``sha256`` is the published file's, where it
            is known; ``crop_size`` and ``eval_policy`` prepare images; above ``threshold``, a P(fake), an
            image is called fake; ``trained_on`` holds ``real`` and ``fake``: name → number of images, null for
            none (as in a variant of another config).
        weights: the published file; None: UserError that says what to fetch.
        backbone: file of the weights of a frozen backbone that the published file does not hold; None: those that timm
            knows, or the file that ``backbone`` in the settings names, by its ``repository`` on the hub and ``file``.

    Raises:
        UserError: a missing file, one of another model, or a model that cannot be built.
    """
    name = settings["name"]
    if weights is None:
        raise UserError(f"detector={name} needs its authors' weights: fetch {settings['file']} ({settings['licence']}) "
                        f"from {settings['fetch']}, and pass weights=FILE")  # fmt: skip
    state = _read(weights, name)
    if settings.get("convert"):
        convert = target_of({"_target_": settings["convert"]}, "detector.convert")
        try:
            state = convert(state)
        except (LookupError, RuntimeError) as error:  # a part of another name or shape
            raise UserError(f"weights={weights} is no file of detector={name}: {one_line(error)[:300]}") from error
    state = _renamed(state, settings)
    model = dict(settings["model"])
    if backbone is None and settings.get("backbone"):
        backbone = _of_hub(settings["backbone"]["repository"], settings["backbone"]["file"], name)
    if backbone is not None:
        model["encoder"] = {**model["encoder"], "weights": str(backbone)}
    try:
        encoder = build(model["encoder"], "detector.model.encoder")
    except MissingWeights as error:
        raise UserError(f"detector={name} takes public weights beside its authors': {error.told('backbone')}"
                        ) from error  # fmt: skip
    parts = {key: value for key, value in model.items() if key not in (*TRAINING_KEYS, "encoder")}
    method: Detector = build(parts, "detector.model", encoder=encoder)
    _fill(method, state, f"weights={weights} is no file of detector={name}")
    digest = _digest(weights)
    if (known := settings.get("sha256")) and known != digest:
        log.warning("weights=%s fits detector=%s, but its sha256 is %s, not that of the published file, %s", weights,
                    name, digest, known)  # fmt: skip
    info = dataclasses.asdict(_info(settings, model, digest))
    method.info, method.config = info, dict[str, Any](**info["model"])
    method.backbone = None if backbone is None else Path(backbone)
    return method.eval()


def _fill(method: Detector, state: Mapping[str, Tensor], refused: str) -> None:
    """Load all weights of a method but those of a public backbone; UserError, which begins with ``refused``."""
    left_out = tuple(f"encoder.{part}." for part in ("model", "backbone.model") if _is_public(method, part))
    own = {key: value for key, value in method.state_dict().items() if not key.startswith(left_out)}
    problems = [
        f"{len(keys)} {what} ({', '.join(sorted(keys)[:3])}{', …' if len(keys) > 3 else ''})"
        for what, keys in (
            ("weights of the model are not in it", own.keys() - state.keys()),
            ("of its weights are not in the model", state.keys() - own.keys()),
            ("have another shape", {key for key in own.keys() & state.keys() if own[key].shape != state[key].shape}),
        ) if keys
    ]  # fmt: skip
    if problems:
        raise UserError(f"{refused}: {'; '.join(problems)}")
    method.load_state_dict(state, strict=False)


def _info(settings: Mapping[str, Any], model: dict[Any, Any], digest: str) -> CheckpointInfo:
    """Say of a published detector what a checkpoint says of itself."""
    name = settings["name"]
    threshold = float(settings["threshold"])
    given = {kind: settings["trained_on"].get(kind) or {} for kind in ("real", "fake")}
    trained = {kind: {key: count for key, count in of.items() if count is not None} for kind, of in given.items()}
    point = OperatingPoint(
        math.log(threshold / (1 - threshold)), 0.0, Calibration("none"), None, 0, 0, "", PUBLISHED,
        (f"its authors' own threshold, P(fake) > {threshold:g}; what share of photographs is above it is not known",),
    )  # fmt: skip
    return CheckpointInfo(
        Model(**{**model, "name": name}), None, sorted(trained["fake"]),
        int(settings["crop_size"]), settings["eval_policy"], None, "", None, [],
        TrainingData(manifest="", real=trained["real"], fake=trained["fake"], jpeg_quality=None), 0, name,
        point.to_dict(),
        {"detector": name, "weights": digest[:8]},
    )  # fmt: skip


def _is_public(method: Detector, part: str) -> bool:
    """Say whether a part of the encoder is a frozen backbone whose public weights are already loaded."""
    try:
        holder = method.encoder.get_submodule(part.rpartition(".")[0])
    except AttributeError:
        return False
    return bool(getattr(holder, "public", None)) and hasattr(holder, "model")


def _of_hub(repository: str, file: str, name: str) -> str:
    """Give the place of a file of the Hugging Face hub in its cache, fetched if need be."""
    found = try_to_load_from_cache(repository, file)
    if isinstance(found, str):
        return found
    try:
        if why := unreachable():
            raise OSError(why)
        return hf_hub_download(repository, file)
    except Exception as error:  # whatever the hub's client or the network raises
        raise UserError(f"detector={name} needs a public backbone beside its authors' weights: fetch "
                        f"https://huggingface.co/{repository}/resolve/main/{file}, and pass backbone=FILE "
                        f"(this machine cannot: {one_line(error)[:200]})") from error  # fmt: skip


def _digest(file: str | os.PathLike[str]) -> str:
    with open(Path(file).expanduser(), "rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _read(file: str | os.PathLike[str], name: str) -> dict[str, Tensor]:
    """Read the tensors of a published file: a state dict, or one inside of what its training kept beside it."""
    path, content = Path(file).expanduser(), None
    if path.suffix == ".safetensors" or not path.is_file():
        return read_weights(path, f"detector={name}: weights")
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # its settings, which hold plain values
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged or foreign file makes the reader raise
        raise UserError(f"weights={path} is no PyTorch file of tensors and plain values: it is damaged, of another "
                        "kind, or names code, which is refused") from error  # fmt: skip
    while isinstance(content, dict) and not any(isinstance(value, Tensor) for value in content.values()):
        within = [key for key in ("state_dict", "model_state_dict", "model", "net") if key in content]
        content = content[within[0]] if within else None
    if not isinstance(content, dict):
        raise UserError(f"weights={path} holds no state dict: names with tensors")
    return {str(key): value for key, value in content.items() if isinstance(value, Tensor)}


def _renamed(state: Mapping[str, Tensor], settings: Mapping[str, Any]) -> dict[str, Tensor]:
    """Give the weights the model's names, as float32, and join a classifier of two classes into one logit."""
    renamed = {}
    for key, value in state.items():
        for pattern, replacement in [[r"^module\.", ""], *settings["rename"]]:
            key = re.sub(pattern, replacement, key)
        if key:
            renamed[key] = value.float() if value.is_floating_point() else value
    if (fake := settings.get("fake_class")) is not None:
        for part in ("classifier.linear.weight", "classifier.linear.bias"):  # sigmoid(a - b) is the softmax of two
            if part in renamed and len(renamed[part]) == 2:
                renamed[part] = (renamed[part][fake] - renamed[part][1 - fake])[None]
    return renamed
