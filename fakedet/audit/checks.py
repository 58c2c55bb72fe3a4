"""Checks of a manifest: unreadable files, one-sided splits, copies and look-alikes across splits, leaked generators.

Each check returns :class:`Finding` objects. The shortcuts of each generator are in :mod:`fakedet.audit.shortcuts`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fakedet.audit.features import Looks

# A problem makes results wrong or flattering, a warning may do so, a note is good to know.
LEVELS = ("problem", "warning", "note")
# Bits by which two fingerprints of 64 may differ. At least one of four pieces of 16 bits is then equal, which is how
# pairs are found without comparing all with all.
MOST_BITS = 3
TESTED_ON = "The test set contains training images: scores measure memory and say nothing about new images."


@dataclass(frozen=True)
class Finding:
    """One thing that was found."""

    level: str  # one of :data:`LEVELS`
    kind: str  # a short name, the same for findings of one sort: "header", "duplicate", ...
    what: str  # what was seen, with numbers and the first example
    means: str  # why it matters
    mend: str  # the command or step that mends it; "" if nothing need be done
    data: dict[str, Any] = field(default_factory=dict)  # the numbers of ``what``, for programs


def unreadable_files(frame: pd.DataFrame, looks: Looks) -> list[Finding]:
    """Report files that cannot be read, and the generator that loses most by them."""
    bad = looks.problems
    if bad.empty:
        return []
    rows, share = frame.loc[bad.index], len(bad) / len(looks.frame)
    lost = rows.groupby(["label", "generator"], observed=True).size().sort_values(ascending=False)
    (label, generator), count = lost.index[0], int(lost.iloc[0])
    counts = {f"{name[0]} {name[1]}": int(n) for name, n in lost.items()}  # type: ignore[index]
    return [Finding(
        "problem" if share > 0.05 else "warning", "unreadable",
        f"{len(bad)} images cannot be read ({share:.1%}), most of them {('real', 'fake')[int(label)]} {generator} "
        f"({count}); the first: {rows['path'].iloc[0]}: {bad.iloc[0]}",
        "They are left out of training and results; a generator that loses many is measured on the rest.",
        "fetch them again and run fakedet index, or remove them from the table",
        {"images": len(bad), "per_generator": counts},
    )]  # fmt: skip


def class_balance(frame: pd.DataFrame) -> list[Finding]:
    """Report splits with one class only, or with many more images of one class."""
    findings = []
    for split, rows in frame.groupby("split", observed=True):
        reals, fakes = int((rows["label"] == 0).sum()), int((rows["label"] == 1).sum())
        what = f"the split '{split}' has {reals} reals and {fakes} fakes"
        data = {"split": split, "real": reals, "fake": fakes}
        if not reals or not fakes:
            findings.append(Finding(
                "problem", "balance", what,
                "Training, AP and AUC need both classes; one alone gives false alarms or detection.",
                "add the other class to this split", data,
            ))  # fmt: skip
        elif max(reals, fakes) > 10 * min(reals, fakes):
            findings.append(Finding(
                "note", "balance", what,
                "Training batches are balanced whatever the counts; AP depends on them, AUC does not.", "", data,
            ))  # fmt: skip
    return findings


def crossing_groups(frame: pd.DataFrame) -> list[Finding]:
    """Report groups that are in several splits."""
    pairs = frame[["group", "split"]].drop_duplicates()
    crossing = pairs[pairs["group"].duplicated(keep=False)]
    if crossing.empty:
        return []
    first = str(crossing["group"].iloc[0])
    where = " and ".join(sorted(crossing.loc[crossing["group"] == first, "split"]))
    count = crossing["group"].nunique()
    return [Finding(
        "problem", "group", f"{count} groups are in several splits, the first: '{first}' in {where}",
        "Images of one photograph or prompt are on both sides. " + TESTED_ON,
        "give each group one split; without a split column, groups are divided automatically", {"groups": count},
    )]  # fmt: skip


def equal_contents(frame: pd.DataFrame, digests: pd.Series) -> list[Finding]:
    """Report files of equal content, by their SHA-256 ("" if unknown), that have different labels or splits."""
    known = frame.loc[digests.index].assign(sha256=digests)
    known = known[known["sha256"] != ""]
    same = known[known["sha256"].duplicated(keep=False)]
    findings = []
    for column, means in (("label", "One of the labels is wrong."), ("split", TESTED_ON)):
        kinds = same.groupby("sha256")[column].nunique()
        wrong = same[same["sha256"].isin(kinds[kinds > 1].index)].sort_values(["sha256", column])
        if len(wrong):
            first, second = wrong["path"].iloc[:2]
            contents = wrong["sha256"].nunique()
            findings.append(Finding(
                "problem", "duplicate",
                f"{contents} contents have several {column}s ({len(wrong)} files), the first: {first} and {second}",
                means, "fakedet index source=FOLDER leaves such files out; or remove them from the table",
                {"by": column, "contents": contents, "files": len(wrong)},
            ))  # fmt: skip
    return findings


def look_alikes(frame: pd.DataFrame, looks: Looks) -> tuple[list[Finding], pd.DataFrame]:
    """Report images that look the same and have different labels or splits, though their bytes differ.

    Also return the pairs: columns first, second (paths), bits, splits, labels (whether these differ).
    """
    assert looks.prints is not None
    assert looks.content is not None
    rows = frame.loc[looks.frame.index]
    codes, _ = pd.factorize(rows["split"] + rows["label"].astype(str))
    pairs = near_duplicates(looks.prints, looks.content[:, :192], codes.astype(np.int64))
    digests = looks.frame["sha256"].to_numpy()
    pairs = pairs[digests[pairs["first"]] != digests[pairs["second"]]]
    first, second = rows.iloc[pairs["first"]], rows.iloc[pairs["second"]]
    listed = pd.DataFrame({
        "first": first["path"].to_numpy(), "second": second["path"].to_numpy(), "bits": pairs["bits"].to_numpy(),
        "splits": first["split"].to_numpy() != second["split"].to_numpy(),
        "labels": first["label"].to_numpy() != second["label"].to_numpy(),
    }).sort_values(["splits", "bits", "first"], ascending=[False, True, True], ignore_index=True)  # fmt: skip
    kinds = (
        (listed["splits"], "pairs across splits look the same (perceptual hash)",
         "Re-encoded or resized copies of one picture may be on both sides. " + TESTED_ON,
         "look at the pairs in near_duplicates.csv; give true copies one group"),
        (~listed["splits"] & listed["labels"], "pairs of a real and a fake look the same",
         "The fake is a re-encoded real picture (a wrong label), or was made from it.",
         "look at the pairs in near_duplicates.csv; give siblings one group"),
    )  # fmt: skip
    findings = []
    for which, words, means, mend in kinds:
        found = listed[which]
        if len(found):
            what = f"{len(found)} {words}, the first: {found['first'].iloc[0]} and {found['second'].iloc[0]}"
            findings.append(Finding("warning", "near-duplicate", what, means, mend, {"pairs": len(found)}))
    return findings, listed


def near_duplicates(
    prints: NDArray[np.uint64], thumbnails: NDArray[np.float32], apart: NDArray[np.int64]
) -> pd.DataFrame:
    """Find pairs that look the same, by (n,) fingerprints (0 is ignored) and (n, d) thumbnails in [0, 1].

    Their (n,) codes differ. Columns first, second (positions, first < second), bits (differing); each pair once.
    """
    found: set[tuple[int, int, int]] = set()
    known = np.flatnonzero(prints)
    for shift in (0, 16, 32, 48):
        pieces = (prints[known] >> np.uint64(shift)) & np.uint64(0xFFFF)
        order = np.argsort(pieces, kind="stable")
        for rows in np.split(known[order], np.flatnonzero(np.diff(pieces[order])) + 1):
            rows = rows[:4000]  # a bound on the time, where thousands of images share a piece
            codes = apart[rows]
            if (codes == codes[:1]).all():
                continue
            differing = np.bitwise_count(prints[rows][:, None] ^ prints[rows][None])
            firsts, seconds = np.nonzero((differing <= MOST_BITS) & (codes[:, None] != codes[None]))
            for first, second in zip(firsts.tolist(), seconds.tolist(), strict=True):
                a, b = int(rows[first]), int(rows[second])
                # Where thumbnails in [0, 1] differ by more on average, equal fingerprints are chance.
                if a < b and np.abs(thumbnails[a] - thumbnails[b]).mean() <= 0.04:
                    found.add((a, b, int(differing[first, second])))
    return pd.DataFrame(sorted(found), columns=["first", "second", "bits"])


def unseen_generators(frame: pd.DataFrame) -> list[Finding]:
    """Report generators of the test split that are not as unseen as they seem."""
    fakes = frame[frame["label"] == 1]
    by_split = {split: set(rows["generator"]) for split, rows in fakes.groupby("split", observed=True)}
    train, val, test = (by_split.get(split, set()) for split in ("train", "val", "test"))
    findings = []
    if train and test and not test - train:
        findings.append(Finding(
            "note", "unseen", "every generator of the test split is trained on",
            "Results on this split say nothing about generators that a detector has not seen.",
            "keep some for test: fakedet index source=FOLDER unseen='[NAME,...]'",
        ))  # fmt: skip
    if chosen_on := sorted((val & test) - train):
        findings.append(Finding(
            "problem", "unseen", f"not trained on, but in the validation split: {', '.join(chosen_on)}",
            "Validation chooses the weights, so a generator in it is not unseen.",
            "move its images to test: fakedet index source=FOLDER unseen='[NAME,...]'", {"generators": chosen_on},
        ))  # fmt: skip

    def plain(name: str) -> str:  # without case, separators and the words that only say that it is a generator
        return re.sub(r"[^a-z0-9]", "", re.sub(r"(fake|generated|images?|\bai\b)", "", name.lower()))

    for name in sorted(test - train):
        twin = next((other for other in sorted(train | val) if plain(name) == plain(other)), None)
        if twin is not None and twin != name:
            what = f"'{name}' in test seems to be '{twin}', which is trained on"
            means = "One generator under two names is counted as unseen."
            findings.append(Finding("problem", "unseen", what, means, "give it one name", {"generators": [name, twin]}))
    return findings
