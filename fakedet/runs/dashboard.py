"""What a wandb dashboard shows of a run beside its curves: table, histograms, examples, embedding map."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from lightning.pytorch.loggers import Logger, WandbLogger

from fakedet.data.decode import DecodeError, read_image
from fakedet.data.manifest import Manifest

EXAMPLES_PER_GENERATOR = 4
COLUMNS: list[str | int] = [
    "generator", "seen", "n_real", "n_fake", "ap", "ap_low", "ap_high", "auc", "auc_low", "auc_high"
]  # fmt: skip


def log_dashboard(
    loggers: Sequence[Logger],
    frame: pd.DataFrame,
    metrics: dict[str, Any],
    manifest: Manifest,
    pictures: dict[str, Path],
) -> None:
    """Send the test results to wandb, where it is the logger.

    Keys: ``test/per_generator`` (table with intervals), ``test/scores_real`` and ``test/scores_fake``
    (histograms), ``test/examples`` (images with their scores), and each of ``pictures`` under its name.
    """
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.experiment.log(_panels(frame, metrics, manifest, pictures))


def finish(loggers: Sequence[Logger]) -> None:
    """Close wandb's run, so that the next one in this process is a run of its own."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.experiment.finish()


def _panels(
    frame: pd.DataFrame, metrics: dict[str, Any], manifest: Manifest, pictures: dict[str, Path]
) -> dict[str, Any]:
    import wandb

    panels: dict[str, Any] = {
        "test/per_generator": wandb.Table(columns=COLUMNS, data=list(_rows(metrics))),
        "test/examples": [
            wandb.Image(image, caption=caption) for image, caption in _examples(frame, manifest)
        ],
    }
    for name, label in (("real", 0), ("fake", 1)):
        scores = frame.loc[frame["label"] == label, "score"].tolist()
        if len(scores):
            panels[f"test/scores_{name}"] = wandb.Histogram(scores)
    for key in ("map", "map_seen", "map_unseen"):
        if metrics[key]["low"] is not None:
            panels[f"test/{key}_low"], panels[f"test/{key}_high"] = metrics[key]["low"], metrics[key]["high"]
    return panels | {name: wandb.Image(str(path)) for name, path in pictures.items()}


def _rows(metrics: dict[str, Any]) -> list[Iterable[Any]]:
    return [
        [name, entry["seen"], entry["n_real"], entry["n_fake"]]
        + [entry[kind][part] for kind in ("ap", "auc") for part in ("value", "low", "high")]
        for name, entry in metrics["per_generator"].items()
    ]


def _examples(frame: pd.DataFrame, manifest: Manifest) -> list[tuple[Any, str]]:
    """Pick the first images of every generator and collection with their scores."""
    chosen = frame.groupby(["label", "generator"], sort=True).head(EXAMPLES_PER_GENERATOR)
    examples = []
    for row in chosen.itertuples():
        try:
            image = read_image(manifest.root / str(row.path))
        except DecodeError:
            continue  # it is in the quarantine list already
        kind = "fake" if row.label else "real"
        examples.append((image, f"{row.generator} ({kind}): P(fake) = {row.score:.2f}"))
    return examples
