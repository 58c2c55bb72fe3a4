"""From configs to objects: the method with its encoder, data module, augmentation, callbacks, logger, trainer."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule, Trainer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins.environments import SLURMEnvironment
from torch import nn

from fakedet.checkpoint import AtomicCheckpointIO
from fakedet.config import build, check_kind, target_of
from fakedet.data.datamodule import DataModule, check_data_module
from fakedet.data.transforms import Augment, Augmentation, CustomAugmentation
from fakedet.errors import UserError
from fakedet.methods.base import TRAINING_KEYS, Detector
from fakedet.methods.ntf import NaturalTracePretraining, TraceSource
from fakedet.utils import plain

log = logging.getLogger("fakedet")


def build_method(config: Mapping[str, Any], stage1: NaturalTracePretraining | None = None) -> Detector:
    """Build the method of a resolved ``model`` node; ``stage1`` is its source, or has its encoder's first weights.

    Raises UserError for a class of the wrong kind, a wrong value, and a stage 1 with another encoder.
    """
    encoder = build_encoder(config["encoder"])
    if _starts_from_stage1(config) and stage1 is not None:
        try:
            encoder.load_state_dict(stage1.encoder.state_dict())
        except RuntimeError as error:
            theirs, ours = (_describe(one) for one in (stage1.config.get("encoder", {}), config["encoder"]))
            raise UserError(f"model.init=stage1: stage 1 has another encoder ({theirs}) than this model ({ours}); "
                            "choose the same model/encoder, or model.init=scratch") from error  # fmt: skip
    parts: dict[str, Any] = {"encoder": encoder}
    if _transfers(config):
        assert stage1 is not None
        parts["source"] = TraceSource(stage1.encoder, stage1.homogeneous)
    settings = {key: value for key, value in config.items() if key not in (*TRAINING_KEYS, "encoder")}
    method = build(settings, "model", **parts)
    if not isinstance(method, Detector):
        raise UserError(f"model._target_: {config['_target_']} made a {type(method).__name__}; a method subclasses "
                        "fakedet.methods.base.Detector")  # fmt: skip
    method.config = dict(config)
    return method


def build_encoder(config: Mapping[str, Any]) -> nn.Module:
    """Build an encoder with its pretrained weights; UserError for a wrong value, missing weights, another class."""
    encoder = build(config, "model.encoder")
    dim = getattr(encoder, "embedding_dim", None)
    if not isinstance(encoder, nn.Module) or not isinstance(dim, int):
        raise UserError(f"model.encoder._target_: {config['_target_']} is no encoder: it must be an nn.Module that "
                        "maps float RGB (N, 3, H, W) in [0, 1] to (N, embedding_dim), and have the whole number "
                        "embedding_dim")  # fmt: skip
    return encoder


def _transfers(config: Mapping[str, Any]) -> bool:
    return bool(getattr(target_of(config, "model"), "needs_stage1", False))


def _starts_from_stage1(config: Mapping[str, Any]) -> bool:
    init = config.get("init", "scratch")
    if init not in ("scratch", "stage1"):
        raise UserError(f"model.init: '{init}' is not known; valid: scratch, stage1")
    return bool(init == "stage1")


def needs_stage1(config: Mapping[str, Any]) -> bool:
    """Say whether a model config needs a trained stage 1, as its source or to start from."""
    return _transfers(config) or _starts_from_stage1(config)


def check_parts(config: Mapping[str, Any]) -> None:
    """Raise UserError for the first part of a composed train config that is not of the kind that its place needs."""
    model, stage1 = config["model"], config["stage1"]
    check_kind(model, "model", Detector, "method")
    if needs_stage1(model):
        check_kind(stage1, "stage1", NaturalTracePretraining, "stage 1")
    for place, node in (("model", model), ("stage1", stage1)):
        if node.get("loss"):
            check_kind(node["loss"], f"{place}.loss", nn.Module, "loss")
            _check_call(target_of(node["loss"], f"{place}.loss"), f"{place}.loss")
    check_kind(config["data"], "data", LightningDataModule, "data module")
    for name, node in config["callbacks"].items():
        if node:
            check_kind(node, f"callbacks.{name}", Callback, "Lightning callback")
    if config.get("logger"):
        check_kind(config["logger"], "logger", Logger, "Lightning logger")
    check_kind(model["encoder"], "model.encoder", nn.Module, "encoder")
    _check_rows(build_encoder(plain(model["encoder"])), config["data"].get("crop_size") or 64)


def _check_call(loss: Any, where: str) -> None:
    """Raise UserError if the forward of a class cannot be called as a contrastive loss is."""
    if not isinstance(loss, type):
        return
    forward = inspect.signature(loss.forward)  # type: ignore[attr-defined]
    try:
        forward.bind("self", "z", "labels", "traces")
    except TypeError as error:
        raise UserError(f"{where}: {loss.__name__}.forward takes {forward}; it is called with z, labels and traces; "
                        "see fakedet.losses.ContrastiveLoss") from error  # fmt: skip


def _check_rows(encoder: nn.Module, size: int) -> None:
    """Raise UserError if an encoder of the user's own does not give what it says for images of ``size`` pixels."""
    if type(encoder).__module__.startswith("fakedet."):
        return
    try:
        with torch.no_grad():
            made = encoder.eval()(torch.zeros(2, 3, size, size))
    except Exception:  # it may have to be fitted first, or need a GPU: training will tell
        return
    shape = tuple(made.shape) if isinstance(made, torch.Tensor) else type(made).__name__
    if shape != (2, encoder.embedding_dim):
        raise UserError(f"model.encoder: {type(encoder).__name__} maps images (2, 3, {size}, {size}) to {shape}; it "
                        f"must be (2, embedding_dim), and its embedding_dim is {encoder.embedding_dim}")  # fmt: skip


def build_datamodule(config: Mapping[str, Any], **settings: Any) -> DataModule:
    """Build the data module of a resolved ``data`` node, with what the method asks: augment, views, real_only, seed.

    Raises UserError if it lacks what :class:`fakedet.data.datamodule.DataModule` lists.
    """
    return check_data_module(build(config, "data", **settings))


def build_augmentation(config: Mapping[str, Any]) -> Augment:
    """Build a recipe of fakedet's or the user's own ``_target_``; UserError for a wrong value or a non-callable."""
    made = build({"_target_": "fakedet.data.transforms.Augmentation", **config}, "augment")
    if not callable(made):
        raise UserError(f"augment._target_={config['_target_']}: it must make a function of a crop (H, W, 3) uint8 and "
                        "a numpy.random.Generator; see fakedet.data.transforms.CustomAugmentation")  # fmt: skip
    return made if isinstance(made, Augmentation) else CustomAugmentation(made)


def build_callbacks(config: Mapping[str, Any]) -> dict[str, Any]:
    """Build every callback of a callbacks config, by name."""
    return {name: build(node, f"callbacks.{name}") for name, node in config.items() if node}


def build_trainer(config: Mapping[str, Any], **parts: Any) -> Trainer:
    """Build the Lightning trainer; UserError: a wrong value, or what this machine does not have."""
    on_gpu = config.get("accelerator") != "cpu" and torch.cuda.is_available()
    settings = {**config, "precision": _precision(config.get("precision", "32-true"), on_gpu)}
    if not on_gpu:
        settings["sync_batchnorm"] = False  # PyTorch has it for GPUs alone
    plugins: list[Any] = [AtomicCheckpointIO()]
    if SLURMEnvironment.detect():
        plugins.append(SLURMEnvironment(auto_requeue=False))  # not in the middle of a step
    trainer = build(settings, "trainer", **{"plugins": plugins, **parts})
    assert isinstance(trainer, Trainer)
    return trainer


def _precision(precision: Any, on_gpu: bool) -> Any:
    """Return the asked precision, or another where the device only emulates bfloat16, which is slow."""
    if not str(precision).startswith("bf16"):
        return precision
    if on_gpu and not torch.cuda.is_bf16_supported(including_emulation=False):
        log.warning("trainer.precision=%s: this GPU has no bfloat16; 16-mixed is taken", precision)
        return "16-mixed"
    if not on_gpu and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        log.warning("trainer.precision=%s: this CPU has no bfloat16; 32-true is taken", precision)
        return "32-true"
    return precision


def _describe(encoder: Mapping[str, Any]) -> str:
    values = [f"{key}={value}" for key, value in encoder.items() if key != "_target_"]
    return f"{str(encoder.get('_target_')).rsplit('.', 1)[-1]}: {', '.join(values)}"
