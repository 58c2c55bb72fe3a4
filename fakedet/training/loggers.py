"""training/loggers"""

from __future__ import annotations

import logging
import netrc
import os
import secrets
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from lightning.pytorch.loggers import Logger, WandbLogger

from fakedet.build import build_logger
from fakedet.data.decode import DecodeError, read_image
from fakedet.data.manifest import Manifest
from fakedet.utils import is_main_process

log = logging.getLogger("fakedet")

# wandb's own default for reaching the server is a minute and a half; a run should not stand still that long.
INIT_SECONDS = 20.0


def resolve_logger(config: dict[str, Any], folder: Path) -> list[Logger]:
    """Build the chosen logger; CSV is always written beside it, so ``logger=csv`` adds nothing.

    Args:
        config: the plain config of the run, which wandb shows.
        folder: the run's folder.
    """
    settings = config.get("logger")
    if settings is None or str(settings["_target_"]).endswith(".CSVLogger"):
        return []
    if str(settings["_target_"]).endswith(".WandbLogger"):
        settings = _wandb_settings(settings, config, folder)
    logger = build_logger(settings)
    assert isinstance(logger, Logger)
    return [logger]


def _wandb_settings(settings: dict[str, Any], config: dict[str, Any], folder: Path) -> dict[str, Any]:
    import wandb

    offline = settings.get("offline")
    if offline is None:
        offline = os.environ.get("WANDB_MODE", "").lower() not in ("online", "shared") and not _has_key()
    if offline:
        log.info("wandb: offline; upload later with `wandb sync %s/wandb/offline-run-*`", folder)
    extra: dict[str, Any] = {
        "settings": wandb.Settings(init_timeout=INIT_SECONDS, silent=True, console="off"),
        "config": config,
    }
    return {**settings, "offline": bool(offline), **_same_run(folder), **extra}


def _same_run(folder: Path) -> dict[str, Any]:
    """Give the run's id, kept in its folder: a resumed run goes on in the same place on the dashboard.

    Only rank zero speaks to wandb. Another one could be here before rank zero has looked whether the folder is empty.
    """
    if not is_main_process():
        return {}
    path = folder / "wandb_id.txt"
    if not path.is_file():
        path.write_text(secrets.token_hex(4), encoding="utf-8")
    return {"id": path.read_text(encoding="utf-8").strip(), "resume": "allow"}


def _has_key() -> bool:
    """Say whether wandb would find a key, without asking it: it would ask the user."""
    if os.environ.get("WANDB_MODE", "").lower() in ("offline", "disabled", "dryrun"):
        return False
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc().authenticators("api.wandb.ai") is not None
    except (OSError, netrc.NetrcParseError):
        return False


EXAMPLES_PER_GENERATOR = 4
GENERATOR_COLUMNS: list[str | int] = [
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


def finish_loggers(loggers: Sequence[Logger]) -> None:
    """Close wandb's run, so that the next one in this process is a run of its own."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.experiment.finish()


def _panels(
    frame: pd.DataFrame, metrics: dict[str, Any], manifest: Manifest, pictures: dict[str, Path]
) -> dict[str, Any]:
    import wandb

    panels: dict[str, Any] = {
        "test/per_generator": wandb.Table(columns=GENERATOR_COLUMNS, data=list(_generator_rows(metrics))),
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


def _generator_rows(metrics: dict[str, Any]) -> list[Iterable[Any]]:
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
