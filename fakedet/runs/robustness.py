"""Score every degraded view of a split, and measure what each costs."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch

from fakedet.data.datamodule import ImageDataModule
from fakedet.data.degrade import ORIGINAL, View
from fakedet.data.loader import make_loader
from fakedet.data.robust_dataset import RobustDataset
from fakedet.data.sampler import EvaluationSampler
from fakedet.methods.detector import Detector
from fakedet.metrics.bootstrap_table import BootstrapTable, bootstrap_statistics
from fakedet.runs.bar import bar

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


def sweep(method: Detector, datamodule: ImageDataModule, split: str, views: list[View]) -> Swept:
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


def measure(
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
