"""Frequent pairs are those of the text, counted by hand."""

from __future__ import annotations

import numpy as np

from charrnn.data.pairs import frequent_pairs


def test_pairs_by_their_number() -> None:
    text = np.array([5, 6, 5, 6, 5, 7, 1, 7, 7, 7, 1, 5, 7], dtype=np.uint8)  # 5 6 twice, 6 5 twice, 5 7 twice, 7 7 twice; 1 is a symbol
    assert sorted(map(tuple, frequent_pairs(text, 2, 10, 2).tolist())) == [(5, 6), (5, 7), (6, 5), (7, 7)]
    assert frequent_pairs(text, 2, 2, 2).tolist() == [[5, 6], [5, 7]]  # equals in the order of their ids
    assert frequent_pairs(text, 2, 10, 3).shape == (0, 2)
    assert frequent_pairs(np.concatenate([text, [6, 5, 6]]), 2, 1, 1).tolist() == [[5, 6]]
    assert frequent_pairs(text[:1], 2, 10, 1).shape == (0, 2)
