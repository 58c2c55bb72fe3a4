"""Training and evaluation from Python: what `fakedet train` and `fakedet evaluate` do, with the same configs."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import hydra
import pandas as pd
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from fakedet.config import as_typed, check_command_line, expand_encoders, use_config_folder, without_hydra
from fakedet.errors import UserError
from fakedet.evaluation import evaluate as evaluation
from fakedet.evaluation.predictions import read_predictions
from fakedet.training import train as training
from fakedet.training.train import TrainedRun
from fakedet.utils import quiet_libraries, written


@dataclass(frozen=True)
class Evaluation:
    """What :func:`evaluate` found."""

    folder: Path
    """Where metrics.json and predictions.parquet lie."""
    metrics: dict[str, Any]
    """Content of metrics.json: "map", "mauc" (and "_seen", "_unseen") with intervals, "per_generator", ...; empty in
    processes other than the first, if there are several."""

    @cached_property
    def predictions(self) -> pd.DataFrame:
        """A row for each image and view: path, label, generator, logit, score, p_value, verdict, ..."""
        return read_predictions(self.folder / "predictions.parquet")[0]


def compose(verb: str, *overrides: str, **settings: Any) -> DictConfig:
    """Compose the config of a verb, checked as on the command line.

    Args:
        verb: "train", "evaluate", ...: the name of a file in conf/.
        *overrides: words as on the command line, such as "model=bce", "model/encoder=resnet18", "~logger" or
            "--config-dir=my/conf".
        **settings: the same with Python values; "__" in a name stands for a dot, as in ``trainer__max_epochs=3``.

    Raises:
        UserError: an unknown key or option, with the nearest one, or a value of the wrong type.
    """
    words = expand_encoders(as_typed(_words(overrides, settings)))
    with without_hydra():
        check_command_line(verb, words)
        folder = [word.partition("=")[2] for word in words if word.startswith("--config-dir=")]
        words = [word for word in words if not word.startswith("--")]
        words += [f"hydra.searchpath=[{written(f'file://{use_config_folder(one)}')}]" for one in folder]
        try:
            with hydra.initialize_config_module("fakedet.conf", version_base="1.3"):
                config = hydra.compose(verb, overrides=words)
            if "output_dir" in config:
                config.output_dir = os.path.abspath(config.output_dir)  # fixed here: its default holds the time
        except (HydraException, OmegaConfBaseException) as error:
            raise UserError(" ".join(str(error).split())) from error
    return config


def train(*overrides: str, config: DictConfig | None = None, **settings: Any) -> TrainedRun:
    """Train a detector, as `fakedet train` does.

    ``fakedet.train(experiment="demo", output_dir="runs/demo")`` is ``fakedet train experiment=demo
    output_dir=runs/demo``. Name ``output_dir`` if several devices are used: each starts this script.

    Args:
        *overrides: words as on the command line; see :func:`compose`.
        config: a config that :func:`compose` gave, in place of overrides and settings.
        **settings: Python values; "__" in a name stands for a dot, as in ``data__manifest="table.csv"``.

    Raises:
        UserError: anything wrong with config, data or folder.
    """
    if config is None:
        config = compose("train", *overrides, **settings)
    with warnings.catch_warnings():
        quiet_libraries()
        return training.train(config, _words(overrides, settings))


def evaluate(
    checkpoint: str | os.PathLike[str], manifest: str | os.PathLike[str] | None = None, *overrides: str, **settings: Any
) -> Evaluation:
    """Score one split of a manifest, as `fakedet evaluate` does.

    Args:
        checkpoint: a file, or the name of a detector that comes with fakedet.
        manifest: a parquet or CSV table with the columns path, label and generator; None: settings say it, as in
            ``data="demo"``.
        *overrides: words as on the command line; see :func:`compose`.
        **settings: Python values; "__" in a name stands for a dot, as in ``data__root="images"``.

    Raises:
        UserError: anything wrong with checkpoint, manifest, split or folder.
    """
    settings["checkpoint"] = checkpoint
    if manifest is not None:
        settings["data__manifest"] = manifest
    config = compose("evaluate", *overrides, **settings)
    with warnings.catch_warnings():
        quiet_libraries()
        metrics = evaluation.evaluate(config, _words(overrides, settings))
    folder = Path(config.output_dir)
    content = {} if metrics is None else json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    return Evaluation(folder, content)


def _words(overrides: tuple[str, ...], settings: Mapping[str, Any]) -> list[str]:
    if wrong := [word for word in overrides if not isinstance(word, str)]:
        raise UserError(f"an override is text, as on the command line, not a {type(wrong[0]).__name__}")
    if any(isinstance(value, pd.DataFrame) for value in settings.values()):
        raise UserError("a DataFrame cannot stand in a config; write it to a .parquet or .csv file and give its name")
    return [*overrides, *(f"{key.replace('__', '.')}={written(value)}" for key, value in settings.items())]
