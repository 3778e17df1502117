"""A unit that follows something is found, told of on text that it was not chosen on, and chance is told of beside it."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch

from charrnn.config import ModelConfig
from charrnn.data.vocabulary import Vocabulary
from charrnn.errors import UserError
from charrnn.finding import Found, find
from charrnn.models.char_rnn import CharRNN
from charrnn.nameable import nameable

LETTERS = Vocabulary(("unknown",), "\n abcdefg")


def numbers(text: list[str] | str, name: str) -> list[float]:
    return [float(n) for n in nameable(list(text))[name]]


def test_lines_words_and_marks_are_counted() -> None:
    assert numbers("ab, c\nd", "characters since the line began") == [1, 2, 3, 4, 5, 0, 1]
    assert numbers("ab, c\nd", "characters since a mark") == [1, 2, 0, 1, 2, 0, 1]
    assert numbers("a. b\n\nc", "characters since a sentence ended") == [1, 0, 1, 2, 3, 0, 1]
    assert numbers("ab, c_1", "characters of the word so far") == [1, 2, 0, 0, 1, 2, 3]
    assert numbers("a\nb\n\nc\n", "lines since a blank line") == [0, 1, 1, 2, 0, 0, 1]
    assert numbers("  a b\n\tc", "indentation of the line") == [1, 2, 2, 2, 2, 0, 8, 8]


def test_quotes_brackets_and_comments() -> None:
    assert numbers('a"b"c', "inside quotes") == [0, 1, 1, 0, 0]
    assert numbers("“a”b「c」", "inside quotes") == [1, 1, 0, 0, 1, 1, 0]
    assert numbers('"a\nb\n\nc', "inside quotes") == [1, 1, 1, 1, 1, 0, 0]
    assert numbers(")a(b[c])(\n\n", "bracket depth") == [0, 0, 1, 1, 2, 2, 1, 0, 1, 1, 0]
    assert numbers('a"#"#b\nc', "behind # on the line") == [0, 0, 0, 0, 1, 1, 0, 0]


def test_rhymes_fall_on_the_last_word_of_a_line_and_before_the_end_of_a_couplet() -> None:
    assert numbers("a moon,\nso", "where rhymes fall") == [0, 0, 1, 1, 1, 1, 0, 0, 0, 0]
    assert numbers("白日依山尽，黄河入海流。", "where rhymes fall") == [0] * 10 + [1, 0]


def test_the_end_of_a_document_begins_all_anew() -> None:
    for name, found in nameable([*'a ("b', ""]).items():
        assert found[-1] == 0, name


def text_of(lines: int, seed: int = 1) -> list[str]:
    draw = random.Random(seed)
    return list("".join("".join(draw.choices("abcdefg ", k=draw.randint(5, 30))) + "\n" for _ in range(lines)))


def counter(**config: Any) -> CharRNN:
    """Unit 4 goes down by about the same with each character and back at a line end; the others do what they will."""
    with torch.random.fork_rng():
        torch.manual_seed(2)
        model = CharRNN(ModelConfig(cell="rnn_relu", embedding_size=10, hidden_size=8, **config), len(LETTERS))
    weights = model.recurrent.weights(0)
    assert weights.bias_ih is not None and weights.bias_hh is not None
    with torch.no_grad():
        model.embedding.weight.copy_(torch.eye(len(LETTERS)))
        weights.weight_hh.mul_(0.3)
        weights.weight_hh[4] = 0
        weights.weight_hh[:, 4] = 0
        weights.weight_hh[4, 4] = 1
        weights.weight_ih[4] = 0.01
        weights.weight_ih[4, LETTERS.id("\n")] = -9
        weights.bias_ih[4] = weights.bias_hh[4] = 0
    return model


@pytest.fixture(scope="module")
def found() -> Found:
    return find(counter(), LETTERS, text_of(1200), top=2)


def test_the_unit_that_counts_is_found_and_chance_is_near_nothing(found: Found) -> None:
    best = found.follows[0]
    assert (best.feature, best.form) == ("characters since the line began", "n")
    assert (str(best.units[0]), best.rises[0]) == ("layer 0 h4", True)
    assert best.explained[0] > 0.99 and best.fitted[0] > 0.99
    assert best.explained[1] < 0.5 and len(best.units) == 2
    assert best.control < 0.03 and best.probe > 0.99 and best.probe_control < 0.03


def test_what_is_not_in_the_text_is_named(found: Found) -> None:
    assert {"inside quotes", "bracket depth", "behind # on the line"} <= set(found.absent)
    assert not set(found.absent) & {one.feature for one in found.follows}
    assert found.units == 8
    assert [one.explained[0] for one in found.follows] == sorted((one.explained[0] for one in found.follows), reverse=True)


def test_the_shares_are_those_of_least_squares(found: Found) -> None:
    """Computed once more, of the whole state at each counted character, by numpy."""
    from charrnn.finding import COLUMNS, FORGOTTEN
    from charrnn.inside import look_inside
    from charrnn.nameable import FORMS

    text, one = text_of(1200), found.follows[-1]
    length = len(text) // 2 // COLUMNS
    halves = [text[: COLUMNS * length], text[COLUMNS * length : 2 * COLUMNS * length]]
    told = []
    for half in halves:
        ids = torch.tensor([LETTERS.id(c) for c in half]).view(COLUMNS, length).T
        h = look_inside(counter(), ids).layers[0].states["h"][FORGOTTEN:, :, one.units[0].number].T.flatten().double().numpy()
        f = FORMS[one.form](nameable(half)[one.feature]).reshape(COLUMNS, length)[:, FORGOTTEN:].flatten()
        told.append((h, f))
    (h, f), (h2, f2) = told
    b, a = np.polyfit(h, f, 1)
    assert one.fitted[0] == pytest.approx(1 - np.square(f - a - b * h).sum() / np.square(f - f.mean()).sum(), abs=1e-4)
    assert one.explained[0] == pytest.approx(1 - np.square(f2 - a - b * h2).sum() / np.square(f2 - f2.mean()).sum(), abs=1e-4)


def test_a_text_that_is_too_short_or_has_nothing_in_it() -> None:
    with pytest.raises(UserError, match="the text has 11 characters; expected at least 4,000"):
        find(counter(), LETTERS, list("abcdefg abc"))
    with pytest.raises(UserError, match="nothing nameable"):
        find(counter(), LETTERS, list("\n") * 5000)
