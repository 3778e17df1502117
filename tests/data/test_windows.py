"""Windows: each character learned from at most once a pass, and answered exactly once with its margins."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from charrnn.data.corpus import Ids
from charrnn.data.windows import count, cut, overlapping

sizes = st.lists(st.integers(0, 60), max_size=6)


def edges_of(sizes: list[int]) -> Ids:
    return np.cumsum([0, *sizes])


@given(sizes, st.integers(1, 12), st.integers(0, 99))
def test_a_pass_reads_nearly_everything_once(sizes: list[int], length: int, seed: int) -> None:
    edges = edges_of(sizes)
    windows = cut(edges, length, np.random.default_rng(seed))
    seen = np.zeros(edges[-1], dtype=int)
    for start, stop in zip(windows.starts, windows.stops):
        assert 1 <= stop - start <= length
        assert np.searchsorted(edges, start, side="right") == np.searchsorted(edges, stop - 1, side="right")  # in one document
        seen[start:stop] += 1
    assert seen.max(initial=0) <= 1
    for begin, end in pairwise(edges):
        left_out = int((seen[begin:end] == 0).sum())
        assert left_out <= length // 2 and (left_out == 0 or end - begin > length)
    assert len(windows.starts) == count(edges, length)


def test_each_epoch_cuts_elsewhere_and_the_same_again() -> None:
    edges = edges_of([1000])
    first, again, other = (cut(edges, 64, np.random.default_rng([1, epoch])).starts.tolist() for epoch in (0, 0, 1))
    assert first == again != other


@given(sizes, st.integers(1, 12), st.data())
def test_each_character_is_answered_once_with_its_margins(sizes: list[int], length: int, data: st.DataObject) -> None:
    margin = data.draw(st.integers(0, (length - 1) // 2))
    edges = edges_of(sizes)
    windows = overlapping(edges, length, margin)
    answered = np.zeros(edges[-1], dtype=int)
    for start, stop, first, last in zip(windows.starts, windows.stops, windows.first, windows.last):
        assert start <= first < last <= stop and stop - start <= length
        begin, end = edges[np.searchsorted(edges, start, side="right") - 1], edges[np.searchsorted(edges, start, side="right")]
        assert start <= max(begin, first - margin) and min(end, last + margin) <= stop <= end
        answered[first:last] += 1
    assert (answered == 1).all()


def test_a_margin_that_leaves_nothing_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="a margin of 4 on both sides leaves nothing of windows of 8"):
        overlapping(edges_of([20]), 8, 4)
