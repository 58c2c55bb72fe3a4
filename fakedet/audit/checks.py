"""audit/checks"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fakedet.audit.features import Looks

LEVELS = ("problem", "warning", "note")
"""A problem makes results wrong or flattering, a warning may, a note is good to know."""


@dataclass(frozen=True)
class Finding:
    """One thing found."""

    level: str
    """One of :data:`LEVELS`."""
    kind: str
    """A short name, the same for findings of one sort: "header", "duplicate", ..."""
    what: str
    """What was seen, with numbers and the first offender."""
    means: str
    """Why it matters."""
    mend: str
    """The command or step that mends it; "" if nothing need be done."""
    data: dict[str, Any] = field(default_factory=dict)
    """Numbers for programs."""

    def to_dict(self) -> dict[str, Any]:
        """Give it as JSON takes it."""
        return asdict(self)


def ordered(findings: list[Finding]) -> list[Finding]:
    """Put problems first, then warnings, then notes."""
    return sorted(findings, key=lambda finding: LEVELS.index(finding.level))


MOST_BITS = 3
"""Bits by which two prints of 64 may differ. Of four pieces of 16 bits at least one is then equal, which is how
pairs are found without comparing all with all."""
ALIKE = 0.04
"""Mean difference of two thumbnails, in [0, 1], above which equal prints are chance."""
LARGEST = 4000
"""Images that share a piece of 16 bits beyond which only so many of them are compared."""


def near_duplicates(
    prints: NDArray[np.uint64], thumbnails: NDArray[np.float32], apart: NDArray[np.int64]
) -> pd.DataFrame:
    """Find pairs of images that look the same and stand apart.

    Args:
        prints: (n,) of :func:`fakedet.audit.features.fingerprint`; those that are 0 are left aside.
        thumbnails: (n, d) in [0, 1].
        apart: (n,) codes; only pairs with different ones are looked for.

    Returns:
        Columns first, second (positions, first < second), bits (differing); each pair once.
    """
    found: set[tuple[int, int, int]] = set()
    for rows in _buckets(prints):
        codes = apart[rows]
        if (codes == codes[0]).all():
            continue
        differing = np.bitwise_count(prints[rows][:, None] ^ prints[rows][None])
        firsts, seconds = np.nonzero((differing <= MOST_BITS) & (codes[:, None] != codes[None]))
        for first, second in zip(firsts.tolist(), seconds.tolist(), strict=True):
            a, b = int(rows[first]), int(rows[second])
            if a < b and np.abs(thumbnails[a] - thumbnails[b]).mean() <= ALIKE:
                found.add((a, b, int(differing[first, second])))
    return pd.DataFrame(sorted(found), columns=["first", "second", "bits"])


def _buckets(prints: NDArray[np.uint64]) -> Iterator[NDArray[np.int64]]:
    """Yield the positions of prints that share a piece."""
    known = np.flatnonzero(prints)
    for shift in (0, 16, 32, 48):
        pieces = (prints[known] >> np.uint64(shift)) & np.uint64(0xFFFF)
        order = np.argsort(pieces, kind="stable")
        ends = np.flatnonzero(np.diff(pieces[order])) + 1
        for part in np.split(known[order], ends):
            if len(part) > 1:
                yield part[:LARGEST]


TESTED_ON = "What was trained on is tested on: scores rise with memory, and say nothing of new images."


def crossing_groups(frame: pd.DataFrame) -> list[Finding]:
    """Find groups that stand in several splits."""
    pairs = frame[["group", "split"]].drop_duplicates()
    crossing = pairs[pairs["group"].duplicated(keep=False)]
    if crossing.empty:
        return []
    first = str(crossing["group"].iloc[0])
    where = " and ".join(sorted(crossing.loc[crossing["group"] == first, "split"]))
    count = int(crossing["group"].nunique())
    return [Finding(
        "problem", "group", f"{count} groups stand in several splits, the first: '{first}' in {where}",
        "Siblings of one photograph or prompt are on both sides. " + TESTED_ON,
        "give each group one split; without a split column groups are divided by themselves",
        {"groups": count},
    )]  # fmt: skip


def equal_contents(frame: pd.DataFrame, digests: pd.Series) -> list[Finding]:
    """Find files of equal content that have different labels or splits.

    Args:
        frame: of the manifest.
        digests: SHA-256 by id; "" where not known.
    """
    known = frame.loc[digests.index].assign(sha256=digests)
    known = known[known["sha256"] != ""]
    same = known[known["sha256"].duplicated(keep=False)]
    findings = []
    for column, means in (("label", "One of the labels is wrong."), ("split", TESTED_ON)):
        kinds = same.groupby("sha256")[column].nunique()
        wrong = same[same["sha256"].isin(kinds[kinds > 1].index)].sort_values(["sha256", column])
        if len(wrong):
            first, second = wrong["path"].iloc[0], wrong["path"].iloc[1]
            contents = int(wrong["sha256"].nunique())
            findings.append(Finding(
                "problem", "duplicate",
                f"{contents} contents stand under several {column}s ({len(wrong)} files), the first: {first} and "
                f"{second}",
                means, "fakedet index source=FOLDER leaves such files out; or take them out of the table",
                {"by": column, "contents": contents, "files": len(wrong)},
            ))  # fmt: skip
    return findings


def alike(frame: pd.DataFrame, looks: Looks) -> tuple[list[Finding], pd.DataFrame]:
    """Find images that look the same and have different labels or splits, though their bytes differ.

    Returns:
        The findings, and the pairs: columns first, second (paths), bits.
    """
    assert looks.prints is not None
    assert looks.content is not None
    rows = frame.loc[looks.frame.index]
    codes, _ = pd.factorize(rows["split"] + rows["label"].astype(str))
    pairs = near_duplicates(looks.prints, looks.content[:, :192], codes.astype(np.int64))
    digests = looks.frame["sha256"].to_numpy()
    pairs = pairs[digests[pairs["first"]] != digests[pairs["second"]]]
    first, second = rows.iloc[pairs["first"]], rows.iloc[pairs["second"]]
    splits = first["split"].to_numpy() != second["split"].to_numpy()
    listed = pd.DataFrame({
        "first": first["path"].to_numpy(), "second": second["path"].to_numpy(), "bits": pairs["bits"].to_numpy(),
        "splits": splits, "labels": first["label"].to_numpy() != second["label"].to_numpy(),
    }).sort_values(["splits", "bits", "first"], ascending=[False, True, True], ignore_index=True)  # fmt: skip
    findings = []
    crossing = listed[listed["splits"]]
    if len(crossing):
        one = crossing.iloc[0]
        findings.append(Finding(
            "warning", "near-duplicate",
            f"{len(crossing)} pairs across splits look the same (perceptual hash), the first: {one['first']} and "
            f"{one['second']}",
            "Re-encoded or resized copies of one picture may stand on both sides. " + TESTED_ON,
            "look at the pairs in near_duplicates.csv; give true copies one group", {"pairs": len(crossing)},
        ))  # fmt: skip
    other = listed[~listed["splits"] & listed["labels"]]
    if len(other):
        one = other.iloc[0]
        findings.append(Finding(
            "warning", "near-duplicate",
            f"{len(other)} pairs of a real and a fake look the same, the first: {one['first']} and {one['second']}",
            "A fake that is a real picture re-encoded, or one that was made from it; the former is a wrong label.",
            "look at the pairs in near_duplicates.csv; siblings belong into one group", {"pairs": len(other)},
        ))  # fmt: skip
    return findings, listed


def unseen_generators(frame: pd.DataFrame) -> list[Finding]:
    """Find generators of the test split that are not as unseen as they seem."""
    fakes = frame[frame["label"] == 1]
    by_split = {split: set(rows["generator"]) for split, rows in fakes.groupby("split", observed=True)}
    train, val, test = (by_split.get(split, set()) for split in ("train", "val", "test"))
    findings = []
    if train and test and not test - train:
        findings.append(Finding(
            "note", "unseen", "every generator of the test split is trained on",
            "Results on this split say nothing of generators that a detector has not seen.",
            "keep some for test: fakedet index source=FOLDER unseen='[NAME,...]'",
        ))  # fmt: skip
    chosen_on = sorted((val & test) - train)
    if chosen_on:
        findings.append(Finding(
            "problem", "unseen", f"not trained on, but in the validation split: {', '.join(chosen_on)}",
            "Validation chooses the weights, so a generator in it is not unseen.",
            "move its images to test: fakedet index source=FOLDER unseen='[NAME,...]'", {"generators": chosen_on},
        ))  # fmt: skip
    for name in sorted(test - train):
        twin = next((other for other in sorted(train | val) if _same(name, other)), None)
        if twin is not None and twin != name:
            findings.append(Finding(
                "problem", "unseen", f"'{name}' in test seems to be '{twin}', which is trained on",
                "One generator under two names is counted as unseen.", "give it one name",
                {"generators": [name, twin]},
            ))  # fmt: skip
    return findings


def _same(name: str, other: str) -> bool:
    return _plain(name) == _plain(other)


def _plain(name: str) -> str:
    """Write a name without case, separators and the words that only say that it is a generator."""
    return re.sub(r"[^a-z0-9]", "", re.sub(r"(fake|generated|images?|\bai\b)", "", name.lower()))
