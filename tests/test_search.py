"""Beam search against all texts there are, and likelihoods against the model read one character at a time.

Axes: V vocabulary.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable

import pytest
import torch
from torch import nn

from charrnn.config import ModelConfig
from charrnn.data.forms import Form
from charrnn.data.vocabulary import Vocabulary, opening
from charrnn.errors import UserError
from charrnn.generation import generate
from charrnn.models.char_rnn import CharRNN
from charrnn.options import SamplingOptions
from charrnn.search import SCORED_STEPS, beam_search, best_of, likelihoods
from charrnn.verse.build import build_verse
from charrnn.verse.options import VerseOptions

STREAM = Vocabulary(("unknown",), "\nab，。")
DOCUMENTS = Vocabulary(("unknown", "end"), "abc")


def model_for(vocabulary: Vocabulary, seed: int, dropout: float = 0.5) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = CharRNN(ModelConfig(embedding_size=4, hidden_size=6, num_layers=2, dropout={"output": dropout}), len(vocabulary))  # type: ignore[arg-type]
        with torch.no_grad():
            for weight in model.parameters():
                weight.mul_(2)
    return model


@torch.no_grad()
def likelihood(model: nn.Module, vocabulary: Vocabulary, prime: str, ids: Iterable[int]) -> float:
    """Mean, one character after the other."""
    model.eval()
    logits, state = model(torch.tensor(opening(vocabulary, vocabulary.encode(prime))).unsqueeze(-1), None)
    nats = []
    for id_ in ids:
        nats.append(float(logits[-1, 0].double().log_softmax(-1)[id_]))
        logits, state = model(torch.tensor([[id_]]), state)
    return sum(nats) / len(nats)


def search(model: nn.Module, vocabulary: Vocabulary, prime: str = "", *, width: int, length: int, **more: object) -> list[str]:
    return beam_search(model, vocabulary, vocabulary.encode(prime), width=width, length=length, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("prime", ["", "ab"])
def test_a_beam_that_holds_all_finds_the_likeliest_of_all(seed: int, prime: str) -> None:
    model, ids = model_for(DOCUMENTS, seed), DOCUMENTS.encode("abc")
    end = DOCUMENTS.end
    assert end is not None
    texts = [list(text) for n in range(4) for text in itertools.product(ids, repeat=n)]
    # A text of fewer than three characters ended with its document; without a prime it has one character at least.
    texts = [text if len(text) == 3 else [*text, end] for text in texts if text or prime]
    ranked = sorted(texts, key=lambda text: -likelihood(model, DOCUMENTS, prime, text))
    expected = [DOCUMENTS.decode(text) for text in ranked]
    assert search(model, DOCUMENTS, prime, width=100, length=3, count=10) == expected[:10]


@pytest.mark.parametrize("seed", range(3))
def test_under_a_constraint_it_is_the_likeliest_that_the_constraint_allows(seed: int) -> None:
    model = model_for(STREAM, seed)
    verse = build_verse(STREAM, VerseOptions(form=Form(3, 2), acrostic="ab"))
    lines = [f"a{x}，{m}b{y}。{n}{z}{w}。" for x, y, z, w in itertools.product("ab", repeat=4) for m in ("", "\n") for n in ("", "\n")]
    expected = max(lines, key=lambda text: likelihood(model, STREAM, "a", STREAM.encode(text)))
    assert verse.length is not None
    assert search(model, STREAM, "a", width=100, length=verse.length, constraint=verse.start) == [expected]


@pytest.mark.parametrize("seed", range(5))
def test_a_beam_of_one_is_greedy_and_a_wide_one_is_likelier(seed: int) -> None:
    model = model_for(STREAM, seed)
    steps = generate(model, STREAM, [], length=12, options=SamplingOptions(temperature=0), generator=torch.Generator())
    greedy = "".join(piece for (piece,) in steps)
    assert search(model, STREAM, width=1, length=12) == [greedy]
    (wide,) = search(model, STREAM, width=50, length=12)
    scores = likelihoods(model, STREAM, [], [wide, greedy])
    assert scores[0] >= scores[1]
    assert search(model, STREAM, width=50, length=12) == [wide]


def test_it_leaves_the_constraint_and_the_mode_as_they_were() -> None:
    model, verse = model_for(STREAM, 1).train(), build_verse(STREAM, VerseOptions(form=Form(2, 2)))
    before = verse.start.allowed()
    first, second = (search(model, STREAM, width=3, length=20, constraint=verse.start) for _ in range(2))
    assert first == second and model.training and verse.start.allowed() is before


def test_stop_strings_and_repeats() -> None:
    model = model_for(STREAM, 3)
    for text in search(model, STREAM, width=20, length=9, count=20, stop=["ab", "。"]):
        assert len(text) == 9 or text.endswith(("ab", "。"))
        assert "ab" not in text[:-1] and "。" not in text[:-1]
    for text in search(model, STREAM, width=9, length=5, count=3, no_repeat_ngram=1):
        assert len(set(text)) == len(text)


def test_likelihoods_are_those_of_one_character_after_the_other() -> None:
    model, prime = model_for(STREAM, 5), "ab"
    texts = ["a", "ba，b。\n" * (SCORED_STEPS // 2), "", "bb"]
    expected = [likelihood(model, STREAM, prime, STREAM.encode(text)) if text else -math.inf for text in texts]
    found = likelihoods(model, STREAM, STREAM.encode(prime), texts)
    assert found == pytest.approx(expected, abs=1e-5)
    best = max(range(2), key=expected.__getitem__)
    assert best_of(model, STREAM, STREAM.encode(prime), [texts[:2], texts[2:]]) == [texts[best], "bb"]
    assert likelihoods(model, STREAM, [], []) == []


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"width": 0}, "--beam-width 0: expected at least 1 text"),
        ({"length": 0}, "--length 0: expected at least 1 character"),
        ({"count": 4}, "--num-samples 4: expected from 1 to the --beam-width, 3"),
        ({"stop": [""]}, "--stop '': expected at least one character"),
    ],
)
def test_arguments_that_mean_nothing(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(UserError) as error:
        search(model_for(STREAM, 1), STREAM, **{"width": 3, "length": 2, **arguments})  # type: ignore[arg-type]
    assert str(error.value).startswith(message)


def test_a_model_that_ran_away_is_said() -> None:
    model = model_for(STREAM, 1)
    next(model.parameters()).data.fill_(math.nan)
    with pytest.raises(UserError, match="numbers that are not finite"):
        search(model, STREAM, width=2, length=2)
