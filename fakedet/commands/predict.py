"""``fakedet predict``: images in, a verdict for each out."""

from __future__ import annotations

import logging

from omegaconf import DictConfig

from fakedet.runs.predict import predict

log = logging.getLogger("fakedet")


def run(config: DictConfig, overrides: list[str]) -> None:
    """Predict, count the verdicts, and exit with status 1 if a file could not be read."""
    predicted = predict(config, overrides)
    if predicted.resumed:
        log.info("%d images were done before", predicted.resumed)
    for what in ("real", "fake", "can't tell", "error"):
        if what != "error" or predicted.counts[what]:
            log.info("%-12s %d", what, predicted.counts[what])
    log.info("written to  %s", predicted.output)
    if predicted.counts["error"]:
        raise SystemExit(1)
