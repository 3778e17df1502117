"""Marks taken out of a text and put back, against the rules written out one character at a time."""

from __future__ import annotations

import time
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from charrnn.data.corpus import Ids
from charrnn.data.marks import Unmarked, labels_of, read_ids, restore, unmark
from charrnn.data.vocabulary import Vocabulary
from tests.data.texts import corpus_of

MARKS = "，。、；：？！"
ALPHABET = "道可非常名aZ9é한 \n\u3000，。、；：？！「」《》（）'’-.,:—…“”_$\u200b"
texts = st.text(alphabet=ALPHABET, max_size=40)


def vocabulary_of(text: str, end: bool = False) -> Vocabulary:
    return Vocabulary.from_counts({ord(c): 1 for c in text}, ends=end)


ALL = vocabulary_of(ALPHABET)


def unmarked(text: str, marks: str = MARKS, kind: str = "punctuation", vocabulary: Vocabulary = ALL) -> Unmarked:
    return unmark(text, [], vocabulary, kind, marks)


def restored(found: Unmarked, labels: Ids, written: tuple[str, ...]) -> str:
    (text,) = restore(found, labels, written)
    return text


def read(text: str, marks: str = MARKS, kind: str = "punctuation") -> str:
    """What is read, each label behind its character."""
    found, names = unmarked(text, marks=marks, kind=kind, vocabulary=vocabulary_of(text + " ")), labels_of(kind, marks)
    characters = vocabulary_of(text + " ").decode(found.read.ids.tolist())
    return "".join(c + (names[k] if k else "") for c, k in zip(characters, found.read.labels.tolist()))


def by_hand(text: str) -> tuple[str, list[str]]:
    """Characters and labels by the rules, for texts of ALPHABET."""

    def is_word(i: int) -> bool:
        c = text[i] if 0 <= i < len(text) else " "
        return unicodedata.category(c)[0] in "LNMS" and not "\u3400" <= c <= "\u9fff"

    def is_inner(i: int) -> bool:
        in_word = text[i] in "'’-" and is_word(i - 1) and is_word(i + 1)
        return in_word or (text[i] in ".,:" and text[i - 1 : i] == "9" and text[i + 1 : i + 2] == "9")

    characters: list[str] = []
    labels: list[str] = []
    gap, last_word = "", False
    for i, c in enumerate(text):
        if (c.isspace() or unicodedata.category(c)[0] == "P") and not is_inner(i):
            gap += c
            continue
        words = is_word(i) or is_inner(i)
        if labels:
            labels[-1] = next((mark for mark in gap if mark in MARKS), "O")
        if gap and labels and words and last_word:
            characters.append(" ")
            labels.append("O")
        characters.append(c)
        labels.append("O")
        gap, last_word = "", words
    if labels:
        labels[-1] = next((mark for mark in gap if mark in MARKS), "O")
    return "".join(characters), labels


def without_extra_marks(text: str) -> str:
    """A text with the first mark of each gap only, and none before what is read first."""
    found, kept = unmarked(text), ""
    own = {int(gap) for gap, label in zip(found.gaps, found.read.labels) if label}
    taken = set(found.marks.tolist())
    for i, c in enumerate(text):
        kept += c if i not in taken or i in own else ""
    return kept


@pytest.mark.parametrize(
    "text, shown",
    [
        ("道可道，非常道。名可名：非常名！", "道可道，非常道。名可名：非常名！"),
        ("他說：「善哉！」乃去。", "他說：善哉！乃去。"),
        ("「善哉」！乃去", "善哉！乃去"),
        ("　道，\n\n可　道。\n", "道，可道。"),
        ("真的？！好", "真的？好"),
        ("，道", "道"),
        ("it's a well-known fact, he said.", "it's a well-known fact, he said."),
        ("one   two\nthree", "one two three"),
        ("wait — what", "wait what"),
        ("word—word", "word word"),
        ("the dogs' bowl", "the dogs bowl"),
        ("3.14 and 1,000", "3.14 and 1,000"),
        ("第 3 章，又 named 章", "第3章，又named章"),
        ("좋은 아침", "좋은 아침"),
        ("", ""),
        ("，。", ""),
    ],
)
def test_what_is_read_and_labelled(text: str, shown: str) -> None:
    assert read(text, marks=MARKS + ".,") == shown


def test_segmentation_has_one_label() -> None:
    assert read("道，可道。名", kind="segmentation") == "道S可道S名"
    assert labels_of("segmentation", MARKS) == ("O", "S") and labels_of("punctuation", "，。") == ("O", "，", "。")


@given(texts)
def test_reads_by_the_rules(text: str) -> None:
    found = unmarked(text).read
    characters, labels = by_hand(text)
    assert ALL.decode(found.ids.tolist()) == characters
    assert [labels_of("punctuation", MARKS)[k] for k in found.labels] == labels


@given(texts)
def test_the_true_labels_give_the_text_back(text: str) -> None:
    found = unmarked(text)
    assert restored(found, found.read.labels, ("", *MARKS)) == without_extra_marks(text)


@given(st.lists(st.tuples(st.sampled_from("道可非常名"), st.sampled_from(["", *MARKS]), st.sampled_from(["", "\n", "\n\n　"]))))
def test_marks_are_put_back_where_no_text_shows_them(parts: list[tuple[str, str, str]]) -> None:
    whole = "".join(c + mark + space for c, mark, space in parts)
    bare = unmarked("".join(c + space for c, _, space in parts))
    assert restored(bare, unmarked(whole).read.labels, ("", *MARKS)) == whole


@given(st.text(alphabet="道可非常名 \n，。「」《》）—", max_size=40), st.data())
def test_any_labels_are_read_again(text: str, data: st.DataObject) -> None:
    found = unmarked(text)
    labels = np.array([data.draw(st.integers(0, len(MARKS))) for _ in found.gaps], dtype=np.int64)
    again = unmarked(restored(found, labels, ("", *MARKS))).read
    assert again.ids.tolist() == found.read.ids.tolist() and again.labels.tolist() == labels.tolist()


@given(st.lists(texts, min_size=1, max_size=5), st.booleans())
def test_an_encoded_text_reads_as_the_text(documents: list[str], ends: bool) -> None:
    documents = documents if ends else documents[:1]
    vocabulary = vocabulary_of(ALPHABET, end=ends)
    ids, closes, at = [], [], 0
    for document in documents:
        ids += vocabulary.encode(document)
        if ends:
            assert vocabulary.end is not None
            ids.append(vocabulary.end)
        at += len(document)
        closes.append(at)
    found = read_ids(np.array(ids, dtype=np.uint8), vocabulary, "punctuation", MARKS)
    other = unmark("".join(documents), closes if ends else [], vocabulary, "punctuation", MARKS)
    assert found.ids.tolist() == other.read.ids.tolist() and found.labels.tolist() == other.read.labels.tolist()
    assert found.edges.tolist() == other.read.edges.tolist() and len(found.edges) == len(documents) + 1
    alone = [unmark(document, [], vocabulary, "punctuation", MARKS) for document in documents]
    assert found.ids.tolist() == [i for one in alone for i in one.read.ids.tolist()]
    assert found.labels.tolist() == [k for one in alone for k in one.read.labels.tolist()]


@pytest.mark.parametrize(
    "text, labels, shown",
    [
        ("他說「善哉」乃去", {3: "！", 5: "。"}, "他說「善哉！」乃去。"),
        ("見《史記》曰", {2: "，"}, "見《史記》，曰"),
        ("道，可。道", {1: "？"}, "道可？道"),
        ("one two\r\nthree", {6: ",", 12: "."}, "one two,\r\nthree."),
        ("a\ud800b", {2: "。"}, "a\ud800b。"),
    ],
)
def test_where_a_mark_goes(text: str, labels: dict[int, str], shown: str) -> None:
    found = unmarked(text, marks=MARKS + ",.", vocabulary=vocabulary_of(text.replace("\ud800", "") + " "))
    names = ("O", *MARKS, ",", ".")
    given = np.zeros(len(found.gaps), dtype=np.int64)
    for place, mark in labels.items():
        given[place] = names.index(mark)
    assert restored(found, given, ("", *names[1:])) == shown


def test_a_pause_is_written_as_any_text() -> None:
    found = unmarked("道可，道非常道", kind="segmentation")
    assert restored(found, np.array([0, 0, 1, 0, 0, 1]), ("", " | ")) == "道可道 | 非常道 | "


@given(st.lists(st.text(alphabet="道可非，。「」\n", max_size=8), min_size=1, max_size=4))
def test_documents_come_back_one_by_one(documents: list[str]) -> None:
    closes = np.cumsum([len(document) for document in documents]).tolist()
    together = unmark("".join(documents), closes, ALL, "punctuation", MARKS)
    parts = restore(together, together.read.labels, ("", *MARKS), closes[:-1])
    assert parts == [restored(one, one.read.labels, ("", *MARKS)) for one in map(unmarked, documents)]
    assert all(together.points[place] == ord("".join(documents)[place]) for place in together.places)


def test_what_the_model_does_not_know_parts_no_words() -> None:
    vocabulary = vocabulary_of("ab ")
    found = unmark("a é b", [], vocabulary, "punctuation", MARKS).read
    assert found.ids.tolist() == [vocabulary.id("a"), vocabulary.unknown, vocabulary.id("b")]


def test_a_corpus_is_read_by_its_documents(tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path, "道可，道。\n。名可\n" * 4, documents="lines", val_fraction=0.5)
    found = read_ids(corpus.split("val"), corpus.vocabulary, "punctuation", MARKS)
    assert len(found.edges) == 5
    documents = [corpus.vocabulary.decode(found.ids[a:b].tolist()) for a, b in zip(found.edges, found.edges[1:])]
    assert set(documents) <= {"道可道", "名可"}


def test_two_million_characters_take_about_a_second() -> None:
    text = "道可道，非常道。名可名，非常名。\n\n無名天地之始；" * 90_000
    started = time.process_time()
    found = unmarked(text, vocabulary=vocabulary_of(text))
    again = restored(found, found.read.labels, ("", *MARKS))
    assert again == text
    assert time.process_time() - started < 8  # of the processor, whatever else it does; it takes one
