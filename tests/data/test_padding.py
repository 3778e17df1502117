"""Examples side by side: each once, beside those of like length, and none of the padding asked or counted."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from charrnn.data.batch import IGNORED
from charrnn.data.padding import POOL, buckets, grouped_buckets, pad

LENGTHS = st.lists(st.integers(1, 40), max_size=60)


@given(lengths=LENGTHS, batch_size=st.integers(1, 9), seed=st.none() | st.integers(0, 99))
@examples(deadline=None, max_examples=60)
def test_every_example_is_in_one_batch_and_all_batches_but_one_are_full(lengths: list[int], batch_size: int, seed: int | None) -> None:
    batches = buckets(lengths, batch_size, None if seed is None else np.random.default_rng(seed))
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    assert len(batches) == -(-len(lengths) // batch_size)
    assert sum(len(batch) < batch_size for batch in batches) <= 1


def test_without_a_generator_they_come_by_length() -> None:
    lengths = [3, 1, 2, 3, 1, 9]
    assert buckets(lengths, 2, None) == [[1, 4], [2, 0], [3, 5]]


def test_each_epoch_has_its_own_order_and_the_same_one_again() -> None:
    lengths = np.random.default_rng(0).integers(1, 200, 500)
    first, again, other = (buckets(lengths, 8, np.random.default_rng((1, epoch))) for epoch in (0, 0, 1))
    assert first == again != other
    assert {frozenset(batch) for batch in first} != {frozenset(batch) for batch in other}  # not only the batches change places


def test_little_of_a_batch_is_padding() -> None:
    lengths = np.random.default_rng(0).integers(10, 500, 64 * POOL)
    batches = buckets(lengths, 64, np.random.default_rng(1))
    padded = sum(len(batch) * int(lengths[batch].max()) for batch in batches)
    assert padded < 1.02 * lengths.sum()


GROUPS = st.lists(st.lists(st.integers(1, 40), min_size=1, max_size=6), min_size=1, max_size=25)  # lengths of the examples of each


@given(groups=GROUPS, batch_size=st.integers(1, 9), seed=st.none() | st.integers(0, 99))
@examples(deadline=None, max_examples=80)
def test_groups_stay_together_and_none_of_them_loses_an_example(groups: list[list[int]], batch_size: int, seed: int | None) -> None:
    lengths = np.array([length for group in groups for length in group])
    firsts = np.cumsum([0, *map(len, groups)])
    batches = grouped_buckets(lengths, firsts, batch_size, None if seed is None else np.random.default_rng(seed))
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    of = np.repeat(np.arange(len(groups)), np.diff(firsts))
    holding = [[at for at, batch in enumerate(batches) if group in of[batch]] for group in range(len(groups))]
    if seed is None:
        assert all(len(places) == 1 for places in holding)
        assert all(len(batch) <= batch_size or len({*of[batch]}) == 1 for batch in batches)
        return
    assert len(batches) == -(-len(lengths) // batch_size) and sum(len(batch) < batch_size for batch in batches) <= 1
    for batch in batches:  # side by side, in their order
        assert 1 + np.count_nonzero(np.diff(of[batch])) == len({*of[batch]})
        assert all(b == a + 1 for a, b in itertools.pairwise(batch) if of[a] == of[b])
    for group, places in zip(groups, holding):  # one that begins in a batch goes on in the next
        assert len(places) <= 1 + -(-(len(group) - 1) // batch_size)


def test_groups_come_by_their_longest_example_and_are_mixed_anew_each_epoch() -> None:
    lengths, firsts = np.array([9, 1, 2, 2, 5]), np.array([0, 2, 4, 5])
    assert grouped_buckets(lengths, firsts, 3, None) == [[2, 3, 4], [0, 1]]
    assert grouped_buckets(lengths, firsts, 1, None) == [[2, 3], [4], [0, 1]]
    many, of_five = np.random.default_rng(0).integers(1, 60, 500), np.arange(0, 501, 5)
    first, again, other = (grouped_buckets(many, of_five, 8, np.random.default_rng((1, epoch))) for epoch in (0, 0, 1))
    assert first == again != other


def test_padding_is_read_as_0_and_never_asked_nor_counted() -> None:
    batch = pad([np.array([5, 6, 7], dtype=np.uint8), np.array([8], dtype=np.uint8)], [np.array([1, IGNORED, 2]), np.array([3])])
    assert batch.inputs.tolist() == [[5, 8], [6, 0], [7, 0]] and batch.inputs.dtype == torch.int64
    assert batch.targets.tolist() == [[1, 3], [IGNORED, IGNORED], [2, IGNORED]]
    assert batch.lengths is not None and batch.lengths.tolist() == [3, 1]
    assert batch.chars == 4 and not batch.continues


@pytest.mark.parametrize("lengths", [(2, 2), (3, 2)])
def test_one_answer_an_example(lengths: tuple[int, int]) -> None:
    batch = pad([np.arange(length) for length in lengths], np.array([4, 1], dtype=np.uint16))
    assert batch.targets.tolist() == [4, 1] and batch.targets.dtype == torch.int64
    assert (batch.lengths is None) == (lengths[0] == lengths[1])
    assert batch.chars == sum(lengths)
