"""Many documents side by side get what each gets alone.

Axes: T time, B batch.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from charrnn import scoring
from charrnn.config import DataConfig, ModelConfig
from charrnn.data import decoding
from charrnn.data.files import Source
from charrnn.data.formats import read_file
from charrnn.data.vocabulary import Vocabulary
from charrnn.evaluation import evaluate_stream
from charrnn.models.char_rnn import CharRNN
from charrnn.scoring import BEGINNING, Document, documents_of, score
from tests.data.texts import text_stream

STREAM = Vocabulary(("unknown",), "\nabcdefg")
PLAIN = Vocabulary(("unknown",), "abcdefg")
DOCUMENTS = Vocabulary(("unknown", "end"), "\nabcdefg")


def model_for(vocabulary: Vocabulary, cell: str = "gru") -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        config = ModelConfig(cell=cell, embedding_size=5, hidden_size=9, num_layers=2, dropout={"output": 0.5})  # type: ignore[arg-type]
        return CharRNN(config, len(vocabulary))


def some_texts(count: int, longest: int) -> list[str]:
    draw = random.Random(1)
    return ["".join(draw.choices("abcdefgQ", k=draw.randint(2, longest))) + "ab" for _ in range(count)]


@pytest.mark.parametrize("vocabulary, before", [(DOCUMENTS, ""), (STREAM, "\n"), (PLAIN, "")], ids=["documents", "stream", "no line ends"])
@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_a_document_gets_what_an_evaluation_of_it_alone_gives(vocabulary: Vocabulary, before: str, cell: str) -> None:
    """Of a stream, the line end that is read first is not scored; nor is the first character where there are no line ends."""
    model = model_for(vocabulary, cell).train()
    texts = [*some_texts(90, 40), some_texts(1, 2000)[0] * 2]  # more than a batch, and more than a window
    found = list(score(model, vocabulary, (Document("f", i, text) for i, text in enumerate(texts, start=1))))
    assert model.training
    assert [s.number for s in found] == list(range(1, 92))
    for text, one in zip(texts, found):
        alone = evaluate_stream(model, vocabulary, text_stream(vocabulary, before + text, "files"))
        assert (one.chars, one.unknown, int(one.tally.count)) == (len(text), text.count("Q"), int(alone.tally.count))
        assert one.bits_per_char == pytest.approx(alone.tally.bits_per_char(), rel=1e-5)
        assert int(one.tally.correct) == int(alone.tally.correct)
        assert one.beginning == text[:BEGINNING]
    sizes = {len(text): int(one.tally.count) - len(text) + text.count("Q") for text, one in zip(texts, found)}
    if vocabulary is DOCUMENTS:
        assert set(sizes.values()) == {1}  # the end is a character that is asked for


def test_blocks_and_windows_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_for(DOCUMENTS)
    documents = [Document("f", i, text) for i, text in enumerate(some_texts(40, 60), start=1)]
    whole = [s.bits_per_char for s in score(model, DOCUMENTS, documents)]
    for name, value in {"BLOCK": 7, "BATCH": 3, "LOGITS": 200}.items():
        monkeypatch.setattr(scoring, name, value)
    assert [s.bits_per_char for s in score(model, DOCUMENTS, documents)] == pytest.approx(whole, rel=1e-5)
    monkeypatch.setattr(scoring, "BLOCK_CHARS", 20)
    assert [s.bits_per_char for s in score(model, DOCUMENTS, documents)] == pytest.approx(whole, rel=1e-5)


def test_what_cannot_be_scored_has_no_bits() -> None:
    (strange,) = score(model_for(STREAM), STREAM, [Document("f", 1, "QQQ")])
    assert strange.bits_per_char is None and strange.as_metrics() == {
        "nats_per_char": None, "bits_per_char": None, "perplexity": None, "accuracy": None,
        "chars": 3, "scored": 0, "unknown": 3, "unknown_share": 1.0,
    }  # fmt: skip
    (lonely,) = score(model_for(PLAIN), PLAIN, [Document("f", 1, "a")])
    assert lonely.bits_per_char is None and lonely.unknown == 0
    (ended,) = score(model_for(DOCUMENTS), DOCUMENTS, [Document("f", 1, "Q")])
    assert ended.bits_per_char is not None and int(ended.tally.count) == 1  # its end


def test_documents_of_a_format_and_of_bytes_that_lie_in_no_file(tmp_path: Path) -> None:
    path = tmp_path / "songs.csv"
    path.write_text("title,text\nOne,a b\nTwo,c\n", encoding="utf-8")
    config = DataConfig(path="elsewhere")
    assert list(documents_of("f", read_file(config, path))) == [Document("f", 1, "a b"), Document("f", 2, "c")]
    piped = read_file(config, Source(Path("standard input"), content="\ufeffa\r\nb".encode("utf-16-le")))
    assert list(documents_of("-", piped)) == [Document("-", 1, "a\nb")]


@pytest.mark.parametrize(
    "documents, text, expected",
    [
        ("none", "a\n\nb\n", ["a\n\nb\n"]),
        ("files", "a\n\nb\n", ["a\n\nb\n"]),
        ("none", " \n\n", []),
        ("lines", "\n\na b\nc\n\n\nd", ["a b", "c", "d"]),
        ("blank_lines", "\n\na\nb\n\nc\n \t\n\nd\n", ["a\nb", "c", "d"]),
    ],
)
@given(cut=st.integers(0, 14))
def test_documents_wherever_the_text_is_cut(
    documents: str, text: str, expected: list[str], cut: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "text.txt"
    path.write_text(text, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoding, "PIECE", cut + 1)
        found = list(documents_of("f", read_file(DataConfig(path="elsewhere"), path, documents)))
    assert found == [Document("f", number, part) for number, part in enumerate(expected, start=1)]
