"""Every figure against one plain pass over the text.

Axes: T time, V vocabulary.
"""

from __future__ import annotations

import math
import random
import tempfile
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from charrnn.config import DataConfig, build_config
from charrnn.data.corpus import load_corpus
from charrnn.data.decoding import read_text
from charrnn.data.documents import split_documents
from charrnn.data.vocabulary import Vocabulary
from charrnn.errors import UserError
from charrnn.evaluation import WINDOW, Window, _characters, evaluate, evaluate_stream, per_char, split_stream
from charrnn.tasks import load_task
from charrnn.tasks.task import Task
from tests.data.texts import text_stream


def task_on(tmp_path: Path, text: str, **data: Any) -> Task:
    path = tmp_path / "text.txt"
    path.write_text(text, encoding="utf-8")
    settings = {
        "data": {"path": str(path), "cache": str(tmp_path / "cache"), **data},
        "model": {"hidden_size": 12, "embedding_size": 4, "num_layers": 2, "dropout": {"output": 0.5}},
        "train": {"max_steps": 1, "batch_size": 2, "tbptt_window": 16},
    }
    config = build_config(settings, "test")
    return load_task(config)


def some_text(length: int) -> str:
    return "".join(random.Random(1).choices("abcdefgh \n", k=length))


def plainly(model: nn.Module, ids: list[int], unknown: int) -> tuple[float, int, int]:
    """Nats, characters and hits of one forward over all of it."""
    model.eval()
    with torch.no_grad():
        logits = model(torch.tensor(ids[:-1]).unsqueeze(-1), None)[0].squeeze(1)  # (T, V)
    targets = torch.tensor(ids[1:])
    scored = targets != unknown
    nats = F.cross_entropy(logits, targets, reduction="none").double()[scored]
    return float(nats.sum()), int(scored.sum()), int((logits.argmax(-1) == targets)[scored].sum())


@pytest.mark.parametrize("length", [60, 1500, 13000])
def test_columns_score_every_character_once_and_nearly_as_one(tmp_path: Path, length: int) -> None:
    """The lead of a column stands for all that lies before it; what that leaves out is below 1e-4 nats a character here."""
    task = task_on(tmp_path, some_text(length), val_fraction=0.5)
    model = task.model().train()
    found = evaluate(task, model, "val")
    assert model.training
    nats, count, correct = plainly(model, task.corpus.split("val").tolist(), task.vocabulary.unknown)
    assert int(found.count) == count == length // 2 - 1
    assert found.nats_per_char() == pytest.approx(nats / count, abs=1e-4)
    assert abs(int(found.correct) - correct) <= count // 1000


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_a_stream_is_a_plain_loop_over_all_of_a_split(tmp_path: Path, split: str) -> None:
    """Step by step with the state carried by hand: the last character of train is scored too, and a state from far back counts."""
    task = task_on(tmp_path, some_text(7003), val_fraction=0.4, test_fraction=0.2)
    model = task.model()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "bias_ih" in name:
                parameter[12:24] += 9  # open forget gates remember the whole split: columns, or zeros in the middle, would show
    model.eval()
    ids, state, nats = task.corpus.split(split).tolist(), None, 0.0
    for context, target in pairwise(ids):
        with torch.no_grad():
            logits, state = model(torch.tensor([[context]]), state)
        nats -= float(logits[0, 0].double().log_softmax(-1)[target])
    found = evaluate_stream(model, task.vocabulary, split_stream(task.corpus, split))
    assert (found.chars, int(found.tally.count), found.unknown) == (len(ids), len(ids) - 1, 0)
    assert found.tally.nats_per_char() == pytest.approx(nats / (len(ids) - 1), rel=1e-6)


@pytest.mark.parametrize("documents", ["none", "lines"])
def test_a_split_and_its_text_are_counted_alike(tmp_path: Path, documents: str) -> None:
    """Read, scored and unknown, and the figures: a split of a corpus says what the same text in a file says."""
    text = "".join(f"{line}Q\n" if i % 7 == 0 else f"{line}\n" for i, line in enumerate(some_text(3000).split()))
    task = task_on(tmp_path, text, val_fraction=0.0, documents=documents, vocabulary={"max_size": 8})
    model, vocabulary = task.model(), task.vocabulary
    end = vocabulary.end
    ids = task.corpus.split("train").tolist()
    again = "".join("\n" if i == end else vocabulary.decode([i]) or "Q" for i in ids)  # in the split's order
    split = evaluate_stream(model, vocabulary, split_stream(task.corpus, "train"))
    file = evaluate_stream(model, vocabulary, text_stream(vocabulary, again, documents))
    assert split.unknown == ids.count(vocabulary.unknown) > 0 and split.chars == len(ids)
    assert int(split.tally.count) == split.chars - split.unknown - (0 if end is not None or ids[0] == vocabulary.unknown else 1)
    same = ("chars", "scored", "unknown", "unknown_share", "nats_per_char", "accuracy")
    assert [split.as_metrics()[key] for key in same] == [file.as_metrics()[key] for key in same]


def test_a_split_without_characters_is_an_error(tmp_path: Path) -> None:
    task = task_on(tmp_path, some_text(300), val_fraction=0.0)
    for split in ("val", "vall"):
        with pytest.raises(UserError, match=split):
            evaluate(task, task.model(), split)
        with pytest.raises(UserError, match=split):
            split_stream(task.corpus, split)


@pytest.mark.parametrize("length", [1, 2, WINDOW, WINDOW + 1, 2 * WINDOW + 37])
def test_a_text_is_scored_as_one_stream(tmp_path: Path, length: int) -> None:
    task = task_on(tmp_path, some_text(400))
    model, vocabulary = task.model().train(), task.vocabulary
    text = some_text(length - 1) + "Q" if length > 2 else "ab"[:length]
    if length == 1:
        with pytest.raises(UserError, match="the text has 1 characters, 0 of them unknown to the model, and none to predict"):
            evaluate_stream(model, vocabulary, text_stream(vocabulary, text))
        assert list(per_char(model, vocabulary, text_stream(vocabulary, text))) == [("a", None)]
        return
    found = evaluate_stream(model, vocabulary, text_stream(vocabulary, iter([text[:3], "", text[3:]])))
    assert model.training
    nats, count, correct = plainly(model, vocabulary.encode(text), vocabulary.unknown)
    assert (found.chars, found.unknown, int(found.tally.count)) == (length, text.count("Q"), count)
    assert found.as_metrics()["unknown_share"] == text.count("Q") / length
    assert found.tally.nats_per_char() == pytest.approx(nats / count, rel=1e-5)
    assert int(found.tally.correct) == correct

    scores = list(per_char(model, vocabulary, text_stream(vocabulary, text)))
    assert "".join(character for character, _ in scores) == text
    assert [i for i, (_, bits) in enumerate(scores) if bits is None] == [0] + [i for i, c in enumerate(text) if c == "Q"]
    assert sum(bits for _, bits in scores if bits is not None) * math.log(2) == pytest.approx(float(found.tally.nats), rel=1e-9)


def test_documents_of_a_text_are_scored_as_in_training(tmp_path: Path) -> None:
    poems = [some_text(40).replace("\n", "a") + str(i) for i in range(12)]
    task = task_on(tmp_path, "\n".join(poems), documents="lines")
    model, vocabulary = task.model(), task.vocabulary
    assert vocabulary.end is not None
    ids = [vocabulary.end]
    for poem in poems[:3]:
        ids += [*vocabulary.encode(poem), vocabulary.end]
    nats, count, _ = plainly(model, ids, vocabulary.unknown)
    found = evaluate_stream(model, vocabulary, text_stream(vocabulary, "\n".join(poems[:3]) + "\n", documents="lines"))
    assert (int(found.tally.count), found.chars, found.unknown) == (count, len(ids) - 1, 0)
    assert found.tally.nats_per_char() == pytest.approx(nats / count, rel=1e-5)
    scores = list(per_char(model, vocabulary, text_stream(vocabulary, poems[0], documents="lines")))
    assert [character for character, _ in scores] == [*poems[0], ""] and all(bits is not None for _, bits in scores)


def test_nothing_known_is_an_error() -> None:
    vocabulary = Vocabulary(("unknown",), "ab")
    for text, described in (("", "0 characters, 0 of them unknown"), ("xyz", "3 characters, 3 of them unknown")):
        with pytest.raises(UserError, match=described):
            evaluate_stream(_constant(vocabulary), vocabulary, text_stream(vocabulary, text))


def _constant(vocabulary: Vocabulary) -> nn.Module:
    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.logits = nn.Parameter(torch.zeros(len(vocabulary)))

        def forward(self, inputs: torch.Tensor, state: None) -> tuple[torch.Tensor, None]:
            return self.logits.expand(*inputs.shape, -1), None

    return Constant()


def test_an_even_guess_costs_the_logarithm_of_the_choices() -> None:
    vocabulary = Vocabulary(("unknown",), "abc")
    found = evaluate_stream(_constant(vocabulary), vocabulary, text_stream(vocabulary, "abcab"))
    assert found.tally.bits_per_char() == pytest.approx(2.0)
    assert [bits for _, bits in per_char(_constant(vocabulary), vocabulary, text_stream(vocabulary, "ab"))] == [None, pytest.approx(2.0)]


@pytest.mark.parametrize(
    "documents, text, expected",
    [
        ("none", "a\n\nb\n", "a\n\nb\n"),
        ("files", "a\n\nb\n", "a\n\nb\n$"),
        ("lines", "\n\na b\nc\n\n\nd", "a b$c$d$"),
        ("lines", "a\n  \nb  \n", "a$b  $"),
        ("blank_lines", "\n\na\nb\n\nc\n \t\n\nd\n", "a\nb$c$d$"),
        ("blank_lines", " \n\n \n", ""),
        ("blank_lines", "a\n\u3000\nb", "a$b$"),  # blank as the corpus means it, with an ideographic space
        ("lines", "", ""),
    ],
)
@given(cut=st.integers(0, 14))
def test_documents_close_wherever_the_text_is_cut(documents: str, text: str, expected: str, cut: int) -> None:
    assert "".join(character or "$" for character in _characters(split_documents([text[:cut], text[cut:]], documents))) == expected


def documents_of(stream: Iterable[Window]) -> list[str]:
    """In any order: a corpus shuffles them."""
    return sorted("".join(character or "\0" for window in stream for character in window.characters).split("\0"))


@pytest.mark.parametrize("documents", ["none", "lines", "blank_lines", "files"])
@given(drawn=st.text(st.sampled_from("ab \t\n\r\u3000\x0c\u2028"), max_size=30), cut=st.integers(0, 40))
def test_a_file_of_a_persons_is_read_as_the_corpus_reads_its_own(documents: str, drawn: str, cut: int) -> None:
    def in_pieces(texts: Iterable[str]) -> Iterator[str]:
        text = "".join(texts)
        yield from (text[:cut], text[cut:])

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "text.txt")
        path.write_bytes(f"ab\n\nba{drawn}".encode())
        corpus = load_corpus(DataConfig(path=str(path), cache=f"{folder}/cache", documents=documents, val_fraction=0), 1)  # type: ignore[arg-type]
        expected = documents_of(split_stream(corpus, "train"))
        assert documents_of(text_stream(corpus.vocabulary, in_pieces(read_text(path)), documents)) == expected
