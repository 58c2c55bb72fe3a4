"""``fakedet match``: a manifest in, images of one format, size and compression out."""

from __future__ import annotations

import logging
import math

from omegaconf import DictConfig

from fakedet.commands.wording import interval
from fakedet.runs.match import match_manifest

log = logging.getLogger("fakedet")


def run(config: DictConfig, overrides: list[str]) -> None:
    """Match, and print what headers gave away before and give away after."""
    matched = match_manifest(config, overrides)
    after = {entry.generator: entry.header for entry in matched.after}
    log.info("%-24s %-28s %s", "header AUC", "before", "after")
    for entry in matched.before:
        now = after.get(entry.generator)
        shown = interval(now.auc.to_dict()) if now else "no images left"
        log.info("%-24s %-28s %s", entry.generator, interval(entry.header.auc.to_dict()), shown)
    loud = [
        name
        for name, shortcut in after.items()
        if not math.isnan(shortcut.auc.low) and shortcut.auc.low > 0.7
    ]
    if loud:
        log.warning(
            "bytes still tell %s: at one quality their images are smoother or rougher than their reals, which "
            "is content and not format", ", ".join(loud),
        )  # fmt: skip
    unknown = [name for name, shortcut in after.items() if math.isnan(shortcut.auc.low)]
    if unknown:
        log.warning("too few images to say whether headers still tell %s", ", ".join(unknown))
    elif after and not loud:
        log.info(
            "verdict   no generator's headers are above an AUC of 0.7 by more than the interval any more"
        )
    for (kind, name), count in sorted(matched.lost.items()):
        log.warning("left out: %6d  %s %s", count, kind, name)
    if matched.reasons:
        log.info("left out  %s/manifest.rejected.csv", matched.folder)
    log.info("%d images of %d pixels", matched.written, matched.matcher.size)
    log.info("manifest  %s/manifest.parquet", matched.folder)
    log.info("evidence  %s/match.json", matched.folder)
    log.info("next      fakedet audit data.manifest=%s/manifest.parquet", matched.folder)
