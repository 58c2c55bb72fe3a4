"""AUC among images of the same content: what a detector tells apart when content cannot."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from fakedet.metrics.bootstrap import Interval
from fakedet.metrics.pairing import Counterparts, column

NEIGHBOURS = 10
WIDTH = 64  # of the embeddings that a predictions file keeps
HIGH = 0.75  # mean AUC from which on a detector is told if its matched AUC is at chance
LIMIT = 10_000  # images among which neighbours are looked for; of more, as many evenly spaced ones
CELLS = 4_000_000  # similarities or weights held at a time


def content_pairs(
    content: ArrayLike, labels: ArrayLike, groups: ArrayLike, neighbours: int = NEIGHBOURS
) -> NDArray[np.int64]:
    """Pair fakes with reals of the same content.

    A fake and a real are a pair if either is among the ``neighbours`` images that are nearest to the other by cosine.
    Neighbours are of both classes: of the k nearest *reals*, those of a fake whose content no real shares would all be
    far away, and a detector of content alone would tell them. An image of the same class and group is no neighbour:
    siblings of one photograph would leave no place for others.

    Args:
        content: (n, D) embeddings that say what an image shows, such as features of a frozen backbone; no function of
            what is measured. Rows with NaN, or of zeros only, are in no pair.
        labels: (n,) 0 = real, 1 = fake.
        groups: (n,) photograph or prompt.

    Returns:
        (P, 2) rows of the fake and of the real of each pair, ordered; P may be 0.
    """
    given, label = np.asarray(content, dtype=np.float32), np.asarray(labels)
    length = np.linalg.norm(given, axis=1) if given.ndim == 2 else np.zeros(len(label))
    known = np.flatnonzero(np.isfinite(length) & (length > 0))
    if len(known) > LIMIT:
        known = known[np.linspace(0, len(known) - 1, LIMIT).round().astype(int)]
    if len(known) < 2:
        return np.zeros((0, 2), dtype=np.int64)
    unit, fake = given[known] / length[known, None], label[known] == 1
    sibling = pd.MultiIndex.from_arrays([np.asarray(groups)[known], fake]).factorize()[0]
    count, found = min(neighbours, len(known) - 1), []
    for start in range(0, len(known), step := max(1, CELLS // len(known))):
        rows = np.arange(start, min(start + step, len(known)))
        similar = unit[rows] @ unit.T
        similar[sibling[rows, None] == sibling] = -2.0  # itself too
        nearest = np.argpartition(-similar, count - 1, axis=1)[:, :count]
        own, other = np.repeat(rows, count), nearest.ravel()
        kept = (fake[own] != fake[other]) & (np.take_along_axis(similar, nearest, axis=1).ravel() > -2.0)
        own, other = own[kept], other[kept]
        found.append(np.where(fake[own, None], np.stack([own, other], 1), np.stack([other, own], 1)))
    return known[np.unique(np.concatenate(found), axis=0)]


def matched_auc(pairs: NDArray[np.int64], logits: ArrayLike, weights: ArrayLike | None = None) -> NDArray[np.float64]:
    """Compute the share of pairs of the same content whose fake has the higher logit, under R weightings of the rows.

    Σ w_i w_j ([s_i > s_j] + ½ [s_i = s_j]) / Σ w_i w_j over the pairs of a fake i and a real j: the plain AUC is the
    same over all pairs of a fake and a real. The pairs stay as they are in all weightings, because the bootstrap is not
    valid for neighbours that are looked for anew in each resample (Abadie and Imbens, Econometrica 76(6), 2008).

    Args:
        pairs: (P, 2) rows, from :func:`content_pairs`.
        logits: (n,) of one scorer or (n, S) of several.
        weights: (R, n) weights >= 0, in a bootstrap counts; None: one weighting of ones.

    Returns:
        (R,) or (R, S) values in [0, 1]; NaN where no pair has weight.
    """
    score = np.asarray(logits, dtype=np.float64)
    fakes, reals = pairs.T
    wins = (score[fakes] > score[reals]) + 0.5 * (score[fakes] == score[reals])
    weight = np.ones((1, len(score)), dtype=np.int32) if weights is None else np.asarray(weights)
    result = np.empty((len(weight), *score.shape[1:]))
    for start in range(0, len(weight), step := max(1, CELLS // max(1, len(pairs)))):
        rows = slice(start, start + step)
        both = np.asarray(weight[rows].take(fakes, axis=1) * weight[rows].take(reals, axis=1), dtype=np.float64)
        total = both.sum(axis=1)
        with np.errstate(invalid="ignore"):
            result[rows] = (both @ wins) / (total[:, None] if score.ndim == 2 else total)
    return result


def pairs_by_generator(
    frame: pd.DataFrame, counterparts: Mapping[str, Counterparts], groups: NDArray[Any]
) -> dict[str, NDArray[np.int64]] | None:
    """Pair each generator's fakes with those of their counterparts that show the same, by the column ``content``.

    Returns:
        Generator → (P, 2) rows of the frame; None where the frame has no embeddings of its images' content.
    """
    known = [np.ndim(row) == 1 for row in frame.get("content", ())]
    if not any(known):
        return None
    rows = np.flatnonzero(known)
    content = np.zeros((len(frame), len(frame["content"].iloc[rows[0]])), dtype=np.float32)
    content[rows] = np.stack(frame["content"].iloc[rows].tolist())
    label, found = frame["label"].to_numpy(), {}
    for name, own in counterparts.items():
        rows = np.concatenate([own.fake_rows, own.real_rows])
        found[name] = rows[content_pairs(content[rows], label[rows], groups[rows])]
    return found


def split_by_source(
    frame: pd.DataFrame, counterparts: Mapping[str, Counterparts]
) -> dict[str, list[Counterparts]] | None:
    """Split each generator's fakes and their counterparts by the column ``source``; None where no fake has one."""
    sources = column(frame, "source")
    if not any((sources[own.fake_rows] != "").any() for own in counterparts.values()):
        return None
    return {
        name: [replace(own, fake_rows=fakes, real_rows=reals) for source in sorted(set(sources[own.fake_rows]) - {""})
               for fakes, reals in [[rows[sources[rows] == source] for rows in (own.fake_rows, own.real_rows)]]
               if len(reals)]
        for name, own in counterparts.items()
    }  # fmt: skip


def compress_content(features: ArrayLike, width: int = WIDTH) -> NDArray[np.float32]:
    """Shorten (n, D) features to (n, min(D, width)) embeddings whose cosines are nearly those of the features.

    The features are standardised over the n images and scaled to length 1, and projected onto the principal directions
    that hold most of their inner products.
    """
    rows = np.asarray(features, dtype=np.float64)
    rows = (rows - rows.mean(axis=0)) / (rows.std(axis=0) + 1e-6)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True) + 1e-12
    _, directions = np.linalg.eigh(rows.T @ rows)
    return (rows @ directions[:, ::-1][:, :width]).astype(np.float32)


def content_note(plain: Interval, matched: Interval, matched_by: str | None) -> str:
    """Say so if a mean AUC is high and that among images of the same content is at chance; else ""."""
    if not (plain.value >= HIGH and matched.low <= 0.5):  # NaN: not known
        return ""
    how = {"features": "by the features of its backbone", "source": "by source"}.get(str(matched_by), "")
    return (f"what it tells apart is mostly content: its mean AUC is {plain.text()}, but {matched.text()} among fakes "
            f"and reals of the same content ({how}), where a guess has 0.5")  # fmt: skip
