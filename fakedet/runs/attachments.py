"""What a predictions file carries besides numbers, so that a report needs neither model nor images."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from fakedet.data.datamodule import ImageDataModule
from fakedet.data.decode import DecodeError, decode_image
from fakedet.evaluation.confident_errors import confident_errors
from fakedet.evaluation.embedding_map import project
from fakedet.evaluation.predictions import MAP
from fakedet.methods.detector import Detector
from fakedet.metrics.operating_point import OperatingPoint

# Images in the embedding map: enough to see clusters, few enough to see points.
MAPPED = 800
# Longer side of a small picture, in pixels: a face or a texture can be told.
SIDE = 224


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
    scale = min(1.0, SIDE / max(image.shape[:2]))
    size = [max(1, round(side * scale)) for side in image.shape[1::-1]]
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    done, data = cv2.imencode(".jpg", cv2.cvtColor(small, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 85])
    return data.tobytes() if done else b""
