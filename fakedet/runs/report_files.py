"""The predictions files that a report is made of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from fakedet.evaluation.predictions import read_pictures, read_predictions

ORIGINAL = "original"


@dataclass(frozen=True)
class Read:
    """One predictions file."""

    method: str
    seed: int
    path: Path
    frame: pd.DataFrame
    identity: dict[str, Any]
    """Of the run that wrote it."""

    pictures: dict[str, bytes]
    """Small JPEGs of its most confident errors, by path."""

    @property
    def original(self) -> pd.DataFrame:
        """The rows of images as they are."""
        return self.frame[self.frame["view"] == ORIGINAL].reset_index(drop=True)


def read_files(paths: Sequence[Path]) -> list[Read]:
    """Read predictions files and name each one's method.

    Files of one method and seed are told apart by their folder.

    Raises:
        UserError: a file is no predictions file.
    """
    read = [read_predictions(path) for path in paths]
    named = []
    keys = [
        (str(identity.get("name", path.parent.name)), int(identity.get("seed", 0)))
        for (_, identity), path in zip(read, paths, strict=True)
    ]
    twice = Counter(keys)
    for (frame, identity), path, (name, seed) in zip(read, paths, keys, strict=True):
        if twice[name, seed] > 1:
            name = f"{name} ({path.resolve().parent.name})"
        frame = frame if "view" in frame else frame.assign(view=ORIGINAL)
        named.append(Read(name, seed, path, frame, identity, read_pictures(path)))
    return named
