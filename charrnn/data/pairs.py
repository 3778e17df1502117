"""Which pairs of neighbouring characters a text has often enough to learn something of them."""

from __future__ import annotations

import numpy as np

from charrnn.data.corpus import Ids

COUNTED = 1 << 26  # ids that are counted: of a longer text the beginning, so that counting takes a gigabyte at most
SHIFT = 32


def frequent_pairs(text: Ids, symbols: int, max_size: int, min_count: int) -> Ids:
    """Of a text's pairs of ids those that it has `min_count` times, the most frequent `max_size` of them: (n, 2) int64.

    A pair with one of the first `symbols` ids, which are no characters, is none.
    """
    ids = np.asarray(text[:COUNTED], dtype=np.int64)
    real = (ids[:-1] >= symbols) & (ids[1:] >= symbols)
    pairs, counts = np.unique((ids[:-1] << SHIFT | ids[1:])[real], return_counts=True)
    pairs, counts = pairs[counts >= min_count], counts[counts >= min_count]
    pairs = pairs[np.argsort(-counts, kind="stable")[:max_size]]
    return np.stack([pairs >> SHIFT, pairs & ((1 << SHIFT) - 1)], axis=1)
