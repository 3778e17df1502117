"""What is seen inside of a model is what the model itself goes through, and is shown so that it can be read.

Axes: T time, B batch, V vocabulary size.
"""

from __future__ import annotations

import itertools
import re
from html import unescape
from typing import Any

import pytest
import torch

from charrnn.coloured import colours_of, looked_page, marks, on_terminal
from charrnn.config import ModelConfig
from charrnn.data.vocabulary import Vocabulary
from charrnn.errors import UserError
from charrnn.evaluation import per_char
from charrnn.inside import Looked, View, look, look_inside, view_of
from charrnn.models.char_rnn import CharRNN
from charrnn.ops.cells import CELLS
from tests.data.texts import text_stream

STREAM = Vocabulary(("unknown",), "\nabcdefg")
DOCUMENTS = Vocabulary(("unknown", "end"), "\nabcdefg")
SHAPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "two layers with norms, residuals and pairs": {
        "num_layers": 2, "layer_norm": True, "residual": True, "bigrams": {"max_size": 4, "min_count": 1, "size": 2},
    },
    "tied": {"tied_embeddings": True, "embedding_size": 6, "hidden_size": 6},
}  # fmt: skip


def model_of(cell: str, size: int = 9, **config: Any) -> CharRNN:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        settings = {"embedding_size": 4, "hidden_size": 6, "dropout": {"output": 0.5, "weight_hh": 0.3}} | config
        return CharRNN(ModelConfig(cell=cell, **settings), size)  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("cell", CELLS)
def test_the_logits_and_states_are_the_models_own(cell: str, shape: str) -> None:
    model, inputs = model_of(cell, **SHAPES[shape]).train(), torch.randint(9, (11, 3))
    before = look_inside(model, inputs[:4])
    inside = look_inside(model, inputs[4:], before.final)
    assert model.training
    with torch.inference_mode():
        _, state = model.eval()(inputs[:4], None)
        logits, final = model(inputs[4:], state)
    torch.testing.assert_close(inside.logits, logits)
    for layer, mine, theirs in zip(inside.layers, inside.final, final):
        for name, ours, own in zip(CELLS[cell].state_names, mine, theirs):
            torch.testing.assert_close(ours, own)
            assert torch.equal(layer.states[name][-1], ours) and layer.states[name].shape == (7, 3, 6)


def test_the_gates_of_an_lstm_make_its_states() -> None:
    inside = look_inside(model_of("lstm"), torch.randint(9, (8, 2)))
    gates, states = inside.layers[0].gates, inside.layers[0].states
    c = gates["forget"][1:] * states["c"][:-1] + gates["input"][1:] * gates["candidate"][1:]
    torch.testing.assert_close(states["c"][1:], c)
    torch.testing.assert_close(states["h"], gates["output"] * states["c"].tanh())


def test_the_gates_of_a_gru_make_its_state() -> None:
    inside = look_inside(model_of("gru"), torch.randint(9, (8, 2)))
    gates, h = inside.layers[0].gates, inside.layers[0].states["h"]
    torch.testing.assert_close(h[1:], (1 - gates["update"][1:]) * gates["candidate"][1:] + gates["update"][1:] * h[:-1])
    assert set(gates) == {"reset", "update", "candidate"}


@pytest.mark.parametrize("vocabulary", [STREAM, DOCUMENTS], ids=["stream", "documents"])
def test_surprisal_is_that_of_eval_and_what_is_likely_is_what_comes_next(vocabulary: Vocabulary, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("charrnn.evaluation.WINDOW", 5)
    model, text = model_of("lstm", len(vocabulary)), "abcQdefgabcdc"
    found = list(look(model, vocabulary, text_stream(vocabulary, text, "files"), View(), 3))
    told = list(per_char(model, vocabulary, text_stream(vocabulary, text, "files")))
    assert [one.character for one in found] == [character for character, _ in told]
    assert [one.bits for one in found] == [None if bits is None else pytest.approx(bits, rel=1e-4, abs=1e-6) for _, bits in told]
    for one, following in itertools.pairwise(found):
        assert [share for _, share in one.likely] == sorted((share for _, share in one.likely), reverse=True)
        for character, share in one.likely:
            if character == following.character and following.bits is not None:
                assert following.bits == pytest.approx(-torch.tensor(share).log2().item(), rel=1e-3)
    assert all(len(one.likely) == 3 for one in found)


def test_a_view_tells_the_number_of_its_unit() -> None:
    model, ids = model_of("lstm", len(STREAM), num_layers=2), STREAM.encode("abcabc")
    inside = look_inside(model, torch.tensor(ids).unsqueeze(-1))
    for view, expected in (
        (view_of(model, None, None, "c4", None), inside.layers[1].states["c"][:, 0, 4]),
        (view_of(model, "cell", 0, "3", None), inside.layers[0].states["c"][:, 0, 3]),
        (view_of(model, None, 1, "h0", None), inside.layers[1].states["h"][:, 0, 0]),
        (view_of(model, None, 0, "2", "forget"), inside.layers[0].gates["forget"][:, 0, 2]),
        (view_of(model, "gate", 0, None, "input"), inside.layers[0].gates["input"][:, 0].mean(-1)),
    ):
        found = look(model, STREAM, text_stream(STREAM, "abcabc", "files"), view, 0)
        assert [one.value for one in found] == pytest.approx(expected.tolist(), abs=1e-6), view


@pytest.mark.parametrize(
    "cell, by, layer, unit, gate, fragment",
    [
        ("lstm", None, 2, "0", None, "--layer 2: the model has 1; expected 0, which reads the characters, to 0"),
        ("lstm", None, None, "6", None, "--unit 6: expected 0 to 5"),
        ("lstm", None, None, "x1", None, "--unit x1: expected 0 to 5"),
        ("lstm", "cell", None, None, None, "--by cell: of which? expected --unit 0 to 5"),
        ("gru", None, None, "c3", None, "a cell gru has no c; expected h3"),
        ("rnn_tanh", "gate", None, None, None, "a cell rnn_tanh has no gates"),
        ("gru", None, None, None, "forget", "a cell gru has no gate forget; expected reset, update, candidate"),
        ("lstm", "gate", None, None, None, "--gate: of which? expected input, forget, candidate, output"),
        ("lstm", "surprisal", None, "3", None, "--unit: has no meaning for --by surprisal"),
        ("lstm", "cell", None, "3", "input", "--gate input: has no meaning for --by cell"),
        ("lstm", None, None, "h3", "input", "--unit h3: a gate has no h; expected 3"),
    ],
)
def test_a_view_that_the_model_has_not(cell: str, by: Any, layer: int | None, unit: str | None, gate: str | None, fragment: str) -> None:
    with pytest.raises(UserError, match=re.escape(fragment)):
        view_of(model_of(cell), by, layer, unit, gate)


@pytest.mark.parametrize(
    "terminal, environment, expected",
    [
        (True, {"TERM": "xterm-256color"}, "256"),
        (True, {"TERM": "xterm", "COLORTERM": "truecolor"}, "true"),
        (True, {"TERM": "xterm", "NO_COLOR": "1"}, "none"),
        (True, {"TERM": "dumb"}, "none"),
        (False, {"TERM": "xterm", "COLORTERM": "truecolor"}, "none"),
    ],
)
def test_colours_are_for_terminals_that_want_them(terminal: bool, environment: dict[str, str], expected: str) -> None:
    assert colours_of(terminal, environment) == expected


def seen(text: str, values: list[float | None], likely: str = "") -> list[Looked]:
    return [Looked(c, value, value, [(n, 0.5) for n in likely]) for c, value in zip(text, values)]


def test_a_terminal_gets_the_text_with_what_is_likely_below() -> None:
    lines = list(on_terminal(seen("ab\nc", [0.2, 7.5, 3, None], "x "), View(), 80, "256"))
    bare = [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in lines]
    assert bare == ["ab↵", "xxx", "␣␣␣", "", "c", "x", "␣", ""]
    assert lines[0].startswith("a\x1b[38;5;16;48;5;") and lines[0].endswith("m↵\x1b[0m")
    wide = [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in on_terminal(seen("春a", [1, 1], "b"), View(), 80, "true")]
    assert wide == ["春a", "b b", ""]
    assert len(list(on_terminal(seen("abcdef", [1.0] * 6), View(), 4, "none"))) == 2


def test_what_goes_above_and_below_nothing_has_two_hues() -> None:
    view = View("cell", 0, "h", 1)
    (line,) = on_terminal(seen("abc", [-2.0, 0.1, 2.0]), view, 80, "true")
    assert "48;2;98;160;210ma" in line and "\x1b[0mb\x1b[" in line and "48;2;235;154;68mc" in line


def test_marks_say_low_and_high_without_colours() -> None:
    assert marks(View("cell", 0, "h", 1), seen("abcd", [-1, 0, 1, None])) == "049-"
    assert marks(View(), seen("abcd", [0.5, 3.2, 40, None])) == "039-"


HOSTILE = '<script>alert(1)</script>"><img src=x onerror=1>\u202e\0&'


def test_a_page_shows_a_hostile_text_as_text() -> None:
    values: list[float | None] = [float(i % 9) for i in range(len(HOSTILE))]
    for view in (View(), View("cell", 0, "h", 1), View("gate", 0, "forget", None)):
        made = looked_page(seen(HOSTILE, values, "<\u202e"), view, "<b>model</b>")
        assert "<script" not in made and "<img" not in made and "<b>model" not in made and "\u202e" not in made and "\0" not in made
        assert "default-src 'none'" in made and "prefers-color-scheme: dark" in made
        assert not re.search(r"<[^>]* (style|on\w+)=", re.sub('"[^"]*"', '""', made))
        label = re.search(r'role="img" aria-label="([^"]*)"', made)
        assert label and unescape(label[1]) == HOSTILE.replace("\u202e", "\\u202e").replace("\0", "\\x00")
        assert made.count("<tr>") == len(HOSTILE) + 1
