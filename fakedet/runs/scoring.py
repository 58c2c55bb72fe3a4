"""From a detector and a split to predictions, metrics and the files that hold them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.special
from lightning.pytorch import Trainer

from fakedet.data.datamodule import ImageDataModule
from fakedet.data.quarantine import Quarantine
from fakedet.evaluation.predictions import write_predictions
from fakedet.methods.detector import Detector
from fakedet.metrics.average_precision import GeneratorAveragePrecision
from fakedet.metrics.per_generator import evaluate_frame
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
    frame["score"] = scipy.special.expit(frame["logit"].to_numpy())
    frame["trace_distance"] = rows["distance"].astype(np.float64)
    return frame


def measure(
    frame: pd.DataFrame,
    datamodule: ImageDataModule,
    seen: list[str],
    bootstrap: Mapping[str, int],
) -> dict[str, Any]:
    """Compute metrics.json's content from a predictions frame of the data module's manifest."""
    return evaluate_frame(
        frame,
        datamodule.pairs,
        seen,
        n_resamples=int(bootstrap["resamples"]),
        seed=int(bootstrap["seed"]),
        known_reals=known_reals(datamodule),
    )


def known_reals(datamodule: ImageDataModule) -> set[str]:
    """Name all reals of a manifest: pairs that speak of reals in another split are no mistake."""
    everything = datamodule.manifest.frame
    reals = everything[everything["label"] == 0]
    return (set(reals["generator"]) | set(reals["source"])) - {""}


def write_results(
    folder: Path,
    frame: pd.DataFrame,
    metrics: dict[str, Any],
    quarantine: Quarantine,
    identity: Mapping[str, Any],
    shortcut: Mapping[str, Any],
) -> None:
    """Write predictions.parquet, metrics.json and, where images were unreadable, quarantine.csv.

    Args:
        folder: of the run.
        frame: of the predictions.
        metrics: from :func:`measure`.
        quarantine: the unreadable images.
        identity: of the detector.
        shortcut: from :func:`fakedet.runs.audit.header_audit`.
    """
    write_predictions(frame, folder / "predictions.parquet", dict(identity))
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
