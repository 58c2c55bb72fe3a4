"""Hold generators out of training: their fakes leave train and val, and may be what is measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from fakedet.data.manifest import Manifest
from fakedet.errors import UserError, choose, nearest

MEASURES = ("test", "held_out")
ASIDE = "aside"
"""The split of rows that a run with held-out generators uses for nothing."""


def hold_out(manifest: Manifest, generators: Sequence[str], measure: str = "test") -> Manifest:
    """Take the fakes of generators out of training and validation.

    Args:
        manifest: the rows.
        generators: whose fakes leave the splits train and val; none: the manifest stays as it is.
        measure: "test": the split test stays, and the held-out generators are unseen in it. "held_out": hyper-
            parameters shall be chosen without a look at the test split, so that leaves too, and the split test
            becomes the held-out fakes against half of the groups of validation reals, which leave validation.

    Raises:
        UserError: a name that is no generator of the training fakes, an unknown measure, or one without generators.
    """
    choose(measure, MEASURES, "data.measure")
    if not generators:
        if measure != "test":
            raise UserError(f"data.measure={measure} needs generators to hold out: data.hold_out=[NAME]")
        return manifest
    frame = manifest.frame
    is_fake = frame["label"] == 1
    used = frame["split"].isin(("train", "val"))
    known = sorted(frame.loc[is_fake & used, "generator"].unique())
    for name in generators:
        if name not in known:
            raise UserError(
                f"data.hold_out: no training or validation fakes are of '{name}'; {nearest(name, known)}"
            )
    held = is_fake & used & frame["generator"].isin(list(generators))
    split = frame["split"].mask(held, ASIDE)
    if measure == "held_out":
        split = split.mask(split == "test", ASIDE)
        reals = (split == "val") & ~is_fake
        drawn = frame["group"].isin(_half(frame.loc[reals, "group"]))
        # Other generators' fakes of the drawn photographs can neither be measured nor stay in validation.
        split = split.mask(drawn & reals, "test").mask(drawn & (split == "val") & is_fake, ASIDE)
        # A fake of a photograph that is still trained on or validated with is not new.
        remaining = frame.loc[split.isin(("train", "val")), "group"]
        split = split.mask(held & ~frame["group"].isin(remaining), "test")
    return replace(manifest, frame=frame.assign(split=split))


def _half(groups: pd.Series) -> pd.Index:
    """Draw half of the groups; which ones depends on nothing but their names."""
    names = np.sort(groups.unique().astype(str))
    return pd.Index(np.random.default_rng(0).permutation(names)[: len(names) // 2])
