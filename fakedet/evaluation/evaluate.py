"""`fakedet evaluate`: score one split of a manifest with a checkpoint, on degraded views too if asked for."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import numpy as np
import pandas as pd
from lightning.pytorch import Trainer
from omegaconf import DictConfig

from fakedet.audit.shortcuts import header_audit
from fakedet.build import build_augmentation, build_datamodule, build_trainer
from fakedet.checkpoint import load_detector
from fakedet.config import check_config
from fakedet.data.datamodule import DataModule
from fakedet.data.dataset import RobustDataset, make_loader
from fakedet.data.degrade import ORIGINAL, View, make_views
from fakedet.data.manifest import Quarantine
from fakedet.data.sampler import EvaluationSampler
from fakedet.errors import UserError
from fakedet.evaluation.plots import plot_robustness
from fakedet.evaluation.predictions import MAP
from fakedet.evaluation.score import (
    apply_operating_point,
    known_reals,
    map_embeddings,
    measure_predictions,
    predict,
    score_split,
    small_pictures,
    used_for_fitting,
    write_results,
)
from fakedet.methods.base import Detector, gather_records
from fakedet.metrics.bootstrap import Interval
from fakedet.metrics.pairing import real_counterparts
from fakedet.metrics.per_generator import bootstrap_statistics
from fakedet.utils import is_main_process, open_folder, plain, provenance, threads, write_config, write_json

log = logging.getLogger("fakedet")

# Columns of a predictions frame that belong to a view, not to the image.
SCORED = ("view", "logit", "trace_distance", "score", "p_value", "verdict", *MAP)


def score_views(
    trainer: Trainer, method: Detector, datamodule: DataModule, split: str, views: list[View]
) -> pd.DataFrame:
    """Score all views of a split; each image is decoded once for all of them.

    Returns:
        Columns id, view, logit, trace_distance: a row per image and view, in manifest order; the rows of all ranks.
    """
    dataset = RobustDataset(datamodule.image_source, views, datamodule.eval_policy, datamodule.crop_size)
    images = max(1, 256 // (len(views) * dataset.crops))  # at most 256 crops at a time
    ids = datamodule.manifest.rows(split).index.to_numpy()
    sampler = EvaluationSampler(ids, images, trainer.global_rank, trainer.world_size)
    loader = make_loader(dataset, sampler, datamodule.num_workers, datamodule.seed)
    columns = ("id", "view", "logit", "trace_distance")
    own = pd.DataFrame(predict(trainer, method, loader, columns, f"{len(views)} views"))
    frame = pd.concat(gather_records([own]), ignore_index=True).sort_values("id", kind="stable", ignore_index=True)
    names = np.asarray([view.name for view in views], dtype=object)
    return frame.assign(view=names[frame["view"].astype(int)])


def measure_robustness(
    frame: pd.DataFrame, pairs: Any, seen: list[str], bootstrap: Mapping[str, int], known_reals: set[str]
) -> dict[str, Any]:
    """Measure mAP of every view and its paired drop from the original.

    Args:
        frame: the manifest's columns, view and logit, for all views.
        pairs, known_reals: see :func:`fakedet.metrics.pairing.real_counterparts`.
        seen: generators that were trained on.
        bootstrap: resamples and seed.

    Returns:
        robustness.json's content: view → {"map": {"value", "low", "high", "drop": ...}, ...}.
    """
    original = frame[frame["view"] == ORIGINAL].drop(columns="view").reset_index(drop=True)
    logits = {
        str(name): rows.set_index("id")["logit"].loc[original["id"]].to_numpy()
        for name, rows in frame.groupby("view", sort=False)
    }
    resamples, seed = int(bootstrap["resamples"]), int(bootstrap["seed"])
    table = bootstrap_statistics(original, logits, pairs, seen, resamples, seed, known_reals)

    def entry(name: str, place: str) -> dict[str, Any]:
        drop = table.difference(ORIGINAL, name, "ap", place)
        return {**table.interval(name, "ap", place).to_dict(), "drop": drop.to_dict()}

    places = ("map", "map_seen", "map_unseen", *table.generators)
    return {name: {place: entry(name, place) for place in places} for name in logits}


def evaluate(config: DictConfig, overrides: list[str]) -> dict[str, Any] | None:
    """Score one split of a manifest and write predictions.parquet and metrics.json.

    Returns:
        metrics.json's content; None on ranks other than zero.

    Raises:
        UserError: anything wrong with checkpoint, manifest, split or folder.
    """
    facts = provenance(["fakedet", "evaluate", *overrides])
    check_config(config)
    split, bootstrap = config.split, plain(config.bootstrap)
    method = load_detector(config.checkpoint, config.get("trust") or ())
    datamodule = _datamodule(plain(config.data), config.seed, method)
    datamodule.require(split)
    used = used_for_fitting(method, datamodule, split)
    _check_split(used, method, datamodule, split, config.force)
    folder = Path(config.output_dir)
    if is_main_process():
        folder = open_folder(folder, config.overwrite)
        write_config(folder, config, overrides)
    lightning.seed_everything(config.seed, workers=True, verbose=False)
    trainer = build_trainer(
        plain(config.trainer), enable_progress_bar=sys.stdout.isatty(), logger=False, enable_checkpointing=False
    )
    views = make_views(plain(config.robustness))
    point, seen = method.operating_point, method.info["seen_generators"]
    with threads(config.threads):
        frame = apply_operating_point(point, score_split(trainer, method, datamodule, split))
        records = gather_records(method.quarantined)
        degraded = score_views(trainer, method, datamodule, split, views) if len(views) > 1 else None
        frame, share = map_embeddings(trainer, method, datamodule, frame)
        if not trainer.is_global_zero:
            return None
        metrics = measure_predictions(frame, datamodule, seen, bootstrap, point)
        pictures = small_pictures(datamodule, frame, point, config.pictures)
        if degraded is not None:
            described = frame[[name for name in frame if name == "id" or name not in SCORED]]
            degraded = degraded.merge(described, on="id", how="inner")
            _write_robustness(folder, degraded, datamodule, seen, bootstrap)
            degraded = apply_operating_point(point, degraded[degraded["view"] != ORIGINAL])
            frame = pd.concat([frame, degraded], ignore_index=True)
    metrics["data_was_used_for"] = used or None
    info = {
        **method.info, "checkpoint": str(config.checkpoint), "split": split, "data_was_used_for": used or None,
        "run": facts, "map_share": share,
        "shortcut": header_audit(datamodule, split) if config.header_audit else {},
    }  # fmt: skip
    quarantine = Quarantine.from_records(records, datamodule.manifest, (split,))
    write_results(folder, frame, metrics, quarantine, info, pictures)
    write_json(folder / "run.json", {**facts, "manifest_sha256": datamodule.manifest.sha256})
    quarantine.check(datamodule.max_quarantine)
    return metrics


def _write_robustness(
    folder: Path, frame: pd.DataFrame, datamodule: DataModule, seen: list[str], bootstrap: Mapping[str, int]
) -> None:
    content = measure_robustness(frame, datamodule.pairs, seen, bootstrap, known_reals(datamodule))
    images = int(frame["id"].nunique())
    write_json(folder / "robustness.json", {"views": content, "n_images": images, "decoded": images})
    plot_robustness(content, folder / "robustness.png")
    log.info("%-16s %-22s %-22s %s", "mAP", "seen", "unseen", "drop, unseen")
    for name, entry in content.items():
        told = [entry["map_seen"], entry["map_unseen"], entry["map_unseen"]["drop"]]
        log.info("%-16s %-22s %-22s %s", name, *(Interval.from_dict(value).text(".3f") for value in told))
    log.info("%d images were decoded once for %d views", images, len(content))


def _check_split(used: str, method: Detector, datamodule: DataModule, split: str, force: bool) -> None:
    """Refuse a split that the detector was trained or fitted on, unless forced; log which split is scored."""
    if used and not force:
        raise UserError(
            f"split={split}: this split was used for {used} this detector, so results on it flatter; take "
            "another one, or pass force=true and have it marked in every output"
        )
    if used:
        log.warning("this split was used for %s this detector: its results flatter", used)
    elif method.operating_point is None:
        log.info("the checkpoint has no operating point: no verdicts, p-values and calibrated scores")
    # `fakedet index` puts only 15 % of a folder into test.
    counts = datamodule.manifest.frame["split"].value_counts()
    if others := ", ".join(f"{name} {count}" for name, count in counts.items() if name not in (split, "")):
        log.info("scoring %d images of the split %s alone; the manifest holds others (%s): split=NAME scores one of "
                 "them, and an index with split=test has all in one", counts.get(split, 0), split, others)  # fmt: skip


def _datamodule(settings: dict[str, Any], seed: int, method: Detector) -> DataModule:
    """Build the data module; crop, policy, matching and pairs are the checkpoint's unless the config names others."""
    for key in ("crop_size", "eval_policy"):
        if settings.get(key) is None:
            settings[key] = method.info[key]
    # null inherits, 0 turns it off; a checkpoint from before there was matching has none.
    if (settings.get("match") or {}).get("size") is None and method.info.get("match"):
        settings["match"] = method.info["match"]
    datamodule = build_datamodule(settings, augment=build_augmentation({"recipe": "none"}), seed=seed)
    datamodule.prepare()
    if datamodule.pairs is None:
        pairs = method.info["pairs"]
        try:
            real_counterparts(datamodule.manifest.frame, pairs)
            datamodule.pairs = pairs
        except UserError:
            log.info("data.pairs of the checkpoint do not fit this manifest and are not used")
    return datamodule
