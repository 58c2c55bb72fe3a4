"""Values that compose and cannot work: refused before anything is read or trained."""

from __future__ import annotations

import os
from collections.abc import Iterator

import torch
from omegaconf import DictConfig, OmegaConf

from fakedet.errors import UserError
from fakedet.methods.optimiser import check_names

# Smaller crops leave strided encoders nothing to look at.
LEAST_CROP = 16
# Not bf16-true and its like: weights in 16 bits lose what small steps add.
PRECISIONS = ("32-true", "16-mixed", "bf16-mixed", "64-true", "32", "16", "bf16", "64")
POSITIVE = ("temperature", "weight_temperature", "epochs", "hidden_dim", "projection_dim", "bank_size", "lr")
NOT_NEGATIVE = ("contrastive_weight", "real_weight", "fake_weight", "weight_decay", "heterogeneous_weight",
                "homogeneous_weight")  # fmt: skip


def check_config(config: DictConfig) -> None:
    """Refuse numbers of a config that no run could use.

    Raises:
        UserError: the first one, with what would be valid.
    """
    for key, least in (
        ("threads", 1),
        ("data.crop_size", LEAST_CROP),
        ("bootstrap.resamples", 0),
        ("bootstrap.seed", 0),
        ("trainer.check_val_every_n_epoch", 1),
        ("trainer.accumulate_grad_batches", 1),
        ("callbacks.resume.every_steps", 1),
        ("seed", 0),
        ("pictures", 0),
    ):
        _at_least(config, key, least)
    seed = OmegaConf.select(config, "seed", default=0)
    if seed is None:
        raise UserError(f"seed=null: a whole number from 0 to {2**32 - 1}")
    if seed >= 2**32:
        raise UserError(f"seed={config.seed}: must be below {2**32}")
    if OmegaConf.select(config, "model") is not None:
        _check_length(config)
        every, epochs = config.trainer.check_val_every_n_epoch, config.trainer.max_epochs
        if every is not None and epochs is not None and every > epochs:
            raise UserError(
                f"trainer.check_val_every_n_epoch={every}: with {epochs} epochs nothing would ever be validated or "
                f"kept; valid: 1 to {epochs}"
            )
        for node in ("model", "stage1"):
            _check_model(config, node)
    if OmegaConf.select(config, "trainer") is None:
        return
    _check_devices(config)
    precision = config.trainer.get("precision")
    if precision is not None and str(precision) not in PRECISIONS:
        raise UserError(f"trainer.precision={precision}: valid: {', '.join(PRECISIONS)}")


def _check_devices(config: DictConfig) -> None:
    """Refuse more processes than CPU cores; more GPUs than there are, Lightning refuses."""
    devices, cores = config.trainer.devices, os.cpu_count() or 1
    asked = config.trainer.accelerator
    on_cpu = asked == "cpu" or (asked == "auto" and not torch.accelerator.is_available())
    if on_cpu and isinstance(devices, int) and not 1 <= devices <= cores:
        found = "no GPU and " if asked == "auto" else ""
        raise UserError(
            f"trainer.devices={devices}: this machine has {found}{cores} CPU cores; valid: 1 to {cores}"
        )


def _check_length(config: DictConfig) -> None:
    """Refuse a training without an end, or one that would keep nothing."""
    if config.trainer.max_epochs is None:
        raise UserError(
            "trainer.max_epochs=null: name a number of epochs; the learning rate's schedule needs an end"
        )
    _at_least(config, "trainer.max_epochs", 1)
    checkpoint = config.callbacks.get("checkpoint")
    if checkpoint is None:
        return
    if checkpoint.get("save_top_k") == 0:
        raise UserError("callbacks.checkpoint.save_top_k=0: no weights would be kept; valid: 1")
    if checkpoint.get("monitor") and config.trainer.limit_val_batches == 0:
        raise UserError(
            f"trainer.limit_val_batches=0: {checkpoint.monitor} chooses the kept epoch, and nothing would be "
            "validated; "
            "add callbacks.checkpoint.monitor=null to keep the last epoch's weights"
        )


def _check_model(config: DictConfig, node: str) -> None:
    if "optimizer" in config[node]:
        check_names(config[node].optimizer, f"{node}.optimizer")
    for key, value in _numbers(config[node], f"{node}."):
        name = key.rpartition(".")[2]
        if name in POSITIVE and value <= 0:
            raise UserError(f"{key}={value}: must be above 0")
        if name in NOT_NEGATIVE and value < 0:
            raise UserError(f"{key}={value}: must not be negative")


def _numbers(node: DictConfig, prefix: str) -> Iterator[tuple[str, float]]:
    for key, value in node.items():
        if isinstance(value, DictConfig):
            yield from _numbers(value, f"{prefix}{key!s}.")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield f"{prefix}{key!s}", value


def _at_least(config: DictConfig, key: str, least: int) -> None:
    value = OmegaConf.select(config, key)
    if value is not None and value < least:
        raise UserError(f"{key}={value}: must be at least {least}")
