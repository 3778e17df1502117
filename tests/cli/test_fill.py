"""`charrnn fill` and `charrnn eval --beside`: what a person types, and what they get."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from charrnn.checkpoint import save_model
from charrnn.config import Config
from charrnn.tasks import load_task
from tests import test_cli
from tests.test_cli import Run, assert_mistake

run = test_cli.run

LINES = [f"{start}bcd{end}" for start, end in (("a", "e"), ("x", "z"))]  # the first says what the last is, and the other way round


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models of a text in which nothing but both sides together are always right, trained for two seconds each."""
    folder = tmp_path_factory.mktemp("fill")
    (folder / "text.txt").write_text("\n".join(LINES * 60), encoding="utf-8")
    for name, task, bidirectional in (("both", "fill", True), ("left", "fill", False), ("lm", "lm", False)):
        train(folder, name, task, bidirectional)
    return folder


def train(folder: Path, name: str, task: str, bidirectional: bool) -> None:
    import torch

    blanks = {"blanks": {"share": 0.25}} if task == "fill" else {}
    config = Config.model_validate(
        {
            "task": task,
            "run": str(folder / name),
            "device": "cpu",
            "data": {"path": str(folder / "text.txt"), "cache": str(folder / "cache"), "documents": "lines"} | blanks,
            "model": {"embedding_size": 12, "hidden_size": 16, "bidirectional": bidirectional},
            "train": {"max_steps": 100, "batch_size": 16},
        }
    )
    made = load_task(config)
    model = made.model()
    optimizer = torch.optim.Adam(model.parameters(), 4e-2)
    steps, epoch = 0, 0
    while steps < 100:
        for batch in made.batches("train", epoch=epoch):
            loss, tally, _ = made.loss(model, batch, None)
            optimizer.zero_grad()
            torch.autograd.backward(loss / tally.count)
            optimizer.step()
            steps += 1
        epoch += 1
    save_model(folder / f"{name}.safetensors", model, config, made.vocabulary, steps, {})


@pytest.fixture
def both(folder: Path) -> Path:
    return folder / "both.safetensors"


class TestFill:
    def test_one_blank(self, run: Run, both: Path) -> None:
        said = run("fill", both, "_bcdz", "--top", 3)
        assert said.code == 0 and said.err == ""
        *fillings, blank = said.out.splitlines()
        assert len(fillings) == 3 and fillings[0].endswith("%  xbcdz") and blank.startswith("    blank 1: x 9")

    @pytest.mark.parametrize("sign", "_＿□")
    def test_several_blanks_are_filled_together(self, run: Run, both: Path, sign: str) -> None:
        """Nothing tells which line it is, so both are likely, and what would be half of each is not."""
        said = run("fill", both, f"{sign}bcd{sign}", "--json")
        found = json.loads(said.out)
        assert [filling["text"] for filling in found["fillings"][:2]] in (LINES, LINES[::-1])
        assert sum(filling["probability"] for filling in found["fillings"][:2]) > 0.8
        assert found["fillings"][0]["characters"] in (["a", "e"], ["x", "z"])
        assert [blank["at"] for blank in found["blanks"]] == [0, 4]
        assert {choice["char"] for choice in found["blanks"][0]["choices"][:2]} == {"a", "x"}
        assert found["text"] == f"{sign}bcd{sign}"

    def test_on_a_terminal_what_was_filled_in_is_marked(self, run: Run, both: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("sys.stdout.isatty", lambda: True)
        said = run("fill", both, "ab_de", "--top", 1)
        assert "ab\x1b[1m\x1b[4mc\x1b[0mde" in said.out

    def test_several_texts(self, run: Run, both: Path) -> None:
        said = run("fill", both, "_bcde", "abc_e", "--top", 1)
        assert [line.split("  ")[-1] for line in said.out.splitlines() if "blank" not in line] == ["abcde", "", "abcde"]

    def test_what_a_blank_is_can_be_said(self, run: Run, both: Path) -> None:
        said = run("fill", both, "?b_de", "--blank", "?", "--top", 1)
        assert said.out.splitlines()[0].endswith("ab_de")
        assert said.err == "charrnn: warning: text: the model does not know '_' (U+005F); read as unknown\n"

    def test_what_is_unknown_is_told_once(self, run: Run, both: Path) -> None:
        said = run("fill", both, "Q_cde", "Q_cRe")
        assert [line.split(": ", 2)[2] for line in said.err.splitlines()] == [
            "text 1: the model does not know 'Q' (U+0051); read as unknown",
            "text 2: the model does not know 'R' (U+0052); read as unknown",
        ]

    @pytest.mark.parametrize("piped", [False, True])
    def test_a_bad_line_costs_no_other_its_answer(
        self, run: Run, both: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piped: bool
    ) -> None:
        content = b"\xef\xbb\xbfab_de\r\n\r\nabc\n_\xed\xa0\xbd\nxbcd_\n"
        path = tmp_path / "lines.txt"
        path.write_bytes(content)
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))
        said = run("fill", both, *(["-"] if piped else ["--file", "lines.txt"]), "--top", 1, "--json")
        found = [json.loads(line) for line in said.out.splitlines()]
        name = "-" if piped else "lines.txt"
        assert [(one["file"], one["line"], one["fillings"][0]["text"]) for one in found] == [(name, 1, "abcde"), (name, 5, "xbcdz")]
        assert said.code == 2
        assert said.err.splitlines() == [
            f"charrnn: error: {name}:2: the line is empty; expected a text with a blank, so take the line out",
            f"charrnn: error: {name}:3: 'abc' has no blank; expected one of _, ＿, □ for each character that is to be found",
            f"charrnn: error: {name}:4: not UTF-8 text at byte 1 of the line; save it as UTF-8",
        ]

    def test_mistakes(self, run: Run, both: Path, folder: Path, tmp_path: Path) -> None:
        remedy = "expected one of _, ＿, □ for each character that is to be found"
        assert_mistake(run("fill", both, "abc"), f"text: 'abc' has no blank; {remedy}")
        assert_mistake(run("fill", both), "there is no text; expected one or more texts, --file FILE, or - for standard input")
        assert_mistake(run("fill", both, "a_", "--file", "f"), "TEXT and --file are both given")
        assert_mistake(run("fill", both, "a_", "--top", 0), "--top 0: expected at least 1 filling")
        assert_mistake(run("fill", both, "a_", "--blank", ""), "--blank: expected at least one character")
        assert_mistake(run("fill", both, "--file", "nowhere.txt"), "--file nowhere.txt: cannot be read: No such file or directory")
        (tmp_path / "empty.txt").write_bytes(b"")
        assert_mistake(run("fill", both, "--file", "empty.txt"), "empty.txt: holds no lines; expected texts with blanks")
        assert_mistake(run("fill", folder / "lm.safetensors", "a_"), "a model of task lm; charrnn fill needs one of task fill")
