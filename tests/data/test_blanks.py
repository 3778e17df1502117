"""Which characters are hidden: how many, never a symbol, always one, the same for the same generator."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from charrnn.config import BlanksConfig
from charrnn.data.batch import IGNORED
from charrnn.data.blanks import Mask, draw_blanks, hide
from charrnn.data.corpus import Ids
from charrnn.data.vocabulary import Vocabulary

VOCABULARY = Vocabulary(("unknown", "end", "blank"), "\nabcdef")
LETTERS = "abcdef"


def encoded(text: str) -> Ids:
    return np.array(VOCABULARY.encode(text), dtype=np.uint8)


def drawn(text: str, seed: int = 1, **blanks: Any) -> Mask:
    return draw_blanks(encoded(text), VOCABULARY, BlanksConfig(**blanks), np.random.default_rng(seed))


def runs(hidden: Mask) -> list[int]:
    """The lengths of the stretches that are hidden."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], hidden.astype(int), [0]])))
    return list(map(int, edges[1::2] - edges[::2]))


def test_singles_are_as_many_as_their_share_says() -> None:
    hidden = drawn("abc" * 20000, share=0.15)
    assert hidden.mean() == pytest.approx(0.15, abs=0.005)


def test_spans_cover_their_share_in_stretches_of_two_and_more() -> None:
    hidden = drawn("abc" * 20000, share=0.0, span_share=0.1, span_max=5)
    assert hidden.mean() == pytest.approx(0.1, abs=0.005)
    lengths = runs(hidden)
    assert min(lengths) >= 2
    rare = drawn("abc" * 20000, share=0.0, span_share=0.002, span_max=5)  # so few that they hardly ever meet
    assert set(runs(rare)) >= {2, 3, 4, 5} and np.mean(np.array(runs(rare)) > 5) < 0.05


@given(st.text(alphabet="\nab?", min_size=1, max_size=40), st.integers(0, 1000), st.sampled_from([0.0, 0.3]), st.sampled_from([0.0, 0.9]))
def test_some_character_is_hidden_and_never_what_is_unknown(text: str, seed: int, span_share: float, line_rate: float) -> None:
    hidden = drawn(text, seed, share=0.01, span_share=span_share, line_rate=line_rate)
    known = np.array([character in VOCABULARY for character in text])
    assert not (hidden & ~known).any()
    assert hidden.any() == known.any()


def test_a_whole_line_and_only_one() -> None:
    text = "abc\ndef\n\nfed"
    found = {tuple(drawn(text, seed, share=0.0, line_rate=0.99).nonzero()[0].tolist()) for seed in range(60)}
    lines = {(0, 1, 2), (4, 5, 6), (9, 10, 11)}
    assert lines <= found
    assert all(len(places) == 1 for places in found - lines)  # where no line was drawn, one character all the same


def test_the_only_line_is_not_hidden_whole() -> None:
    assert max(int(drawn("abcdef\n", seed, share=0.0, line_rate=0.99).sum()) for seed in range(30)) == 1


@pytest.mark.parametrize("wanted, text, expected", [(1, "abcdef", 1), (3, "abcdef", 3), (4, "a?b?c?", 3)])
def test_exactly_so_many_in_each_example(wanted: int, text: str, expected: int) -> None:
    masks = [drawn(text, seed, per_example=wanted, share=0.9, span_share=0.9, line_rate=0.9) for seed in range(200)]
    assert {int(mask.sum()) for mask in masks} == {expected}
    assert (np.sum(masks, axis=0) > 0).tolist() == [character in VOCABULARY for character in text]


def test_what_is_never_to_be_hidden_is_not() -> None:
    settings: list[dict[str, Any]] = [{"share": 0.9, "span_share": 0.9}, {"share": 0.0, "line_rate": 0.99}, {"per_example": 9}]
    for blanks in settings:
        for seed in range(30):
            hidden = drawn("ab\ncd\nef", seed, never="\nac", **blanks)
            assert hidden.any() and not hidden[[0, 2, 3, 5]].any()
    assert not drawn("aa", never="a").any()


def test_the_same_generator_hides_the_same_and_another_does_not() -> None:
    settings = {"share": 0.2, "span_share": 0.1, "line_rate": 0.5}
    text = (LETTERS * 5 + "\n") * 8
    assert np.array_equal(drawn(text, 3, **settings), drawn(text, 3, **settings))
    assert not np.array_equal(drawn(text, 3, **settings), drawn(text, 4, **settings))


def test_what_is_hidden_stands_in_the_targets_alone() -> None:
    ids = encoded("abca")
    inputs, targets = hide(ids, np.array([False, True, False, True]), 2, IGNORED)
    a, b, c = encoded("abc").tolist()
    assert inputs.tolist() == [a, 2, c, 2] and targets.tolist() == [IGNORED, b, IGNORED, a]
    assert ids.tolist() == [a, b, c, a]
