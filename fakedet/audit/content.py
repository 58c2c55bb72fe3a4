"""What a generator and its reals differ in besides their traces: header, content, borders."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import fisher_exact

from fakedet.audit.finding import Finding
from fakedet.audit.looks import Looks
from fakedet.audit.shortcut import Shortcut, content_shortcut, header_shortcut
from fakedet.evaluation.table import text
from fakedet.metrics.pairing import Counterparts, real_counterparts

WARN = 0.7
"""AUC above which a shortcut is reported."""
LEAST_STRIPS = 0.1
"""Difference of the classes' shares of images with a strip below which nothing is said."""
SIDES = ("top", "bottom", "left", "right")
MATCH = "fakedet match data.manifest=MANIFEST output_dir=FOLDER, or data.match.size=PIXELS on the fly"


@dataclass(frozen=True)
class GeneratorAudit:
    """What can be told of one generator's fakes without any trace of it."""

    generator: str
    reals: list[str]
    rule: str
    """Why these reals; see :class:`fakedet.metrics.pairing.Counterparts`."""
    header: Shortcut
    content: Shortcut | None
    """None where pixels were not looked at."""
    strips: dict[str, tuple[float, float]]
    """Side → shares of reals and of fakes that have a strip of one colour there."""


def audit_generators(
    frame: pd.DataFrame, looks: Looks, pairs: Mapping[str, Any] | None, resamples: int = 500
) -> tuple[list[GeneratorAudit], list[Finding]]:
    """Audit every generator of the rows that were looked at against its reals.

    Args:
        frame: of the manifest.
        looks: at some of its rows.
        pairs: see :func:`fakedet.metrics.pairing.real_counterparts`.
        resamples: of the intervals.
    """
    readable = (looks.frame["problem"] == "").to_numpy()
    rows = frame.loc[looks.frame.index[readable]]
    reals = frame.loc[frame["label"] == 0, ["generator", "source"]]
    known = set(reals["generator"]) | set(reals["source"])
    audits, alone = [], []
    for name, counterparts in real_counterparts(rows, pairs, known).items():
        if not len(counterparts.real_rows):
            alone.append(name)
            continue
        audits.append(_audit(name, rows, looks, readable, counterparts, resamples))
    return audits, _alone(alone) + _findings(audits)


def _audit(
    name: str,
    rows: pd.DataFrame,
    looks: Looks,
    readable: np.ndarray,
    counterparts: Counterparts,
    resamples: int,
) -> GeneratorAudit:
    chosen = np.concatenate([counterparts.real_rows, counterparts.fake_rows])
    labels = rows["label"].to_numpy()[chosen].astype(np.int64)
    groups = rows["group"].to_numpy(object)[chosen]
    facts = looks.frame[readable].iloc[chosen]
    header = header_shortcut(facts, labels, groups, resamples)
    content, strips = None, {}
    if looks.content is not None:
        content = content_shortcut(looks.content[readable][chosen], labels, groups, resamples)
        strips = {side: _shares((facts[side] > 0).to_numpy(), labels) for side in SIDES}
    return GeneratorAudit(name, counterparts.reals, counterparts.rule, header, content, strips)


def _shares(has: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    return float(has[labels == 0].mean()), float(has[labels == 1].mean())


def _findings(audits: Sequence[GeneratorAudit]) -> list[Finding]:
    """Say what is much, one finding for all generators that it holds of."""
    headers = {a.generator: a.header for a in audits if a.header.auc.value > WARN}
    contents = {
        a.generator: a.content for a in audits if a.content is not None and a.content.auc.value > WARN
    }
    few = {a.generator: a.header for a in audits if math.isnan(a.header.auc.value)}
    findings = []
    if headers:
        by = _most_frequent([shortcut.told_by.split(" (")[0] for shortcut in headers.values()])
        findings.append(Finding(
            "problem" if any(shortcut.auc.low > WARN for shortcut in headers.values()) else "warning", "header",
            f"Format, size or compression tell the fakes of {_listed(headers)} from their reals"
            + (f", most often by {by}" if by else ""),
            "A detector can do as well on these without seeing a trace, and will learn to.", MATCH,
            _numbers(headers),
        ))  # fmt: skip
    if contents:
        findings.append(Finding(
            "warning", "content", f"Thumbnails and colours tell the fakes of {_listed(contents)} from their reals",
            "The two show different things, so a detector may learn subjects instead of traces.",
            "compare with reals of the same subjects: a source column, or data.pairs", _numbers(contents),
        ))  # fmt: skip
    if few:
        findings.append(Finding(
            "note", "few", f"Too few images for a shortcut AUC: {_listed(few)}",
            "Nothing can be said of their shortcuts.", "", _numbers(few),
        ))  # fmt: skip
    return findings + [found for side in SIDES if (found := _strip_finding(audits, side)) is not None]


def _strip_finding(audits: Sequence[GeneratorAudit], side: str) -> Finding | None:
    marked = {a.generator: a.strips[side] for a in audits if side in a.strips and _one_sided(a, side)}
    if not marked:
        return None
    listed = "; ".join(
        f"{name} ({fake:.0%} of fakes, {real:.0%} of reals)" for name, (real, fake) in marked.items()
    )
    return Finding(
        "warning", "strip", f"A strip of one colour at the {side} is more frequent in one class: {listed}",
        "A border, bar or caption that one class has gives it away.",
        "crop it off before indexing, or use centre crops that leave it out",
        {"side": side, "shares": {name: {"real": real, "fake": fake} for name, (real, fake) in marked.items()}},
    )  # fmt: skip


def _one_sided(audit: GeneratorAudit, side: str) -> bool:
    real, fake = audit.strips[side]
    n_real, n_fake = audit.header.n_real, audit.header.n_fake
    counts = [round(real * n_real), round(fake * n_fake)]
    table = [[counts[0], n_real - counts[0]], [counts[1], n_fake - counts[1]]]
    return abs(real - fake) >= LEAST_STRIPS and bool(fisher_exact(table).pvalue < 1e-3)


def _alone(names: Sequence[str]) -> list[Finding]:
    if not names:
        return []
    return [Finding(
        "problem", "counterpart", f"There are no reals to compare with: {', '.join(names)}",
        "Their AP is not defined.", "add reals, or name some with data.pairs", {"generators": list(names)},
    )]  # fmt: skip


def _listed(shortcuts: Mapping[str, Shortcut]) -> str:
    ranked = sorted(shortcuts.items(), key=lambda item: -item[1].auc.value)
    return "; ".join(
        f"{name} (AUC {text(shortcut.auc)}, {shortcut.n_real} real, {shortcut.n_fake} fake)"
        for name, shortcut in ranked
    )


def _numbers(shortcuts: Mapping[str, Shortcut]) -> dict[str, Any]:
    return {name: shortcut.auc.to_dict() for name, shortcut in shortcuts.items()}


def _most_frequent(names: Sequence[str]) -> str:
    known = [name for name in names if name]
    return max(known, key=known.count) if known else ""
