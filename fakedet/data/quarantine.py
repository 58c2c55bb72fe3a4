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
    """The unreadable images of a run.

    Attributes:
        frame: columns path, label, generator, split, reason; each image once.
        n_images: images of the splits that were read.
    """

    frame: pd.DataFrame
    n_images: int

    @classmethod
    def from_records(
        cls, records: Iterable[dict[str, Any]], manifest: Manifest, splits: Collection[str]
    ) -> Quarantine:
        """Collect what batches of these splits reported; the same image counts once, however often tried."""
        reasons = {int(record["id"]): str(record["reason"]) for record in records}
        frame = manifest.frame.loc[sorted(reasons), ["path", "label", "generator", "split"]].copy()
        frame["reason"] = [reasons[row] for row in sorted(reasons)]
        return cls(frame, int(manifest.frame["split"].isin(splits).sum()))

    def summary(self) -> dict[str, Any]:
        """Count them in all, per class and per generator."""
        return {
            "n": len(self.frame),
            "n_real": int((self.frame["label"] == 0).sum()),
            "n_fake": int((self.frame["label"] == 1).sum()),
            "per_generator": {str(key): int(n) for key, n in self.frame["generator"].value_counts().items()},
        }

    def write(self, path: Path) -> None:
        """Write the list as CSV, if there is anything to list."""
        if len(self.frame):
            self.frame.to_csv(path, index=False)

    def check(self, most: float) -> None:
        """Refuse a result that rests on too few of its images.

        Args:
            most: largest share of the images that may be unreadable.

        Raises:
            UserError: the share is larger.
        """
        share = len(self.frame) / max(1, self.n_images)
        if share > most:
            first = self.frame.iloc[0]
            raise UserError(
                f"{len(self.frame)} of {self.n_images} images ({share:.1%}) could not be read, more than "
                f"data.max_quarantine={most}; first: {first['path']}: {first['reason']}. All are in quarantine.csv; "
                "what was trained and scored is kept"
            )
