"""The figures of one run: curves, scores, embedding map."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from lightning.pytorch import Trainer

from fakedet.data.datamodule import ImageDataModule
from fakedet.evaluation.plots import plot_curves, plot_embedding, plot_scores
from fakedet.methods.detector import Detector
from fakedet.runs.curves import read_curves
from fakedet.runs.dashboard import log_dashboard

# Images in the embedding map: enough to see clusters, few enough to see points.
MAPPED = 800


def write_figures(
    folder: Path,
    trainer: Trainer,
    method: Detector,
    datamodule: ImageDataModule,
    frame: pd.DataFrame,
    metrics: dict[str, Any],
) -> None:
    """Write curves.png, scores.png and embedding.png, and send wandb's panels."""
    plot_curves({folder.name: read_curves(folder)}, folder / "curves.png")
    pictures = {
        "test/scores": plot_scores(frame, folder / "scores.png", seen=set(method.identity["seen_generators"]))
    }
    ids = frame["id"].to_numpy()
    if len(ids) > MAPPED:
        ids = ids[np.linspace(0, len(ids) - 1, MAPPED).round().astype(int)]
    embedding, rows = embed(method, datamodule, ids)
    if len(embedding) > 2:
        table = datamodule.manifest.frame.loc[rows]
        pictures["test/embedding"] = plot_embedding(
            embedding, table["label"].to_numpy(), table["generator"].tolist(),
            set(method.identity["seen_generators"]), folder / "embedding.png",
        )  # fmt: skip
    log_dashboard(trainer.loggers, frame, metrics, datamodule.manifest, pictures)


def embed(method: Detector, datamodule: ImageDataModule, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
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
