"""fakedet.training.fit"""

from __future__ import annotations

import logging
import math
import signal
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities.exceptions import SIGTERMException
from omegaconf import DictConfig, OmegaConf
from torch.distributed import DistBackendError

from fakedet.audit.audit import describe_training, header_audit
from fakedet.build import (
    TraceCheckpoint,
    build_augmentation,
    build_callbacks,
    build_datamodule,
    build_method,
    build_trainer,
    load_trace,
)
from fakedet.checkpoint import read_checkpoint
from fakedet.data.datamodule import ImageDataModule
from fakedet.errors import Preempted, UserError
from fakedet.methods.base import Detector
from fakedet.training.loggers import finish_loggers, resolve_logger
from fakedet.training.resume import resume_point_of
from fakedet.utils import is_main_process

log = logging.getLogger("fakedet")


@dataclass(frozen=True)
class Fitted:
    """A method after training, with the weights of its chosen checkpoint."""

    method: Detector
    trainer: Trainer
    datamodule: ImageDataModule
    checkpoint: Path

    @property
    def validation(self) -> float | None:
        """Best value of what chose the checkpoint; None where the last epoch's weights are kept."""
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            if (
                isinstance(callback, ModelCheckpoint)
                and callback.monitor
                and callback.best_model_score is not None
                # Lightning writes a NaN, of a split with one class, as the worst there is.
                and math.isfinite(callback.best_model_score)
            ):
                return float(callback.best_model_score)
        return None

    @property
    def is_stage1(self) -> bool:
        """Whether the method is stage 1."""
        return bool(self.method.identity["model"]["name"] == "trace")


def fit(config: DictConfig, folder: Path, trace_path: Path | None) -> Fitted:
    """Train ``config.model``, from where it was stopped if it was, and load the chosen epoch's weights."""
    # Seeded here, so that a stage 1 trained in this process or taken from the cache leaves the same state.
    lightning.seed_everything(config.seed, workers=True, verbose=False)
    datamodule = make_datamodule(config)
    datamodule.require("train", "val")
    if config.header_audit and is_main_process():
        header_audit(datamodule, "train", datamodule.pairs)
    trace = load_trace(trace_path) if trace_path else None
    method = build_method(plain(config.model), trace)
    method.identity = _identity(config, datamodule, trace)
    if config.compile:
        # In place: the names of the weights stay what they are.
        encoder: Any = method.encoder
        encoder.compile(backend="inductor" if config.compile is True else str(config.compile))
    callbacks = build_callbacks(plain(config.callbacks))
    _check_direction(callbacks.values())
    loggers = [CSVLogger(folder, name="logs", version=""), *resolve_logger(config, folder)]
    trainer = build_trainer(
        plain(config.trainer),
        enable_progress_bar=sys.stdout.isatty(),
        logger=loggers,
        callbacks=list(callbacks.values()),
        default_root_dir=str(folder),
    )
    log.info("training %s on %s", config.name, datamodule.describe())
    point = resume_point_of(config, datamodule.manifest.sha256)
    _run(trainer, method, datamodule, point)
    checkpoint = _chosen_checkpoint(trainer)
    method.load_state_dict(read_checkpoint(checkpoint)["state_dict"])
    return Fitted(method, trainer, datamodule, checkpoint)


def _check_direction(callbacks: Iterable[Any]) -> None:
    """Refuse to keep the epoch of the highest loss.

    Raises:
        UserError: it would.
    """
    for callback in callbacks:
        if (
            isinstance(callback, ModelCheckpoint)
            and callback.monitor
            and callback.monitor.endswith("loss")
            and callback.mode == "max"
        ):
            raise UserError(
                f"callbacks.checkpoint.monitor={callback.monitor}: with mode=max the worst epoch would be kept; pass "
                "callbacks.checkpoint.mode=min"
            )


def _run(trainer: Trainer, method: Detector, datamodule: ImageDataModule, point: Path | None) -> None:
    try:
        trainer.fit(method, datamodule=datamodule, ckpt_path=point, weights_only=True)
    except SIGTERMException as error:  # told to stop while validating; the last resume point holds
        finish_loggers(trainer.loggers)
        raise Preempted(signal.SIGTERM, "the last resume point") from error
    except MisconfigurationException as error:  # found only in fit: a metric that is not logged, a precision
        raise UserError(f"trainer: {' '.join(str(error).split())}") from error
    except RuntimeError as error:
        if trainer.world_size == 1 or (not isinstance(error, DistBackendError) and "gloo" not in str(error)):
            raise
        raise UserError(
            f"another process of this training ended, so rank {trainer.global_rank} cannot go on; its own message says "
            "why. The last resume point holds: give the same command again, or `fakedet resume`"
        ) from error
    except SystemExit:
        if trainer.interrupted:  # Lightning turns Ctrl-C into an exit without a word
            raise KeyboardInterrupt from None
        raise
    except Preempted:
        finish_loggers(trainer.loggers)
        raise


def make_datamodule(config: DictConfig) -> ImageDataModule:
    """Build the data module as the config's model wants its batches."""
    augment = config.view_augment if config.model.batch.real_only else config.augment
    datamodule = build_datamodule(
        plain(config.data),
        augment=build_augmentation(plain(augment)),
        views=config.model.batch.views,
        real_only=config.model.batch.real_only,
        seed=config.seed,
    )
    assert isinstance(datamodule, ImageDataModule)
    datamodule.prepare()
    return datamodule


def _identity(
    config: DictConfig, datamodule: ImageDataModule, trace: TraceCheckpoint | None
) -> dict[str, Any]:
    """Give the plain values that travel inside the checkpoint."""
    return {
        "format": 1,
        "model": plain(config.model),
        "stage1": trace.config if trace else None,
        "seen_generators": [] if config.model.batch.real_only else list(datamodule.seen_generators),
        "crop_size": datamodule.crop_size,
        "eval_policy": datamodule.eval_policy,
        "match": datamodule.matcher.to_dict() if datamodule.matcher else None,
        "manifest_sha256": datamodule.manifest.sha256,
        "pairs": plain(config.data.pairs) if OmegaConf.is_config(config.data.pairs) else config.data.pairs,
        "held_out": [list(datamodule.held_out[0]), datamodule.held_out[1]],
        "training_data": describe_training(datamodule),
        "seed": config.seed,
        "name": config.name,
    }


def _chosen_checkpoint(trainer: Trainer) -> Path:
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, ModelCheckpoint):
            best = callback.best_model_path or callback.last_model_path
            if best:
                return Path(best)
    if trainer.global_step and trainer.max_steps > 0:
        raise UserError(
            f"trainer.max_steps={trainer.max_steps} ended the training before the first validation, so no weights were "
            "chosen; train for at least an epoch, or set data.steps_per_epoch to make epochs shorter"
        )
    raise UserError("no checkpoint was written: callbacks.checkpoint is missing, or training took no step")


def plain(node: Any) -> Any:
    """Resolve a node of a config into plain values."""
    return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
