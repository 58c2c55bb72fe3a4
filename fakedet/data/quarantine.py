"""Images that could not be read: which, why, and whether they are too many."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from fakedet.data.manifest import Manifest
from fakedet.errors import UserError


@dataclass(frozen=True)
class Quarantine:
    """The unreadable images of a run."""

    frame: pd.DataFrame
    """Columns path, label, generator, split, reason; the index is the id; each image once."""
    n_images: dict[str, int]
    """Images of each split that was read."""

    @classmethod
    def from_records(
        cls, records: Iterable[dict[str, Any]], manifest: Manifest, splits: Collection[str]
    ) -> Quarantine:
        """Collect what batches of these splits reported; an image counts once, however often it was tried."""
        reasons: dict[int, str] = {}
        for record in records:
            reasons.setdefault(int(record["id"]), str(record["reason"]))
        rows = sorted(reasons)
        frame = manifest.frame.loc[rows, ["path", "label", "generator", "split"]].copy()
        frame["reason"] = [reasons[row] for row in rows]
        counts = manifest.frame["split"].value_counts()
        return cls(frame, {split: int(counts[split]) for split in splits if split in counts})

    def __len__(self) -> int:
        return len(self.frame)

    def shares(self) -> dict[str, float]:
        """Give the share of unreadable images in each split.

        A split's own share counts: a broken test split must not hide behind a large training split.
        """
        bad = self.frame["split"].value_counts()
        return {split: float(bad.get(split, 0)) / count for split, count in self.n_images.items()}

    def summary(self) -> dict[str, Any]:
        """Count them in all, per class, per split and per generator."""
        return {
            "n": len(self.frame),
            "n_real": int((self.frame["label"] == 0).sum()),
            "n_fake": int((self.frame["label"] == 1).sum()),
            "share_per_split": self.shares(),
            "per_generator": {str(key): int(n) for key, n in self.frame["generator"].value_counts().items()},
        }

    def describe(self) -> str:
        """Say in one line how many there are, of which class and generator."""
        kinds = self.frame["label"].map({0: "real", 1: "fake"}) + " " + self.frame["generator"]
        counts = ", ".join(f"{count} {kind}" for kind, count in kinds.value_counts().items())
        return f"{len(self.frame)} images could not be read and were left out ({counts})"

    def lost(self, split: str, read: pd.DataFrame) -> list[str]:
        """Name the generators and collections of a split of which no image could be read.

        Args:
            split: its name.
            read: the rows that were, with label and generator.
        """
        gone = self.frame[self.frame["split"] == split]
        there = set(zip(read["label"], read["generator"], strict=True))
        return sorted({name for label, name in zip(gone["label"], gone["generator"], strict=True)
                       if (label, name) not in there})  # fmt: skip

    def write(self, path: Path) -> None:
        """Write the list as CSV, if there is anything to list."""
        if len(self.frame):
            self.frame.to_csv(path, index_label="id")

    def check(self, most: float) -> None:
        """Refuse a result that rests on too few of its images.

        Args:
            most: largest share of a split's images that may be unreadable.

        Raises:
            UserError: a split's share is larger.
        """
        for split, share in self.shares().items():
            if share > most:
                own = self.frame[self.frame["split"] == split]
                first = own.iloc[0]
                raise UserError(
                    f"{len(own)} of {self.n_images[split]} images of the split '{split}' ({share:.1%}) could "
                    f"not be read, more than data.max_quarantine={most}; first: {first['path']}: "
                    f"{first['reason']}. All are in quarantine.csv; what was trained and scored is kept"
                )
