"""Whether a captioner looks: which picture stands for another, the standard error of what that costs, and chance."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from charrnn.tasks.looking import deranged, ratio, share_among


@given(contents=st.lists(st.integers(0, 6), min_size=2, max_size=40), seed=st.integers(0, 99))
@examples(deadline=None, max_examples=80)
def test_each_picture_gets_another_of_another_content_once(contents: list[int], seed: int) -> None:
    of = np.array(contents)
    others = deranged(of, np.random.default_rng(seed))
    if others is None:
        assert 2 * max(contents.count(content) for content in contents) > len(contents)
        return
    assert sorted(others.tolist()) == list(range(len(contents)))
    assert (of[others] != of).all()


def test_another_seed_takes_other_pictures() -> None:
    contents = np.arange(30)
    taken = [deranged(contents, np.random.default_rng(seed)) for seed in (1, 1, 2)]
    first, again, other = (None if one is None else one.tolist() for one in taken)
    assert first == again != other


def test_the_error_of_a_mean_is_that_of_independent_groups() -> None:
    """Of groups of one size it is the standard deviation over the root of how many they are."""
    values = [1.0, 2.0, 4.0, 9.0]
    found = ratio(torch.tensor(values, dtype=torch.float64), torch.ones(4, dtype=torch.float64))
    assert found.value == 4.0
    assert found.error == pytest.approx(float(np.std(values, ddof=1)) / 2)
    longer = ratio(10 * torch.tensor(values, dtype=torch.float64), torch.full((4,), 10, dtype=torch.float64))
    assert (longer.value, longer.error) == pytest.approx((found.value, found.error))
    assert math.isnan(ratio(torch.ones(1), torch.ones(1)).error)


@pytest.mark.parametrize(
    "others, shares",
    [
        ([2.0, 3.0, 4.0], (1, 1)),
        ([0.5, 3.0, 4.0], (0, 1)),
        ([1.0, 3.0, 4.0], (1 / 2, 1)),  # one costs the same: before it in half of the orders
        ([1.0] * 99, (1 / 100, 10 / 100)),  # all do: chance
        ([0.5] * 9 + [1.0] * 3, (0, 1 / 4)),  # one place is left among ten, for four
        ([0.5] * 10, (0, 0)),
    ],
)
def test_ties_count_as_chance(others: list[float], shares: tuple[float, float]) -> None:
    costs = torch.tensor([*others, 1.0], dtype=torch.float64)
    assert (share_among(costs, 1), share_among(costs, 10)) == pytest.approx(shares)
