"""The figures of one run: curves, scores, embedding map."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
from lightning.pytorch import Trainer

from fakedet.data.datamodule import ImageDataModule
from fakedet.evaluation.embedding_map import plot_map
from fakedet.evaluation.plots import plot_curves, plot_scores
from fakedet.evaluation.predictions import MAP
from fakedet.methods.detector import Detector
from fakedet.runs.attachments import Attached
from fakedet.runs.curves import read_curves
from fakedet.runs.dashboard import log_dashboard


def write_figures(
    folder: Path,
    trainer: Trainer,
    method: Detector,
    datamodule: ImageDataModule,
    attached: Attached,
    metrics: dict[str, Any],
) -> None:
    """Write curves.png, scores.png and embedding.png, and send wandb's panels."""
    frame = attached.frame
    plot_curves({folder.name: read_curves(folder)}, folder / "curves.png")
    pictures = {
        "test/scores": plot_scores(frame, folder / "scores.png", seen=set(method.identity["seen_generators"]))
    }
    if attached.share:
        pictures["test/embedding"] = draw_map(
            attached.frame, attached.share, set(method.identity["seen_generators"]), folder / "embedding.png"
        )
    log_dashboard(trainer.loggers, frame, metrics, datamodule.manifest, pictures)


def draw_map(frame: pd.DataFrame, share: list[float], seen: set[str], path: Path) -> Path:
    """Draw the embedding map of a predictions frame; images without a place are not on it."""
    mapped = frame[frame[MAP].notna().all(axis=1)]
    places = mapped[MAP].to_numpy(dtype=float)
    return plot_map(places, share, mapped["label"].to_numpy(), mapped["generator"].tolist(), seen, path)
