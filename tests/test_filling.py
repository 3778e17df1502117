"""Fillings against every filling there is, each scored by hand.

Axes: T time, B batch, N blanks, C characters.
"""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor, nn

from charrnn import filling
from charrnn.config import ModelConfig
from charrnn.data.vocabulary import Vocabulary
from charrnn.errors import UserError
from charrnn.filling import Filled, fill
from charrnn.models.char_rnn import CharRNN

VOCABULARY = Vocabulary(("unknown", "end", "blank"), "abcd")
FIRST = 3


def model_of(vocabulary: Vocabulary = VOCABULARY, **settings: object) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        config = ModelConfig.model_validate(
            {"embedding_size": 6, "hidden_size": 7, "num_layers": 2, "bidirectional": True, "dropout": {"output": 0.5}, **settings}
        )
        return CharRNN(config, len(vocabulary))


def log_probabilities(model: nn.Module, text: str, place: int) -> list[float]:
    """Of each character at a place of a text, where every `_` is a blank, by a read of its own."""
    ids = torch.tensor([[2 if c == "_" else VOCABULARY.id(c)] for c in text])  # (T, 1)
    model.eval()
    with torch.no_grad():
        logits = model(ids, None)[0][place, 0, FIRST:].double()  # (C,)
    model.train()
    found: list[float] = logits.log_softmax(-1).tolist()
    return found


def by_hand(model: nn.Module, text: str) -> dict[str, float]:
    """Every filling of a text with its share of the pseudo-likelihood of them all."""
    places = [i for i, c in enumerate(text) if c == "_"]
    scores = {}
    for characters in itertools.product(VOCABULARY.characters, repeat=len(places)):
        whole = list(text)
        for place, character in zip(places, characters):
            whole[place] = character
        score = 0.0
        for place, character in zip(places, characters):
            hidden = "".join([*whole[:place], "_", *whole[place + 1 :]])
            score += log_probabilities(model, hidden, place)[VOCABULARY.characters.index(character)]
        scores["".join(whole)] = score
    total = math.log(sum(map(math.exp, scores.values())))
    return {filled: math.exp(score - total) for filled, score in scores.items()}


def assert_found(found: Filled, expected: dict[str, float]) -> None:
    best = sorted(expected.items(), key=lambda one: -one[1])[: len(found.fillings)]
    assert [f.text for f in found.fillings] == [text for text, _ in best]
    assert [f.probability for f in found.fillings] == pytest.approx([p for _, p in best], rel=1e-4)


@pytest.mark.parametrize("bidirectional", [True, False])
def test_one_blank_has_the_models_own_probabilities(bidirectional: bool) -> None:
    model = model_of(bidirectional=bidirectional).train()
    found = fill(model, VOCABULARY, "ab_da", longest=99, top=4)
    assert model.training
    expected = {f"ab{c}da": math.exp(p) for c, p in zip("abcd", log_probabilities(model, "ab_da", 2))}
    assert_found(found, expected)
    assert sum(f.probability for f in found.fillings) == pytest.approx(1)
    (blank,) = found.blanks
    assert blank.place == 2 and blank.choices == tuple((f.characters, f.probability) for f in found.fillings)


@pytest.mark.parametrize("text", ["_b_a", "a__b", "___", "_bd__"])
def test_several_blanks_where_every_filling_is_found(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filling, "WIDTH", 64)
    model = model_of()
    found = fill(model, VOCABULARY, text, longest=99, top=64)
    expected = by_hand(model, text)
    assert len(found.fillings) == len(expected)
    assert_found(found, expected)
    for blank in found.blanks:
        alone = [math.exp(p) for p in log_probabilities(model, text, blank.place)]
        assert dict(blank.choices) == pytest.approx(dict(zip("abcd", alone)), rel=1e-4)


def test_a_narrow_beam_finds_distinct_fillings_in_the_right_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filling, "WIDTH", 1)
    model = model_of()
    found = fill(model, VOCABULARY, "_b_ad_", longest=99, top=3)
    expected = by_hand(model, "_b_ad_")
    texts = [f.text for f in found.fillings]
    assert len(texts) == len(set(texts)) == 3 and set(texts) <= set(expected)
    assert texts == sorted(texts, key=lambda text: -expected[text])
    shares = [f.probability for f in found.fillings]
    assert shares[0] / shares[1] == pytest.approx(expected[texts[0]] / expected[texts[1]], rel=1e-4)


class SureOfTheSecond(nn.Module):
    """Of two blanks it can only tell the second, which is b; and the first, which is a, from the second."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))  # says which device it is on

    def forward(self, inputs: Tensor, state: None, *, at: Tensor) -> tuple[Tensor, tuple[()]]:
        guessed, told, second = torch.tensor([[0.24, 0.22, 0.28, 0.26], [0.97, 0.01, 0.01, 0.01], [0.03, 0.9, 0.04, 0.03]]).log()
        logits = torch.zeros(*inputs.shape, len(VOCABULARY))  # (T, B, V)
        logits[0, :, FIRST:] = torch.where((inputs[1] == VOCABULARY.id("b")).unsqueeze(-1), told, guessed)
        logits[1, :, FIRST:] = second
        return logits[at], ()


def test_the_surest_blank_is_filled_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the left, two partial fillings side by side would begin with c and d, and never come to a."""
    monkeypatch.setattr(filling, "WIDTH", 1)
    found = fill(SureOfTheSecond(), VOCABULARY, "__", longest=9, top=1)
    assert [f.text for f in found.fillings] == ["ab"]
    assert [blank.choices[0][0] for blank in found.blanks] == ["c", "b"]


def test_how_much_is_read_at_once_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of()
    whole = fill(model, VOCABULARY, "_b_ad_", longest=99)
    monkeypatch.setattr(filling, "READ", 13)
    apart = fill(model, VOCABULARY, "_b_ad_", longest=99)
    assert [f.text for f in apart.fillings] == [f.text for f in whole.fillings]
    assert [f.probability for f in apart.fillings] == pytest.approx([f.probability for f in whole.fillings], rel=1e-5)


def test_the_reads_are_as_many_as_they_are_said_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filling, "WIDTH", 4)
    model, rows = model_of(), []
    model.register_forward_hook(lambda _, inputs, __: rows.append(inputs[0].size(1)))
    fill(model, VOCABULARY, "a___b__d", longest=99, top=2)
    assert sum(rows) == 1 + 4 * 4 + 5 * 4


def test_what_is_not_filled_in_stays_as_it_stands() -> None:
    found = fill(model_of(), VOCABULARY, "aQ□＿_", longest=99, blanks="□")
    assert {f.text[:2] + f.text[3:] for f in found.fillings} == {"aQ＿_"}
    assert [blank.place for blank in found.blanks] == [2]
    assert filling.unknown_to(VOCABULARY, "aQ□＿_Q", "□") == "Q＿_"


@pytest.mark.parametrize("place", [0, 1, 30, 58, 59])
def test_of_a_long_text_a_window_around_the_blank_is_read(place: int) -> None:
    model, text = model_of(), "abcd" * 15
    whole = text[:place] + "_" + text[place + 1 :]
    found = fill(model, VOCABULARY, whole, longest=10)
    start = min(max(0, place - 5), 50)
    near = fill(model, VOCABULARY, whole[start : start + 10], longest=10)
    assert [f.probability for f in found.fillings] == pytest.approx([f.probability for f in near.fillings])
    assert found.fillings[0].text == text[:place] + near.fillings[0].characters + text[place + 1 :]
    assert len(found.fillings[0].text) == 60


def test_blanks_far_apart_are_answered_each_in_its_window() -> None:
    model = model_of()
    left, right = "abcdab_dab", "dcba_cbadc"
    found = fill(model, VOCABULARY, left + "abcd" * 10 + right, longest=6, top=16)
    one, two = (fill(model, VOCABULARY, text, longest=99, top=4) for text in ("dab_da", "cba_cb"))
    expected = {a.characters + b.characters: a.probability * b.probability for a in one.fillings for b in two.fillings}
    assert len(found.fillings) == 16
    assert {f.characters: f.probability for f in found.fillings} == pytest.approx(expected, rel=1e-5)
    assert [blank.place for blank in found.blanks] == [6, 54]


def test_very_many_blanks_keep_their_order() -> None:
    """The probability of all of them together is far below the least that a float can hold."""
    model = model_of()
    found = fill(model, VOCABULARY, "abcd_dcba" * 700, longest=4, top=2)
    one = fill(model, VOCABULARY, "cd_d", longest=4, top=1)
    assert found.fillings[0].characters == one.fillings[0].characters * 700
    assert sum(a != b for a, b in zip(found.fillings[0].characters, found.fillings[1].characters)) == 1


@pytest.mark.parametrize("longest", [1, 2, 3, 7])
def test_every_blank_of_a_long_text_is_filled(longest: int) -> None:
    found = fill(model_of(), VOCABULARY, "_a__b" * 6, longest=longest, top=1)
    assert "_" not in found.fillings[0].text and len(found.blanks) == 18


def test_what_cannot_be_filled() -> None:
    with pytest.raises(UserError, match=r"^'abc' has no blank; expected one of _, ＿, □ for each character that is to be found"):
        fill(model_of(), VOCABULARY, "abc", longest=9)
    plain = Vocabulary(("unknown",), "abcd")
    with pytest.raises(UserError, match="the model has no symbol for a blank; expected a model of task fill"):
        fill(model_of(plain), plain, "a_c", longest=9)
    model = model_of()
    model.get_parameter("head.bias").data.fill_(math.nan)
    with pytest.raises(UserError, match="not finite; its training diverged, so take an earlier checkpoint"):
        fill(model, VOCABULARY, "a_c", longest=9)
