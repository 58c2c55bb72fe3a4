"""The cells that AP is counted in, and which reals each generator is measured against."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fakedet.data.manifest import Manifest
from fakedet.metrics.pairing import real_counterparts


@dataclass(frozen=True)
class Cells:
    """The cells that the metric counts in: each generator's fakes, each collection's reals.

    Attributes:
        names: by code.
        is_fake: by code.
        counterparts: code of fakes → codes of the reals they are measured against.
        codes: cell of each row of the manifest.
    """

    names: list[str]
    is_fake: list[bool]
    counterparts: dict[int, list[int]]
    codes: NDArray[np.int64]


def make_cells(manifest: Manifest, pairs: Mapping[str, Any] | None, split: str) -> Cells:
    """Number the cells of a manifest, and pair them among the rows of one split.

    Raises:
        UserError: see :func:`fakedet.metrics.pairing.real_counterparts`.
    """
    frame = manifest.frame
    measured = manifest.rows(split)
    # Reals may be matched by source, so each (collection, source) is a cell of its own.
    names = np.where(
        (frame["label"] == 0) & (frame["source"] != ""),
        frame["generator"] + ":" + frame["source"],
        frame["generator"],
    )
    keys = list(zip(frame["label"].tolist(), names.tolist(), strict=True))
    order = {key: code for code, key in enumerate(sorted(set(keys)))}
    codes = np.array([order[key] for key in keys], dtype=np.int64)
    everywhere = frame.loc[frame["label"] == 0, ["generator", "source"]]
    known = set(everywhere["generator"]) | set(everywhere["source"])
    of_split = codes[measured.index.to_numpy()]
    counterparts = {
        order[(1, name)]: sorted({int(code) for code in of_split[found.real_rows]})
        for name, found in real_counterparts(measured, pairs, known).items()
    }
    return Cells([name for _, name in order], [bool(label) for label, _ in order], counterparts, codes)
