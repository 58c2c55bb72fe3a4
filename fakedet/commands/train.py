"""``fakedet train``: config in, a run's folder out."""

from __future__ import annotations

import logging

from omegaconf import DictConfig

from fakedet.commands.wording import means_of
from fakedet.runs.ranks import is_main_process
from fakedet.runs.training import train

log = logging.getLogger("fakedet")


def run(config: DictConfig, overrides: list[str]) -> float | None:
    """Train, and return what chose the weights on the validation split: what a sweeper may optimise."""
    done = train(config, overrides)
    if not is_main_process():
        return None
    if done.metrics is not None:
        for key, means in means_of(done.metrics).items():
            log.info("test %-12s %s", key, means)
    log.info("checkpoint %s", done.checkpoint)
    log.info("run       %s", done.folder)
    if done.metrics is not None:
        log.info("next      fakedet report predictions=%s/predictions.parquet", done.folder)
    return done.validation
