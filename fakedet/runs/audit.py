"""Audit a manifest: what ``fakedet audit`` does, and the part of it that training and evaluation run."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import DictConfig, OmegaConf

from fakedet import build
from fakedet.audit.audit import Audit, audit
from fakedet.audit.content import WARN, audit_generators
from fakedet.audit.looks import Looks, look, sample_rows
from fakedet.audit.report import generator_dict, to_dict, write_page
from fakedet.data.datamodule import ImageDataModule
from fakedet.errors import UserError
from fakedet.evaluation.table import text
from fakedet.runs.bar import bar
from fakedet.runs.checks import check_config
from fakedet.runs.folder import open_folder, provenance, write_config, write_json

log = logging.getLogger("fakedet")

LOUD = 20
"""Images of each class below which a shortcut is stored but not warned of."""
QUICK = 300
"""Images of each cell whose headers training and evaluation look at."""


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
    datamodule = build.build_datamodule(
        settings, augment=build.build_augmentation({"recipe": "none"}), seed=0
    )
    assert isinstance(datamodule, ImageDataModule)
    frame = datamodule.manifest.frame
    folder = open_folder(config.output_dir, config.overwrite)
    write_config(folder, config, overrides)
    with bar("looking at images") as shown:
        found = audit(
            frame, datamodule.manifest.digests, datamodule.pairs, datamodule.read_bytes, config.sample,
            config.seed, lambda done, total: shown.show(done, f"of {total:,}"),
        )  # fmt: skip
    source = str(datamodule.locate()[0])
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
    write_page(found, frame, folder, f"Audit of {Path(source).name}", shown_facts, command, unreadable)
    return found


def header_audit(datamodule: ImageDataModule, split: str, pairs: Mapping[str, Any] | None) -> dict[str, Any]:
    """Measure what the headers of a split give away, say so where it is much, and return it for metrics.json.

    Reads the headers of at most :data:`QUICK` images of each generator and collection.
    """
    key = (datamodule.manifest.sha256, split, datamodule.held_out)
    if key not in _MEASURED:
        _MEASURED[key] = _measure(datamodule, split, pairs)
    return _MEASURED[key]


# Stage 1 and the method after it look at the same data.
_MEASURED: dict[tuple[Any, ...], dict[str, Any]] = {}


def _measure(datamodule: ImageDataModule, split: str, pairs: Mapping[str, Any] | None) -> dict[str, Any]:
    rows = datamodule.manifest.rows(split)
    if set(rows["label"]) != {0, 1}:
        return {}
    looks = look(sample_rows(rows, QUICK), datamodule.read_bytes, pixels=False)
    _warn_of_unreadable(datamodule, split, looks)
    audits, _ = audit_generators(rows, looks, pairs, resamples=300)
    told = {entry.generator: entry.header for entry in audits}
    loud = {
        name: shortcut
        for name, shortcut in told.items()
        if shortcut.auc.value > WARN and min(shortcut.n_real, shortcut.n_fake) >= LOUD
    }
    if loud:
        worst = max(loud, key=lambda name: loud[name].auc.value)
        auc = loud[worst].auc
        log.warning(
            "shortcut in the split '%s': format, size or compression alone tell %d of %d generators from their reals "
            "(most: %s, AUC %s, %d real, %d fake); see fakedet audit%s",
            split, len(loud), len(told), worst, text(auc), loud[worst].n_real, loud[worst].n_fake,
            "" if datamodule.matcher else " and fakedet match; where its reals are of another kind, data.pairs",
        )  # fmt: skip
    return {entry.generator: generator_dict(entry)["header"] for entry in audits}


def describe_training(datamodule: ImageDataModule) -> dict[str, Any]:
    """Say what a detector is trained on, for those who will ask it about other images.

    Returns:
        Manifest, images of each class and generator, and percentiles of a sample's sizes and JPEG qualities.
    """
    rows = datamodule.manifest.rows("train")
    counts = {
        kind: {
            str(name): int(n)
            for name, n in rows.loc[rows["label"] == label, "generator"].value_counts().items()
        }
        for label, kind in ((0, "real"), (1, "fake"))
    }
    looks = look(sample_rows(rows, QUICK), datamodule.read_bytes, pixels=False).frame
    looks = looks[looks["problem"] == ""]
    jpeg = looks.loc[looks["jpeg_quality"] > 0, "jpeg_quality"]
    shorter = looks[["width", "height"]].min(axis=1)
    return {
        "manifest": datamodule.locate()[0].name, **counts,
        "jpeg_share": float((looks["jpeg_quality"] > 0).mean()) if len(looks) else None,
        "jpeg_quality": _percentiles(jpeg), "shorter_side": _percentiles(shorter),
    }  # fmt: skip


def _percentiles(values: pd.Series) -> list[float] | None:
    return [float(value) for value in values.quantile([0.05, 0.5, 0.95])] if len(values) else None


def _warn_of_unreadable(datamodule: ImageDataModule, split: str, looks: Looks) -> None:
    """Say before hours are spent that a run will fail for what it cannot read."""
    bad = looks.frame[looks.frame["problem"] != ""]
    if len(bad) > datamodule.max_quarantine * len(looks.frame):
        first = datamodule.manifest.frame.loc[bad.index[0], "path"]
        log.warning(
            "%d of %d images looked at in the split '%s' cannot be used, the first: %s: %s; a run fails above "
            "data.max_quarantine=%s of a split",
            len(bad), len(looks.frame), split, first, bad["problem"].iloc[0], datamodule.max_quarantine,
        )  # fmt: skip
