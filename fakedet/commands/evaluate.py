"""``fakedet evaluate``: checkpoint and manifest in, predictions and metrics out."""

from __future__ import annotations

import logging

from omegaconf import DictConfig

from fakedet.commands.wording import interval, means_of
from fakedet.runs.evaluation import evaluate

log = logging.getLogger("fakedet")


def run(config: DictConfig, overrides: list[str]) -> float | None:
    """Evaluate, print AP per generator, and return mAP."""
    metrics = evaluate(config, overrides)
    if metrics is None:
        return None
    for name, entry in metrics["per_generator"].items():
        seen = "seen" if entry["seen"] else "unseen"
        counts = f"{entry['n_real']} real, {entry['n_fake']} fake"
        log.info(
            "%-24s %-7s AP %s  AUC %s  (%s)",
            name,
            seen,
            interval(entry["ap"]),
            interval(entry["auc"]),
            counts,
        )
    if point := metrics["operating_point"]:
        fitted = f"{point['split']}: {point['n_real']} real, {point['n_fake']} fake"
        log.info("at the threshold for %g %% of reals (fitted on %s):", 100 * point["rate"], fitted)
        for note in point["notes"]:
            log.info("note: %s", note)
        for name, entry in metrics["per_generator"].items():
            log.info("%-24s reals called real %s  fakes called fake %s", name, interval(entry["acc_real"]),
                     interval(entry["acc_fake"]))  # fmt: skip
    for key, means in means_of(metrics).items():
        log.info("%-24s %s", key, means)
    log.info("predictions %s/predictions.parquet", config.output_dir)
    log.info("metrics     %s/metrics.json", config.output_dir)
    log.info("next        fakedet report predictions=%s/predictions.parquet", config.output_dir)
    value = metrics["map"]["value"]
    return None if value is None else float(value)
