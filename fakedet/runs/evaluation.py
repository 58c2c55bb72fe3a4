"""Score a manifest with a checkpoint: what ``fakedet evaluate`` does."""

from __future__ import annotations

import logging
import math
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import pandas as pd
from omegaconf import DictConfig, OmegaConf

from fakedet import build
from fakedet.data.datamodule import ImageDataModule
from fakedet.data.degrade import ORIGINAL, View, make_views
from fakedet.data.quarantine import Quarantine
from fakedet.errors import UserError
from fakedet.evaluation.robustness_plot import plot_robustness
from fakedet.evaluation.table import text
from fakedet.methods.detector import Detector
from fakedet.methods.gather import gather_records
from fakedet.metrics.bootstrap import Interval
from fakedet.metrics.pairing import real_counterparts
from fakedet.runs import operating, robustness, scoring
from fakedet.runs.attachments import attach
from fakedet.runs.audit import header_audit
from fakedet.runs.checks import check_config
from fakedet.runs.folder import open_folder, provenance, write_config, write_json
from fakedet.runs.ranks import is_main_process
from fakedet.runs.threads import threads

log = logging.getLogger("fakedet")


def evaluate(config: DictConfig, overrides: list[str]) -> dict[str, Any] | None:
    """Score one split of a manifest and write predictions.parquet and metrics.json.

    Returns:
        metrics.json's content; None on ranks other than zero.

    Raises:
        UserError: anything wrong with checkpoint, manifest, split or folder.
    """
    facts = provenance(["fakedet", "evaluate", *overrides])
    check_config(config)
    method = build.load_detector(config.checkpoint)
    datamodule = _datamodule(config, method)
    datamodule.require(config.split)
    used = _check_unused(method, datamodule, config)
    _tell_unscored(datamodule, config.split)
    folder = Path(config.output_dir)
    if is_main_process():
        folder = open_folder(folder, config.overwrite)
        write_config(folder, config, overrides)
    lightning.seed_everything(config.seed, workers=True, verbose=False)
    trainer = build.build_trainer(
        _plain(config.trainer),
        enable_progress_bar=sys.stdout.isatty(),
        logger=False,
        enable_checkpointing=False,
    )
    views = make_views(_plain(config.robustness))
    with threads(config.threads):
        frame = scoring.score(trainer, method, datamodule, config.split)
        frame = operating.apply(operating.of(method), frame)
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
    point = operating.of(method)
    metrics = scoring.measure(
        frame, datamodule, method.identity["seen_generators"], _plain(config.bootstrap), point
    )
    metrics["data_was_used_for"] = used or None
    identity = {**method.identity, "checkpoint": str(config.checkpoint), "split": config.split,
                "data_was_used_for": used or None, "run": facts}  # fmt: skip
    shortcut = header_audit(datamodule, config.split, datamodule.pairs) if config.header_audit else {}
    attached = attach(method, datamodule, frame, point, config.pictures)
    frame = attached.frame
    if swept is not None:
        frame = pd.concat([frame, operating.apply(point, swept)], ignore_index=True)
    scoring.write_results(folder, frame, attached, metrics, quarantine, identity, shortcut)
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
    swept = robustness.sweep(method, datamodule, config.split, views)
    described = original.drop(columns=["view", "logit", "trace_distance", "score", "p_value", "verdict"])
    frame = swept.frame.merge(described, on="id", how="inner")
    content, _ = robustness.measure(
        frame,
        datamodule.pairs,
        method.identity["seen_generators"],
        _plain(config.bootstrap),
        scoring.known_reals(datamodule),
    )
    write_json(
        folder / "robustness.json", {"views": content, "n_images": len(original), "decoded": swept.decoded}
    )
    plot_robustness(content, folder / "robustness.png")
    log.info("%-16s %-22s %-22s %s", "mAP", "seen", "unseen", "drop, unseen")
    for name, entry in content.items():
        log.info("%-16s %-22s %-22s %s", name, _short(entry["map_seen"]), _short(entry["map_unseen"]),
                 _short(entry["map_unseen"]["drop"]))  # fmt: skip
    log.info("%d images were decoded once for %d views", swept.decoded, len(views))
    return frame[frame["view"] != ORIGINAL]


def _short(entry: dict[str, Any]) -> str:
    numbers = [math.nan if entry[key] is None else entry[key] for key in ("value", "low", "high")]
    return text(Interval(*numbers), ".3f")


def _check_unused(method: Detector, datamodule: ImageDataModule, config: DictConfig) -> str:
    """Refuse a split that the detector was made with, unless forced; say what it was used for."""
    used = operating.used_for_fitting(method, datamodule, config.split)
    if used and not config.force:
        raise UserError(
            f"split={config.split}: this split was used for {used} this detector, so results on it flatter; take "
            "another one, or pass force=true and have it marked in every output"
        )
    if used:
        log.warning("this split was used for %s this detector: its results flatter", used)
    elif operating.of(method) is None:
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
    datamodule = build.build_datamodule(
        settings, augment=build.build_augmentation({"recipe": "none"}), seed=config.seed
    )
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
