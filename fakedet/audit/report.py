"""The audit of a manifest: all checks and shortcuts, and the files that it writes (audit.json, report.html, CSV)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fakedet.audit.checks import (
    LEVELS,
    Finding,
    class_balance,
    crossing_groups,
    equal_contents,
    look_alikes,
    unreadable_files,
    unseen_generators,
)
from fakedet.audit.features import Looks, Read, look, sample_rows
from fakedet.audit.shortcuts import WARN, GeneratorAudit, Shortcut, audit_generators
from fakedet.config import again, shown_command
from fakedet.data.datamodule import DataModule
from fakedet.metrics.pairing import Pairs
from fakedet.pages import FAKE_COLOUR, PALETTE, REAL_COLOUR, TYPE, WIDTH, Drawing, new_figure, plain, render, save
from fakedet.utils import bar, provenance, write_json


@dataclass(frozen=True)
class Audit:
    """What an audit found."""

    findings: list[Finding]
    generators: list[GeneratorAudit]
    looks: Looks
    pairs: pd.DataFrame  # images that look alike; see :func:`fakedet.audit.checks.look_alikes`
    n_images: int

    @property
    def verdict(self) -> str:
        """The audit in one sentence."""
        if problems := [finding for finding in self.findings if finding.level == "problem"]:
            kinds = ", ".join(dict.fromkeys(finding.kind for finding in problems))
            count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
            return f"Do not trust results on this data yet: {count} ({kinds})."
        if any(finding.level == "warning" for finding in self.findings):
            return "No shortcut that would decide results was found; read the warnings."
        return "Nothing was found that a detector could cheat on."

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "verdict": self.verdict, "n_images": self.n_images, "n_looked_at": len(self.looks.frame),
            "n_unreadable": len(self.looks.problems),
            "generators": {entry.generator: entry.to_dict() for entry in self.generators},
            "findings": [asdict(finding) for finding in self.findings],
        }  # fmt: skip


def audit_frame(
    frame: pd.DataFrame, digests: pd.Series | None, pairs: Pairs | None, read: Read, sample: int | None = 1000,
    seed: int = 0, progress: Callable[[int, int], None] = lambda done, total: None,
) -> Audit:  # fmt: skip
    """Run all checks on a manifest.

    Args:
        frame: of the manifest.
        digests: SHA-256 of each row, if the manifest has them; else those of the rows looked at are used.
        pairs: see :func:`fakedet.metrics.pairing.real_counterparts`.
        read: returns a row's bytes.
        sample: images looked at of each label, generator, source and split, drawn by ``seed``; None: all.
        progress: called with the number of images done and of all images.
    """
    ids = sample_rows(frame, sample, seed)
    looks = look(ids, read, pixels=True, progress=lambda done: progress(done, len(ids)))
    near, pairs_of_images = look_alikes(frame, looks)
    generators, shortcuts = audit_generators(frame, looks, pairs)
    findings = [
        *unreadable_files(frame, looks), *class_balance(frame), *crossing_groups(frame), *unseen_generators(frame),
        *equal_contents(frame, looks.frame["sha256"] if digests is None else digests), *near, *shortcuts,
    ]  # fmt: skip
    if len(ids) < len(frame):
        findings.append(Finding(
            "note", "sample", f"{len(ids)} of {len(frame)} images were looked at",
            "What a sample does not show is not ruled out; groups, splits and hashes are of all images.",
            "sample=null looks at all", {"looked_at": len(ids), "images": len(frame)},
        ))  # fmt: skip
    findings.sort(key=lambda finding: LEVELS.index(finding.level))
    return Audit(findings, generators, looks, pairs_of_images, len(frame))


def audit_manifest(
    datamodule: DataModule, folder: Path, command: list[str], sample: int | None = 1000, seed: int = 0
) -> Audit:
    """Audit a data module's manifest and write audit.json, report.html, figures and lists into an open folder.

    For ``sample`` and ``seed`` see :func:`audit_frame`; ``command`` is noted as what made the audit.
    """
    manifest = datamodule.manifest
    frame, source = manifest.frame, manifest.path
    with bar("looking at images") as shown:
        audit = audit_frame(
            frame, manifest.digests, datamodule.pairs, datamodule.read_bytes, sample, seed,
            lambda done, total: shown.show(done, f"of {total:,}"),
        )  # fmt: skip
    places = {"data.manifest": source, "data.root": manifest.root}
    match = shown_command("match", **{key: place for key, place in places.items() if place != source.parent})
    findings = [replace(finding, mend=finding.mend.replace("fakedet match data.manifest=MANIFEST", match))
                for finding in audit.findings]  # fmt: skip
    audit = replace(audit, findings=findings)
    made = provenance(command)
    origin = {"manifest": str(source), "manifest_sha256": manifest.sha256, "run": made}
    write_json(folder / "audit.json", audit.to_dict() | origin)
    if len(audit.pairs):
        audit.pairs.to_csv(folder / "near_duplicates.csv", index=False)
    bad = audit.looks.problems
    if unreadable := list(zip(frame.loc[bad.index, "path"], bad, strict=True)):
        pd.DataFrame(unreadable, columns=["path", "reason"]).to_csv(folder / "unreadable.csv", index=False)
    figures = []
    if audit.generators:
        figures.append(Drawing(
            plot_shortcuts(audit.generators, folder / "shortcuts.png"),
            "How well a small classifier tells each generator's fakes from their reals without seeing a trace: "
            "AUC under cross-validation by groups, with 95 % intervals over groups. At 0.5 there is nothing to "
            "cheat on; above 0.7 (dashed) a detector's score on that generator may be this shortcut.",
        ))  # fmt: skip
    readable = audit.looks.frame[audit.looks.frame["problem"] == ""]
    if len(readable):
        labels = frame.loc[readable.index, "label"].to_numpy()
        figures.append(Drawing(
            plot_headers(readable, labels, folder / "headers.png"),
            "Formats, sizes in pixels and compression of the images looked at, as shares of each class. Where the two "
            "classes differ, a detector has something to cheat on.",
        ))  # fmt: skip
    facts = {"manifest": source, "root": manifest.root, "fakedet": made["fakedet"],
             "manifest sha256": manifest.sha256, "made": made["started"]}  # fmt: skip
    render(
        "fakedet.audit", "audit.html", folder / "report.html", title=f"Audit of {source.name}", audit=audit,
        figures=figures, facts=facts, command=again(made["command"]), unreadable=unreadable,
        levels={"problem": "Problems", "warning": "Warnings", "note": "Notes"},
    )  # fmt: skip
    return audit


def plot_shortcuts(audits: Sequence[GeneratorAudit], path: Path) -> Path:
    """Draw each generator's header and content AUC with their intervals."""
    names = [plain(audit.generator, 18) for audit in audits]
    longest = max(name.count("\n") for name in names)
    figure = new_figure(WIDTH, 1.4 + (0.34 + 0.16 * longest) * len(audits))
    axes = figure.subplots()
    rows = np.arange(len(audits))[::-1]

    def draw(shortcuts: Sequence[Shortcut], rows: np.ndarray, colour: str, marker: str, name: str) -> None:
        values, lows, highs = ([getattr(s.auc, end) for s in shortcuts] for end in ("value", "low", "high"))
        axes.hlines(rows, lows, highs, color=colour, linewidth=2, alpha=0.6)
        axes.plot(values, rows, marker, color=colour, label=name, markersize=6)

    draw([audit.header for audit in audits], rows + 0.12, PALETTE[0], "o", "format, size, compression")
    contents = [audit.content for audit in audits if audit.content is not None]
    if len(contents) == len(audits):
        draw(contents, rows - 0.12, PALETTE[4], "s", "thumbnail and colours")
    axes.axvline(0.5, color=REAL_COLOUR, linewidth=1)
    axes.axvline(WARN, color=FAKE_COLOUR, linewidth=1, linestyle="--")
    axes.set_yticks(rows, names)
    axes.set_xlim(0.2, 1.02)
    axes.set_xlabel("AUC without seeing a trace", fontsize=TYPE)
    axes.tick_params(labelsize=TYPE)
    axes.grid(axis="x", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper left", frameon=False, fontsize=TYPE)
    return save(figure, path)


def plot_headers(facts: pd.DataFrame, labels: np.ndarray, path: Path) -> Path:
    """Draw formats, sizes, JPEG qualities and bytes per pixel of reals and of fakes from the facts of readable rows."""
    figure = new_figure(WIDTH, 4.4)
    formats, sizes, qualities, densities = figure.subplots(2, 2).ravel()
    kinds = facts["format"].value_counts().index[:6].tolist()
    for label, name, colour in ((0, "real", REAL_COLOUR), (1, "fake", FAKE_COLOUR)):
        own = facts[labels == label]
        shares = [float((own["format"] == kind).mean()) if len(own) else 0.0 for kind in kinds]
        formats.bar(np.arange(len(kinds)) + 0.2 * (2 * label - 1), shares, 0.4, color=colour, label=name)
        shown = own.sample(min(len(own), 4000), random_state=0)
        sizes.plot(shown["width"], shown["height"], "o" if label else "s", color=colour, alpha=0.35,
                   markersize=6 - 2 * label, markeredgewidth=0)  # fmt: skip
        jpeg = own.loc[own["jpeg_quality"] > 0, "jpeg_quality"].to_numpy()
        density = own["bytes"] / (own["width"] * own["height"]).clip(lower=1)
        logs = np.log2(density.to_numpy(dtype=float).clip(1e-3))
        for axes, values, edges in ((qualities, jpeg, np.arange(0.5, 101.5, 2)),
                                    (densities, logs, np.linspace(-6, 4, 60))):  # fmt: skip
            if len(values):
                heights = np.histogram(values, edges)[0] / len(values)
                axes.stairs(heights, edges, color=colour, fill=True, alpha=0.35)
                axes.stairs(heights, edges, color=colour)
    formats.set_xticks(range(len(kinds)), kinds)
    titles = ("format", "width × height", "JPEG quality", "log2 bytes per pixel")
    for axes, title in zip((formats, sizes, qualities, densities), titles, strict=True):
        axes.set_title(title, loc="left", fontsize=TYPE)
        axes.tick_params(labelsize=TYPE)
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*formats.get_legend_handles_labels(), loc="outside upper left", ncols=2, frameon=False, fontsize=TYPE)
    return save(figure, path)
