"""``fakedet report``: predictions files in, tables, figures and one page out."""

from __future__ import annotations

import logging

from omegaconf import DictConfig
from rich.console import Console

from fakedet.evaluation.table import console_table
from fakedet.evaluation.verdict import verdict
from fakedet.runs.report import report

log = logging.getLogger("fakedet")


def run(config: DictConfig, overrides: list[str]) -> None:
    """Write the report and print its table and verdict."""
    comparison, page = report(config, overrides)
    console = Console(width=None if Console().is_terminal else 130)
    console.print(console_table(comparison, str(config.title)))
    for sentence in verdict(comparison):
        console.print(sentence, soft_wrap=True, highlight=False)
    log.info("report  %s", page)
