"""The hierarchical bootstrap of leaving families out: over families, photographs or prompts, and seeds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from fakedet.errors import UserError
from fakedet.metrics.pairing import column, real_counterparts
from fakedet.metrics.per_generator import BootstrapTable, bootstrap_statistics


def bootstrap_families(
    frames: Mapping[str, pd.DataFrame], logits: Mapping[str, Mapping[str, ArrayLike]], n_resamples: int = 1000,
    seed: int = 0,
) -> BootstrapTable:  # fmt: skip
    """Measure detectors on the families that each of them was trained without, on the same resamples of groups.

    A family's fakes are ranked among the reals of the same source (:func:`fakedet.metrics.pairing.real_counterparts`)
    by the detector that was trained without it, so that logits are compared within a family alone. A resample draws
    each photograph or prompt once, for all families and scorers that it is in; with the functions ``draw_families`` and
    ``mean_over_families`` of :mod:`fakedet.metrics.bootstrap` it becomes a resample of families and groups, crossed
    (Owen, The pigeonhole bootstrap, Annals of Applied Statistics 1(2), 2007).

    Args:
        frames: family -> its test images, a row per image: path, label, generator, family (of fakes), source, group
            and, for the matched AUC, content. Fakes of other families are left out.
        logits: family -> scorer -> (n,) logits of the rows of its frame; the scorers of all families are the same.
        n_resamples: R >= 0, drawn by ``seed``.

    Returns:
        AP, AUC and matched AUC by scorer; its "generators" are the families, in the order of their names.

    Raises:
        UserError: a family without fakes or without reals to compare them with, or logits that are NaN.
    """
    parts, scores, found = [], [], {}
    for family, frame in frames.items():
        label, groups = frame["label"].to_numpy(), column(frame, "group")
        named = frame.assign(generator=np.where(label == 1, column(frame, "family"), column(frame, "generator")))
        own = real_counterparts(named, None).get(family)
        if own is None or not len(own.real_rows):
            lacking = "fakes" if own is None else "reals to compare its fakes with"
            raise UserError(f"family '{family}': there are no {lacking} among its test images")
        found[family], rows = own, np.concatenate([own.fake_rows, own.real_rows])
        # Reals get the name of the family too, which pairs them with its fakes and with no others. A row without a
        # group is a group of its own, the same one in all families.
        groups = np.where(groups == "", "\0" + column(frame, "path"), groups)
        parts.append(named.assign(generator=family, group=groups).iloc[rows].drop(columns="id", errors="ignore"))
        scores.append(pd.DataFrame({key: np.asarray(values)[rows] for key, values in logits[family].items()}))
    joined = pd.concat(scores, ignore_index=True)
    given = {str(key): joined[key].to_numpy() for key in joined}
    table = bootstrap_statistics(pd.concat(parts, ignore_index=True), given, None, None, n_resamples, seed)
    told = {
        name: replace(row, reals=found[name].reals, rule=found[name].rule) for name, row in table.generators.items()
    }
    return replace(table, generators=told)
