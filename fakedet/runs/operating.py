"""Fit a trained detector's operating point on validation data, keep it in its checkpoint, and apply it."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from lightning.pytorch import Trainer
from numpy.typing import NDArray
from omegaconf import DictConfig

from fakedet.callbacks.atomic import write_whole
from fakedet.checkpoint import read_checkpoint
from fakedet.data.datamodule import ImageDataModule
from fakedet.data.holdout import hold_out
from fakedet.errors import UserError
from fakedet.methods.detector import Detector
from fakedet.metrics.calibration import KINDS
from fakedet.metrics.operating_point import OperatingPoint, fit_operating_point
from fakedet.runs import scoring

log = logging.getLogger("fakedet")

KEY = "operating_point"
"""Of the identity that a checkpoint holds."""
TRAINING_REALS = 512
"""Reals of the training split that centre and spread are taken from."""


def fit(
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
    frame = scoring.score(trainer, method, datamodule, "val")
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
    method.identity[KEY] = point.to_dict()
    content = read_checkpoint(checkpoint)
    content["fakedet"] = method.identity
    write_whole(content, checkpoint)


def check_settings(settings: DictConfig) -> None:
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


def of(method: Detector) -> OperatingPoint | None:
    """Give a detector's operating point, if its checkpoint has one."""
    content = method.identity.get(KEY)
    return OperatingPoint.from_dict(content) if content else None


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
    point = of(method)
    fitted = () if point is None else (point.split,)
    if (made_with.isin(("train", "val")) & ~made_with.isin(fitted)).any():
        return "training"
    return "fitting" if made_with.isin(fitted).any() else ""


def apply(point: OperatingPoint | None, frame: pd.DataFrame) -> pd.DataFrame:
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
