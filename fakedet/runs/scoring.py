"""From a detector and a split to predictions, metrics and the files that hold them."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from lightning.pytorch import Trainer

from fakedet.data.datamodule import ImageDataModule
from fakedet.data.quarantine import Quarantine
from fakedet.evaluation.predictions import write_predictions
from fakedet.methods.detector import Detector
from fakedet.metrics.average_precision import GeneratorAveragePrecision
from fakedet.metrics.decisions import decision_statistics
from fakedet.metrics.operating_point import OperatingPoint
from fakedet.metrics.per_generator import evaluate_frame
from fakedet.runs.attachments import Attached
from fakedet.runs.folder import write_json

log = logging.getLogger("fakedet")


def score(trainer: Trainer, method: Detector, datamodule: ImageDataModule, split: str) -> pd.DataFrame:
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


def measure(
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
        shortcut: from :func:`fakedet.runs.audit.header_audit`.
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
