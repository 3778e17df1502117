"""Fragments of captions: which strings are kept, and which of them a caption has."""

from __future__ import annotations

import numpy as np
import torch

from charrnn.data.batch import IGNORED
from charrnn.data.fragments import Fragments, find_fragments

BASE = 30


def ids(text: str) -> list[int]:
    return [ord(character) - ord("a") + 1 for character in text]


def found(captions: list[str], length: int = 3, most: int = 10) -> Fragments:
    return find_fragments([np.asarray(ids(text)) for text in captions], length, most, BASE)


def words(fragments: Fragments) -> list[str]:
    return ["".join(chr(i - 1 + ord("a")) for i in text) for text in fragments.texts()]


def test_kept_is_what_stands_in_enough_captions_and_not_in_most() -> None:
    captions = ["redcat"] * 6 + ["redcow"] * 5 + ["redpig"] * 4 + ["bluefox", "ab", "redredred"]
    kept = found(captions)
    assert "cat" in words(kept) and "cow" in words(kept)
    assert "pig" not in words(kept)  # four captions have it
    assert "red" not in words(kept)  # nearly all have it
    assert dict(zip(words(kept), kept.shares.tolist()))["cat"] == torch.tensor(6 / 18).item()


def test_the_commonest_are_kept_and_a_caption_counts_once() -> None:
    captions = ["xyz"] * 7 + ["abcabcabc"] * 6 + ["qrs"] * 9 + ["zz"] * 30
    assert words(found(captions, most=2)) == ["qrs", "xyz"]


def test_a_caption_has_those_that_stand_in_it_and_none_across_its_end() -> None:
    kept = found(["abcd"] * 6 + ["wxyz"] * 6 + ["mnop"] * 6)
    columns = [ids("abcd"), ids("wxy") + [0, 1], ids("zabc"), ids("ab")]
    targets = torch.full((6, 4), IGNORED)
    for column, caption in enumerate(columns):
        targets[: len(caption), column] = torch.tensor(caption)
    there = kept.of(targets)
    assert there.shape == (4, len(kept.texts()))
    named = [{word for word, has in zip(words(kept), row) if has} for row in there.tolist()]
    assert named == [{"abc", "bcd"}, {"wxy"}, {"abc"}, set()]


def test_captions_too_short_for_any_have_none() -> None:
    kept = found(["ab", "c"] * 9)
    assert kept.texts() == [] and kept.of(torch.ones(2, 3, dtype=torch.int64)).shape == (3, 0)
