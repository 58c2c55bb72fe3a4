"""Pairs of images that look the same, by their perceptual hashes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd
from numpy.typing import NDArray

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
        prints: (n,) of :func:`fakedet.audit.looks.fingerprint`; those that are 0 are left aside.
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
