"""`charrnn look` and `charrnn bptt`: what they say, what they draw, and a line for each mistake."""

from __future__ import annotations

import builtins
import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from charrnn.checkpoint import build_model, load_model, save_model
from charrnn.config import build_config
from charrnn.data.vocabulary import Vocabulary
from charrnn.models.char_rnn import CharRNN
from tests.test_cli import Said, assert_mistake, said_to

VOCABULARY = Vocabulary(("unknown",), "\n abcdefgh")
Run = Callable[..., Said]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: said_to(capsys, *arguments)


def made(folder: Path, cell: str, vocabulary: Vocabulary = VOCABULARY, **model: Any) -> Path:
    settings = {"cell": cell, "embedding_size": 4, "hidden_size": 6} | model
    config = build_config(
        {"data": {"path": str(folder / "text.txt"), "cache": str(folder / "cache")}, "model": settings, "train": {"max_steps": 1}}, "test"
    )
    path = folder / f"{cell}.safetensors"
    with torch.random.fork_rng():
        torch.manual_seed(4)
        save_model(path, CharRNN(config.model, len(vocabulary)), config, vocabulary, 7, {"val_nats_per_char": 3.25})
    return path


@pytest.fixture
def lstm(tmp_path: Path) -> Path:
    return made(tmp_path, "lstm")


def test_each_character_has_a_line_where_there_are_no_colours(run: Run, lstm: Path) -> None:
    said = run("look", lstm, "--text", "ab\nZ\u202e", "--top", 2)
    assert not said.code and "\x1b" not in said.out
    rows = [line.split("\t") for line in said.out.splitlines()]
    assert [row[0] for row in rows] == ['"a"', '"b"', '"\\n"', '"Z"', '"\\u202e"']
    assert rows[0][1] == rows[3][1] == "-" and float(rows[1][1]) > 0
    assert all(row[2].count("%") == 2 for row in rows)
    by_gate = run("look", lstm, "--text", "ab", "--gate", "forget", "--top", 0)
    assert [0 < float(line.split("\t")[2]) < 1 for line in by_gate.out.splitlines()] == [True, True]


def test_json_has_the_numbers_of_eval(run: Run, lstm: Path, tmp_path: Path) -> None:
    (tmp_path / "another.txt").write_text("abc abd\nh", encoding="utf-8")
    looked = [json.loads(line) for line in run("look", lstm, "--file", tmp_path / "another.txt", "--unit", "c2", "--json").out.splitlines()]
    told = [json.loads(line) for line in run("eval", lstm, "--file", tmp_path / "another.txt", "--per-char", "--json").out.splitlines()]
    for one, other in zip(looked, told, strict=True):
        assert one["char"] == other["char"]
        assert one["bits"] is None if other["bits"] is None else one["bits"] == pytest.approx(other["bits"], rel=1e-4)
        assert isinstance(one["value"], float) and len(one["next"]) == 5


def test_a_terminal_has_colours(run: Run, lstm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("charrnn.coloured.colours_of", lambda terminal, environment: "true")
    said = run("look", lstm, "--text", "abc", "--unit", "3")
    assert "\x1b[38;2;0;0;0;48;2;" in said.out and said.out.splitlines()[0].count("m") >= 3


def test_a_page_is_written_and_a_cut_is_told(run: Run, lstm: Path, tmp_path: Path) -> None:
    said = run("look", lstm, "--text", "abc" * 10, "--length", 9, "--out", tmp_path / "page.html")
    assert not said.code and not said.out and "the first 9 characters are read" in said.err
    assert (tmp_path / "page.html").read_text(encoding="utf-8").count("<tr>") == 10


def lines_text(tmp_path: Path) -> Path:
    path = tmp_path / "lines.txt"
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(1, 11, (12_000,), generator=generator)
    path.write_text("".join(VOCABULARY.characters[i - 1] for i in ids.tolist()), encoding="utf-8")
    return path


def test_find_ranks_and_shows_a_sample(run: Run, lstm: Path, tmp_path: Path) -> None:
    text = lines_text(tmp_path)
    said = run("look", lstm, "--find", "--file", text, "--top", 2)
    assert not said.code, said
    assert "characters since the line began" in said.out and "control" in said.out.splitlines()[1]
    assert "Not in this text" in said.out and "which follows:" in said.out
    found = [json.loads(line) for line in run("look", lstm, "--find", "--file", text, "--top", 2, "--json").out.splitlines()]
    assert [one["units"][0]["r2"] for one in found] == sorted((one["units"][0]["r2"] for one in found), reverse=True)
    assert all(len(one["units"]) == 2 and one["control_r2"] < 0.1 for one in found)
    assert not run("look", lstm, "--find", "--file", text, "--out", tmp_path / "found.html").code
    page = (tmp_path / "found.html").read_text(encoding="utf-8")
    assert page.count("<h2>") == len(found) and "characters since the line began" in page


def test_find_reads_the_val_split_of_the_runs_own_text(run: Run, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(lines_text(tmp_path).read_text(encoding="utf-8"), encoding="utf-8")
    path = made(tmp_path, "gru")
    assert_mistake(run("look", path, "--find"), "the text has 1,200 characters; expected at least 4,000")
    said = run("look", path, "--find", "--set", "data.val_fraction=0.5")
    assert not said.code and "the val split of" in said.out


@pytest.mark.parametrize(
    "arguments, fragments",
    [
        ((), ("look: nothing to read; expected one of --text and --file",)),
        (("--text", "a", "--file", "x"), ("look: --text and --file; expected one",)),
        (("--text", ""), ("--text: holds no characters",)),
        (("--text", "a", "--unit", "9"), ("--unit 9: expected 0 to 5",)),
        (("--text", "a", "--length", "0"), ("--length 0: expected 1 to 20,000",)),
        (("--text", "a", "--top", "-1"), ("--top -1: expected 0 to 100",)),
        (("--text", "a", "--out", "page.txt"), ("--out page.txt: expected a name that ends in .html",)),
        (("--find", "--unit", "3"), ("--unit: has no meaning for --find",)),
        (("--find", "--text", "a"), ("--text: has no meaning for --find",)),
    ],
)
def test_mistakes_of_look(run: Run, lstm: Path, arguments: tuple[str, ...], fragments: tuple[str, ...]) -> None:
    assert_mistake(run("look", lstm, *arguments), *fragments)


def test_other_tasks_are_refused(run: Run, tmp_path: Path) -> None:
    config = build_config({"task": "fill", "model": {"bidirectional": True}, "data": {"path": "x"}, "train": {"max_steps": 1}}, "test")
    vocabulary = Vocabulary(("unknown", "blank"), "abc")
    path = tmp_path / "fill.safetensors"
    save_model(path, CharRNN(config.model, len(vocabulary)), config, vocabulary, 1, {"val_nats_per_char": 3.25})
    for command in ("look", "bptt"):
        assert_mistake(run(command, path, "--text", "abc"), f"a model of task fill; charrnn {command} needs one of task lm")


def test_bptt_sets_cells_side_by_side_and_draws_them(run: Run, lstm: Path, tmp_path: Path) -> None:
    from matplotlib import image

    rnn, gru = made(tmp_path, "rnn_tanh"), made(tmp_path, "gru", num_layers=2)
    text = "abc dea bh\n" * 4
    said = run("bptt", rnn, "--compare", gru, "--compare", lstm, "--text", text, "--out", tmp_path / "three.png")
    assert not said.code, said
    head, *rows = said.out.splitlines()
    assert "half-life" in head and "20 back" in head and "50 back" not in head
    assert [row.split()[1:3] for row in rows] == [["rnn_tanh", "0"], ["gru", "1"], ["lstm", "0"]] and "(h, c)" in rows[2]
    three = image.imread(io.BytesIO((tmp_path / "three.png").read_bytes()), format="png")
    assert not run("bptt", lstm, "--text", text, "--out", tmp_path / "one.png").code
    one = image.imread(io.BytesIO((tmp_path / "one.png").read_bytes()), format="png")
    assert three.shape[0] > three.shape[1] * 0.8 and one.shape[1] > 2 * one.shape[0]
    assert (tmp_path / "three.png").stat().st_size < 60_000
    blue = (one[..., 2] > one[..., 0] + 0.2).mean(0)  # of each column: the two triangles and what falls
    assert np.count_nonzero(np.diff((blue > 0.01).astype(int)) == 1) >= 3


def test_bptt_tells_the_triangle_as_json(run: Run, lstm: Path) -> None:
    from charrnn.bptt import triangle

    said = json.loads(run("bptt", lstm, "--text", "abc abd ahh", "--json").out)
    model = build_model(load_model(lstm))
    assert isinstance(model, CharRNN)
    found = triangle(model, VOCABULARY.encode("abc abd ahh"))
    assert said["steps"] == 10 and said["cell"] == "lstm" and said["layer"] == 0
    torch.testing.assert_close(torch.tensor(said["state"], dtype=torch.float64), found.state)
    torch.testing.assert_close(torch.tensor(said["weight_hh"], dtype=torch.float64), found.weight)
    assert said["half_life"] is None if math.isinf(found.half_life()) else said["half_life"] == pytest.approx(found.half_life())


@pytest.mark.parametrize(
    "arguments, fragment",
    [
        ((), "bptt: nothing to read"),
        (("--text", "a"), "--text: 1 character; expected at least 3"),
        (("--text", "abcd", "--layer", "1"), "has 1; expected 0 to 0, or -1 for the last"),
        (("--text", "abcd", "--length", "5000"), "--length 5000: expected 1 to 1,000"),
        (("--text", "abcd", "--out", "x.svg"), "--out x.svg: expected a name that ends in .png"),
    ],
)
def test_mistakes_of_bptt(run: Run, lstm: Path, arguments: tuple[str, ...], fragment: str) -> None:
    assert_mistake(run("bptt", lstm, *arguments), fragment)


def test_without_matplotlib_it_is_said_how_to_have_it(run: Run, lstm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    imports = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.partition(".")[0] == "matplotlib":
            raise ImportError(name)
        return imports(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    said = run("bptt", lstm, "--text", "abcd", "--out", tmp_path / "x.png")
    assert_mistake(said, "--out: needs matplotlib, which is not installed; pip install 'charrnn[plots]'")
    assert not run("bptt", lstm, "--text", "abcd").code
