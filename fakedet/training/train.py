"""training/train"""

from __future__ import annotations

import logging
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from fakedet.audit.audit import header_audit
from fakedet.build import (
    needs_trace,
)
from fakedet.checkpoint import read_checkpoint
from fakedet.config import check_config
from fakedet.data.manifest import Quarantine
from fakedet.errors import Preempted, UserError
from fakedet.evaluation.plots import draw_map, plot_curves, plot_scores, read_curves
from fakedet.evaluation.score import (
    apply_operating_point,
    check_operating_point,
    fit_on_validation,
    known_reals,
    map_embeddings,
    measure_predictions,
    score_split,
    small_pictures,
    write_results,
)
from fakedet.methods.base import gather_records
from fakedet.training.fit import Fitted, fit, plain
from fakedet.training.loggers import finish_loggers, log_dashboard
from fakedet.training.resume import keep_last_point, lock_folder, open_or_resume
from fakedet.training.stage1 import check_transfer, obtain_trace, publish_stage1, stage1_key
from fakedet.utils import FAILURE, is_main_process, log_to_file, provenance, threads, write_config, write_json

log = logging.getLogger("fakedet")


@dataclass(frozen=True)
class TrainedRun:
    """What a training run leaves behind."""

    folder: Path
    checkpoint: Path
    metrics: dict[str, Any] | None
    """metrics.json's content; None where the test split was not scored."""
    validation: float | None
    """Best value of what chose the weights on the validation split; None where nothing chose."""


def train(config: DictConfig, overrides: list[str] | None = None) -> TrainedRun:
    """Train the method of a composed ``train`` config, with stage 1 first where it needs one.

    Args:
        config: the composed config of conf/train.yaml.
        overrides: what the user changed, to be written down.

    Raises:
        UserError: anything wrong with config, data or folder; before hours are spent where possible.
    """
    check_config(config)
    check_operating_point(config.operating_point.rate, config.operating_point.calibration)
    main = is_main_process()
    folder = open_or_resume(config) if main else Path(config.output_dir)
    taken = lock_folder(folder) if main else None
    if main:
        for leftover in folder.glob("**/.*.tmp"):  # of a run that was killed while it wrote
            leftover.unlink(missing_ok=True)
    handler = log_to_file(folder) if main else logging.NullHandler()
    try:
        with threads(config.threads):
            trained = _train(config, folder, overrides)
        (folder / FAILURE).unlink(missing_ok=True)
        return trained
    except (Preempted, KeyboardInterrupt):
        raise
    except BaseException as error:
        if main:
            _write_failure(folder, error)
        raise
    finally:
        logging.getLogger("fakedet").removeHandler(handler)
        handler.close()
        if taken is not None:
            taken.release()


def _write_failure(folder: Path, error: BaseException) -> None:
    """Leave the cause where a sweep's comparison finds it; a full disk must not hide the cause."""
    with suppress(UserError):
        write_json(folder / FAILURE, {"error": " ".join(str(error).split())[:500] or type(error).__name__})


def _train(config: DictConfig, folder: Path, overrides: list[str] | None) -> TrainedRun:
    started = time.perf_counter()
    facts = provenance(["fakedet", "train", *(overrides or [])])
    if is_main_process():
        write_config(folder, config, overrides)
    if needs_trace(config.model):
        check_transfer(config)
        trace_path = obtain_trace(config, folder)
    else:
        trace_path = None
    stage1_seconds = time.perf_counter() - started
    fitted = fit(config, folder, trace_path)
    fit_seconds = time.perf_counter() - started - stage1_seconds
    if not needs_trace(config.model) and config.trace_cache and fitted.is_stage1 and is_main_process():
        key = stage1_key(config, fitted.datamodule.manifest)
        publish_stage1(fitted.checkpoint, Path(config.trace_cache), key)
    wanted = config.operating_point
    fit_on_validation(
        fitted.trainer, fitted.method, fitted.datamodule, wanted.rate, wanted.calibration, fitted.checkpoint
    )
    metrics = None
    if config.test_after_fit:
        metrics = _score_test_split(config, folder, fitted, facts)
    facts |= {
        "seconds": {"stage1": stage1_seconds, "fit": fit_seconds, "all": time.perf_counter() - started},
        "parameters": sum(p.numel() for p in fitted.method.parameters() if p.requires_grad),
        "threads": torch.get_num_threads(),
        "seed": config.seed,
        "kept_epoch": read_checkpoint(fitted.checkpoint)["epoch"] + 1,
        "checkpoint": str(fitted.checkpoint.relative_to(folder)),
        "validation": fitted.validation,
        "trace_checkpoint": str(trace_path) if trace_path else None,
        "manifest_sha256": fitted.datamodule.manifest.sha256,
        "reals": sorted(known_reals(fitted.datamodule)),
    }
    if is_main_process():
        write_json(folder / "run.json", facts)
        keep_last_point(folder)
    finish_loggers(fitted.trainer.loggers)
    return TrainedRun(folder, fitted.checkpoint, metrics, fitted.validation)


def _score_test_split(
    config: DictConfig, folder: Path, fitted: Fitted, facts: dict[str, Any]
) -> dict[str, Any] | None:
    method, datamodule = fitted.method, fitted.datamodule
    if not datamodule.has_split("test"):
        log.info("the manifest has no test split: nothing is scored after training")
        return None
    trainer, seen, point = fitted.trainer, method.identity["seen_generators"], method.operating_point
    frame = apply_operating_point(point, score_split(trainer, method, datamodule, "test"))
    records = gather_records(method.quarantined)
    frame, share = map_embeddings(trainer, method, datamodule, frame)
    if not trainer.is_global_zero:
        return None
    metrics = measure_predictions(frame, datamodule, seen, plain(config.bootstrap), point)
    identity = {
        **method.identity, "checkpoint": str(fitted.checkpoint), "split": "test", "run": facts, "map_share": share,
        "shortcut": header_audit(datamodule, "test", datamodule.pairs) if config.header_audit else {},
    }  # fmt: skip
    pictures = small_pictures(datamodule, frame, point, config.pictures)
    quarantine = Quarantine.from_records(records, datamodule.manifest, ("train", "val", "test"))
    write_results(folder, frame, metrics, quarantine, identity, pictures)
    # Figures, and the same on the dashboard.
    plot_curves({folder.name: read_curves(folder)}, folder / "curves.png")
    figures = {"test/scores": plot_scores(frame, folder / "scores.png", seen=set(seen))}
    if share:
        figures["test/embedding"] = draw_map(frame, share, set(seen), folder / "embedding.png")
    log_dashboard(trainer.loggers, frame, metrics, datamodule.manifest, figures)
    quarantine.check(datamodule.max_quarantine)
    return metrics
