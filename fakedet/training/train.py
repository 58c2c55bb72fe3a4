"""One training run, top to bottom: folder, data, stage 1 where it is needed, training, operating point, test."""

from __future__ import annotations

import json
import logging
import math
import signal
import sys
import time
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities.exceptions import SIGTERMException
from omegaconf import DictConfig, OmegaConf, open_dict
from torch.distributed import DistBackendError

from fakedet.audit.shortcuts import describe_training, header_audit
from fakedet.build import (
    build_augmentation,
    build_callbacks,
    build_datamodule,
    build_method,
    build_trainer,
    check_parts,
    needs_stage1,
)
from fakedet.checkpoint import FORMAT, load_stage1, read_checkpoint
from fakedet.config import check_config, packages_of
from fakedet.data.datamodule import DataModule, ImageDataModule
from fakedet.data.manifest import Quarantine
from fakedet.detector import Detector as LoadedDetector
from fakedet.detector import load
from fakedet.errors import Preempted, UserError, nearest, one_line
from fakedet.evaluation import score
from fakedet.evaluation.evaluate import evaluate
from fakedet.evaluation.plots import draw_map, plot_curves, plot_scores, read_curves
from fakedet.evaluation.predictions import method_settings, read_left_out
from fakedet.evaluation.scored import count_scoring
from fakedet.methods.base import Detector, gather_records
from fakedet.methods.ntf import NaturalTracePretraining
from fakedet.models.backbones import FrozenBackbone, public_backbones
from fakedet.training.loggers import finish_loggers, log_dashboard, log_summary, resolve_logger
from fakedet.training.resume import open_or_resume, resume_point_of, taken
from fakedet.training.stage1 import cached_stage1, obtain_cached, stage1_config
from fakedet.utils import is_main_process, link, plain, provenance, threads, write_config, write_json

log = logging.getLogger("fakedet")


@dataclass(frozen=True)
class TrainedRun:
    """What :func:`train` leaves behind."""

    folder: Path
    """The run's folder, with config.yaml, metrics.json, predictions.parquet, checkpoints/ and figures."""
    checkpoint: Path
    """The weights that validation chose."""
    metrics: dict[str, Any] | None
    """Content of metrics.json; None if the test split was not scored."""
    validation: float | None
    """Best value of what chose the weights on the validation split; None if nothing chose."""
    trust: tuple[str, ...]
    """Packages whose classes the run's config names."""
    backbone: str | None
    """File of the encoder's pretrained weights that the run's config names."""

    def load(self, device: str = "auto") -> LoadedDetector:
        """Load the trained detector; the packages that the run's config names are trusted."""
        return load(self.checkpoint, device, self.trust, self.backbone)


def train(config: DictConfig, overrides: list[str] | None = None) -> TrainedRun:
    """Train the method of a composed ``train`` config, with stage 1 first where it needs one; keep the overrides.

    Raises:
        UserError: anything wrong with config, data or folder; before training where possible.
    """
    check_config(config)
    point = plain(config.operating_point)
    score.check_operating_point(point["rate"], point["calibration"], point.get("predictions"))
    folder = open_or_resume(config) if is_main_process() else Path(config.output_dir)
    with taken(folder), threads(config.threads):
        trained = _train(config, folder, overrides)
        _score_also(config, trained.checkpoint)
    return trained


def score_missing(config: DictConfig) -> None:
    """Score those manifests of ``also`` that the finished run in ``output_dir`` has not scored as they are now."""
    folder = Path(config.output_dir)
    facts = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    with taken(folder), threads(config.threads):
        _score_also(config, folder / facts["checkpoint"])


def _train(config: DictConfig, folder: Path, overrides: list[str] | None) -> TrainedRun:
    started = time.perf_counter()
    facts = provenance(["fakedet", "train", *(overrides or [])])
    if is_main_process():
        write_config(folder, config, overrides)
        for scored in folder.glob("on_*/run.json"):  # by an earlier detector in this folder
            scored.unlink()
    check_parts(config)
    datamodule = make_datamodule(config)
    datamodule.require("train", "val")
    if config.header_audit and is_main_process():
        header_audit(datamodule, "train")
    stage1_path = obtain_stage1(config, folder, datamodule) if needs_stage1(config.model) else None
    stage1_seconds = time.perf_counter() - started
    point, left_out = plain(config.operating_point), None
    if point.get("predictions"):
        stage1 = read_checkpoint(stage1_path)["fakedet"] if stage1_path else None
        settings = method_settings(plain(config), datamodule.manifest.sha256, stage1)
        left_out = read_left_out(point["predictions"], settings)

    fitted = fit(config, folder, datamodule, stage1_path)
    method, trainer = fitted.method, fitted.trainer
    fit_seconds = time.perf_counter() - started - stage1_seconds
    if isinstance(method, NaturalTracePretraining) and _is_shared(config) and is_main_process():
        link(fitted.checkpoint, cached_stage1(config, datamodule.manifest))

    score.fit_decisions(trainer, method, datamodule, point["rate"], point["calibration"], fitted.checkpoint, left_out)
    metrics = None
    if config.test_after_fit and not datamodule.has_split("test"):
        log.info("the manifest has no test split: nothing is scored after training")
    elif config.test_after_fit:
        metrics = _test(config, fitted, datamodule, folder, facts)
    facts |= {
        "seconds": {"stage1": stage1_seconds, "fit": fit_seconds, "all": time.perf_counter() - started},
        "parameters": sum(p.numel() for p in method.parameters() if p.requires_grad),
        "threads": torch.get_num_threads(), "seed": config.seed,
        "kept_epoch": read_checkpoint(fitted.checkpoint)["epoch"] + 1,
        "checkpoint": str(fitted.checkpoint.relative_to(folder)), "validation": fitted.validation,
        "stage1_checkpoint": str(stage1_path) if stage1_path else None,
        "manifest_sha256": datamodule.manifest.sha256, "reals": sorted(score.known_reals(datamodule)),
    }  # fmt: skip
    if is_main_process():
        write_json(folder / "run.json", facts)
        for resume_point in folder.glob("**/checkpoints/resume.ckpt"):
            _keep_last(resume_point)
    finish_loggers(trainer.loggers)
    trust = packages_of([plain(config.get(key)) for key in ("model", "stage1")]) - {"fakedet"}
    backbone = plain(config.model.encoder).get("weights")
    return TrainedRun(folder, fitted.checkpoint, metrics, fitted.validation, tuple(sorted(trust)), backbone)


def _keep_last(resume_point: Path) -> None:
    """Name the last resume point of a finished training last.ckpt, or link that to best.ckpt of the same weights."""
    best, last = resume_point.with_name("best.ckpt"), resume_point.with_name("last.ckpt")
    resume_point.replace(last)
    if best.is_file():
        kept, after = (read_checkpoint(path)["state_dict"] for path in (best, last))
        if kept.keys() == after.keys() and all(torch.equal(kept[name], after[name]) for name in kept):
            link(best, last)


def make_datamodule(config: DictConfig, same_data: DataModule | None = None) -> DataModule:
    """Build the data module that serves batches as the model of a training's config wants them.

    The manifest is taken from ``same_data``, a data module over the same data, instead of being read again.
    """
    batch = config.model.batch
    augment = build_augmentation(plain(config.view_augment if batch.real_only else config.augment))
    asked = {"augment": augment, "views": batch.views, "real_only": batch.real_only, "seed": config.seed}
    datamodule = build_datamodule(plain(config.data), **asked)
    if same_data is not None:
        datamodule.take_manifest_of(same_data)
    datamodule.prepare()
    return datamodule


def obtain_stage1(config: DictConfig, folder: Path, datamodule: DataModule) -> Path:
    """Return the path of a stage-1 checkpoint: the given one, a cached one of identical config and data, or a new one.

    All arguments are of the run that needs it; a new stage 1 is trained in the subfolder ``stage1``.

    Raises:
        UserError: a model that cannot be built on such a stage 1; found before stage 1 is trained.
    """
    if config.stage1_checkpoint:
        return Path(config.stage1_checkpoint)
    untrained = build_method(plain(config.stage1))
    assert isinstance(untrained, NaturalTracePretraining)
    build_method(plain(config.model), untrained)

    wanted = stage1_config(config, folder / "stage1")
    data = make_datamodule(wanted, datamodule)

    def train_it() -> Path:
        (folder / "stage1").mkdir(exist_ok=True)
        fitted = fit(wanted, folder / "stage1", data)
        finish_loggers(fitted.trainer.loggers)
        return fitted.checkpoint

    return obtain_cached(cached_stage1(wanted, data.manifest), folder, train_it) if _is_shared(config) else train_it()


def _is_shared(config: DictConfig) -> bool:
    """Return whether stage 1 is cached; one that is stopped by the clock does not come out the same each time."""
    return bool(config.stage1_cache) and not config.trainer.get("max_time")


@dataclass(frozen=True)
class Fitted:
    """A method after training, with the weights of its chosen checkpoint."""

    method: Detector
    trainer: Trainer
    checkpoint: Path
    validation: float | None  # best value of what chose the checkpoint; None where the last epoch's weights are kept


def fit(config: DictConfig, folder: Path, datamodule: DataModule, stage1_path: Path | None = None) -> Fitted:
    """Train ``config.model``, resumed if it was stopped before, and load the weights of the chosen epoch.

    Logs go into ``folder``; ``stage1_path`` is the stage-1 checkpoint, for a method that needs one.
    """
    given = plain(config)
    # Seeded here, so that a stage 1 trained in this process or taken from the cache leaves the same state.
    seed_everything(given["seed"], workers=True, verbose=False)
    stage1 = None
    if stage1_path:
        stage1 = load_stage1(stage1_path, sorted(packages_of(given["stage1"])), given["stage1"]["encoder"])
    method = build_method(given["model"], stage1)
    seeing = (method.encoder, getattr(getattr(method, "source", None), "encoder", method.encoder))
    known = [isinstance(getattr(encoder, "backbone", None), FrozenBackbone) for encoder in seeing]
    if isinstance(datamodule, ImageDataModule):
        datamodule.by_handle = method.features_only and all(known)
    method.info = {
        "format": FORMAT, "model": given["model"], "stage1": stage1.config if stage1 else None,
        "seen_generators": [] if datamodule.real_only else list(datamodule.seen_generators),
        "crop_size": datamodule.crop_size, "eval_policy": datamodule.eval_policy,
        "match": datamodule.matcher.to_dict() if datamodule.matcher else None,
        "manifest_sha256": datamodule.manifest.sha256, "pairs": given["data"]["pairs"],
        "held_out": [one if isinstance(one, str) else list(one) for one in datamodule.held_out],
        "training_data": describe_training(datamodule), "seed": given["seed"], "name": given["name"],
        "settings": method_settings(given, datamodule.manifest.sha256, stage1.info if stage1 else None),
        "backbones": None if given.get("embed_backbone") else public_backbones(method) or None,
    }  # fmt: skip
    for one in {one["name"]: one for one in (method.info["backbones"] or {}).values()}.values():
        log.info("checkpoints leave out the public backbone '%s' (sha256 %s, %s): embed_backbone=true keeps it in them",
                 one["name"], one["sha256"][:12], one["file"] or "timm's own")  # fmt: skip
    if given["compile"]:
        encoder: Any = method.encoder  # compiled in place, so that the weights keep their names
        encoder.compile(backend="inductor" if given["compile"] is True else str(given["compile"]))
    callbacks = list(build_callbacks(given["callbacks"]).values())
    checkpoints = [callback for callback in callbacks if isinstance(callback, ModelCheckpoint)]
    for keeper in checkpoints:
        if keeper.monitor and keeper.monitor.endswith("loss") and keeper.mode == "max":
            raise UserError(f"callbacks.checkpoint.monitor={keeper.monitor}: with mode=max the worst epoch would be "
                            "kept; pass callbacks.checkpoint.mode=min")  # fmt: skip
    loggers = [CSVLogger(folder, name="logs", version=""), *resolve_logger(given, folder)]
    trainer = build_trainer(given["trainer"], enable_progress_bar=sys.stdout.isatty(), logger=loggers,
                            callbacks=callbacks, default_root_dir=str(folder))  # fmt: skip
    log.info("training %s on %s", given["name"], datamodule.describe())
    resume = given["callbacks"].get("resume")
    point = resume_point_of(Path(resume["path"]), datamodule.manifest.sha256) if resume else None
    _run(trainer, method, datamodule, point)
    checkpoint = _chosen_checkpoint(trainer, checkpoints)
    kept = read_checkpoint(checkpoint)
    method.load_state_dict(kept["state_dict"])
    if trainer.is_global_zero:
        log_summary(trainer.loggers, folder, kept["epoch"])
    best = (keeper.best_model_score for keeper in checkpoints if keeper.monitor)
    # Where the monitored value is NaN, because the split has one class, Lightning writes the worst there is.
    values = (float(value) for value in best if value is not None and math.isfinite(value))
    return Fitted(method, trainer, checkpoint, next(values, None))


def _run(trainer: Trainer, method: Detector, datamodule: DataModule, point: Path | None) -> None:
    """Run ``trainer.fit`` and translate the exceptions that end it early."""
    try:
        trainer.fit(method, datamodule=datamodule, ckpt_path=point, weights_only=True)  # type: ignore[arg-type]
    except (SIGTERMException, Preempted) as error:
        finish_loggers(trainer.loggers)
        if isinstance(error, SIGTERMException):  # told to stop while validating; the last resume point holds
            raise Preempted(signal.SIGTERM, "the last resume point") from error
        raise
    except MisconfigurationException as error:  # found only in fit: a metric that is not logged, a precision
        raise UserError(f"trainer: {one_line(error)}") from error
    except RuntimeError as error:
        if trainer.world_size == 1 or (not isinstance(error, DistBackendError) and "gloo" not in str(error)):
            raise
        raise UserError(f"another process of this training ended, so rank {trainer.global_rank} cannot go on; its own "
                        "message says why. The last resume point holds: give the same command again, or `fakedet "
                        "resume`") from error  # fmt: skip
    except SystemExit:
        if trainer.interrupted:  # Lightning turns Ctrl-C into an exit without a word
            raise KeyboardInterrupt from None
        raise


def _chosen_checkpoint(trainer: Trainer, checkpoints: Iterable[ModelCheckpoint]) -> Path:
    for keeper in checkpoints:
        if best := keeper.best_model_path or keeper.last_model_path:
            return Path(best)
    if trainer.global_step and trainer.max_steps > 0:
        raise UserError(f"trainer.max_steps={trainer.max_steps} ended the training before the first validation, so no "
                        "weights were chosen; train for at least an epoch, or set data.steps_per_epoch to make epochs "
                        "shorter")  # fmt: skip
    raise UserError("no checkpoint was written: callbacks.checkpoint is missing, or training took no step")


def _test(
    config: DictConfig, fitted: Fitted, datamodule: DataModule, folder: Path, facts: dict[str, Any]
) -> dict[str, Any] | None:
    """Score the test split and write predictions, metrics and figures; returns metrics.json's content on rank zero."""
    method, trainer = fitted.method, fitted.trainer
    seen, point = method.info["seen_generators"], method.operating_point
    frame = score.apply_operating_point(point, score.score_split(trainer, method, datamodule, "test"))
    records = gather_records(method.quarantined)
    frame, share = score.map_embeddings(trainer, method, datamodule, frame)
    if not trainer.is_global_zero:
        return None
    counts = count_scoring(method, datamodule, frame, folder)
    metrics = score.measure_predictions(frame, datamodule, method, plain(config.bootstrap))
    info = {
        **score.info_of(method, datamodule, metrics), "checkpoint": str(fitted.checkpoint), "split": "test",
        "run": facts, "map_share": share, "shortcut": header_audit(datamodule, "test") if config.header_audit else {},
        "test_scored": counts,  # not in metrics.json, which the same run leaves anew to the last digit
    }  # fmt: skip
    quarantine = Quarantine.from_records(records, datamodule.manifest, ("train", "val", "test"))
    pictures = score.small_pictures(datamodule, frame, point, config.pictures)
    score.write_results(folder, frame, metrics, quarantine, info, pictures)
    plot_curves({folder.name: read_curves(folder)}, folder / "curves.png")
    figures = {"test/scores": plot_scores(frame, folder / "scores.png", seen=set(seen))}
    if share:
        figures["test/embedding"] = draw_map(frame, share, set(seen), folder / "embedding.png")
    log_dashboard(trainer.loggers, frame, metrics, datamodule, point.threshold if point else None, figures)
    quarantine.check(datamodule.max_quarantine)
    return json.loads((folder / "metrics.json").read_text(encoding="utf-8"))  # type: ignore[no-any-return]


def also_config(config: DictConfig, name: str) -> DictConfig:
    """Compose the config that scores a manifest of ``also`` as `fakedet evaluate` does, into on_NAME.

    Raises:
        UserError: ``config.also[name]`` is no mapping of keys of the data node, or names no manifest.
    """
    running = GlobalHydra.instance().is_initialized()
    with nullcontext() if running else initialize_config_module("fakedet.conf", version_base="1.3"):
        wanted = compose("evaluate")
    given = plain(config.also[name])
    if not isinstance(given, dict) or "manifest" not in given:
        raise UserError(f"also.{name}={given}: values of the data node, such as {{manifest: other.csv}}")
    known = [str(key) for key in wanted.data.keys()]  # noqa: SIM118, a missing value is not "in"
    if unknown := next((key for key in given if key not in known), None):
        raise UserError(f"also.{name}: there is no key 'data.{unknown}'; {nearest(unknown, known)}")
    wanted.data = OmegaConf.merge(wanted.data, given)
    wanted.output_dir = str(Path(config.output_dir) / f"on_{name}")
    wanted.overwrite = True
    for key in ("threads", "trainer", "header_audit", "pictures", "bootstrap"):
        wanted[key] = config[key]
    wanted.backbone = plain(config.model.encoder).get("weights")
    with open_dict(wanted):
        wanted.trust = sorted(packages_of(plain(config.model)))  # what this run itself has trained with
    return wanted


def also_sha256(wanted: DictConfig) -> str:
    """Return the sha256 of the manifest of a config of :func:`also_config`; UserError if it cannot be read."""
    datamodule = build_datamodule({**plain(wanted.data), "crop_size": 64, "eval_policy": "crop", "match": None})
    datamodule.prepare()
    return datamodule.manifest.sha256


def unscored(config: DictConfig) -> list[DictConfig]:
    """Return the configs of :func:`also_config` that a run has not scored as their manifests are now."""
    wanted = (also_config(config, str(name)) for name in config.get("also") or ())
    return [one for one in wanted if not _is_scored(one)]


def _is_scored(wanted: DictConfig) -> bool:
    folder = Path(wanted.output_dir)
    try:
        facts: dict[str, Any] = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        data = plain(OmegaConf.load(folder / "config.yaml"))["data"]
    except (OSError, ValueError):
        return False
    return bool(data == plain(wanted.data) and facts["manifest_sha256"] == also_sha256(wanted))


def _score_also(config: DictConfig, checkpoint: Path) -> None:
    for wanted in unscored(config):
        wanted.checkpoint = str(checkpoint)
        log.info("scoring %s", wanted.data.manifest)
        evaluate(wanted, [f"checkpoint={wanted.checkpoint}", f"data.manifest={wanted.data.manifest}"])
