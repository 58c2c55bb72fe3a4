"""``fakedet resume``: go on with a run that was stopped."""

from __future__ import annotations

from omegaconf import DictConfig

from fakedet.commands import train
from fakedet.runs.resuming import config_of


def run(config: DictConfig, overrides: list[str]) -> None:
    """Train with the config that the run's folder holds, from the last resume point."""
    train.run(*config_of(config.run))
