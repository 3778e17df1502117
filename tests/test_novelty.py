"""The index against a plain search, what of a text is called copied, and a model that may not copy."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from charrnn.config import DataConfig
from charrnn.constraints import Constraint, Every, Mask
from charrnn.data.corpus import encode_text, load_corpus
from charrnn.data.formats import read_file
from charrnn.data.vocabulary import Vocabulary
from charrnn.errors import DataError
from charrnn.generation import generate
from charrnn.novelty import GRAM, Index, NoCopy, examine, index_of, keep_text, kept_index, suffix_array, telling
from charrnn.options import SamplingOptions
from charrnn.run_files import TEXT, TEXT_INDEX

LETTERS = Vocabulary(("unknown", "end"), "abcd")
STREAM = Vocabulary(("unknown",), "\nabcdefgh")
WIDE = Vocabulary(("unknown", "end"), "".join(map(chr, range(0x4E00, 0x4E00 + 700))))  # ids of two bytes

texts = st.text("abcd$?", max_size=60)


def ids_of(text: str, vocabulary: Vocabulary = LETTERS) -> list[int]:
    """ "$" is the end of a document, "?" is unknown."""
    return [vocabulary.end or 0 if c == "$" else vocabulary.id(c) for c in text]


def index(text: str, vocabulary: Vocabulary = LETTERS) -> Index:
    return Index(np.array(ids_of(text, vocabulary), dtype=np.min_scalar_type(len(vocabulary) - 1)), vocabulary)


# The index


@given(st.lists(st.integers(0, 3), max_size=80) | st.integers(0, 200).map(lambda n: [1] * n), st.sampled_from([4, 5, 300, 70_000]))
def test_a_suffix_array_is_the_order_of_the_suffixes(ids: list[int], size: int) -> None:
    order = suffix_array(np.array(ids, dtype=np.min_scalar_type(size - 1)), size)
    assert order.tolist() == sorted(range(len(ids)), key=lambda place: ids[place:])


@pytest.mark.parametrize("size", [256, 257, 70_000])
def test_a_suffix_array_of_a_text_that_repeats_itself(size: int) -> None:
    """Ids of one, two and four bytes, up to the highest; a long text that is there three times has to be doubled often."""
    draw = random.Random(2)
    part = [draw.choice([0, 1, size - 1]) for _ in range(700)]
    ids = np.array([*part, 5, *part, *part], dtype=np.min_scalar_type(size - 1))
    assert suffix_array(ids, size).tolist() == sorted(range(len(ids)), key=lambda place: ids[place:].tolist())


@given(texts, texts)
def test_matches_are_those_of_a_plain_search(training: str, text: str) -> None:
    """A run holds neither the end of a document nor what is unknown, though the text may have both in the same places."""
    expected = [
        max(n for n in range(len(text) - i + 1) if text[i : i + n] in training and not set("$?") & set(text[i : i + n]))
        for i in range(len(text))
    ]
    searched = index(training)
    assert searched.matches(ids_of(text)) == expected
    characters = text.replace("$", "").replace("?", "")
    longest = max(n for n in range(len(characters) + 1) if characters[:n] in training)
    assert searched.longest_match(ids_of(characters)) == longest


@given(texts, st.text("abcd", min_size=1, max_size=4))
def test_what_follows_is_what_a_plain_search_finds(training: str, run: str) -> None:
    expected = [training[i + len(run)] for i in range(len(training) - len(run)) if training[i:].startswith(run)]
    assert sorted(index(training).following(ids_of(run)).tolist()) == sorted(ids_of("".join(expected)))


def test_a_long_copy_is_found_whole() -> None:
    """Longer than what is looked at in one go, and in ids of two bytes, whose halves must not be taken for ids."""
    draw = random.Random(3)
    training = "".join(draw.choices(WIDE.characters, k=3000))
    copied = training[100:1900]
    text = WIDE.characters[:3] + copied + WIDE.characters[:3]
    searched = index(training, WIDE)
    found = searched.matches(ids_of(text, WIDE))
    assert max(found) == 1800 and found.index(1800) == 3
    assert searched.longest_match(ids_of(copied, WIDE)) == 1800
    assert searched.longest_match(ids_of(copied[:-1] + "?", WIDE)) == 1799


# The report


def test_what_is_copied_and_what_is_new() -> None:
    searched = index("abcdabcd$ddddcccc")
    found = examine(searched, ids_of("ccabcdabbadddd"), least=4)
    assert found.copied == [(2, 8), (10, 14)] and found.longest == (2, 8)
    assert (found.grams, found.novel) == (7, 7) and found.novel_share == 1
    copy = examine(searched, ids_of("abcdabcd"), least=12)
    assert (copy.copied, copy.longest, copy.grams, copy.novel) == ([], (0, 8), 1, 0)


def test_runs_that_overlap_are_one_span() -> None:
    found = examine(index("abcd$cdab"), ids_of("abcdab"), least=4)
    assert found.copied == [(0, 6)] and found.longest == (0, 4)


def test_no_run_reaches_over_documents_or_unknown_characters() -> None:
    searched = index("abab$cdcd?dddd")
    assert examine(searched, ids_of("abab$cdcd"), least=4).copied == [(0, 4), (5, 9)]
    found = examine(searched, ids_of("cdcd?dddd"), least=4)
    assert found.copied == [(0, 4), (5, 9)] and found.grams == 0


def test_the_prime_counts_only_with_what_is_written_behind_it() -> None:
    searched = index("abcdabcdabcd")
    alone = examine(searched, ids_of("abcdabcdabcddd"), least=4, prime=12)
    assert alone.copied == [] and alone.longest == (12, 13)
    assert (alone.grams, alone.novel) == (2, 2)  # that hold a character that was written
    joined = examine(searched, ids_of("abcdabcd"), least=4, prime=6)
    assert joined.copied == [(0, 8)] and (joined.grams, joined.novel) == (1, 0)


def test_a_short_text_has_no_grams() -> None:
    assert examine(index("abcd"), ids_of("a" * (GRAM - 1)), least=4).grams == 0


def test_what_tells_something_depends_on_the_alphabet() -> None:
    assert telling(LETTERS) == 12 and telling(WIDE) == 5


# What a run keeps


def test_a_kept_text_is_indexed_once(tmp_path: Path) -> None:
    ids, model = np.array(ids_of("abcabc$bcd"), dtype=np.uint8), tmp_path / "best.safetensors"
    keep_text(tmp_path / TEXT, ids, LETTERS)
    first, warnings = kept_index(model, LETTERS)
    assert warnings == [] and first.ids.tolist() == ids.tolist() and first.longest_match(ids_of("bcab")) == 4
    made = (tmp_path / TEXT_INDEX).stat().st_mtime_ns
    second, _ = kept_index(model, LETTERS)
    assert second.order.tolist() == first.order.tolist() and (tmp_path / TEXT_INDEX).stat().st_mtime_ns == made
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([TEXT, TEXT_INDEX])


def test_the_index_of_another_text_or_half_of_one_is_made_again(tmp_path: Path) -> None:
    model = tmp_path / "best.safetensors"
    keep_text(tmp_path / TEXT, np.array(ids_of("aaaabbbb"), dtype=np.uint8), LETTERS)
    kept_index(model, LETTERS)
    keep_text(tmp_path / TEXT, np.array(ids_of("cccddddd"), dtype=np.uint8), LETTERS)
    assert kept_index(model, LETTERS)[0].longest_match(ids_of("cddd")) == 4
    whole = (tmp_path / TEXT_INDEX).read_bytes()
    (tmp_path / TEXT_INDEX).write_bytes(whole[:-9])
    assert kept_index(model, LETTERS)[0].longest_match(ids_of("cddd")) == 4
    assert (tmp_path / TEXT_INDEX).read_bytes() == whole


def test_an_index_that_cannot_be_kept_is_used_all_the_same(tmp_path: Path) -> None:
    keep_text(tmp_path / TEXT, np.array(ids_of("abc"), dtype=np.uint8), LETTERS)
    (tmp_path / TEXT_INDEX).mkdir()  # nothing can be written there, whoever asks
    found, warnings = kept_index(tmp_path / "best.safetensors", LETTERS)
    assert found.longest_match(ids_of("bcd")) == 2
    assert len(warnings) == 1 and TEXT_INDEX in warnings[0] and "will be made again next time" in warnings[0]


def test_what_is_wrong_with_a_kept_text_is_said(tmp_path: Path) -> None:
    model = tmp_path / "best.safetensors"
    with pytest.raises(
        DataError, match=r"not keep its training text; give the text with --novelty-text FILE, or train with train\.keep_text: true"
    ):
        kept_index(model, LETTERS)
    keep_text(tmp_path / TEXT, np.array(ids_of("abc"), dtype=np.uint8), LETTERS)
    with pytest.raises(DataError, match="kept by the run of another model, for its characters are others"):
        kept_index(model, STREAM)
    (tmp_path / TEXT).write_bytes((tmp_path / TEXT).read_bytes()[:-1])
    with pytest.raises(DataError, match=r"text\.safetensors: damaged; .* or give the text with --novelty-text FILE"):
        kept_index(model, LETTERS)


def test_a_text_of_a_persons_is_indexed_as_the_corpus_is(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("abab\n\ncd?cd\ndddd\n", encoding="utf-8")
    lines = read_file(DataConfig(path="elsewhere", documents="lines"), path)
    assert index_of(lines, LETTERS).ids.tolist() == ids_of("abab$cd?cd$dddd$")
    assert encode_text(STREAM, [("ab", []), ("\n\nc", [])]).tolist() == [2, 3, 1, 1, 4]
    config = DataConfig(path=str(path), documents="blank_lines", val_fraction=0)
    corpus = load_corpus(config, seed=1)
    given = index_of(read_file(config, path), corpus.vocabulary)
    assert sorted(given.ids.tolist()) == sorted(corpus.split("train").tolist()) and given.ids.dtype == corpus.ids.dtype
    path.write_text("xyz\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"--novelty-text .*text.txt: holds no character that the model knows"):
        index_of(lines, LETTERS)


def test_a_text_of_a_persons_may_be_in_a_format(tmp_path: Path) -> None:
    path = tmp_path / "text.jsonl"
    path.write_text('{"text": "abab"}\n{"text": "cd"}\n', encoding="utf-8")
    assert index_of(read_file(DataConfig(path="elsewhere"), path), LETTERS).ids.tolist() == ids_of("abab$cd$")


# Refusing to copy


class Markov(nn.Module):
    """Says what stood behind the last two ids in a text: left alone, it copies."""

    def __init__(self, ids: list[int], size: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(size, size, size))
        with torch.no_grad():
            for a, b, c in zip(ids, ids[1:], ids[2:]):
                self.table[a, b, c] = 9.0

    def forward(self, inputs: Tensor, state: tuple[tuple[Tensor, ...], ...] | None) -> tuple[Tensor, tuple[tuple[Tensor, ...], ...]]:
        (before,) = state[0] if state else (inputs[:1].T,)  # (B, 1)
        rows = torch.cat([before.long().T, inputs])  # (T + 1, B)
        return self.table[rows[:-1], rows[1:]], ((inputs[-1:].T.float(),),)


def sampled(model: nn.Module, vocabulary: Vocabulary, prime: str, refusals: list[NoCopy], **options: bool) -> list[str]:
    steps = generate(
        model,
        vocabulary,
        vocabulary.encode(prime),
        length=300,
        options=SamplingOptions(temperature=0.7),
        generator=torch.Generator().manual_seed(5),
        num_samples=max(1, len(refusals)),
        constraints=refusals,
        continue_documents=options.get("continue_documents", False),
        separator="/",  # no character of any vocabulary here
    )
    return [prime + "".join(pieces) for pieces in zip(*steps)]


def grams(text: str, n: int) -> set[str]:
    return {text[i : i + n] for i in range(len(text) - n + 1)}


@pytest.mark.parametrize("prime", ["", "abcd"])
def test_no_run_of_five_of_the_training_text_is_written(prime: str) -> None:
    draw = random.Random(4)
    training = prime + "".join(draw.choices("abcdefgh\n", k=400))
    model = Markov(STREAM.encode(training), len(STREAM))
    assert grams(sampled(model, STREAM, prime, [])[0], 5) & grams(training, 5)
    searched = index(training, STREAM)
    refusals = [NoCopy(searched, 5, STREAM.encode(prime)) for _ in range(4)]
    written = sampled(model, STREAM, prime, refusals)
    assert len(set(written)) == 4
    for text in written:
        assert len(text) == 300 + len(prime) and not grams(text, 5) & grams(training, 5)
        assert searched.completed(5, STREAM.encode(prime), STREAM.encode(text.removeprefix(prime))) == 0


def test_documents_part_what_is_written_and_their_end_is_never_refused() -> None:
    training = "abcda$cabdc$bdcab$aab$"
    model = Markov(ids_of(training), len(LETTERS))
    refusals = [NoCopy(index(training), 4)]
    (text,) = sampled(model, LETTERS, "", refusals, continue_documents=True)
    assert "/" in text
    assert not grams(text, 4) & grams(training, 4)


def test_where_all_would_be_a_copy_nothing_is_refused() -> None:
    two = Vocabulary(("unknown", "end"), "ab")
    refusal = NoCopy(index("aabb$", two), 2)
    assert refusal.allowed() is None  # nothing is written yet
    refusal.advance(two.id("a"))
    fork = refusal.copy()
    assert refusal.allowed() is None  # the end alone would be no choice
    refusal.advance(two.id("b"))
    assert (mask := refusal.allowed()) is not None and mask.tolist() == [True, True, True, False]
    assert fork.allowed() is None and not fork.over  # a fork has its own past
    refusal.advance(two.end or 0)
    assert refusal.allowed() is None  # a new document has no past


def test_what_completes_a_copy_is_counted() -> None:
    searched = index("abcd")
    texts = (("", "abc"), ("ab", "cd"), ("abc", "aabcdb"))
    counted = [searched.completed(3, LETTERS.encode(before), LETTERS.encode(after)) for before, after in texts]
    assert counted == [1, 2, 2]  # what was there before completes nothing


def test_it_combines_with_other_constraints() -> None:
    class Only:
        over = False

        def allowed(self) -> Mask:
            return np.array([False, False, True, True, False, False])  # a and b

        def advance(self, id_: int) -> None: ...

        def copy(self) -> Constraint:
            return self

    both = Every([Only(), NoCopy(index("abcd"), 2)])
    both.advance(LETTERS.id("a"))
    assert (mask := both.allowed()) is not None and mask.tolist() == [False, False, True, False, False, False]
