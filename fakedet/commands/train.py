"""``fakedet train``: config in, a run's folder out."""

from __future__ import annotations

import logging

from omegaconf import DictConfig

from fakedet.commands.wording import interval
from fakedet.runs.training import is_main_process, train

log = logging.getLogger("fakedet")


def run(config: DictConfig, overrides: list[str]) -> float | None:
    """Train, and return test mAP for sweepers that optimise it."""
    done = train(config, overrides)
    if not is_main_process():
        return None
    if done.metrics is not None:
        for key in ("map_seen", "map_unseen", "map"):
            log.info("test %-10s %s", key, interval(done.metrics[key]))
    log.info("checkpoint %s", done.checkpoint)
    log.info("run       %s", done.folder)
    value = done.metrics["map"]["value"] if done.metrics else None
    return None if value is None else float(value)
