"""evaluation/evaluate"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import numpy as np
import pandas as pd
import torch
from omegaconf import DictConfig, OmegaConf

from fakedet.audit.audit import header_audit
from fakedet.build import build_augmentation, build_datamodule, build_trainer, load_detector
from fakedet.config import check_config
from fakedet.data.datamodule import ImageDataModule
from fakedet.data.dataset import RobustDataset, make_loader
from fakedet.data.degrade import ORIGINAL, View, make_views
from fakedet.data.manifest import Quarantine
from fakedet.data.sampler import EvaluationSampler
from fakedet.errors import UserError
from fakedet.evaluation.plots import plot_robustness
from fakedet.evaluation.score import (
    apply_operating_point,
    attach,
    known_reals,
    measure_predictions,
    score_split,
    used_for_fitting,
    write_results,
)
from fakedet.methods.base import Detector, gather_records
from fakedet.metrics.bootstrap import Interval
from fakedet.metrics.pairing import real_counterparts
from fakedet.metrics.per_generator import BootstrapTable, bootstrap_statistics
from fakedet.utils import bar, is_main_process, open_folder, provenance, threads, write_config, write_json

log = logging.getLogger("fakedet")

MEANS = ("map", "map_seen", "map_unseen")
CROPS_AT_A_TIME = 256


@dataclass(frozen=True)
class Swept:
    """What a sweep gave."""

    frame: pd.DataFrame
    """Columns id, view, logit, trace_distance: a row an image and view."""
    quarantined: list[dict[str, Any]]
    decoded: int
    """Images decoded, over all views."""


def score_views(method: Detector, datamodule: ImageDataModule, split: str, views: list[View]) -> Swept:
    """Score all views of a split; each image is decoded once for all of them."""
    ids = datamodule.manifest.rows(split).index.to_numpy()
    size, policy = datamodule.crop_size, datamodule.eval_policy
    dataset = RobustDataset(datamodule.image_source, views, policy, size)
    images = max(1, CROPS_AT_A_TIME // (len(views) * dataset.crops))
    loader = make_loader(dataset, EvaluationSampler(ids, images), datamodule.num_workers, datamodule.seed)
    parts, quarantined, decoded, done = [], [], 0, 0
    names = [view.name for view in views]
    method.eval()
    with bar(f"{len(views)} views", len(ids)) as shown, torch.inference_mode():
        for batch in loader:
            count = len(batch["id"])
            quarantined += batch["quarantined"]
            decoded += batch["decoded"]
            if count:
                crops = batch["image"].flatten(0, 1).to(method.device).float().div(255.0)
                scores = method.score_views(crops)
                parts.append(pd.DataFrame({
                    "id": np.repeat(batch["id"].numpy(), len(views)), "view": names * count,
                    "logit": scores.logit.cpu().double().numpy(),
                    "trace_distance": scores.trace_distance.cpu().double().numpy(),
                }))  # fmt: skip
            done += count + len(batch["quarantined"])
            shown.show(done)
    columns = ["id", "view", "logit", "trace_distance"]
    frame = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=columns)
    return Swept(frame, quarantined, decoded)


def measure_robustness(
    frame: pd.DataFrame, pairs: Any, seen: list[str], bootstrap: Mapping[str, int], known_reals: set[str]
) -> tuple[dict[str, Any], BootstrapTable]:
    """Measure mAP of every view and its paired drop from the original.

    Args:
        frame: of all views: the manifest's columns, view and logit.
        pairs: see :func:`fakedet.metrics.pairing.real_counterparts`.
        seen: generators that were trained on.
        bootstrap: resamples and seed.
        known_reals: see :func:`fakedet.metrics.pairing.real_counterparts`.

    Returns:
        robustness.json's content: view → {"map": {"value", "low", "high", "drop": ...}, ...}, and the table behind it.
    """
    names = list(dict.fromkeys(frame["view"]))
    original = frame[frame["view"] == ORIGINAL].drop(columns="view").reset_index(drop=True)
    logits = {}
    for name in names:
        own = frame[frame["view"] == name].set_index("id")["logit"]
        logits[name] = own.loc[original["id"]].to_numpy()
    table = bootstrap_statistics(
        original,
        logits,
        pairs,
        seen,
        int(bootstrap["resamples"]),
        int(bootstrap["seed"]),
        known_reals,
    )
    content: dict[str, Any] = {}
    for name in names:
        places = [*MEANS, *table.generators]
        content[name] = {
            place: {
                **table.interval(name, "ap", place).to_dict(),
                "drop": table.difference(ORIGINAL, name, "ap", place).to_dict(),
            }
            for place in places
        }
    return content, table


def evaluate(config: DictConfig, overrides: list[str]) -> dict[str, Any] | None:
    """Score one split of a manifest and write predictions.parquet and metrics.json.

    Returns:
        metrics.json's content; None on ranks other than zero.

    Raises:
        UserError: anything wrong with checkpoint, manifest, split or folder.
    """
    facts = provenance(["fakedet", "evaluate", *overrides])
    check_config(config)
    method = load_detector(config.checkpoint)
    datamodule = _datamodule(config, method)
    datamodule.require(config.split)
    used = _check_unused(method, datamodule, config)
    _tell_unscored(datamodule, config.split)
    folder = Path(config.output_dir)
    if is_main_process():
        folder = open_folder(folder, config.overwrite)
        write_config(folder, config, overrides)
    lightning.seed_everything(config.seed, workers=True, verbose=False)
    trainer = build_trainer(
        _plain(config.trainer),
        enable_progress_bar=sys.stdout.isatty(),
        logger=False,
        enable_checkpointing=False,
    )
    views = make_views(_plain(config.robustness))
    with threads(config.threads):
        frame = score_split(trainer, method, datamodule, config.split)
        frame = apply_operating_point(method.operating_point, frame)
        records = gather_records(method.quarantined)
        if not trainer.is_global_zero:
            return None
        swept = _degrade(config, method, datamodule, views, frame, folder) if len(views) > 1 else None
    quarantine = Quarantine.from_records(records, datamodule.manifest, (config.split,))
    return _write(folder, config, method, datamodule, frame, swept, quarantine, used, facts)


def _write(
    folder: Path, config: DictConfig, method: Detector, datamodule: ImageDataModule, frame: pd.DataFrame,
    swept: pd.DataFrame | None, quarantine: Quarantine, used: str, facts: dict[str, Any],
) -> dict[str, Any]:  # fmt: skip
    """Measure, write what an evaluation leaves behind, and give metrics.json's content."""
    point = method.operating_point
    metrics = measure_predictions(
        frame, datamodule, method.identity["seen_generators"], _plain(config.bootstrap), point
    )
    metrics["data_was_used_for"] = used or None
    identity = {**method.identity, "checkpoint": str(config.checkpoint), "split": config.split,
                "data_was_used_for": used or None, "run": facts}  # fmt: skip
    shortcut = header_audit(datamodule, config.split, datamodule.pairs) if config.header_audit else {}
    attached = attach(method, datamodule, frame, point, config.pictures)
    frame = attached.frame
    if swept is not None:
        frame = pd.concat([frame, apply_operating_point(point, swept)], ignore_index=True)
    write_results(folder, frame, attached, metrics, quarantine, identity, shortcut)
    write_json(folder / "run.json", {**facts, "manifest_sha256": datamodule.manifest.sha256})
    quarantine.check(datamodule.max_quarantine)
    return metrics


def _degrade(
    config: DictConfig,
    method: Detector,
    datamodule: ImageDataModule,
    views: list[View],
    original: pd.DataFrame,
    folder: Path,
) -> pd.DataFrame:
    """Score the degraded views, write robustness.json and its figure, and give the views' predictions."""
    swept = score_views(method, datamodule, config.split, views)
    described = original.drop(columns=["view", "logit", "trace_distance", "score", "p_value", "verdict"])
    frame = swept.frame.merge(described, on="id", how="inner")
    content, _ = measure_robustness(
        frame,
        datamodule.pairs,
        method.identity["seen_generators"],
        _plain(config.bootstrap),
        known_reals(datamodule),
    )
    write_json(
        folder / "robustness.json", {"views": content, "n_images": len(original), "decoded": swept.decoded}
    )
    plot_robustness(content, folder / "robustness.png")
    log.info("%-16s %-22s %-22s %s", "mAP", "seen", "unseen", "drop, unseen")
    for name, entry in content.items():
        told = [entry["map_seen"], entry["map_unseen"], entry["map_unseen"]["drop"]]
        log.info("%-16s %-22s %-22s %s", name, *(Interval.from_dict(value).text(".3f") for value in told))
    log.info("%d images were decoded once for %d views", swept.decoded, len(views))
    return frame[frame["view"] != ORIGINAL]


def _check_unused(method: Detector, datamodule: ImageDataModule, config: DictConfig) -> str:
    """Refuse a split that the detector was made with, unless forced; say what it was used for."""
    used = used_for_fitting(method, datamodule, config.split)
    if used and not config.force:
        raise UserError(
            f"split={config.split}: this split was used for {used} this detector, so results on it flatter; take "
            "another one, or pass force=true and have it marked in every output"
        )
    if used:
        log.warning("this split was used for %s this detector: its results flatter", used)
    elif method.operating_point is None:
        log.info("the checkpoint has no operating point: no verdicts, p-values and calibrated scores")
    return used


def _tell_unscored(datamodule: ImageDataModule, split: str) -> None:
    """Say what a manifest holds besides the split: of a folder just indexed, 15 % is in the split test."""
    counts = datamodule.manifest.frame["split"].value_counts()
    others = ", ".join(f"{name} {count}" for name, count in counts.items() if name not in (split, ""))
    if others:
        log.info("scoring %d images of the split %s alone; the manifest holds others (%s): split=NAME scores one of "
                 "them, and an index with split=test has all in one", counts.get(split, 0), split, others)  # fmt: skip


def _datamodule(config: DictConfig, method: Detector) -> ImageDataModule:
    """Build the data module that looks at images as the checkpoint was trained to, unless told otherwise."""
    settings = _plain(config.data)
    for key in ("crop_size", "eval_policy"):
        if settings.get(key) is None:
            settings[key] = method.identity[key]
    # null inherits, 0 turns it off; a checkpoint from before there was matching has none.
    if (settings.get("match") or {}).get("size") is None and method.identity.get("match"):
        settings["match"] = method.identity["match"]
    datamodule = build_datamodule(settings, augment=build_augmentation({"recipe": "none"}), seed=config.seed)
    assert isinstance(datamodule, ImageDataModule)
    datamodule.prepare()
    if datamodule.pairs is None:
        datamodule.pairs = _inherited_pairs(method, datamodule)
    return datamodule


def _inherited_pairs(method: Detector, datamodule: ImageDataModule) -> Any:
    """Give the pairs that the detector was trained with, if they speak of this manifest's reals."""
    pairs = method.identity["pairs"]
    try:
        real_counterparts(datamodule.manifest.frame, pairs)
    except UserError:
        log.info("data.pairs of the checkpoint do not fit this manifest and are not used")
        return None
    return pairs


def _plain(node: Any) -> Any:
    return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
