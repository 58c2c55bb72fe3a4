"""``fakedet index``: a folder in, a manifest out."""

from __future__ import annotations

import logging
import time

from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from fakedet.runs.index import Indexed, index

log = logging.getLogger("fakedet")

SPLITS = ("train", "val", "test")


def run(config: DictConfig, overrides: list[str]) -> None:
    """Index, and say what was found."""
    started = time.perf_counter()
    found = index(config)
    console = Console(width=None if Console().is_terminal else 110)
    console.print(_table(found))
    state, copies = found.scan, found.copies
    log.info(
        "layout %s: %d images, %d of them read anew, in %.1f s",
        found.layout, found.rows, state.read, time.perf_counter() - started,
    )  # fmt: skip
    if state.others:
        log.info("%d files of other kinds were not looked at", state.others)
    if copies.contents:
        log.info("%d images share their content with others (%d contents)", copies.files, copies.contents)
    if copies.contradictions:
        log.warning("%d images left out: their content stands as real and as fake", copies.contradictions)
    if copies.crossing:
        log.warning("%d images left out: their content stands in another split too", copies.crossing)
    for reason, count in found.reasons.most_common(8):
        log.warning("left out: %6d  %s", count, reason)
    if found.reasons:
        log.info("left out  %s", found.rejected)
    log.info("manifest  %s", found.manifest)
    log.info("next      fakedet audit data.manifest=%s", found.manifest)


def _table(found: Indexed) -> Table:
    table = Table(title=None, box=None, pad_edge=False, header_style="bold")
    table.add_column("class")
    table.add_column("generator")
    for split in SPLITS:
        table.add_column(split, justify="right")
    for label, name in sorted({(label, generator) for label, generator, _ in found.counts}):
        counts = [found.counts[(label, name, split)] for split in SPLITS]
        table.add_row(("real", "fake")[label], name, *(f"{count:,}" if count else "–" for count in counts))
    return table
