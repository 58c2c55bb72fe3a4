"""``fakedet audit``: a manifest in, what a detector could cheat on out."""

from __future__ import annotations

import logging

from omegaconf import DictConfig

from fakedet.commands.wording import interval
from fakedet.runs.audit import audit_manifest

log = logging.getLogger("fakedet")


def run(config: DictConfig, overrides: list[str]) -> int:
    """Audit, print the findings, and return the number of problems."""
    found = audit_manifest(config, overrides)
    for entry in found.generators:
        content = interval(entry.content.auc.to_dict()) if entry.content else "-"
        log.info(
            "%-24s header AUC %s  content AUC %s  (%d real, %d fake)",
            entry.generator, interval(entry.header.auc.to_dict()), content, entry.header.n_real,
            entry.header.n_fake,
        )  # fmt: skip
    for finding in found.findings:
        log.info("")
        log.info("%s: %s", finding.level.upper(), finding.what)
        log.info("  %s", finding.means)
        if finding.mend:
            log.info("  mend: %s", finding.mend)
    log.info("")
    log.info("%s", found.verdict)
    log.info("audit   %s/audit.json", config.output_dir)
    log.info("report  %s/report.html", config.output_dir)
    return sum(finding.level == "problem" for finding in found.findings)
