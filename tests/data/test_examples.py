"""Examples in splits, whatever they are, and their texts as a corpus."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from charrnn.config import DataConfig
from charrnn.data.batch import IGNORED
from charrnn.data.corpus import Corpus
from charrnn.data.examples import ORDER, corpus_of, load_parts, sound, usable, vocabulary_of
from charrnn.data.files import Source
from charrnn.data.vocabulary import Vocabulary
from charrnn.errors import DataError, Faults


def words(config: DataConfig, files: list[Source], notes: list[str]) -> Iterator[str | DataError]:
    """The words of files; `!` is one that cannot be used."""
    for source in files:
        for word in source.path.read_text().split():
            yield DataError(f"{source.name}: {word}") if "!" in word else word
        notes.append(f"{source.name}: read")


def settings(path: Path, **data: Any) -> DataConfig:
    return DataConfig.model_validate({"path": str(path), "val_fraction": 0.25} | data)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "own.txt").write_text("x y")
    (tmp_path / "words.txt").write_text(" ".join(f"w{n}" for n in range(10)))
    return tmp_path / "words.txt"


def test_splits_are_shuffled_by_seed_and_lose_none(path: Path) -> None:
    parts = load_parts(settings(path, test_fraction=0.1), 1, words, "word")
    assert [len(parts.splits[split]) for split in ORDER] == [6, 1, 3]  # what is held out is rounded up
    assert Counter(word for split in parts.splits.values() for word in split) == Counter(parts.found)
    assert parts.found == [f"w{n}" for n in range(10)] and (parts.files, parts.notes) == (1, [f"{parts.name}: read"])
    again, other = (load_parts(settings(path, test_fraction=0.1), seed, words, "word").splits for seed in (1, 2))
    assert parts.splits == again != other


def test_a_split_of_its_own_files_takes_none_of_the_others(path: Path) -> None:
    parts = load_parts(settings(path, val_path=str(path.parent / "own.txt")), 1, words, "word")
    assert parts.splits["val"] == ["x", "y"] and sorted(parts.splits["train"]) == sorted(parts.found) and len(parts.found) == 10
    assert (parts.files, parts.notes[1].startswith("data.val_path: ")) == (2, True)


def test_all_that_cannot_be_used_is_raised_at_once(path: Path) -> None:
    own = path.parent / "own.txt"
    path.write_text("a b! c! de")
    own.write_text("x! y")

    def check(some: list[str]) -> list[DataError]:
        return [DataError(f"long: {w}") for w in some if len(w) > 1]

    with pytest.raises(Faults) as caught:
        load_parts(settings(path, val_path=str(own)), 1, words, "word", check=check)
    assert caught.value.lines == [f"{path}: b!", f"{path}: c!", f"{own}: x!", "long: de"]
    assert str(caught.value) == f"{path}: b! (and 3 more)"
    with pytest.raises(Faults, match=r"^one \(and 1 more\)$"):
        sound(["a", DataError("one"), DataError("two")])
    faults: list[DataError] = []
    assert sound(["a", DataError("one"), "b"], faults) == ["a", "b"] and [str(fault) for fault in faults] == ["one"]


def test_what_cannot_be_loaded_is_left_out_and_told() -> None:
    def lengths(words: list[str]) -> list[int]:
        if wrong := {place: DataError(word) for place, word in enumerate(words) if "!" in word}:
            raise Faults(list(wrong.values()), wrong)
        return [len(word) for word in words]

    faults = [DataError("before")]
    assert usable(["a!", "bcd", "e!", "fg"], lengths, faults) == [3, 2]
    assert [str(fault) for fault in faults] == ["before", "a!", "e!"]
    with pytest.raises(Faults) as caught:
        usable(["a!"], lengths, [DataError("before")])
    assert caught.value.lines == ["before", "a!"]


def test_a_split_without_words_is_refused(path: Path) -> None:
    path.write_text("a")
    with pytest.raises(DataError, match=r"words.txt: 1 word leaves none to train on; add some, or lower data.val_fraction"):
        load_parts(settings(path), 1, words, "word")
    path.write_text("")
    with pytest.raises(DataError, match=r"words.txt: holds no word; expected some to learn from$"):
        load_parts(settings(path), 1, words, "word")


def test_a_vocabulary_has_an_end_and_enough_to_tell_texts_by(path: Path) -> None:
    assert vocabulary_of(["ab", "b"], settings(path), "f") == Vocabulary(("unknown", "end"), "ab")
    assert vocabulary_of(["aab", "b"], settings(path, vocabulary={"max_size": 1, "blank": True}), "f", least=1).characters == "a"
    with pytest.raises(DataError, match=r"^f: data.vocabulary: only one character, 'a'; there is nothing to tell texts by$"):
        vocabulary_of(["aa", "a"], settings(path), "f")


TEXTS = {"train": ["ab", "b"], "val": ["a?"], "test": [""]}


def corpus(path: Path, texts: dict[str, list[str]] = TEXTS, beside: bytes = b"") -> Corpus:
    vocabulary = Vocabulary(("unknown", "end"), "abz")
    config = settings(path, vocabulary={"include": "az"})
    return corpus_of(texts, vocabulary, config, notes=["n"], files=2, beside=beside)


def test_texts_are_documents_each_closed_by_an_end(path: Path) -> None:
    found = corpus(path)
    assert {split: found.split(split).tolist() for split in ORDER} == {"train": [2, 3, 1, 3, 1], "test": [1], "val": [2, 0, 1]}
    assert (found.documents, found.unknown, found.absent, found.files, found.notes) == (4, 1, "z", 2, ["n"])
    assert IGNORED not in np.asarray(found.ids).tolist()


def test_contents_are_told_by_all_that_a_corpus_holds(path: Path) -> None:
    others = [
        corpus(path, beside=b"x"),
        corpus(path, {**TEXTS, "train": ["b", "ab"]}),
        corpus(path, {**TEXTS, "train": ["ab"], "test": ["b", ""]}),
    ]
    assert len({found.contents for found in [corpus(path), corpus(path), *others]}) == 4
