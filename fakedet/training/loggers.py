"""The experiment logger beside the CSV file, and what wandb's dashboard shows of the test results."""

from __future__ import annotations

import logging
import netrc
import os
import secrets
from collections.abc import Iterable, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pandas as pd
from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, WandbLogger

from fakedet.config import build, target_of
from fakedet.data.datamodule import DataModule
from fakedet.data.decode import DecodeError, decode_image
from fakedet.errors import UserError
from fakedet.evaluation.plots import read_curves
from fakedet.evaluation.predictions import confident_errors
from fakedet.utils import is_main_process, provenance

log = logging.getLogger("fakedet")


def resolve_logger(config: dict[str, Any], folder: Path) -> list[Logger]:
    """Build the logger of a run's plain config and give it all of that; CSV is always written, beside any other."""
    settings: Any = config.get("logger")
    kind = target_of(settings, "logger") if settings else CSVLogger
    if kind is CSVLogger:
        return []
    # What the run's folder is called says in a sweep what was changed, and else when the run began.
    run = folder.parent if folder.name == "stage1" else folder
    name = f"{config['name']}-seed{config['seed']} {run.absolute().name}"[:128]  # wandb takes no more
    is_wandb, is_mlflow = (isinstance(kind, type) and issubclass(kind, known) for known in (WandbLogger, MLFlowLogger))
    key, run_of_mlflow = "name" if is_wandb else "run_name", folder / "mlflow_run.txt"
    if is_wandb or is_mlflow:
        settings = {**settings, key: name if settings.get(key) is None else settings[key]}
    facts = provenance([])
    told = {**config, **{key: facts[key] for key in ("git", "fakedet", "packages", "python")}}
    if is_wandb:
        # Not recursive: the config that wandb shows names classes, which are not to be built.
        settings |= {**_wandb_settings(settings, folder), "config": told, "_recursive_": False}
    elif is_mlflow and find_spec("mlflow") is None:
        raise UserError('logger=mlflow needs the package mlflow: pip install "fakedet[mlflow]"')
    elif is_mlflow and run_of_mlflow.is_file():  # a resumed run goes on in the same run of MLflow
        settings["run_id"] = run_of_mlflow.read_text(encoding="utf-8").strip()
    logger = build(settings, "logger")
    if not isinstance(logger, Logger):
        raise UserError(f"logger._target_: {settings['_target_']} made no Lightning logger")
    if is_main_process() and not is_wandb:
        logger.log_hyperparams(told)
        if is_mlflow:
            run_of_mlflow.write_text(str(logger.version), encoding="utf-8")
    return [logger]


def _wandb_settings(settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    import wandb

    if (offline := settings.get("offline")) is None:
        offline = os.environ.get("WANDB_MODE", "").lower() not in ("online", "shared") and not has_wandb_key()
    if offline:
        log.info("wandb: offline; upload later with `wandb sync %s/wandb/offline-run-*`", folder)
    # wandb's own default for reaching the server is 90 seconds; a run should not wait that long.
    told = wandb.Settings(init_timeout=20.0, silent=True, console="off")
    found = {"offline": bool(offline), "settings": told}
    # Rank zero alone talks to wandb; a file of another rank could make it find its folder occupied.
    if is_main_process():
        # The run's id is kept in its folder: a resumed run goes on in the same place on the dashboard.
        path = folder / "wandb_id.txt"
        if not path.is_file():
            path.write_text(secrets.token_hex(4), encoding="utf-8")
        found |= {"id": path.read_text(encoding="utf-8").strip(), "resume": "allow"}
    return found


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


def log_summary(loggers: Sequence[Logger], folder: Path, kept_epoch: int) -> None:
    """Send the values of the kept epoch, which counts from 0, and of the last one, as ``best/val/map`` and so on."""
    curves = read_curves(folder)
    others = [logger for logger in loggers if not isinstance(logger, CSVLogger)]
    if not others or curves.empty:
        return
    curves = curves.filter(regex="^(epoch|train/loss|val/.*)$")
    rows = {"best": curves[curves["epoch"] == kept_epoch], "last": curves.tail(1)}
    told = {f"{kind}/{name}": float(value) for kind, row in rows.items() for name, value in
            row.assign(epoch=row["epoch"] + 1).mean().dropna().items()}  # fmt: skip
    for logger in others:
        logger.log_metrics(told)
        if isinstance(logger, WandbLogger):
            logger.experiment.summary.update(told)


def log_dashboard(
    loggers: Sequence[Logger], frame: pd.DataFrame, metrics: dict[str, Any], datamodule: DataModule,
    threshold: float | None, figures: dict[str, Path],
) -> None:  # fmt: skip
    """Send the test results to wandb and MLflow, where they are the logger.

    Keys for wandb: ``test/per_generator`` (table with intervals), ``test/scores_real`` and ``test/scores_fake``
    (histograms), ``test/examples`` (the most confident errors, above the ``threshold`` of the logit for reals and below
    it for fakes, else the images nearest to being errors), and each of ``figures`` under its name.
    """
    for logger in (logger for logger in loggers if isinstance(logger, MLFlowLogger)):
        for path in figures.values():
            logger.experiment.log_artifact(str(logger.run_id), str(path))
    dashboard = next((logger for logger in loggers if isinstance(logger, WandbLogger)), None)
    if dashboard is None:
        return
    import wandb

    columns: Any = ["generator", "seen", "n_real", "n_fake", "ap", "ap_low", "ap_high", "auc", "auc_low", "auc_high"]
    rows: list[Iterable[Any]] = [
        [name, entry["seen"], entry["n_real"], entry["n_fake"]]
        + [entry[kind][part] for kind in ("ap", "auc") for part in ("value", "low", "high")]
        for name, entry in metrics["per_generator"].items()
    ]
    panels: dict[str, Any] = {"test/per_generator": wandb.Table(columns=columns, data=rows),
                              "test/examples": _examples(frame, datamodule, threshold)}  # fmt: skip
    for name, label in (("real", 0), ("fake", 1)):
        if scores := frame.loc[frame["label"] == label, "score"].tolist():
            panels[f"test/scores_{name}"] = wandb.Histogram(scores)
    for key in ("map", "map_seen", "map_unseen"):
        if metrics[key]["low"] is not None:
            panels[f"test/{key}_low"], panels[f"test/{key}_high"] = metrics[key]["low"], metrics[key]["high"]
    dashboard.experiment.log(panels | {name: wandb.Image(str(path)) for name, path in figures.items()})


def _examples(frame: pd.DataFrame, datamodule: DataModule, threshold: float | None) -> list[Any]:
    import wandb

    worst = pd.concat(confident_errors(frame, threshold, 8))
    if worst.empty:
        worst = pd.concat(confident_errors(frame, None, 8))
    examples = []
    for number, label, generator, score, logit in worst[["id", "label", "generator", "score", "logit"]].values.tolist():
        told = f"{generator} ({'fake' if label else 'real'}): P(fake) = {score:.2f}"
        if threshold is not None and (logit > threshold) != bool(label):
            told += f", taken for {'real' if label else 'fake'}"
        with suppress(DecodeError):  # it is in the quarantine list already
            examples.append(wandb.Image(decode_image(datamodule.read_bytes(number)), caption=told))
    return examples
