"""One training run: stage 1 where it is needed, the method itself, and its score on the test split."""

from __future__ import annotations

import logging
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import torch
from filelock import FileLock
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from omegaconf import DictConfig, OmegaConf

from fakedet import build
from fakedet.data.datamodule import ImageDataModule
from fakedet.data.quarantine import Quarantine
from fakedet.errors import UserError
from fakedet.methods.detector import Detector
from fakedet.methods.gather import gather_records
from fakedet.runs import dashboard, operating, scoring, stage1
from fakedet.runs.attachments import attach
from fakedet.runs.audit import describe_training, header_audit
from fakedet.runs.checks import check_config
from fakedet.runs.figures import write_figures
from fakedet.runs.folder import log_to_file, open_folder, provenance, write_config, write_json
from fakedet.runs.logger import resolve_logger
from fakedet.runs.threads import threads

log = logging.getLogger("fakedet")


@dataclass(frozen=True)
class TrainedRun:
    """What a training run leaves behind."""

    folder: Path
    checkpoint: Path
    metrics: dict[str, Any] | None
    """metrics.json's content; None where the test split was not scored."""


def train(config: DictConfig, overrides: list[str] | None = None) -> TrainedRun:
    """Train the method of a composed ``train`` config, with stage 1 first where it needs one.

    Args:
        config: the composed config of conf/train.yaml.
        overrides: what the user changed, to be written down.

    Raises:
        UserError: anything wrong with config, data or folder; before hours are spent where possible.
    """
    check_config(config)
    operating.check_settings(config.operating_point)
    main = is_main_process()
    folder = open_folder(config.output_dir, config.overwrite) if main else Path(config.output_dir)
    handler = log_to_file(folder) if main else logging.NullHandler()
    try:
        with threads(config.threads):
            return _train(config, folder, overrides)
    finally:
        logging.getLogger("fakedet").removeHandler(handler)
        handler.close()


def is_main_process() -> bool:
    """Say whether this process is rank zero, before and after the ranks have been set up."""
    return int(os.environ.get("LOCAL_RANK", "0")) == 0 and int(os.environ.get("NODE_RANK", "0")) == 0


def _train(config: DictConfig, folder: Path, overrides: list[str] | None) -> TrainedRun:
    started = time.perf_counter()
    facts = provenance(["fakedet", "train", *(overrides or [])])
    if is_main_process():
        write_config(folder, config, overrides)
    trace_path = _obtain_trace(config, folder) if build.needs_trace(config.model) else None
    stage1_seconds = time.perf_counter() - started
    fitted = fit(config, folder, trace_path)
    fit_seconds = time.perf_counter() - started - stage1_seconds
    if not build.needs_trace(config.model) and config.trace_cache and fitted.is_stage1 and is_main_process():
        key = stage1.stage1_key(config, fitted.datamodule.manifest)
        stage1.publish(fitted.checkpoint, Path(config.trace_cache), key)
    operating.fit(fitted.trainer, fitted.method, fitted.datamodule, config.operating_point, fitted.checkpoint)
    metrics = None
    if config.test_after_fit:
        metrics = _test(config, folder, fitted, facts)
    facts |= {
        "seconds": {"stage1": stage1_seconds, "fit": fit_seconds, "all": time.perf_counter() - started},
        "parameters": sum(p.numel() for p in fitted.method.parameters() if p.requires_grad),
        "threads": torch.get_num_threads(),
        "seed": config.seed,
        "kept_epoch": build.read_checkpoint(fitted.checkpoint)["epoch"] + 1,
        "checkpoint": str(fitted.checkpoint.relative_to(folder)),
        "trace_checkpoint": str(trace_path) if trace_path else None,
        "manifest_sha256": fitted.datamodule.manifest.sha256,
        "reals": sorted(scoring.known_reals(fitted.datamodule)),
    }
    if is_main_process():
        write_json(folder / "run.json", facts)
    dashboard.finish(fitted.trainer.loggers)
    return TrainedRun(folder, fitted.checkpoint, metrics)


@dataclass(frozen=True)
class Fitted:
    """A method after training, with the weights of its chosen checkpoint."""

    method: Detector
    trainer: Trainer
    datamodule: ImageDataModule
    checkpoint: Path

    @property
    def is_stage1(self) -> bool:
        """Whether the method is stage 1."""
        return bool(self.method.identity["model"]["name"] == "trace")


def fit(config: DictConfig, folder: Path, trace_path: Path | None) -> Fitted:
    """Train ``config.model`` and load the weights of the epoch that ``callbacks.checkpoint`` chose."""
    # Seeded here, so that a stage 1 trained in this process or taken from the cache leaves the same state.
    lightning.seed_everything(config.seed, workers=True, verbose=False)
    datamodule = make_datamodule(config)
    datamodule.require("train", "val")
    if config.header_audit and is_main_process():
        header_audit(datamodule, "train", datamodule.pairs)
    trace = build.load_trace(trace_path) if trace_path else None
    method = build.build_method(_plain(config.model), trace)
    method.identity = _identity(config, datamodule, trace)
    callbacks = build.build_callbacks(_plain(config.callbacks))
    loggers = [CSVLogger(folder, name="logs", version=""), *resolve_logger(config, folder)]
    trainer = build.build_trainer(
        _plain(config.trainer),
        enable_progress_bar=sys.stdout.isatty(),
        logger=loggers,
        callbacks=list(callbacks.values()),
        default_root_dir=str(folder),
    )
    log.info("training %s on %s", config.name, datamodule.describe())
    try:
        trainer.fit(method, datamodule=datamodule)
    except SystemExit:
        if trainer.interrupted:  # Lightning turns Ctrl-C into an exit without a word
            raise KeyboardInterrupt from None
        raise
    checkpoint = _chosen_checkpoint(trainer)
    method.load_state_dict(build.read_checkpoint(checkpoint)["state_dict"])
    return Fitted(method, trainer, datamodule, checkpoint)


def make_datamodule(config: DictConfig) -> ImageDataModule:
    """Build the data module as the config's model wants its batches."""
    augment = config.view_augment if config.model.batch.real_only else config.augment
    datamodule = build.build_datamodule(
        _plain(config.data),
        augment=build.build_augmentation(_plain(augment)),
        views=config.model.batch.views,
        real_only=config.model.batch.real_only,
        seed=config.seed,
    )
    assert isinstance(datamodule, ImageDataModule)
    datamodule.prepare()
    return datamodule


def _obtain_trace(config: DictConfig, folder: Path) -> Path:
    """Give a stage-1 checkpoint: the given one, a cached one of identical config and data, or a new one."""
    if config.trace_checkpoint:
        return Path(config.trace_checkpoint)
    wanted = stage1.stage1_config(config, folder / "stage1")
    datamodule = make_datamodule(wanted)
    if not config.trace_cache:
        return _train_trace(wanted, folder)
    cache, key = Path(config.trace_cache), stage1.stage1_key(wanted, datamodule.manifest)
    cached = cache / f"{key}.ckpt"
    if not is_main_process():
        # The main process decided before it started this one, and said so in the environment.
        return cached if os.environ.get("FAKEDET_STAGE1") == "reuse" else _train_trace(wanted, folder)
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(cache / f"{key}.lock"):
        os.environ["FAKEDET_STAGE1"] = "reuse" if cached.is_file() else "train"
        if cached.is_file():
            log.info("stage 1 of identical config and data is reused: %s", cached)
            return cached
        return stage1.publish(_train_trace(wanted, folder), cache, key)


def _train_trace(config: DictConfig, folder: Path) -> Path:
    (folder / "stage1").mkdir(exist_ok=True)
    fitted = fit(config, folder / "stage1", None)
    dashboard.finish(fitted.trainer.loggers)
    return fitted.checkpoint


def _identity(
    config: DictConfig, datamodule: ImageDataModule, trace: build.TraceCheckpoint | None
) -> dict[str, Any]:
    """Give the plain values that travel inside the checkpoint."""
    return {
        "format": 1,
        "model": _plain(config.model),
        "stage1": trace.config if trace else None,
        "seen_generators": [] if config.model.batch.real_only else list(datamodule.seen_generators),
        "crop_size": datamodule.crop_size,
        "eval_policy": datamodule.eval_policy,
        "match": datamodule.matcher.to_dict() if datamodule.matcher else None,
        "manifest_sha256": datamodule.manifest.sha256,
        "pairs": _plain(config.data.pairs) if OmegaConf.is_config(config.data.pairs) else config.data.pairs,
        "training_data": describe_training(datamodule),
        "seed": config.seed,
        "name": config.name,
    }


def _test(config: DictConfig, folder: Path, fitted: Fitted, facts: dict[str, Any]) -> dict[str, Any] | None:
    method, datamodule = fitted.method, fitted.datamodule
    if not datamodule.has_split("test"):
        log.info("the manifest has no test split: nothing is scored after training")
        return None
    frame = scoring.score(fitted.trainer, method, datamodule, "test")
    point = operating.of(method)
    frame = operating.apply(point, frame)
    records = gather_records(method.quarantined)
    if not fitted.trainer.is_global_zero:
        return None
    quarantine = Quarantine.from_records(records, datamodule.manifest, ("train", "val", "test"))
    metrics = scoring.measure(
        frame, datamodule, method.identity["seen_generators"], _plain(config.bootstrap), point
    )
    identity = {**method.identity, "checkpoint": str(fitted.checkpoint), "split": "test", "run": facts}
    shortcut = header_audit(datamodule, "test", datamodule.pairs) if config.header_audit else {}
    attached = attach(method, datamodule, frame, point, config.pictures)
    scoring.write_results(folder, attached.frame, attached, metrics, quarantine, identity, shortcut)
    write_figures(folder, fitted.trainer, method, datamodule, attached, metrics)
    quarantine.check(datamodule.max_quarantine)
    return metrics


def _chosen_checkpoint(trainer: Trainer) -> Path:
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, ModelCheckpoint):
            best = callback.best_model_path or callback.last_model_path
            if best:
                return Path(best)
    raise UserError("no checkpoint was written: callbacks.checkpoint is missing, or training took no step")


def _plain(node: Any) -> Any:
    return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
