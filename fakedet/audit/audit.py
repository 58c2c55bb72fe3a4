"""The audit of a manifest: everything that is checked, in one place."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from fakedet.audit.content import GeneratorAudit, audit_generators
from fakedet.audit.finding import Finding, ordered
from fakedet.audit.leaks import alike, crossing_groups, equal_contents, unseen_generators
from fakedet.audit.looks import Looks, Read, look, sample_rows

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


def audit(
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
