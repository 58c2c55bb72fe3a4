"""audit/audit"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from fakedet.audit.checks import Finding, alike, crossing_groups, equal_contents, ordered, unseen_generators
from fakedet.audit.features import Looks, Read, look, sample_rows
from fakedet.audit.shortcuts import WARN, GeneratorAudit, audit_generators, generator_dict
from fakedet.data.datamodule import DataModule

IMBALANCE = 10.0
"""How many times one class may outnumber the other in a split before it is said."""


@dataclass(frozen=True)
class Audit:
    """What an audit found."""

    findings: list[Finding]
    generators: list[GeneratorAudit]
    looks: Looks
    pairs: pd.DataFrame
    """Near-duplicates: columns first, second, bits, splits, labels."""
    n_images: int
    """Of the manifest."""

    @property
    def verdict(self) -> str:
        """Say it in one sentence."""
        problems = [finding for finding in self.findings if finding.level == "problem"]
        if problems:
            kinds = ", ".join(dict.fromkeys(finding.kind for finding in problems))
            count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
            return f"Do not trust results on this data yet: {count} ({kinds})."
        if any(finding.level == "warning" for finding in self.findings):
            return "No shortcut that would decide results was found; read the warnings."
        return "Nothing was found that a detector could cheat on."


def audit_frame(
    frame: pd.DataFrame,
    digests: pd.Series | None,
    pairs: Mapping[str, Any] | None,
    read: Read,
    sample: int | None = 1000,
    seed: int = 0,
    seen: Callable[[int, int], None] = lambda done, total: None,
) -> Audit:
    """Audit a manifest.

    Args:
        frame: of the manifest.
        digests: SHA-256 of each row, if the manifest has them; else those of the rows looked at are used.
        pairs: see :func:`fakedet.metrics.pairing.real_counterparts`.
        read: gives a row's bytes.
        sample: images looked at of each label, generator, source and split; None: all.
        seed: of the sample.
        seen: called with the images done and in all.
    """
    ids = sample_rows(frame, sample, seed)
    looks = look(ids, read, pixels=True, seen=lambda done: seen(done, len(ids)))
    findings = _unreadable(frame, looks) + _balance(frame) + crossing_groups(frame) + unseen_generators(frame)
    findings += equal_contents(frame, looks.frame["sha256"] if digests is None else digests)
    near, listed = alike(frame, looks)
    generators, told = audit_generators(frame, looks, pairs)
    if len(ids) < len(frame):
        told.append(Finding(
            "note", "sample", f"{len(ids)} of {len(frame)} images were looked at",
            "What a sample does not show is not ruled out; groups, splits and hashes are of all images.",
            "sample=null looks at all", {"looked_at": len(ids), "images": len(frame)},
        ))  # fmt: skip
    return Audit(ordered(findings + near + told), generators, looks, listed, len(frame))


def _unreadable(frame: pd.DataFrame, looks: Looks) -> list[Finding]:
    bad = looks.frame[looks.frame["problem"] != ""]
    if bad.empty:
        return []
    rows = frame.loc[bad.index]
    first, share = rows.iloc[0], len(bad) / len(looks.frame)
    worst = rows.groupby(["label", "generator"], observed=True).size().sort_values(ascending=False)
    (label, generator), count = worst.index[0], int(worst.iloc[0])
    return [Finding(
        "problem" if share > 0.05 else "warning", "unreadable",
        f"{len(bad)} images cannot be read ({share:.1%}), most of them {('real', 'fake')[int(label)]} {generator} "
        f"({count}); the first: {first['path']}: {bad['problem'].iloc[0]}",
        "They are left out of training and results; a generator that loses many is measured on what is left.",
        "fetch them again and run fakedet index, or take them out of the table",
        {"images": len(bad), "per_generator": {f"{name[0]} {name[1]}": int(n) for name, n in worst.items()}},  # type: ignore[index]
    )]  # fmt: skip


def _balance(frame: pd.DataFrame) -> list[Finding]:
    findings = []
    for split, rows in frame.groupby("split", observed=True):
        reals, fakes = int((rows["label"] == 0).sum()), int((rows["label"] == 1).sum())
        if not reals or not fakes:
            findings.append(Finding(
                "problem", "balance", f"the split '{split}' has {reals} reals and {fakes} fakes",
                "Neither a detector nor a metric can do with one class.", "add the other class to this split",
                {"split": split, "real": reals, "fake": fakes},
            ))  # fmt: skip
        elif max(reals, fakes) > IMBALANCE * min(reals, fakes):
            findings.append(Finding(
                "note", "balance", f"the split '{split}' has {reals} reals and {fakes} fakes",
                "Training batches are balanced whatever the counts; AP depends on them, AUC does not.", "",
                {"split": split, "real": reals, "fake": fakes},
            ))  # fmt: skip
    return findings


log = logging.getLogger("fakedet")

LOUD = 20
"""Images of each class below which a shortcut is stored but not warned of."""
QUICK = 300
"""Images of each cell whose headers training and evaluation look at."""


def header_audit(datamodule: DataModule, split: str, pairs: Mapping[str, Any] | None) -> dict[str, Any]:
    """Measure what the headers of a split give away, say so where it is much, and return it for metrics.json.

    Reads the headers of at most :data:`QUICK` images of each generator and collection.
    """
    key = (datamodule.manifest.sha256, split, datamodule.held_out)
    if key not in _MEASURED:
        _MEASURED[key] = _measure(datamodule, split, pairs)
    return _MEASURED[key]


# Stage 1 and the method after it look at the same data.
_MEASURED: dict[tuple[Any, ...], dict[str, Any]] = {}


def _measure(datamodule: DataModule, split: str, pairs: Mapping[str, Any] | None) -> dict[str, Any]:
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
            split, len(loud), len(told), worst, auc.text(), loud[worst].n_real, loud[worst].n_fake,
            "" if datamodule.matcher else " and fakedet match; where its reals are of another kind, data.pairs",
        )  # fmt: skip
    return {entry.generator: generator_dict(entry)["header"] for entry in audits}


def describe_training(datamodule: DataModule) -> dict[str, Any]:
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
        "manifest": datamodule.manifest.path.name, **counts,
        "jpeg_share": float((looks["jpeg_quality"] > 0).mean()) if len(looks) else None,
        "jpeg_quality": _percentiles(jpeg), "shorter_side": _percentiles(shorter),
    }  # fmt: skip


def _percentiles(values: pd.Series) -> list[float] | None:
    return [float(value) for value in values.quantile([0.05, 0.5, 0.95])] if len(values) else None


def _warn_of_unreadable(datamodule: DataModule, split: str, looks: Looks) -> None:
    """Say before hours are spent that a run will fail for what it cannot read."""
    bad = looks.frame[looks.frame["problem"] != ""]
    if len(bad) > datamodule.max_quarantine * len(looks.frame):
        first = datamodule.manifest.frame.loc[bad.index[0], "path"]
        log.warning(
            "%d of %d images looked at in the split '%s' cannot be used, the first: %s: %s; a run fails above "
            "data.max_quarantine=%s of a split",
            len(bad), len(looks.frame), split, first, bad["problem"].iloc[0], datamodule.max_quarantine,
        )  # fmt: skip
