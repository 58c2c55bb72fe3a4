"""``fakedet shard``: a manifest in, shards for object stores and many nodes out."""

from __future__ import annotations

import logging

from omegaconf import DictConfig

from fakedet.runs.shard import shard_manifest

log = logging.getLogger("fakedet")


def run(config: DictConfig, overrides: list[str]) -> None:
    """Write the shards, and say what was left out and how to train from them."""
    written = shard_manifest(config)
    for (kind, name), count in sorted(written.lost.items()):
        log.warning("left out: %6d  %s %s", count, kind, name)
    if written.lost:
        log.info("left out  %s/rejected.csv", written.folder)
    log.info("%d images in %d shards, %.1f MB", written.rows, written.shards, written.bytes / 1e6)
    log.info("manifest  %s/manifest.parquet", written.folder)
    log.info("next      fakedet train experiment=ntf data.manifest=%s/manifest.parquet", written.folder)
