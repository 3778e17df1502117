"""Many texts side by side get what each gets alone, in their order, and a fault takes nothing from its neighbours."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from charrnn import classifying
from charrnn.classifying import Answer, classify, confusion_of
from charrnn.config import ModelConfig
from charrnn.data.labelled import Example
from charrnn.data.vocabulary import Vocabulary
from charrnn.errors import DataError
from charrnn.models.char_rnn import CharRNN

VOCABULARY = Vocabulary(("unknown", "end"), "abcdefg")
LABELS = ("bad", "good", "so-so")
TEXTS = ["abc" * (n * 7 % 23) + "Q" * (n % 3) + "defg"[: n % 4] + "a" for n in range(150)]


def model() -> CharRNN:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return CharRNN(ModelConfig(embedding_size=5, hidden_size=6, bidirectional=True, pooling="max"), len(VOCABULARY), 3)


def examples(texts: list[str]) -> list[Example | DataError]:
    return [Example(text, None, "f", at) for at, text in enumerate(texts, start=1)]


def answers(network: CharRNN, texts: list[Example | DataError], length: int = 1000) -> list[Answer | DataError]:
    return list(classify(network, VOCABULARY, LABELS, texts, length))


def chances(answer: Answer | DataError) -> dict[str, float]:
    assert isinstance(answer, Answer)
    assert [chance for _, chance in answer.chances] == sorted((chance for _, chance in answer.chances), reverse=True)
    assert answer.label == answer.chances[0][0]
    return dict(answer.chances)


@pytest.mark.parametrize("block", [4096, 70, 1])
def test_a_text_gets_what_it_gets_alone_in_its_place(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(classifying, "BLOCK", block)
    network = model()
    found = answers(network, examples(TEXTS))
    assert [answer.example.line for answer in found if isinstance(answer, Answer)] == list(range(1, 151))
    for text, answer in list(zip(TEXTS, found))[::11]:
        assert chances(answer) == pytest.approx(chances(answers(network, examples([text]))[0]), abs=1e-5)
        logits, _ = network.eval()(torch.tensor(VOCABULARY.encode(text)).unsqueeze(-1), None)
        assert chances(answer) == pytest.approx(dict(zip(LABELS, logits.softmax(-1)[0].tolist())), abs=1e-5)


def test_a_fault_keeps_its_place() -> None:
    fault = DataError("f: line 2: no")
    given: list[Example | DataError] = [*examples(["a"]), fault, Example("b", "good", "f", 3), Example("c", "godo", "f", 4)]
    first, second, third, fourth = answers(model(), given)
    assert second is fault and isinstance(first, Answer) and isinstance(third, Answer) and third.example.labels == "good"
    assert str(fourth) == "f: line 4: unknown label 'godo'; expected one of bad, good, so-so; did you mean 'good'?"
    assert answers(model(), [fault]) == [fault] and answers(model(), []) == []


def test_a_long_text_is_read_by_its_ends() -> None:
    network = model()
    long, ends = answers(network, examples(["ab" + "c" * 10_000 + "de", "abde"]), length=4)
    assert chances(long) == pytest.approx(chances(ends))


def test_texts_are_taken_as_they_are_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a file of millions of lines only a block is in memory, by number or by length."""
    taken = 0

    def coming() -> Iterator[Example | DataError]:
        nonlocal taken
        while True:
            taken += 1
            yield Example("abc", None, "f", taken)

    monkeypatch.setattr(classifying, "BLOCK", 10)
    stream = classify(model(), VOCABULARY, LABELS, coming(), 1000)
    for _ in range(25):
        next(stream)
    assert taken == 30
    monkeypatch.setattr(classifying, "BLOCK_CHARS", 12)
    taken = 0
    next(classify(model(), VOCABULARY, LABELS, coming(), 1000))
    assert taken == 4


def test_pairs_become_a_confusion() -> None:
    found = confusion_of({("good", "bad"): 2, ("bad", "bad"): 3}, LABELS)
    assert found.counts.tolist() == [[3, 0, 0], [2, 0, 0], [0, 0, 0]]
