"""The experiment logger beside the CSV file, and what wandb's dashboard shows of the test results."""

from __future__ import annotations

import logging
import netrc
import os
import secrets
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd
from lightning.pytorch.loggers import CSVLogger, Logger, WandbLogger

from fakedet.config import build, target_of
from fakedet.data.decode import DecodeError, read_image
from fakedet.data.manifest import Manifest
from fakedet.errors import UserError
from fakedet.utils import is_main_process

log = logging.getLogger("fakedet")


def resolve_logger(config: dict[str, Any], folder: Path) -> list[Logger]:
    """Build the logger of a run's plain config, which wandb shows; CSV is always written and needs no other logger."""
    settings: Any = config.get("logger")
    kind = target_of(settings, "logger") if settings else CSVLogger
    if kind is CSVLogger:
        return []
    if isinstance(kind, type) and issubclass(kind, WandbLogger):
        settings = _wandb_settings(settings, config, folder)
    logger = build(settings, "logger")
    if not isinstance(logger, Logger):
        raise UserError(f"logger._target_: {settings['_target_']} made no Lightning logger")
    return [logger]


def _wandb_settings(settings: dict[str, Any], config: dict[str, Any], folder: Path) -> dict[str, Any]:
    import wandb

    if (offline := settings.get("offline")) is None:
        offline = os.environ.get("WANDB_MODE", "").lower() not in ("online", "shared") and not has_wandb_key()
    if offline:
        log.info("wandb: offline; upload later with `wandb sync %s/wandb/offline-run-*`", folder)
    # wandb's own default for reaching the server is 90 seconds; a run should not wait that long.
    told = wandb.Settings(init_timeout=20.0, silent=True, console="off")
    # Not recursive: the config that wandb shows names classes, which are not to be built.
    settings = {**settings, "offline": bool(offline), "settings": told, "config": config, "_recursive_": False}
    # Rank zero alone talks to wandb; a file of another rank could make it find its folder occupied.
    if is_main_process():
        # The run's id is kept in its folder: a resumed run goes on in the same place on the dashboard.
        path = folder / "wandb_id.txt"
        if not path.is_file():
            path.write_text(secrets.token_hex(4), encoding="utf-8")
        settings |= {"id": path.read_text(encoding="utf-8").strip(), "resume": "allow"}
    return settings


def has_wandb_key() -> bool:
    """Return whether wandb would find a key; asking wandb itself would make it ask the user."""
    if os.environ.get("WANDB_MODE", "").lower() in ("offline", "disabled", "dryrun"):
        return False
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc().authenticators("api.wandb.ai") is not None
    except (OSError, netrc.NetrcParseError):
        return False


def finish_loggers(loggers: Sequence[Logger]) -> None:
    """Close wandb's run, so that the next training in this process is a run of its own."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.experiment.finish()


def log_dashboard(
    loggers: Sequence[Logger], frame: pd.DataFrame, metrics: dict[str, Any], manifest: Manifest,
    figures: dict[str, Path],
) -> None:  # fmt: skip
    """Send the test results to wandb, where it is the logger.

    Keys: ``test/per_generator`` (table with intervals), ``test/scores_real`` and ``test/scores_fake``
    (histograms), ``test/examples`` (images with their scores), and each of ``figures`` under its name.
    """
    dashboards = [logger for logger in loggers if isinstance(logger, WandbLogger)]
    if not dashboards:
        return
    import wandb

    columns: Any = ["generator", "seen", "n_real", "n_fake", "ap", "ap_low", "ap_high", "auc", "auc_low", "auc_high"]
    rows: list[Iterable[Any]] = [
        [name, entry["seen"], entry["n_real"], entry["n_fake"]]
        + [entry[kind][part] for kind in ("ap", "auc") for part in ("value", "low", "high")]
        for name, entry in metrics["per_generator"].items()
    ]
    examples = []
    for row in frame.groupby(["label", "generator"], sort=True).head(4).itertuples():
        with suppress(DecodeError):  # it is in the quarantine list already
            image = read_image(manifest.root / str(row.path))
            kind = "fake" if row.label else "real"
            examples.append(wandb.Image(image, caption=f"{row.generator} ({kind}): P(fake) = {row.score:.2f}"))
    table = wandb.Table(columns=columns, data=rows)
    panels: dict[str, Any] = {"test/per_generator": table, "test/examples": examples}
    for name, label in (("real", 0), ("fake", 1)):
        if scores := frame.loc[frame["label"] == label, "score"].tolist():
            panels[f"test/scores_{name}"] = wandb.Histogram(scores)
    for key in ("map", "map_seen", "map_unseen"):
        if metrics[key]["low"] is not None:
            panels[f"test/{key}_low"], panels[f"test/{key}_high"] = metrics[key]["low"], metrics[key]["high"]
    for dashboard in dashboards:
        dashboard.experiment.log(panels | {name: wandb.Image(str(path)) for name, path in figures.items()})
