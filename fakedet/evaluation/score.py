"""evaluation/score"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import torch
from lightning.pytorch import Trainer
from numpy.typing import NDArray
from omegaconf import DictConfig

from fakedet.checkpoint import read_checkpoint, write_whole
from fakedet.data.datamodule import ImageDataModule
from fakedet.data.decode import DecodeError, decode_image
from fakedet.data.manifest import Quarantine, hold_out
from fakedet.errors import UserError
from fakedet.evaluation.plots import project
from fakedet.evaluation.predictions import MAP, confident_errors, write_predictions
from fakedet.methods.base import Detector
from fakedet.metrics.average_precision import GeneratorAveragePrecision
from fakedet.metrics.calibration import KINDS
from fakedet.metrics.decisions import OperatingPoint, decision_statistics, fit_operating_point
from fakedet.metrics.per_generator import evaluate_frame
from fakedet.utils import write_json

log = logging.getLogger("fakedet")


def score_split(trainer: Trainer, method: Detector, datamodule: ImageDataModule, split: str) -> pd.DataFrame:
    """Score every image of a split once, on however many ranks.

    Returns:
        The predictions frame: one row an image, in the order of the manifest.
    """
    datamodule.test_split = split
    trainer.test(method, datamodule=datamodule, verbose=False)
    metric = method.test_metric
    assert isinstance(metric, GeneratorAveragePrecision)
    rows = {key: value.cpu().numpy() for key, value in metric.rows().items()}
    frame = datamodule.manifest.frame.loc[rows["id"]].reset_index(names="id")
    frame["view"] = "original"
    frame["crop"] = f"{datamodule.eval_policy}{datamodule.crop_size}"
    frame["logit"] = rows["logit"].astype(np.float64)
    frame["trace_distance"] = rows["distance"].astype(np.float64)
    return frame


def measure_predictions(
    frame: pd.DataFrame,
    datamodule: ImageDataModule,
    seen: list[str],
    bootstrap: Mapping[str, int],
    point: OperatingPoint | None = None,
) -> dict[str, Any]:
    """Compute metrics.json's content from a predictions frame of the data module's manifest.

    Args:
        frame: of :func:`score`, with the scores of the operating point.
        datamodule: that gave it.
        seen: generators that were trained on.
        bootstrap: resamples and seed.
        point: the detector's operating point; without one, no accuracies and no calibration.
    """
    metrics = evaluate_frame(
        frame,
        datamodule.pairs,
        seen,
        n_resamples=int(bootstrap["resamples"]),
        seed=int(bootstrap["seed"]),
        known_reals=known_reals(datamodule),
    )
    calibrated = point is not None and point.calibration.kind != "none"
    decisions = decision_statistics(
        frame,
        frame["score"].to_numpy() if calibrated else None,
        point.threshold if point is not None else None,
        datamodule.pairs,
        int(bootstrap["resamples"]),
        int(bootstrap["seed"]),
        known_reals(datamodule),
    )
    for name, entry in metrics["per_generator"].items():
        entry |= {key: interval.to_dict() for key, interval in decisions[name].items()}
    return {**metrics, "operating_point": _described(point)}


def _described(point: OperatingPoint | None) -> dict[str, Any] | None:
    """Say how the operating point was fitted; the scores of its reference stay in the checkpoint."""
    if point is None:
        return None
    return {
        "rate": point.rate, "threshold": point.threshold if math.isfinite(point.threshold) else None,
        "calibration": point.calibration.kind, "n_real": point.n_real, "n_fake": point.n_fake,
        "manifest_sha256": point.manifest, "split": point.split, "notes": list(point.notes),
    }  # fmt: skip


def known_reals(datamodule: ImageDataModule) -> set[str]:
    """Name all reals of a manifest: pairs that speak of reals in another split are no mistake."""
    everything = datamodule.manifest.frame
    reals = everything[everything["label"] == 0]
    return (set(reals["generator"]) | set(reals["source"])) - {""}


def write_results(
    folder: Path,
    frame: pd.DataFrame,
    attached: Attached,
    metrics: dict[str, Any],
    quarantine: Quarantine,
    identity: Mapping[str, Any],
    shortcut: Mapping[str, Any],
) -> None:
    """Write predictions.parquet, metrics.json and, where images were unreadable, quarantine.csv.

    Args:
        folder: of the run.
        frame: of the predictions, all views.
        attached: its map and pictures.
        metrics: from :func:`measure`.
        quarantine: the unreadable images.
        identity: of the detector.
        shortcut: from :func:`fakedet.audit.audit.header_audit`.
    """
    told = {**identity, "shortcut": dict(shortcut), "map_share": attached.share}
    write_predictions(frame, folder / "predictions.parquet", told, attached.pictures)
    lost = quarantine.lost(str(identity["split"]), frame)
    for name in lost:
        log.warning("none of the images of '%s' could be read: it is in no table, see quarantine.csv", name)
    if len(quarantine):
        log.warning("%s; see quarantine.csv", quarantine.describe())
    found = {"shortcut": dict(shortcut), "lost_generators": lost, "quarantined": quarantine.summary()}
    write_json(folder / "metrics.json", {**metrics, **found, **_short(identity)})
    quarantine.write(folder / "quarantine.csv")


def _short(identity: Mapping[str, Any]) -> dict[str, Any]:
    return {key: identity[key] for key in ("checkpoint", "split", "seen_generators") if key in identity}


TRAINING_REALS = 512
"""Reals of the training split that centre and spread are taken from."""


def fit_on_validation(
    trainer: Trainer, method: Detector, datamodule: ImageDataModule, settings: DictConfig, checkpoint: Path
) -> None:
    """Fit the operating point on the validation split and write it into the checkpoint and the method.

    Args:
        trainer: that trained the method.
        method: with the chosen weights.
        datamodule: that it was trained on.
        settings: the ``operating_point`` node of the config.
        checkpoint: of the chosen weights; rewritten whole.
    """
    frame = score_split(trainer, method, datamodule, "val")
    training = _score_training_reals(method, datamodule)
    if not trainer.is_global_zero:
        return
    if datamodule.real_only:  # stage 1 has seen no fake, and no fake shall choose anything of it
        frame = frame[frame["label"] == 0]
    if not (frame["label"] == 0).any():
        log.warning("no operating point: none of the validation reals could be read")
        return
    point = fit_operating_point(
        frame["logit"], frame["trace_distance"], frame["label"], *training, settings.rate, settings.calibration,
        datamodule.manifest.sha256, "val",
    )  # fmt: skip
    for note in point.notes:
        log.info("operating point: %s", note)
    method.identity["operating_point"] = point.to_dict()
    content = read_checkpoint(checkpoint)
    content["fakedet"] = method.identity
    write_whole(content, checkpoint)


def check_operating_point(settings: DictConfig) -> None:
    """Refuse settings that cannot be fitted, before training.

    Raises:
        UserError: the rate is no share, or there is no such calibration.
    """
    if not 0 < settings.rate < 1:
        raise UserError(
            f"operating_point.rate={settings.rate}: a share of reals between 0 and 1, such as 0.05"
        )
    if settings.calibration not in KINDS:
        raise UserError(f"operating_point.calibration={settings.calibration}: valid: {', '.join(KINDS)}")


def used_for_fitting(method: Detector, datamodule: ImageDataModule, split: str) -> str:
    """Say what images of a split were used for when the detector was made: "training", "fitting" or "" for nothing.

    Each row is asked for, not the split's name: which rows a name stands for depends on what is held out.
    """
    sha256 = datamodule.manifest.sha256
    if method.identity.get("manifest_sha256") != sha256:
        return ""
    rows = datamodule.manifest.rows(split).index
    assert datamodule.as_read is not None
    made_with = (
        hold_out(datamodule.as_read, *method.identity.get("held_out", ((), "test"))).frame["split"].loc[rows]
    )
    point = method.operating_point
    fitted = () if point is None else (point.split,)
    if (made_with.isin(("train", "val")) & ~made_with.isin(fitted)).any():
        return "training"
    return "fitting" if made_with.isin(fitted).any() else ""


def apply_operating_point(point: OperatingPoint | None, frame: pd.DataFrame) -> pd.DataFrame:
    """Add score, p_value and verdict to a frame of logits and trace distances."""
    logits = frame["logit"].to_numpy(dtype=np.float64)
    if point is None:
        return frame.assign(score=_sigmoid(logits), p_value=np.nan, verdict="")
    p_values = np.full(len(frame), np.nan)
    if point.reference is not None:
        p_values = point.reference.p_values(logits, frame["trace_distance"].to_numpy(dtype=np.float64))
    verdict = np.where(logits > point.threshold, "fake", "real")
    return frame.assign(score=point.calibration(logits), p_value=p_values, verdict=verdict)


def _sigmoid(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    return 1 / (1 + np.exp(-np.clip(logits, -700, 700)))


def _score_training_reals(method: Detector, datamodule: ImageDataModule) -> tuple[Any, Any]:
    """Score some reals of the training split as evaluation sees them; every rank scores the same."""
    logits, distances = [], []
    method.eval()
    with torch.no_grad():
        for batch in datamodule.bank_dataloader(TRAINING_REALS):
            if len(batch["id"]):
                scores = method.score_views(batch["image"].to(method.device).float().div(255.0))
                logits.append(scores.logit.cpu().double().numpy())
                distances.append(scores.trace_distance.cpu().double().numpy())
    if not logits:
        return np.zeros(0), np.zeros(0)
    return np.concatenate(logits), np.concatenate(distances)


# Images in the embedding map: enough to see clusters, few enough to see points.
MAPPED = 800
# Longer side of a small picture, in pixels: a face or a texture can be told.
SMALL_SIDE = 224


@dataclass(frozen=True)
class Attached:
    """The embedding map and the small pictures."""

    frame: pd.DataFrame
    """The predictions with their places on the map."""
    share: list[float] = field(default_factory=list)
    """Of variance, on the map's two components."""
    pictures: dict[str, bytes] = field(default_factory=dict)
    """Path of an image → JPEG."""


def attach(
    method: Detector,
    datamodule: ImageDataModule,
    frame: pd.DataFrame,
    point: OperatingPoint | None,
    pictures: int,
) -> Attached:
    """Embed some images of a predictions frame, and make small pictures of its most confident errors.

    Args:
        method: the detector.
        datamodule: that the frame was scored with.
        frame: one row an image, one view.
        point: the detector's operating point; None: the most wrong images are shown whatever their logit.
        pictures: at most so many of each kind of error; 0: none.
    """
    ids = frame["id"].to_numpy()
    if len(ids) > MAPPED:
        ids = ids[np.linspace(0, len(ids) - 1, MAPPED).round().astype(int)]
    embedding, rows = embed(method, datamodule, ids)
    share: list[float] = []
    if len(embedding) > 2:
        places, shares = project(embedding)
        share = [float(value) for value in shares]
        table = pd.DataFrame(places, index=rows, columns=MAP).reindex(frame["id"])
        frame = frame.assign(**{name: table[name].to_numpy() for name in MAP})
    threshold = point.threshold if point is not None and math.isfinite(point.threshold) else None
    worst = pd.concat(confident_errors(frame, threshold, pictures))
    chosen = zip(worst["path"].tolist(), worst["id"].tolist(), strict=True)
    small = {str(path): _small(datamodule, row) for path, row in chosen}
    return Attached(frame, share, {path: jpeg for path, jpeg in small.items() if jpeg})


def embed(
    method: Detector, datamodule: ImageDataModule, ids: NDArray[np.int64]
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Embed some images of the manifest; returns (N, D) float64 and the ids of the rows that could be read."""
    embeddings, rows = [], []
    method.eval()
    with torch.no_grad():
        for batch in datamodule.subset_dataloader(ids):
            if len(batch["id"]):
                images = batch["image"].to(method.device).float().div(255.0)
                embeddings.append(method.score_views(images).embedding.cpu().double().numpy())
                rows.append(batch["id"].numpy())
    if not rows:
        return np.zeros((0, 1)), np.zeros(0, dtype=np.int64)
    return np.concatenate(embeddings), np.concatenate(rows)


def _small(datamodule: ImageDataModule, row: int) -> bytes:
    """Give a small JPEG of an image as evaluation saw it; b"" if it cannot be read any more."""
    try:
        image = decode_image(datamodule.read_bytes(row))
    except DecodeError:
        return b""
    scale = min(1.0, SMALL_SIDE / max(image.shape[:2]))
    size = [max(1, round(side * scale)) for side in image.shape[1::-1]]
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    done, data = cv2.imencode(".jpg", cv2.cvtColor(small, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 85])
    return data.tobytes() if done else b""
