"""`fakedet evaluate`: score one split of a manifest with a checkpoint, on degraded views too if asked for."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import numpy as np
import pandas as pd
from lightning.pytorch import Trainer
from omegaconf import DictConfig

from fakedet.audit.shortcuts import header_audit
from fakedet.build import build_augmentation, build_datamodule, build_trainer
from fakedet.config import check_config
from fakedet.data.datamodule import DataModule
from fakedet.data.dataset import RobustDataset, make_loader
from fakedet.data.degrade import ORIGINAL, View, make_views
from fakedet.data.manifest import Quarantine
from fakedet.data.sampler import EvaluationSampler
from fakedet.data.transforms import is_whole
from fakedet.errors import UserError
from fakedet.evaluation import score
from fakedet.evaluation.plots import plot_robustness
from fakedet.evaluation.predictions import CONTENT, MAP, called_fake
from fakedet.evaluation.scored import count_scoring
from fakedet.methods.base import Detector, gather_records
from fakedet.metrics.bootstrap import Interval, percentile_interval
from fakedet.metrics.decisions import accuracies
from fakedet.metrics.pairing import real_counterparts
from fakedet.metrics.per_generator import bootstrap_statistics
from fakedet.published import open_method
from fakedet.utils import is_main_process, open_folder, plain, provenance, threads, write_config, write_json

log = logging.getLogger("fakedet")

# Columns of a predictions frame that belong to a view, not to the image.
SCORED = ("view", "logit", "trace_distance", "score", "p_value", "verdict", CONTENT, *MAP)


def score_views(
    trainer: Trainer, method: Detector, datamodule: DataModule, split: str, views: list[View]
) -> pd.DataFrame:
    """Score all views of a split; each image is decoded once for all of them, or, where it is seen whole, for each.

    Returns:
        Columns id, view, logit, trace_distance: a row per image and view, in manifest order; the rows of all ranks.
    """
    ids, whole = datamodule.manifest.rows(split).index.to_numpy(), is_whole(datamodule.eval_policy)
    own: list[pd.DataFrame] = []
    for part in [[view] for view in views] if whole else [views]:
        dataset = RobustDataset(datamodule.image_source, part, datamodule.eval_policy, datamodule.crop_size)
        images = 1 if whole else max(1, 256 // (len(part) * dataset.crops))  # at most 256 crops at a time
        sampler = EvaluationSampler(ids, images, trainer.global_rank, trainer.world_size)
        loader = make_loader(dataset, sampler, datamodule.num_workers, datamodule.seed)
        columns = ("id", "view", "logit", "trace_distance")
        found = pd.DataFrame(score.predict(trainer, method, loader, columns, f"{len(part)} views"))
        names = np.asarray([view.name for view in part], dtype=object)
        own.append(found.assign(view=names[found["view"].astype(int)]))
    everywhere: list[pd.DataFrame] = gather_records(own)
    return pd.concat(everywhere, ignore_index=True).sort_values("id", kind="stable", ignore_index=True)


def measure_robustness(
    frame: pd.DataFrame, pairs: Any, seen: list[str], bootstrap: Mapping[str, int], known_reals: set[str]
) -> dict[str, Any]:
    """Measure mAP and accuracies of every view and their paired drop from the original, for robustness.json.

    Args:
        frame: the manifest's columns, view, logit and verdict, for all views.
        pairs, known_reals: see :func:`fakedet.metrics.pairing.real_counterparts`.
        seen: generators that were trained on.
        bootstrap: resamples and seed.

    Returns:
        View → {"map": {"value", "low", "high", "drop": ...}, ...}; "acc_real" and "acc_fake" are the shares of all
        reals and of all fakes that are classified correctly.
    """
    original = frame[frame["view"] == ORIGINAL].reset_index(drop=True).drop(columns=["view", CONTENT], errors="ignore")
    views = {str(name): rows.set_index("id").loc[original["id"]] for name, rows in frame.groupby("view", sort=False)}
    logits = {name: rows["logit"].to_numpy() for name, rows in views.items()}
    resamples, seed = int(bootstrap["resamples"]), int(bootstrap["seed"])
    table = bootstrap_statistics(original, logits, pairs, seen, resamples, seed, known_reals)
    alone = accuracies(original, {name: called_fake(rows) for name, rows in views.items()}, resamples, seed)

    def with_drop(found: Interval, drop: Interval) -> dict[str, Any]:
        return {**found.to_dict(), "drop": drop.to_dict()}

    content: dict[str, Any] = {}
    for name in logits:
        content[name] = {
            place: with_drop(table.interval(name, "ap", place), table.difference(ORIGINAL, name, "ap", place))
            for place in ("map", "map_seen", "map_unseen", *table.generators)
        }
        for key, kind in (("reals", "acc_real"), ("fakes", "acc_fake")):
            if row := alone.get(key):
                value = row.points[name] - row.points[ORIGINAL]
                drop = percentile_interval(value, row.samples[name] - row.samples[ORIGINAL])
                content[name][kind] = with_drop(row.interval(name), drop)
    return content


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
    method = open_method(config)
    datamodule = _datamodule(plain(config.data), config.seed, method)
    datamodule.require(split)
    if datamodule.pairs is None and method.info["pairs"]:
        datamodule.pairs = _training_pairs(method.info["pairs"], datamodule, split)
    used = score.used_for_fitting(method, datamodule, split)
    _check_split(used, method, datamodule, split, config.force)
    folder = Path(config.output_dir)
    if is_main_process():
        folder = open_folder(folder, config.overwrite)
        write_config(folder, config, overrides)
    lightning.seed_everything(config.seed, workers=True, verbose=False)
    shown = sys.stdout.isatty()
    trainer = build_trainer(plain(config.trainer), enable_progress_bar=shown, logger=False, enable_checkpointing=False)
    views = make_views(plain(config.robustness))
    point, seen = method.operating_point, method.info["seen_generators"]
    with threads(config.threads):
        frame = score.apply_operating_point(point, score.score_split(trainer, method, datamodule, split))
        records = gather_records(method.quarantined)
        degraded = score_views(trainer, method, datamodule, split, views) if len(views) > 1 else None
        frame, share = score.map_embeddings(trainer, method, datamodule, frame)
        if not trainer.is_global_zero:
            return None
        if frame.empty:
            raise _none_readable(Quarantine.from_records(records, datamodule.manifest, (split,)), split, folder)
        counts = count_scoring(method, datamodule, frame, folder)
        metrics = score.measure_predictions(frame, datamodule, method, bootstrap)
        pictures = score.small_pictures(datamodule, frame, point, config.pictures)
        if degraded is not None:
            described = frame[[name for name in frame if name == "id" or name not in SCORED]]
            degraded = score.apply_operating_point(point, degraded.merge(described, on="id", how="inner"))
            _write_robustness(folder, degraded, datamodule, seen, bootstrap)
            frame = pd.concat([frame, degraded[degraded["view"] != ORIGINAL]], ignore_index=True)
    metrics["data_was_used_for"] = used or None
    info = {
        **score.info_of(method, datamodule, metrics), "split": split,
        "checkpoint": str(config.weights if config.get("detector") else config.checkpoint),
        "data_was_used_for": used or None, "run": facts, "map_share": share, "test_scored": counts,
        "shortcut": header_audit(datamodule, split) if config.header_audit else {},
    }  # fmt: skip
    quarantine = Quarantine.from_records(records, datamodule.manifest, (split,))
    score.write_results(folder, frame, metrics, quarantine, info, pictures)
    write_json(folder / "run.json", {**facts, "manifest_sha256": datamodule.manifest.sha256})
    quarantine.check(datamodule.max_quarantine)
    return metrics


def _none_readable(lost: Quarantine, split: str, folder: Path) -> UserError:
    """Write down why no image could be read, and return the error that says so."""
    lost.write(folder / "quarantine.csv")
    first = lost.frame.iloc[0]
    return UserError(f"none of the images of split={split} could be read; the first, {first['path']}: "
                     f"{first['reason']}. data.root=FOLDER says where they are; all are in {folder}/quarantine.csv"
                     )  # fmt: skip


def _write_robustness(
    folder: Path, frame: pd.DataFrame, datamodule: DataModule, seen: list[str], bootstrap: Mapping[str, int]
) -> None:
    content = measure_robustness(frame, datamodule.pairs, seen, bootstrap, score.known_reals(datamodule))
    images = int(frame["id"].nunique())
    write_json(folder / "robustness.json", {"views": content, "n_images": images, "decoded": images})
    plot_robustness(content, folder / "robustness.png")
    words = {"map_seen": "mAP, seen", "map_unseen": "mAP, unseen"}
    if content[ORIGINAL]["map"]["value"] is None:
        words = {"acc_real": "reals called real", "acc_fake": "fakes called fake"}
    shown = {key: said for key, said in words.items() if key in content[ORIGINAL]}
    last = list(shown)[-1]
    log.info("%-16s" + " %-22s" * (len(shown) + 1), "view", *shown.values(), f"drop, {shown[last]}")
    for name, entry in content.items():
        told = [*(entry[key] for key in shown), entry[last]["drop"]]
        log.info("%-16s" + " %-22s" * len(told), name, *(Interval.from_dict(value).text(".3f") for value in told))
    log.info("%d images were decoded once for %d views", images, len(content))


def _check_split(used: str, method: Detector, datamodule: DataModule, split: str, force: bool) -> None:
    """Refuse a split that the detector was trained or fitted on, unless forced; log which split is scored."""
    if used and not force:
        raise UserError(f"split={split}: this split was used for {used} this detector, so results on it flatter; take "
                        "another one, or pass force=true and have it marked in every output")  # fmt: skip
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
    """Build the data module; crop, policy and matching are the checkpoint's unless the config names others."""
    for key in ("crop_size", "eval_policy"):
        if settings.get(key) is None:
            settings[key] = method.info[key]
    # null inherits, 0 turns it off; a checkpoint from before there was matching has none.
    if (settings.get("match") or {}).get("size") is None and method.info.get("match"):
        settings["match"] = method.info["match"]
    datamodule = build_datamodule(settings, augment=build_augmentation({"recipe": "none"}), seed=seed)
    datamodule.prepare()
    return datamodule


def _training_pairs(pairs: Mapping[str, Any], datamodule: DataModule, split: str) -> Mapping[str, Any] | None:
    """Choose the pairs of the training that match the generators of a split, and say so; None where none does."""
    rows = datamodule.manifest.rows(split)
    fakes = rows.loc[rows["label"] == 1, "generator"].unique().tolist()
    kept = {key: value for key, value in pairs.items() if any(fnmatchcase(name, key) for name in fakes)}
    try:
        real_counterparts(rows, kept, score.known_reals(datamodule))
    except UserError as error:
        log.warning("the training's data.pairs are not used, because they do not fit these data: %s", error)
        return None
    if kept:
        log.info("the training's data.pairs are used (%s); data.pairs={} compares by name and source instead", kept)
    elif fakes:
        log.warning("the training's data.pairs match no generator of these data and are not used (%s)", pairs)
    return kept or None
