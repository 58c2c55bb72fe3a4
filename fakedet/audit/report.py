"""audit/report"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from omegaconf import DictConfig, OmegaConf

from fakedet.audit.audit import Audit, audit_frame
from fakedet.audit.shortcuts import WARN, GeneratorAudit, Shortcut, generator_dict
from fakedet.build import build_augmentation, build_datamodule
from fakedet.config import check_config
from fakedet.errors import UserError
from fakedet.pages import PALETTE, REAL_COLOUR, WIDTH, Drawing, new_figure, render, save
from fakedet.utils import bar, open_folder, provenance, write_config, write_json

FAKE_COLOUR = PALETTE[1]
MOST_POINTS = 4000


def plot_shortcuts(audits: Sequence[GeneratorAudit], path: Path) -> Path:
    """Draw each generator's header and content AUC with their intervals."""
    figure = new_figure(WIDTH, 1.4 + 0.34 * len(audits))
    axes = figure.subplots()
    rows = np.arange(len(audits))[::-1]
    _points(
        axes, [audit.header for audit in audits], rows + 0.12, PALETTE[0], "o", "format, size, compression"
    )
    if all(audit.content is not None for audit in audits):
        contents = [audit.content for audit in audits if audit.content is not None]
        _points(axes, contents, rows - 0.12, PALETTE[4], "s", "thumbnail and colours")
    axes.axvline(0.5, color=REAL_COLOUR, linewidth=1)
    axes.axvline(WARN, color=FAKE_COLOUR, linewidth=1, linestyle="--")
    axes.set_yticks(rows, [f"{audit.generator}" for audit in audits])
    axes.set_xlim(0.2, 1.02)
    axes.set_xlabel("AUC without seeing a trace (0.5 is chance, dashed is the warning)")
    axes.grid(axis="x", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper left", ncols=2, frameon=False)
    return save(figure, path)


def plot_headers(facts: pd.DataFrame, labels: np.ndarray, path: Path) -> Path:
    """Draw formats, sizes, JPEG qualities and bytes per pixel of reals and of fakes.

    Args:
        facts: see :class:`fakedet.audit.features.Looks`, readable rows only.
        labels: (n,) 0 = real, 1 = fake.
        path: the PNG.
    """
    figure = new_figure(2 * WIDTH, 5.6)
    formats, sizes, qualities, densities = figure.subplots(2, 2).ravel()
    kinds = facts["format"].value_counts().index[:6].tolist()
    for label, name, colour in ((0, "real", REAL_COLOUR), (1, "fake", FAKE_COLOUR)):
        own = facts[labels == label]
        shares = [float((own["format"] == kind).mean()) if len(own) else 0.0 for kind in kinds]
        formats.bar(np.arange(len(kinds)) + 0.2 * (2 * label - 1), shares, 0.4, color=colour, label=name)
        shown = own.sample(min(len(own), MOST_POINTS), random_state=0)
        sizes.plot(shown["width"], shown["height"], "o" if label else "s", color=colour, alpha=0.35,
                   markersize=6 - 2 * label, markeredgewidth=0)  # fmt: skip
        jpeg = own.loc[own["jpeg_quality"] > 0, "jpeg_quality"]
        _histogram(qualities, jpeg.to_numpy(), np.arange(0.5, 101.5, 2), colour)
        pixels = (own["width"] * own["height"]).clip(lower=1)
        _histogram(
            densities,
            np.log2((own["bytes"] / pixels).to_numpy(dtype=float).clip(1e-3)),
            np.linspace(-6, 4, 60),
            colour,
        )
    formats.set_xticks(range(len(kinds)), kinds)
    titles = ("format", "width × height, pixels", "JPEG quality", "log2 of bytes per pixel")
    for axes, title in zip((formats, sizes, qualities, densities), titles, strict=True):
        axes.set_title(title, loc="left", fontsize=10)
        axes.set_ylabel("" if axes is sizes else "share of the class")
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*formats.get_legend_handles_labels(), loc="outside upper right", ncols=2, frameon=False)
    return save(figure, path)


def _points(
    axes: Axes, shortcuts: Sequence[Shortcut], rows: np.ndarray, colour: str, marker: str, name: str
) -> None:
    values = np.array([shortcut.auc.value for shortcut in shortcuts])
    lows = np.array([shortcut.auc.low for shortcut in shortcuts])
    highs = np.array([shortcut.auc.high for shortcut in shortcuts])
    axes.hlines(rows, lows, highs, color=colour, linewidth=2, alpha=0.6)
    axes.plot(values, rows, marker, color=colour, label=name, markersize=6)


def _histogram(axes: Axes, values: np.ndarray, edges: np.ndarray, colour: str) -> None:
    if len(values):
        counts, _ = np.histogram(values, edges)
        axes.stairs(counts / len(values), edges, color=colour, fill=True, alpha=0.35)
        axes.stairs(counts / len(values), edges, color=colour)


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


def write_audit_page(
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
            "Formats, sizes and compression of the images looked at. Where the two classes do not lie over each "
            "other, a detector has something to cheat on.",
        ))  # fmt: skip
    if len(audit.pairs):
        audit.pairs.to_csv(folder / "near_duplicates.csv", index=False)
    path = folder / "report.html"
    render(
        "fakedet.audit", "audit.html", path, title=title, audit=audit, figures=figures, facts=facts,
        command=command, levels=SEEN, unreadable=list(unreadable),
    )  # fmt: skip
    return path


def audit_manifest(config: DictConfig, overrides: list[str]) -> Audit:
    """Audit the manifest of a composed ``audit`` config and write audit.json and report.html.

    Raises:
        UserError: anything wrong with manifest or folder.
    """
    check_config(config)
    if config.sample is not None and config.sample < 1:
        raise UserError(f"sample={config.sample}: must be at least 1, or null for all images")
    # What another command refuses is what is looked for here.
    settings = {**OmegaConf.to_container(config.data, resolve=True), "allow_group_leak": True}  # type: ignore[dict-item]
    datamodule = build_datamodule(settings, augment=build_augmentation({"recipe": "none"}), seed=0)
    frame = datamodule.manifest.frame
    folder = open_folder(config.output_dir, config.overwrite)
    write_config(folder, config, overrides)
    with bar("looking at images") as shown:
        found = audit_frame(
            frame, datamodule.manifest.digests, datamodule.pairs, datamodule.read_bytes, config.sample,
            config.seed, lambda done, total: shown.show(done, f"of {total:,}"),
        )  # fmt: skip
    source = str(datamodule.manifest.path)
    findings = [replace(finding, mend=finding.mend.replace("MANIFEST", source)) for finding in found.findings]
    found = replace(found, findings=findings)
    bad = found.looks.frame.loc[found.looks.frame["problem"] != "", "problem"]
    unreadable = list(zip(frame.loc[bad.index, "path"], bad, strict=True))
    if unreadable:
        pd.DataFrame(unreadable, columns=["path", "reason"]).to_csv(folder / "unreadable.csv", index=False)
    facts = provenance(["fakedet", "audit", *overrides])
    content = {
        **to_dict(found),
        "manifest": source,
        "manifest_sha256": datamodule.manifest.sha256,
        "run": facts,
    }
    write_json(folder / "audit.json", content)
    shown_facts = {"manifest": source, "root": datamodule.manifest.root, "fakedet": facts["fakedet"],
                   "manifest sha256": datamodule.manifest.sha256, "made": facts["started"]}  # fmt: skip
    command = " ".join(facts["command"])
    write_audit_page(found, frame, folder, f"Audit of {Path(source).name}", shown_facts, command, unreadable)
    return found
