"""Characters to ids and back, and what a person typed to characters that the model knows."""

from __future__ import annotations

import json
import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from charrnn.data.vocabulary import CODE_POINTS, SYMBOLS, Vocabulary, encode_prime
from charrnn.errors import CheckpointError, DataError

CHARACTERS = st.text(min_size=1, max_size=40)  # without surrogates, as hypothesis has it


def of(characters: str, *, ends: bool = False) -> Vocabulary:
    return Vocabulary.from_counts({ord(c): 1 for c in characters}, ends=ends)


@given(text=CHARACTERS, ends=st.booleans())
def test_there_and_back(text: str, ends: bool) -> None:
    vocabulary = of(text, ends=ends)
    ids = vocabulary.encode(text)
    assert vocabulary.decode(ids) == text
    assert len(vocabulary) == len(set(text)) + (2 if ends else 1)
    assert set(ids) == set(range(1 + ends, len(vocabulary)))
    assert vocabulary.unknown == 0 and vocabulary.end == (1 if ends else None)
    assert Vocabulary.from_json(vocabulary.to_json()) == vocabulary
    assert vocabulary.characters == "".join(sorted(set(text)))


@given(known=CHARACTERS, text=CHARACTERS)
def test_the_unknown(known: str, text: str) -> None:
    vocabulary = of(known)
    ids = vocabulary.encode(text)
    assert [i == vocabulary.unknown for i in ids] == [c not in known for c in text]
    assert [c in vocabulary for c in text] == [c in known for c in text]
    assert vocabulary.decode(ids) == "".join(c for c in text if c in known)


@given(known=CHARACTERS, text=CHARACTERS, ends=st.booleans())
def test_the_table_is_the_vocabulary(known: str, text: str, ends: bool) -> None:
    vocabulary = of(known, ends=ends)
    table = vocabulary.table()
    assert table.shape == (CODE_POINTS,)
    assert table[[ord(c) for c in text]].tolist() == vocabulary.encode(text)
    assert np.count_nonzero(table) == len(set(known))


@given(
    counts=st.dictionaries(st.integers(0, CODE_POINTS - 1), st.integers(1, 9), min_size=1),
    max_size=st.none() | st.integers(1, 9),
    min_count=st.integers(1, 9),
)
def test_the_most_frequent_are_kept(counts: dict[int, int], max_size: int | None, min_count: int) -> None:
    enough = [point for point, count in counts.items() if count >= min_count]
    if not enough:
        with pytest.raises(DataError, match=f"^no character occurs {min_count} times; lower data.vocabulary.min_count$"):
            Vocabulary.from_counts(counts, ends=False, max_size=max_size, min_count=min_count)
        return
    kept = list(map(ord, Vocabulary.from_counts(counts, ends=False, max_size=max_size, min_count=min_count).characters))
    assert kept == sorted(kept)
    assert len(kept) == min(len(enough), max_size or len(enough))
    left_out = set(enough) - set(kept)
    assert set(kept) <= set(enough)
    assert min(counts[point] for point in kept) >= max((counts[point] for point in left_out), default=0)


def test_of_equally_frequent_characters_the_lower_code_points_are_kept() -> None:
    assert Vocabulary.from_counts({ord(c): 2 for c in "dcba"}, ends=False, max_size=2).characters == "ab"


@pytest.mark.parametrize("ends", [False, True])
def test_a_blank_is_the_last_symbol_and_only_there_when_asked_for(ends: bool) -> None:
    plain, blanked = (Vocabulary.from_counts({ord("a"): 2, ord("b"): 1}, ends=ends, blank=blank) for blank in (False, True))
    assert plain.blank is None and blanked.blank == len(plain.symbols) == (2 if ends else 1)
    assert blanked.end == plain.end and blanked.symbols == (*plain.symbols, "blank")
    assert blanked.decode([blanked.blank, blanked.id("b")]) == "b" and blanked.id("_") == blanked.unknown
    assert Vocabulary.from_json(blanked.to_json()) == blanked


GOOD = {"symbols": SYMBOLS, "characters": "ab"}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "3",
        "null",
        "[" * 100000,
        json.dumps({"symbols": SYMBOLS}),
        json.dumps(GOOD | {"characters": "aba"}),
        json.dumps(GOOD | {"characters": ["a", "b"]}),
        json.dumps(GOOD | {"characters": 7}),
        json.dumps(GOOD | {"characters": ""}),
        json.dumps(GOOD | {"characters": "a\ud800"}),
        json.dumps(GOOD | {"symbols": "unknown"}),
        json.dumps(GOOD | {"symbols": ["end", "unknown"]}),
        json.dumps(GOOD | {"symbols": ["unknown", "blank", "end"]}),
        json.dumps(GOOD | {"symbols": ["end", "blank"]}),
        json.dumps(GOOD | {"symbols": ["unknown", "mask"]}),
        json.dumps(GOOD | {"symbols": [["unknown"]]}),
        json.dumps(GOOD | {"symbols": None}),
        json.dumps(GOOD | {"symbols": []}),
    ],
)
def test_damage_is_refused(text: str) -> None:
    with pytest.raises(CheckpointError, match=r"^its vocabulary is damaged; expected "):
        Vocabulary.from_json(text)


# Primes


@given(text=CHARACTERS)
def test_a_known_prime_is_read_as_it_stands(text: str) -> None:
    primed = encode_prime(of(text), text)
    assert (primed.text, primed.replaced, primed.dropped) == (text, {}, [])
    assert primed.ids == of(text).encode(text)


@given(known=CHARACTERS, text=st.text(max_size=30))
def test_any_prime_is_read(known: str, text: str) -> None:
    vocabulary = of(known)
    primed = encode_prime(vocabulary, text)
    assert vocabulary.unknown not in primed.ids
    assert vocabulary.decode(primed.ids) == primed.text
    assert all(len(c) == 1 and c not in vocabulary for c in primed.dropped)
    assert all(c in vocabulary for form in primed.replaced.values() for c in form)
    if not (primed.replaced or primed.dropped):
        assert primed.text == text


@pytest.mark.parametrize(
    "known, typed, read, replaced, dropped",
    [
        ("caf\u00e9", "cafe\u0301", "caf\u00e9", {"e\u0301": "\u00e9"}, []),  # NFC
        ("cafe\u0301", "caf\u00e9", "cafe\u0301", {"\u00e9": "e\u0301"}, []),  # NFD
        ("cafe\u0301", "cafe\u0301!", "cafe\u0301", {}, ["!"]),  # what is known stays, whatever else is not
        ("\uf900a", "\uf900b", "\uf900", {}, ["b"]),  # whose NFC is another character
        ("각", "\u1100\u1161\u11a8", "각", {"\u1100\u1161\u11a8": "각"}, []),  # one syllable of three letters
        ("床，。", "床,｡", "床，。", {",": "，", "｡": "。"}, []),
        ("a b?", "ａ\u3000ｂ？", "a b?", {"ａ": "a", "\u3000": " ", "ｂ": "b", "？": "?"}, []),
        ("ａ\u3000", "a ", "ａ\u3000", {"a": "ａ", " ": "\u3000"}, []),
        ("カ", "ｶ", "カ", {"ｶ": "カ"}, []),
        ("ｶ", "カ", "ｶ", {"カ": "ｶ"}, []),
        ("fin", "ﬁn", "fin", {"ﬁ": "fi"}, []),
        ("abc", "a猫b猫\u0301", "ab", {}, ["猫", "\u0301"]),
        ("e", "e\u0301\u0323", "e", {}, ["\u0301", "\u0323"]),
        ("abc", "", "", {}, []),
        ("abc", "é", "", {}, ["é"]),
    ],
)
def test_forms(known: str, typed: str, read: str, replaced: dict[str, str], dropped: list[str]) -> None:
    primed = encode_prime(of(known), typed)
    assert (primed.text, primed.replaced, primed.dropped) == (read, replaced, dropped)


def test_every_width_has_a_way_back() -> None:
    for wide in map(chr, range(0xFF01, 0xFF5F)):
        plain = unicodedata.normalize("NFKC", wide)
        assert encode_prime(of(plain), wide).text == plain
        assert encode_prime(of(wide), plain).text == wide
