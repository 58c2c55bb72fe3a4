"""What an audit leaves behind: JSON for programs, CSV of look-alikes, a page for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from fakedet.audit.audit import Audit
from fakedet.audit.content import GeneratorAudit
from fakedet.audit.plots import plot_headers, plot_shortcuts
from fakedet.audit.shortcut import Shortcut
from fakedet.evaluation.html import Figure, render
from fakedet.evaluation.table import text

SEEN = {"problem": "Problems", "warning": "Warnings", "note": "Notes"}


def to_dict(audit: Audit) -> dict[str, Any]:
    """Give an audit as JSON takes it."""
    return {
        "verdict": audit.verdict,
        "n_images": audit.n_images,
        "n_looked_at": len(audit.looks.frame),
        "n_unreadable": int((audit.looks.frame["problem"] != "").sum()),
        "generators": {entry.generator: generator_dict(entry) for entry in audit.generators},
        "findings": [finding.to_dict() for finding in audit.findings],
    }


def generator_dict(entry: GeneratorAudit) -> dict[str, Any]:
    """Give what was measured of one generator as JSON takes it."""
    return {
        "reals": entry.reals,
        "rule": entry.rule,
        "header": _shortcut(entry.header),
        "content": None if entry.content is None else _shortcut(entry.content),
        "strips": {side: {"real": real, "fake": fake} for side, (real, fake) in entry.strips.items()},
    }


def write_page(
    audit: Audit, frame: pd.DataFrame, folder: Path, title: str, facts: Mapping[str, Any], command: str,
    unreadable: Sequence[tuple[str, str]],
) -> Path:  # fmt: skip
    """Write ``report.html`` and its figures into a folder, and ``near_duplicates.csv`` where there are any.

    Args:
        audit: what to show.
        frame: of the manifest.
        folder: where to.
        title: of the page.
        facts: name → value, for the end of the page.
        command: how to make it again.
        unreadable: (path, reason).
    """
    figures = []
    if audit.generators:
        figures.append(Figure(
            plot_shortcuts(audit.generators, folder / "shortcuts.png"),
            "How well a small classifier tells each generator's fakes from their reals without seeing a trace: "
            "AUC under cross-validation by groups, with 95 % intervals over groups. At 0.5 there is nothing to "
            "cheat on; above 0.7 (dashed) a detector's score on that generator may be this shortcut.",
        ))  # fmt: skip
    readable = audit.looks.frame[audit.looks.frame["problem"] == ""]
    if len(readable):
        labels = frame.loc[readable.index, "label"].to_numpy()
        figures.append(Figure(
            plot_headers(readable, labels, folder / "headers.png"),
            "Formats, sizes and compression of the images looked at. Where the two classes do not lie over each "
            "other, a detector has something to cheat on.",
        ))  # fmt: skip
    if len(audit.pairs):
        audit.pairs.to_csv(folder / "near_duplicates.csv", index=False)
    path = folder / "report.html"
    render(
        "fakedet.audit", "audit.html", path, title=title, audit=audit, figures=figures, facts=facts,
        command=command, text=text, levels=SEEN, unreadable=list(unreadable),
    )  # fmt: skip
    return path


def _shortcut(shortcut: Shortcut) -> dict[str, Any]:
    return {
        "auc": shortcut.auc.to_dict(), "n_real": shortcut.n_real, "n_fake": shortcut.n_fake,
        "told_by": shortcut.told_by,
    }  # fmt: skip
