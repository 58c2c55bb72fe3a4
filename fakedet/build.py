"""build"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.plugins.environments import SLURMEnvironment
from torch import nn

from fakedet.checkpoint import AtomicCheckpointIO, read_checkpoint
from fakedet.config import instantiated
from fakedet.data.transforms import Augmentation
from fakedet.errors import UserError
from fakedet.methods.base import Detector
from fakedet.methods.ntf import TracePretraining, TraceSource, share_trunk
from fakedet.models.backbones import find_weights

log = logging.getLogger("fakedet")

# Keys of a model's config that say how it is trained, not how it is built.
TRAINING_KEYS = ("name", "epochs", "batch", "init", "monitor")


@dataclass(frozen=True)
class TraceCheckpoint:
    """A trained stage 1 and the config that it was built from."""

    config: dict[str, Any]
    method: TracePretraining


def build_method(config: Mapping[str, Any], trace: TraceCheckpoint | None = None) -> Detector:
    """Build the LightningModule of a model config.

    Args:
        config: the resolved ``model`` node.
        trace: stage 1, for methods that transfer from it or start from its encoder.

    Raises:
        UserError: a wrong value, or a stage 1 whose encoder is another one.
    """
    encoder = build_encoder(config["encoder"])
    init = config.get("init", "scratch")
    if init not in ("scratch", "trace"):
        raise UserError(f"model.init: '{init}' is not known; valid: scratch, trace")
    if init == "trace" and trace is not None:
        _start_from(encoder, config["encoder"], trace)
    parts: dict[str, Any] = {"encoder": encoder}
    if needs_source(config):
        assert trace is not None
        parts["source"] = TraceSource(trace.method.encoder, trace.method.homogeneous)
        share_trunk(parts["source"], encoder)
        parts["trace_dim"] = trace.config["projection_dim"]
    settings = {key: value for key, value in config.items() if key not in (*TRAINING_KEYS, "encoder")}
    method = instantiated(settings, "model", **parts)
    assert isinstance(method, Detector)
    return method


def build_encoder(config: Mapping[str, Any]) -> nn.Module:
    """Build the encoder of a model config, with its pretrained weights.

    Raises:
        UserError: a wrong value, or weights that are not there.
    """
    encoder = instantiated(config, "model.encoder")
    assert isinstance(encoder, nn.Module)
    return encoder


def needs_source(config: Mapping[str, Any]) -> bool:
    """Say whether a model config transfers from a frozen stage 1."""
    return str(config["_target_"]).endswith(".ContrastiveTransfer")


def needs_trace(config: Mapping[str, Any]) -> bool:
    """Say whether a model config needs a trained stage 1, as its source or to start from."""
    return needs_source(config) or config.get("init") == "trace"


def build_datamodule(config: Mapping[str, Any], **settings: Any) -> LightningDataModule:
    """Build the data module of a data config; ``settings`` are what the method asks of it."""
    module = instantiated(config, "data", **settings)
    assert isinstance(module, LightningDataModule)
    return module


def build_augmentation(config: Mapping[str, Any]) -> Augmentation:
    """Build the augmentation of an augment config."""
    augmentation = instantiated({"_target_": "fakedet.data.transforms.Augmentation", **config}, "augment")
    assert isinstance(augmentation, Augmentation)
    return augmentation


def build_callbacks(config: Mapping[str, Any]) -> dict[str, Any]:
    """Build every callback of a callbacks config, by name."""
    return {name: instantiated(node, f"callbacks.{name}") for name, node in config.items() if node}


def build_logger(config: Mapping[str, Any]) -> Any:
    """Build the experiment logger."""
    return instantiated(config, "logger")


def build_trainer(config: Mapping[str, Any], **parts: Any) -> Trainer:
    """Build the Lightning trainer.

    Raises:
        UserError: the machine does not have what the config asks for, or a wrong value.
    """
    config = {**config, "precision": _precision(config)}
    plugins = _plugins()
    if config.get("sync_batchnorm") and (config.get("accelerator") == "cpu" or not torch.cuda.is_available()):
        config = {**config, "sync_batchnorm": False}  # PyTorch has it for GPUs alone
    parts = {"plugins": plugins, **parts}
    try:
        trainer = instantiated(config, "trainer", **parts)
    except (MisconfigurationException, ValueError) as error:
        raise UserError(f"trainer: {_one_line(error)}") from error
    assert isinstance(trainer, Trainer)
    return trainer


def _precision(config: Mapping[str, Any]) -> Any:
    """Give the asked precision, or what the GPU has in its place: bfloat16 is emulated, slowly, on older ones."""
    precision = config.get("precision", "32-true")
    if not str(precision).startswith("bf16"):
        return precision
    on_gpu = config.get("accelerator") not in ("cpu",) and torch.cuda.is_available()
    if on_gpu and not torch.cuda.is_bf16_supported(including_emulation=False):
        log.warning("trainer.precision=%s: this GPU has no bfloat16; 16-mixed is taken", precision)
        return "16-mixed"
    if not on_gpu and not _cpu_has_bf16():
        log.warning("trainer.precision=%s: this CPU has no bfloat16; 32-true is taken", precision)
        return "32-true"
    return precision


def _cpu_has_bf16() -> bool:
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _plugins() -> list[Any]:
    """Give what every trainer has: whole checkpoints, and under SLURM no requeueing in the middle of a step."""
    plugins: list[Any] = [AtomicCheckpointIO()]
    if SLURMEnvironment.detect():
        plugins.append(SLURMEnvironment(auto_requeue=False))
    return plugins


def load_detector(path: str | Path) -> Detector:
    """Build the detector of a checkpoint that ``fakedet train`` wrote, with its weights.

    The file is read with ``weights_only``: a stranger's checkpoint cannot run code.

    Raises:
        UserError: no such file, not a checkpoint of fakedet, or weights that do not fit its own config.
    """
    return detector_of(read_checkpoint(path), path)


def detector_of(checkpoint: Mapping[str, Any], path: str | Path) -> Detector:
    """Build the detector of a checkpoint that was read.

    Raises:
        UserError: weights that do not fit the config beside them.
    """
    identity = checkpoint["fakedet"]
    trace = None
    if needs_source(identity["model"]):
        untrained = build_method(_without_weights(identity["stage1"]))
        assert isinstance(untrained, TracePretraining)
        trace = TraceCheckpoint(identity["stage1"], untrained)
    model = {**_without_weights(identity["model"]), "init": "scratch"}
    if "head" in model:
        model["head"] = None
    method = build_method(model, trace)
    try:
        method.load_state_dict(checkpoint["state_dict"])
    except RuntimeError as error:
        raise UserError(f"{path}: the weights do not fit the config inside it: {_one_line(error)}") from error
    method.identity = identity
    if isinstance(source := getattr(method, "source", None), TraceSource):
        share_trunk(source, method.encoder)
    return method.eval()


def load_trace(path: str | Path) -> TraceCheckpoint:
    """Load a stage-1 checkpoint.

    Raises:
        UserError: see :func:`load_detector`; also a checkpoint of another method.
    """
    method = load_detector(path)
    if not isinstance(method, TracePretraining):
        name = method.identity["model"]["name"]
        raise UserError(
            f"{path} is a checkpoint of '{name}', not of stage 1; train one with `fakedet train model=trace`"
        )
    return TraceCheckpoint(method.identity["model"], method)


def _without_weights(model: Mapping[str, Any]) -> dict[str, Any]:
    """Change a model config so that nothing pretrained is looked up again: the weights come from the checkpoint."""
    encoder = dict(model["encoder"])
    if "pretrained" in encoder:
        encoder |= {"pretrained": False, "weights": None}
    return {**model, "encoder": encoder}


def weights_file(named: str) -> Path:
    """Give the file that ``model.encoder.weights`` names; see :func:`fakedet.models.backbones.find_weights`."""
    return find_weights(named)


def _start_from(encoder: nn.Module, config: Mapping[str, Any], trace: TraceCheckpoint) -> None:
    try:
        encoder.load_state_dict(trace.method.encoder.state_dict())
    except RuntimeError as error:
        raise UserError(
            "model.init=trace: stage 1 has another encoder "
            f"({_describe(trace.config['encoder'])}) than this model ({_describe(config)}); "
            "choose the same model/encoder, or model.init=scratch"
        ) from error


def _describe(encoder: Mapping[str, Any]) -> str:
    values = [f"{key}={value}" for key, value in encoder.items() if key != "_target_"]
    return f"{str(encoder['_target_']).rsplit('.', 1)[-1]}: {', '.join(values)}"


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
