"""`charrnn fill` and `charrnn eval --beside`: what a person types, and what they get."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from charrnn.config import Config
from tests import test_cli
from tests.cli.learning import learn
from tests.test_cli import Run, assert_mistake

run, classifier = test_cli.run, test_cli.classifier

LINES = [f"{start}bcd{end}" for start, end in (("a", "e"), ("x", "z"))]  # the first says what the last is, and the other way round


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models of a text in which nothing but both sides together are always right, trained for two seconds each."""
    folder = tmp_path_factory.mktemp("fill")
    (folder / "text.txt").write_text("\n".join(LINES * 60), encoding="utf-8")
    for name, task, bidirectional in (("both", "fill", True), ("left", "fill", False), ("lm", "lm", False)):
        train(folder, name, task, bidirectional, 100 if bidirectional else 40)
    return folder


def train(folder: Path, name: str, task: str, bidirectional: bool, most: int) -> None:
    blanks = {"blanks": {"share": 0.25}} if task == "fill" else {}
    config = Config.model_validate(
        {
            "task": task,
            "run": str(folder / name),
            "device": "cpu",
            "data": {"path": str(folder / "text.txt"), "cache": str(folder / "cache"), "documents": "lines"} | blanks,
            "model": {"embedding_size": 12, "hidden_size": 16, "bidirectional": bidirectional},
            "train": {"max_steps": most, "batch_size": 16},
        }
    )
    learn(config, folder / f"{name}.safetensors", most)


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


class TestEval:
    def test_figures_are_lines(self, run: Run, both: Path) -> None:
        said = run("eval", both)
        assert said.code == 0 and said.err == ""
        first, *figures = said.out.splitlines()
        assert first == f"{both} (step 105) on the val split of {both.with_name('text.txt')}: 15 blanks"
        names = ["nats_per_blank", "bits_per_blank", "perplexity", "accuracy", "accuracy_at_5"]
        assert [line.split()[0] for line in figures] == names and figures[3].split() == ["accuracy", "1.0000"]

    def test_json_has_all_of_them(self, run: Run, both: Path) -> None:
        found = json.loads(run("eval", both, "--json", "--split", "train").out)
        assert (found["model"], found["split"], found["step"], found["unit"]) == (str(both), "train", 105, "blank")
        assert found["count"] > 100 and found["accuracy"] > 0.9 and {"nats_per_blank", "perplexity", "accuracy_at_5"} <= set(found)

    def test_a_terminal_is_not_silent_for_long(self, run: Run, both: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("charrnn.cli.output.SILENCE_SECONDS", 0)
        monkeypatch.setattr("sys.stderr.isatty", lambda: True)
        assert " chars/s]" in run("eval", both).err

    def test_a_file(self, run: Run, both: Path, tmp_path: Path) -> None:
        (tmp_path / "mine.txt").write_text("abcde\nabcq\n")
        said = run("eval", both, "--file", tmp_path / "mine.txt")
        assert said.out.startswith(f"{both} (step 105) on {tmp_path / 'mine.txt'}: ")
        assert said.out.endswith("9.09% of the characters are unknown to the model, and were read as unknown\n")
        assert json.loads(run("eval", both, "--file", tmp_path / "mine.txt", "--json").out)["file"] == str(tmp_path / "mine.txt")

    def test_a_file_that_holds_nothing_to_ask_for_is_named(self, run: Run, both: Path, tmp_path: Path) -> None:
        for text, fact in (("", "holds 0 characters; expected at least 2 to measure on"), ("犇犇", "it holds nothing that the model")):
            (tmp_path / "mine.txt").write_text(text, encoding="utf-8")
            assert_mistake(run("eval", both, "--file", tmp_path / "mine.txt"), f"{tmp_path / 'mine.txt'}: {fact}")

    def test_another_text_is_refused(self, run: Run, both: Path, tmp_path: Path) -> None:
        (tmp_path / "other.txt").write_text("".join(f"{n}\n" for n in range(200)))
        said = run("eval", both, "--set", f"data.path={tmp_path / 'other.txt'}")
        fact = f"{both}: {tmp_path / 'other.txt'} is not the text it was trained on, for its characters are others; give a text with --file"
        assert_mistake(said, fact)

    def test_a_line_for_each_character_is_not_to_be_had(self, run: Run, both: Path) -> None:
        said = run("eval", both, "--per-char")
        fact = "a model of task fill, which does not predict each character from those before it; expected one of task lm for --per-char"
        assert_mistake(said, f"{both}: {fact}; leave --per-char out\n")


class TestBeside:
    @pytest.mark.parametrize("other", ["left", "lm"])
    def test_both_sides_know_more_than_one(self, run: Run, folder: Path, both: Path, other: str) -> None:
        asked = ("--split", "train", "--set", "data.blanks.per_example=1")
        said = run("eval", both, "--beside", folder / f"{other}.safetensors", *asked, "--json")
        assert said.code == 0, said
        found = json.loads(said.out)
        assert (found["unit"], found["count"]) == ("blank", 108)
        assert found["accuracy"] > 0.95 > found["beside"]["accuracy"] > 0.6
        assert found["accuracy_ratio"] == pytest.approx(found["accuracy"] / found["beside"]["accuracy"])
        assert set(found["beside"]) >= {"model", "task", "nats_per_blank", "accuracy", "accuracy_at_5"}

    def test_as_a_table(self, run: Run, folder: Path, both: Path) -> None:
        said = run("eval", both, "--beside", folder / "left.safetensors")
        assert said.code == 0, said
        first, names, own, other, ratio = said.out.splitlines()
        assert first == f"{both} (step 105) on the val split of {folder / 'text.txt'}: 15 blanks"
        assert names.split() == ["nats_per_blank", "bits_per_blank", "perplexity", "accuracy", "accuracy_at_5"]
        assert own.endswith(f"  {both} (task fill)") and other.endswith(f"  {folder / 'left.safetensors'} (task fill)")
        times = float(own.split()[3]) / float(other.split()[3])
        said_times = ratio.removeprefix("The first is right ").removesuffix(" times as often as the second.")
        assert times > 1 and float(said_times) == pytest.approx(times, rel=1e-3)

    def test_what_the_other_does_not_know_is_said(self, run: Run, both: Path, tmp_path: Path) -> None:
        (tmp_path / "text.txt").write_text("xbcd\n" * 40, encoding="utf-8")
        (tmp_path / "less").mkdir()
        train(tmp_path, "less", "lm", False, 1)
        said = run("eval", both, "--beside", tmp_path / "less.safetensors", "--set", "data.blanks.per_example=5")
        assert "\nThe second is told all that stands before a blank, what others hide too, and nothing behind it.\n" in said.out
        assert said.out.endswith(" blanks more were left out: the second does not know what stood there.\n")

    def test_mistakes(self, run: Run, folder: Path, both: Path, classifier: Path) -> None:
        lm = folder / "lm.safetensors"
        fact = "a model of task lm, and what another model can guess as well are the blanks of task fill"
        assert_mistake(run("eval", lm, "--beside", both), f"{lm}: {fact}; name a model of task fill first, or leave --beside out\n")
        fact = "a model of task classify, which answers with labels; expected one of task fill or lm, which guesses characters"
        assert_mistake(run("eval", both, "--beside", classifier), f"{classifier}: {fact}; name another with --beside\n")
        assert_mistake(run("eval", both, "--beside", "nowhere"), "nowhere: no such run or model file")
