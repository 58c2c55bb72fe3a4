"""``fakedet compare``: the runs of a sweep in one table."""

from __future__ import annotations

import logging

from omegaconf import DictConfig
from rich.console import Console

from fakedet.evaluation.table import console_table
from fakedet.evaluation.verdict import verdict
from fakedet.runs.compare import compare

log = logging.getLogger("fakedet")


def run(config: DictConfig, overrides: list[str]) -> None:
    """Compare, print the table and where the page is."""
    comparison, path = compare(config, overrides)
    Console().print(console_table(comparison, str(config.title)))
    for sentence in verdict(comparison):
        log.info("%s", sentence)
    log.info("report  %s", path)
