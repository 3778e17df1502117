"""What a person types, and what they get: above all, one line for each mistake."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from charrnn.cli import main
from charrnn.cli.sample import _marked
from charrnn.cli.train import REPORT_SECONDS, Terminal, summary
from charrnn.config import Config, build_config

ROOT = Path(__file__).parent.parent
STAMP = len("2026-11-28 21:40:03 ")
TEXT = "The quick brown fox jumps over the lazy dog.\n" * 60


class Said(NamedTuple):
    code: int
    out: str
    err: str


Run = Callable[..., Said]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """The command line in this process, in an empty directory."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> Said:
        return said_to(capsys, *arguments)

    return run


def said_to(capsys: pytest.CaptureFixture[str], *arguments: object) -> Said:
    with pytest.raises(SystemExit) as end:
        main([str(a) for a in arguments])
    said = capsys.readouterr()
    return Said(end.value.code if isinstance(end.value.code, int) else 0, said.out, said.err)


def config_for(directory: Path, **train: object) -> Config:
    return build_config(
        {
            "run": str(directory / "run"),
            "device": "cpu",
            "data": {"path": str(directory / "text.txt"), "cache": str(directory / "cache")},
            "model": {"embedding_size": 4, "hidden_size": 8},
            "train": {"max_steps": 6, "batch_size": 2, "tbptt_window": 8, "evaluate_every": 3, "save_every": 3, "log_every": 1, **train},
        },
        "test",
    )


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A config file beside the small text it names."""
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    path = tmp_path / "config.yaml"
    path.write_text(config_for(tmp_path).to_yaml(), encoding="utf-8")
    return path


@pytest.fixture
def model(config: Path) -> Path:
    """A model of that text, untrained."""
    from charrnn.checkpoint import save_model
    from charrnn.config import load_config
    from charrnn.tasks import load_task

    settings = load_config(config)
    task = load_task(settings)
    path = config.parent / "model.safetensors"
    save_model(path, task.model(), settings, task.vocabulary, 7, {"val_nats_per_char": 3.25})
    return path


@pytest.fixture
def classifier(tmp_path: Path) -> Path:
    """A model that reads from both sides and answers with labels, untrained."""
    from charrnn.checkpoint import save_model
    from charrnn.data.vocabulary import Vocabulary
    from charrnn.models.char_rnn import CharRNN

    settings = {"embedding_size": 4, "hidden_size": 8, "bidirectional": True, "num_layers": 2}
    config = build_config({"task": "classify", "data": {"path": "reviews.tsv"}, "model": settings, "train": {"max_steps": 1}}, "test")
    vocabulary = Vocabulary(("unknown", "end"), "abc")
    path = tmp_path / "classifier.safetensors"
    save_model(path, CharRNN(config.model, len(vocabulary), 2), config, vocabulary, 7, {"val_accuracy": 0.5}, ["坏", "good"])
    return path


def run_away(model: Path) -> None:
    """Make the answers of a model file not finite."""
    import torch

    from charrnn.checkpoint import build_model, load_model, save_model

    loaded = load_model(model)
    loaded.weights["head.bias"].fill_(torch.nan)
    save_model(model, build_model(loaded), loaded.config, loaded.vocabulary, loaded.step, loaded.metrics)


def assert_mistake(said: Said, *fragments: str) -> None:
    assert said.code == 2, said
    assert said.err.count("\n") == 1 and said.err.startswith("charrnn: error: "), said.err
    for fragment in fragments:
        assert fragment in said.err, said.err


class TestHelp:
    def test_it_imports_nothing_heavy(self) -> None:
        command = [sys.executable, "-X", "importtime", "-m", "charrnn", "--help"]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
        assert "train" in done.stdout and "sample" in done.stdout
        imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
        assert "typer" in imported
        assert not {"torch", "pydantic", "numpy", "yaml", "tqdm", "rich", "safetensors"} & imported

    def test_the_help_of_a_command_does_not_wait_for_torch(self) -> None:
        code = (
            "import contextlib, sys\n"
            "from typer.main import get_command\n"
            "from charrnn.cli import application, main\n"
            "for name in get_command(application()).commands:\n"
            "    with contextlib.suppress(SystemExit):\n"
            "        main([name, '--help'])\n"
            "sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
        assert done.stdout.count("Usage: charrnn ") >= 7

    def test_importing_charrnn_imports_nothing(self) -> None:
        code = "import sys; before = set(sys.modules); import charrnn; print(sorted(set(sys.modules) - before))"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
        assert done.stdout.strip() == "['charrnn']"

    @pytest.mark.parametrize("command", ["train", "sample", "eval", "score", "info", "backends"])
    def test_every_command_has_help(self, run: Run, command: str) -> None:
        said = run(command, "--help")
        assert said.code == 0 and "Usage: charrnn " + command in said.out

    def test_flags_are_taken_with_underscores(self, run: Run, model: Path) -> None:
        a, b = (run("sample", model, flag, 3, "--seed", 1, "-n", 20) for flag in ("--top-k", "--top_k"))
        assert a == b and a.code == 0


class TestConfigMistakes:
    def test_missing_file(self, run: Run, config: Path) -> None:
        assert_mistake(run("train", "--config", "confg.yaml"), "confg.yaml: no such config file", "did you mean 'config.yaml'?")

    def test_unknown_key(self, run: Run, config: Path) -> None:
        said = run("train", "--config", config, "--set", "model.hiden_size=3")
        assert_mistake(said, "model: unknown key 'hiden_size'; did you mean 'hidden_size'?")

    def test_wrong_type(self, run: Run, config: Path) -> None:
        assert_mistake(run("train", "--config", config, "--set", "model.hidden_size=many"), "model.hidden_size", "'many'", "integer")

    def test_out_of_range(self, run: Run, config: Path) -> None:
        assert_mistake(run("train", "--config", config, "--set", "model.dropout.output=1.5"), "model.dropout.output", "1.5", "less than 1")

    def test_no_end(self, run: Run, config: Path) -> None:
        assert_mistake(run("train", "--config", config, "--set", "train.max_steps=null"), "the run has no end", "max_minutes")

    def test_set_without_a_value(self, run: Run, config: Path) -> None:
        assert_mistake(run("train", "--config", config, "--set", "train.max_steps"), "expected KEY=VALUE")

    def test_unknown_device(self, run: Run, config: Path) -> None:
        assert_mistake(run("train", "--config", config, "--device", "gpu"), "device", "'gpu'")

    def test_scientific_notation_is_a_number(self, run: Run, config: Path) -> None:
        config.write_text(config.read_text().replace("learning_rate: 0.003", "learning_rate: 1e-3"))
        said = run("train", "--config", config, "--print-config")
        assert said.code == 0 and "learning_rate: 0.001" in said.out


class TestUsageMistakes:
    def test_unknown_option(self, run: Run) -> None:
        said = run("sample", "--tempertaure", "1")
        assert said.code == 2 and "No such option: --tempertaure" in said.err and "--temperature" in said.err

    def test_unknown_command(self, run: Run) -> None:
        said = run("trian")
        assert said.code == 2 and "No such command 'trian'" in said.err and "'train'" in said.err

    def test_train_without_config(self, run: Run) -> None:
        said = run("train")
        assert said.code == 2 and "--config" in said.err


class TestTextMistakes:
    def test_missing(self, run: Run, config: Path) -> None:
        (config.parent / "text.txt").unlink()
        assert_mistake(run("train", "--config", config), "text.txt", "no such file")

    def test_empty(self, run: Run, config: Path) -> None:
        (config.parent / "text.txt").write_text("")
        assert_mistake(run("train", "--config", config), "text.txt")

    def test_one_distinct_character(self, run: Run, config: Path) -> None:
        (config.parent / "text.txt").write_text("aaaaaaaaaaaaaaaaaaaaaaaa")
        assert_mistake(run("train", "--config", config), "'a'")

    def test_not_text(self, run: Run, config: Path) -> None:
        (config.parent / "text.txt").write_bytes("春眠不觉晓".encode("gb18030"))
        assert_mistake(run("train", "--config", config, "--set", "data.encoding=utf-8"), "not utf-8 at byte 0", "gb18030", "data.encoding")
        (config.parent / "text.txt").write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0")
        assert_mistake(run("train", "--config", config), "text.txt: not utf-8 at byte 0", "is it text at all?")

    def test_nothing_of_a_run_is_left(self, run: Run, config: Path) -> None:
        (config.parent / "text.txt").write_text("")
        run("train", "--config", config)
        assert not (config.parent / "run").exists()


class TestModelMistakes:
    def test_missing(self, run: Run, model: Path) -> None:
        assert_mistake(run("sample", "modle.safetensors"), "modle.safetensors: no such run or model file", "did you mean")

    def test_no_run_at_all(self, run: Run) -> None:
        assert_mistake(run("sample"), "no run under", "train one first")

    def test_truncated(self, run: Run, model: Path) -> None:
        model.write_bytes(model.read_bytes()[:-100])
        assert_mistake(run("sample", model), "model.safetensors")

    def test_foreign(self, run: Run, model: Path) -> None:
        model.write_bytes(b"x" * 1000)
        assert_mistake(run("info", model), "model.safetensors")

    @pytest.mark.parametrize("command", ["sample", "score"])
    def test_a_model_of_another_task(self, run: Run, classifier: Path, command: str) -> None:
        said = run(command, *(["-", "--model"] if command == "score" else []), classifier)
        assert_mistake(said, f"{classifier}: a model of task classify; charrnn {command} needs one of task lm; use charrnn classify\n")

    def test_the_task_of_a_model_stays(self, run: Run, model: Path) -> None:
        said = run("eval", model, "--set", "task=fill", "--set", "train.tbptt_window=128")
        assert_mistake(said, f"{model}: a model of task lm; --set task=fill cannot change that; leave it out\n")

    @pytest.mark.parametrize("name, why", [("x" * 300, "File name too long"), ("~nobodyx/y", "there is no such home directory")])
    def test_a_name_that_no_file_can_have(self, run: Run, config: Path, name: str, why: str) -> None:
        assert_mistake(run("sample", name), "model '", why)
        assert_mistake(run("train", "--config", config, "--init-from", name), "model '", why)
        assert_mistake(run("train", "--config", config, "--set", f"run={name}"), "run '", why)

    def test_a_directory_that_may_not_be_read(self, run: Run, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        stat = Path.stat

        def denied(path: Path, **options: Any) -> os.stat_result:
            if "locked" in path.parts:
                raise PermissionError(13, "Permission denied", str(path))
            return stat(path, **options)

        monkeypatch.setattr(Path, "stat", denied)
        assert_mistake(run("sample", "locked/a"), "model 'locked/a': cannot be looked for: Permission denied")


class TestSample:
    def test_it_echoes_the_prime_and_counts_new_characters(self, run: Run, model: Path) -> None:
        said = run("sample", model, "--prime", "The ", "-n", 10, "--seed", 1)
        assert said.code == 0 and said.out.startswith("The ") and len(said.out.removesuffix("\n")) in (13, 14)

    def test_no_echo(self, run: Run, model: Path) -> None:
        a, b = (run("sample", model, "--prime", "The ", "-n", 10, "--seed", 1, *more) for more in ([], ["--no-echo"]))
        assert a.out == "The " + b.out

    def test_old_names_of_the_prime(self, run: Run, model: Path) -> None:
        names = ("--prime", "--primetext", "--start-string", "--start_string")
        assert len({run("sample", model, name, "The ", "-n", 5, "--seed", 1).out for name in names}) == 1

    def test_prime_file(self, run: Run, model: Path, tmp_path: Path) -> None:
        (tmp_path / "prime.txt").write_bytes(b"\xef\xbb\xbfThe fox\r\n")
        said = run("sample", model, "--prime-file", tmp_path / "prime.txt", "-n", 5)
        assert said.code == 0 and said.out.startswith("The fox")
        assert_mistake(run("sample", model, "--prime-file", tmp_path / "prime.txt", "--prime", "x"), "--prime and --prime-file")
        assert_mistake(run("sample", model, "--prime-file", tmp_path / "none.txt"), "none.txt", "No such file")

    def test_mistakes_in_a_prime_file_are_its_own(self, run: Run, model: Path, tmp_path: Path) -> None:
        path = tmp_path / "prime.txt"
        path.write_bytes("The 龍".encode())
        warned = run("sample", model, "--prime-file", path, "-n", 5).err
        assert warned.startswith(f"charrnn: warning: --prime-file {path}: the model does not know")
        assert_mistake(run("sample", model, "--prime-file", path, "--on-unknown", "error"), f"--prime-file {path}: the model does not know")
        path.write_bytes("The 龍".encode("gb18030"))
        said = run("sample", model, "--prime-file", path)
        assert_mistake(said, f"--prime-file {path}: not UTF-8 text at byte 4; save it as UTF-8")

    def test_several_samples_are_numbered(self, run: Run, model: Path) -> None:
        said = run("sample", model, "--num-samples", 3, "-n", 8, "--seed", 1)
        numbers = [line for line in said.out.splitlines() if line.startswith("---")]
        assert said.code == 0 and numbers == ["--- 1 ---", "--- 2 ---", "--- 3 ---"]

    def test_out(self, run: Run, model: Path, tmp_path: Path) -> None:
        arguments = ("sample", model, "-n", 8, "--seed", 1)
        assert run(*arguments, "--out", tmp_path / "written.txt").out == ""
        assert (tmp_path / "written.txt").read_bytes().decode() == run(*arguments).out
        assert_mistake(run(*arguments, "--out", tmp_path / "none" / "written.txt"), "--out", "cannot be written")
        assert_mistake(run(*arguments, "--out", tmp_path), "--out", "cannot be written: it is a directory")
        (tmp_path / "link.txt").symlink_to("written.txt")
        assert run(*arguments, "--out", tmp_path / "link.txt", "--no-echo").code == 0 and (tmp_path / "link.txt").is_symlink()
        assert run(*arguments, "--out", os.devnull).code == 0 and not Path(os.devnull).is_file()
        before = (tmp_path / "written.txt").read_bytes()
        run_away(model)
        assert_mistake(run(*arguments, "--out", tmp_path / "written.txt"), "not finite")
        assert (tmp_path / "written.txt").read_bytes() == before
        assert not list(tmp_path.glob(".*.partial"))

    def test_out_never_takes_the_place_of_what_is_read(self, run: Run, model: Path, tmp_path: Path) -> None:
        prime, link, owned = tmp_path / "prime.txt", tmp_path / "link.txt", tmp_path / "samples.txt"
        prime.write_text("The")
        link.symlink_to(prime)
        owned.write_text("written before")
        for out, arguments in ((prime, ("--prime-file", link)), (link, ("--prime-file", prime)), (model, ())):
            before = out.read_bytes()
            assert_mistake(run("sample", model, *arguments, "-n", 3, "--out", out), f"--out {out}: the same file as ", "name another file")
            assert out.read_bytes() == before
        assert run("sample", model, "-n", 3, "--prime-file", prime, "--out", owned).code == 0 and owned.read_text() != "written before"
        kept = tmp_path / "run" / "best.safetensors"
        kept.parent.mkdir()
        kept.write_bytes(model.read_bytes())
        (kept.parent / "config.yaml").write_text("kept")
        assert_mistake(run("sample", kept, "-n", 3, "--out", kept.parent / "config.yaml"), "which is of the model's run; expected another")
        assert (kept.parent / "config.yaml").read_text() == "kept"

    def test_stop_reads_an_escaped_line_end(self, run: Run, model: Path) -> None:
        said = run("sample", model, "-n", 2000, "--seed", 1, "--stop", "\\n", "--no-echo", "-t", 1)
        assert said.out.count("\n") == 1 and said.out.endswith("\n")

    def test_unknown_characters(self, run: Run, model: Path) -> None:
        said = run("sample", model, "--prime", "The 龍", "-n", 5)
        assert said.code == 0 and said.err.startswith("charrnn: warning: ") and "龍" in said.err
        assert_mistake(run("sample", model, "--prime", "龍", "--on-unknown", "error"), "龍", "--on-unknown drop")

    @pytest.mark.parametrize("flag, value", [("-t", "-1"), ("--top-p", "2"), ("-n", "-3"), ("--num-samples", "0"), ("--top-k", "0"),
                                             ("--seed", "9" * 20), ("--seed", "-1"), ("--repetition-window", "0")])  # fmt: skip
    def test_options_out_of_range(self, run: Run, model: Path, flag: str, value: str) -> None:
        assert_mistake(run("sample", model, flag, value), value, "expected")

    def test_the_repetition_window_is_an_option(self, run: Run, model: Path) -> None:
        near, far = (run("sample", model, "--seed", 1, "-t", 0, "--repetition-penalty", 50, "--repetition-window", n) for n in (1, 64))
        assert near.code == far.code == 0 and near.out != far.out


class TestNovelty:
    @pytest.fixture
    def kept(self, model: Path) -> Path:
        """The model in a directory that has the text of its run."""
        from charrnn.checkpoint import load_model
        from charrnn.data.corpus import encode_text
        from charrnn.novelty import keep_text

        vocabulary = load_model(model).vocabulary
        keep_text(model.with_name("text.safetensors"), encode_text(vocabulary, [(TEXT, [])]), vocabulary)
        return model

    @pytest.fixture
    def parrot(self, config: Path) -> Path:
        """A model that has learned the text by heart, in a run that kept it."""
        wanted = {"train.max_steps": 150, "train.keep_text": "true", "train.learning_rate": 0.02, "model.hidden_size": 24}
        wanted |= {"train.evaluate_every": 75, "train.save_every": 75, "train.tbptt_window": 32}
        with pytest.raises(SystemExit):
            main(["train", "--config", str(config), *(part for key, value in wanted.items() for part in ("--set", f"{key}={value}"))])
        return config.parent / "run"

    def test_a_parrot_is_found_out_and_hindered(self, run: Run, parrot: Path, capsys: pytest.CaptureFixture[str]) -> None:
        capsys.readouterr()
        plain = run("sample", parrot, "-n", 100, "--seed", 1, "--temperature", 0.1)
        said = run("sample", parrot, "-n", 100, "--seed", 1, "--temperature", 0.1, "--novelty")
        assert plain.err == "" and plain.code == said.code == 0
        assert said.out == plain.out  # what is told is told elsewhere
        assert "jumps over the lazy dog.\n" in said.out
        head, *lines, last = said.err.splitlines()
        assert head == "--- novelty ---" and "[[" in lines[1]
        assert last.startswith("longest copied run: ") and last.endswith("; in [[ ]]: copied runs of 12 characters and more")
        assert float(last.partition("; ")[2].partition("%")[0]) == 0
        hindered = run("sample", parrot, "-n", 100, "--seed", 1, "--temperature", 0.1, "--no-copy", 5, "--no-echo")
        assert hindered.code == 0 and hindered.err == ""
        written = hindered.out.removesuffix("\n")
        assert not [i for i in range(96) if written[i : i + 5] in TEXT]

    def test_a_copied_run_is_marked_in_its_line(self, run: Run, model: Path) -> None:
        Path("foxes.txt").write_text("".join(f"quick fox{c}\n" for c in set(TEXT) - {"\n"}), encoding="utf-8")
        asked = ("--prime", "dog\nlazy quick fox", "-n", 1, "-t", 0, "--novelty", "--novelty-min", 8, "--novelty-text", "foxes.txt")
        said = run("sample", model, *asked)
        written = said.out.removesuffix("\n").removeprefix("dog\nlazy ")
        marked, last = said.err.splitlines()[1:]
        assert marked == f"lazy [[{written}]]"
        # Only one 8-gram holds what was written.
        legend = "in [[ ]]: copied runs of 8 characters and more"
        assert last == f'longest copied run: 10 characters "{written}"; 0.0% of 1 8-grams are new; {legend}'
        assert run("sample", model, *asked, "--no-echo").err == said.err

    def test_the_text_may_be_given(self, run: Run, model: Path) -> None:
        said = run(
            "sample", model, "-n", 30, "--seed", 1, "--novelty", "--novelty-text", "text.txt", "--novelty-min", 1, "--num-samples", 2
        )
        assert (
            said.code == 0 and said.err.count("--- novelty of ") == 2 and "of 23 8-grams are new; in [[ ]]: copied runs of 1 ch" in said.err
        )
        assert not model.with_name("text.index.safetensors").exists()

    def test_out_stays_clean(self, run: Run, kept: Path) -> None:
        plain = run("sample", kept, "-n", 40, "--seed", 1)
        said = run("sample", kept, "-n", 40, "--seed", 1, "--novelty", "--out", "written.txt")
        assert (said.code, said.out) == (0, "") and "longest copied run" in said.err
        assert Path("written.txt").read_text(encoding="utf-8") == plain.out

    def test_a_text_too_short_for_grams(self, run: Run, kept: Path) -> None:
        assert "; no 8-grams; " in run("sample", kept, "-n", 3, "--novelty").err
        assert "longest copied run: none; no 8-grams; " in run("sample", kept, "-n", 0, "--novelty").err

    def test_where_all_would_be_a_copy_it_says_so(self, run: Run, model: Path) -> None:
        letters = sorted(set(TEXT))
        Path("pairs.txt").write_text("".join(a + b for a, b in product(letters, letters)), encoding="utf-8")
        said = run("sample", model, "-n", 20, "--no-copy", 2, "--novelty-text", "pairs.txt")
        warning = (
            "charrnn: warning: --no-copy 2: 19 of 20 characters could only complete a copy, whichever was drawn, so there none was refused"
        )
        assert said.code == 0 and said.err.strip() == warning

    def test_a_run_that_kept_no_text(self, run: Run, model: Path) -> None:
        for flags in (["--novelty"], ["--no-copy", 9]):
            said = run("sample", model, *flags)
            assert_mistake(
                said, "text.safetensors: no such file: the run did not keep its training text", "--novelty-text FILE", "keep_text: true"
            )

    @pytest.mark.parametrize(
        "flags, told",
        [
            (["--no-copy", 1], "--no-copy 1: expected at least 2 characters; 0 is off"),
            (["--no-copy", -3], "--no-copy -3: expected at least 2 characters"),
            (["--novelty", "--novelty-min", 0], "--novelty-min 0: expected at least 1 character"),
            (["--novelty-min", 5], "--novelty-min: says what --novelty marks, which is not given"),
            (["--novelty-text", "text.txt"], "--novelty-text: the text for --novelty or --no-copy, and neither is given"),
            (["--novelty", "--novelty-text", "none.txt"], "none.txt: cannot be read: No such file or directory"),
        ],
    )
    def test_mistakes(self, run: Run, model: Path, flags: list[object], told: str) -> None:
        assert_mistake(run("sample", model, *flags), told)


def test_marks_stay_in_their_lines() -> None:
    text = "ab\ncdef\n\x1bgh\nij"
    assert list(_marked(text, [(4, 10)], live=False)) == ["c[[def]]", "[[\\x1bg]]h"]
    assert list(_marked(text, [(0, 1), (12, 13)], live=True)) == ["\x1b[4ma\x1b[0mb", "\x1b[4mi\x1b[0mj"]
    assert list(_marked(text, [], live=False)) == []


DRAFTS = {"a.txt": "The lazy dog.\n", "b.txt": "QQQQQQ xx\n", "deeper/c.txt": "Over the lazy fox.\n\nThe dog.\n"}


class TestScore:
    @pytest.fixture
    def drafts(self, tmp_path: Path) -> Path:
        for name, text in {**DRAFTS, ".hidden": "The", "deeper/blank.txt": "\n \n"}.items():
            path = tmp_path / "drafts" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        return tmp_path / "drafts"

    def test_a_folder_is_sorted_by_what_the_model_likes(self, run: Run, model: Path, drafts: Path) -> None:
        said = run("score", "drafts", "--model", model, "--json")
        found = [json.loads(line) for line in said.out.splitlines()]
        assert said.code == 0 and said.err == "charrnn: warning: drafts/deeper/blank.txt: blank, so it has no score\n"
        assert sorted(one["file"] for one in found) == ["drafts/a.txt", "drafts/b.txt", "drafts/deeper/c.txt"]
        bits = [one["bits_per_char"] for one in found]
        assert bits == sorted(bits)
        assert all(one["document"] == 1 and one["begins"] == DRAFTS[one["file"].removeprefix("drafts/")] for one in found)
        (strange,) = [one for one in found if one["file"] == "drafts/b.txt"]
        assert (strange["chars"], strange["unknown"], strange["scored"], strange["unknown_share"]) == (10, 6, 4, 0.6)
        unsorted = run("score", "drafts", "-m", model, "--json", "--no-sort").out.splitlines()
        assert [json.loads(line)["file"] for line in unsorted] == ["drafts/a.txt", "drafts/b.txt", "drafts/deeper/c.txt"]

    def test_it_agrees_with_eval(self, run: Run, model: Path, drafts: Path) -> None:
        """A document of a stream begins behind a line end."""
        Path("alone.txt").write_text("\n" + DRAFTS["a.txt"], encoding="utf-8")
        alone = json.loads(run("eval", model, "--file", "alone.txt", "--json").out)
        one = json.loads(run("score", "drafts/a.txt", "-m", model, "--json").out)
        assert one["bits_per_char"] == pytest.approx(alone["bits_per_char"], rel=1e-5) and one["scored"] == alone["scored"]
        assert alone.keys() - one.keys() == {"model", "step", "seconds", "chars_per_second"}

    def test_a_line_for_each_document_of_a_file(self, run: Run, model: Path) -> None:
        Path("poems.txt").write_text("The dog.\n\nQ\x1b jumps\nfox fox\n", encoding="utf-8")
        said = run("score", "poems.txt", "--model", model, "--documents", "lines")
        rows = [line.split(maxsplit=3) for line in said.out.splitlines()]
        assert [row[1:] for row in rows] == [
            ["8", "0.0%", "poems.txt:1  The dog."],
            ["8", "25.0%", "poems.txt:2  Q\\x1b jumps"],
            ["7", "0.0%", "poems.txt:3  fox fox"],
        ]
        assert said.err.splitlines() == [
            "bits/char    chars  unknown  document",
            "3 documents, 23 characters, 8.70% of them unknown to the model and not scored",
        ]
        best, *_, worst = run("score", "poems.txt", "--model", model, "--documents", "lines", "--sort").out.splitlines()
        assert best.split()[0] == min(row[0] for row in rows) and worst.split()[0] == max(row[0] for row in rows)

    def test_a_file_is_what_a_text_was_for_the_model(self, run: Run, model: Path) -> None:
        from charrnn.checkpoint import build_model, load_model, save_model

        loaded = load_model(model)
        ended = dataclasses.replace(loaded.vocabulary, symbols=("unknown", "end"), characters=loaded.vocabulary.characters[1:])
        save_model(model, build_model(loaded), loaded.config, ended, loaded.step, loaded.metrics)
        Path("songs.txt").write_text("The dog: fox\nA fox：dog\n", encoding="utf-8")
        said = run("score", "songs.txt", "-m", model)
        assert [line.split(maxsplit=3)[3] for line in said.out.splitlines()] == ["songs.txt:1  The dog fox", "songs.txt:2  A fox dog"]
        assert "warning: songs.txt: read as title_body, by name and content; for plain text set data.format: text\n" in said.err
        Path("plain.txt").write_text("The dog\nfox\n", encoding="utf-8")
        assert run("score", "plain.txt", "-m", model).out.split(maxsplit=3)[3] == "plain.txt  The dog fox\n"

    def test_standard_input(self, run: Run, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def given(raw: bytes, *flags: object) -> Said:
            monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(raw)))
            return run("score", "-", "-m", model, *flags)

        Path("text.gb").write_bytes("The fox\n狐".encode("gb18030"))
        from_file = run("score", "text.gb", "-m", model, "--json", "--set", "data.encoding=gb18030").out
        piped = given("The fox\r\n狐".encode("gb18030"), "--json", "--set", "data.encoding=gb18030").out
        assert json.loads(piped) == json.loads(from_file) | {"file": "-"}
        found = given("The fox\n狐狸和懒狗，狐狸跳过了懒狗。狐狸在这里".encode("gb18030"))
        assert found.code == 0 and "狐狸和懒狗" in found.out
        assert "warning: standard input: read as gb18030, which was detected; if that is wrong, set data.encoding\n" in found.err
        assert_mistake(given(b"ab\xff", "--set", "data.encoding=utf-8"), "standard input: not utf-8 at byte 2; its bytes would fit")
        assert_mistake(given(b"ab", "--set", "data.encoding=klingon"), "data.encoding 'klingon': Python knows no such encoding")
        assert (
            given(b"").err == "charrnn: warning: -: blank, so it has no score\ncharrnn: error: -: holds nothing but blank text; expected "
            "documents to score\n"
        )

    def test_what_cannot_be_scored_comes_last(self, run: Run, model: Path) -> None:
        Path("lines.txt").write_text("QQQ\nThe\n", encoding="utf-8")
        rows = run("score", "lines.txt", "-m", model, "--documents", "lines", "--sort").out.splitlines()
        assert rows[1].split() == ["-", "3", "100.0%", "lines.txt:1", "QQQ"]
        told = run("score", "lines.txt", "-m", model, "--documents", "lines", "--sort", "--json").out.splitlines()
        assert json.loads(told[1])["bits_per_char"] is None

    def test_json_knows_no_nan(self, run: Run, model: Path) -> None:
        run_away(model)
        assert json.loads(run("score", "text.txt", "-m", model, "--json").out)["bits_per_char"] is None

    def test_mistakes(self, run: Run, model: Path, drafts: Path) -> None:
        assert_mistake(run("score", "none", "-m", model), "none: no such file or folder; expected a text, a folder of texts, or - for")
        Path("empty").mkdir()
        assert_mistake(run("score", "empty", "-m", model), "empty: the folder holds no files; expected texts to score")
        assert_mistake(run("score", "drafts", "-m", "nowhere"), "nowhere: no such run or model file")
        (drafts / "deeper/blank.txt").write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR")
        assert_mistake(run("score", "drafts", "-m", model), "drafts/deeper/blank.txt: not utf-8 at byte 0")


class TestEval:
    def test_a_split_names_split_units_and_state(self, run: Run, model: Path) -> None:
        said = run("eval", model)
        assert said.code == 0
        for part in ("the val split of", "nats/char", "bits/char", "perplexity", "accuracy", "chars/s", "state carried"):
            assert part in said.out
        assert said.err == ""

    def test_a_terminal_is_not_silent_for_long(self, run: Run, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("charrnn.cli.output.SILENCE_SECONDS", 0)
        monkeypatch.setattr("sys.stderr.isatty", lambda: True)
        assert " chars/s]" in run("eval", model).err

    def test_json_has_the_keys_of_the_journal(self, run: Run, model: Path) -> None:
        figures = json.loads(run("eval", model, "--json", "--split", "train").out)
        assert figures["split"] == "train" and figures["step"] == 7
        assert {"nats_per_char", "bits_per_char", "perplexity", "accuracy", "chars_per_second", "seconds"} <= set(figures)
        assert (figures["chars"], figures["scored"], figures["unknown"]) == (2430, 2429, 0)

    def test_json_knows_no_nan(self, run: Run, model: Path) -> None:
        run_away(model)

        def strange(constant: str) -> None:
            raise AssertionError(constant)

        assert json.loads(run("eval", model, "--json").out, parse_constant=strange)["nats_per_char"] is None
        for line in run("eval", model, "--json", "--per-char").out.splitlines():
            assert json.loads(line, parse_constant=strange)["bits"] is None

    def test_a_file_says_what_is_unknown(self, run: Run, model: Path, tmp_path: Path) -> None:
        (tmp_path / "mine.txt").write_text("The lazy 龍龍", encoding="utf-8")
        said = run("eval", model, "--file", tmp_path / "mine.txt")
        assert said.code == 0 and "18.18% of the characters are unknown" in said.out

    def test_per_char_writes_a_line_for_each(self, run: Run, model: Path, tmp_path: Path) -> None:
        (tmp_path / "mine.txt").write_text("The\nfox", encoding="utf-8")
        said = run("eval", model, "--file", tmp_path / "mine.txt", "--per-char")
        assert [line.split("\t")[0] for line in said.out.splitlines()] == [json.dumps(c) for c in "The\nfox"]
        split = run("eval", model, "--per-char", "--json")
        characters = "".join(json.loads(line)["char"] for line in split.out.splitlines())
        assert len(characters) > 20 and TEXT.endswith(characters)

    def test_unknown_split(self, run: Run, model: Path) -> None:
        assert_mistake(run("eval", model, "--split", "vall"), "vall", "val")

    def test_the_text_may_move(self, run: Run, model: Path, tmp_path: Path) -> None:
        (tmp_path / "text.txt").rename(tmp_path / "moved.txt")
        assert_mistake(run("eval", model), "text.txt", "--set data.path=")
        assert run("eval", model, "--set", f"data.path={tmp_path / 'moved.txt'}").code == 0

    def test_another_text_is_refused(self, run: Run, model: Path, tmp_path: Path) -> None:
        (tmp_path / "text.txt").write_text("0123456789" * 50)
        assert_mistake(run("eval", model), "not the text it was trained on", "--file")

    def test_a_model_does_not_say_where_this_machine_writes(self, run: Run, model: Path, tmp_path: Path, own_cache: Path) -> None:
        from charrnn.checkpoint import build_model, load_model, save_model

        loaded = load_model(model)
        config = loaded.config.model_copy(update={"data": loaded.config.data.model_copy(update={"cache": str(tmp_path / "evil")})})
        save_model(model, build_model(loaded), config, loaded.vocabulary, 7, {})
        assert run("eval", model).code == 0
        assert not (tmp_path / "evil").exists() and own_cache.exists()
        assert run("eval", model, "--set", f"data.cache={tmp_path / 'named'}").code == 0 and (tmp_path / "named").exists()


def test_info(run: Run, model: Path) -> None:
    said = run("info", model)
    assert said.code == 0
    assert all(part in said.out for part in ("lstm", "parameters", "vocabulary", "step        7", "val_nats_per_char", "hidden_size: 8"))


def test_info_tells_what_both_directions_cost_and_the_labels(run: Run, classifier: Path) -> None:
    said = run("info", classifier)
    assert said.code == 0 and "task        classify\n" in said.out and 'labels      2: "坏", "good"\n' in said.out
    layers = [4 * 8 * (inputs + 8 + 2) for inputs in (4, 16)]  # of an LSTM in one direction: four gates, two biases
    assert f"directions  2: outputs 2 × 8 = 16 wide, recurrent parameters 2 × {sum(layers):,} = {2 * sum(layers):,}\n" in said.out


def test_backends_lists_every_cell_and_backend(run: Run) -> None:
    said = run("backends")
    assert said.code == 0
    for cell, name in product(("rnn_tanh", "rnn_relu", "lstm", "gru"), ("reference", "explicit", "fused", "native")):
        assert f"{cell:<10}{name}" in said.out


class TestTrain:
    def test_from_the_first_step_to_a_sample(self, run: Run, config: Path) -> None:
        directory = config.parent / "run"
        said = run("train", "--config", config)
        assert said.code == 0, said
        assert {path.name for path in directory.iterdir()} >= {"config.yaml", "best.safetensors", "last.safetensors", "metrics.jsonl"}
        assert "nats/char" in said.out and "bits/char" in said.out and f"charrnn sample {directory}" in said.out
        assert run("sample", directory, "-n", 5).code == 0
        assert_mistake(run("train", "--config", config), "--resume", "--overwrite")
        written = (directory / "best.safetensors").stat().st_mtime_ns
        again = run("train", "--config", config, "--resume")
        assert again.code == 0 and "finished" in again.out
        assert (directory / "best.safetensors").stat().st_mtime_ns == written
        assert run("train", "--config", config, "--overwrite").code == 0
        assert run("train", "--config", config, "--resume", "--set", f"run={directory.parent / 'new'}").code == 0  # as demo.sh begins

    @pytest.mark.parametrize("only", [[], ["--dry-run"]], ids=["train", "dry run"])
    def test_going_on_from_a_model_says_what_it_keeps_and_adds(self, run: Run, config: Path, model: Path, only: list[str]) -> None:
        (config.parent / "text.txt").write_text("Zwölf Boxkämpfer!\n" * 60, encoding="utf-8")
        said = run("train", "--config", config, "--init-from", model, *only)
        assert said.code == 0
        assert f"{model}: kept 30 characters, added 5 ('!' 'B' 'Z' 'ä' 'ö'), 18 of the old do not occur in the new text\n" in said.out
        assert "vocabulary 36," in said.out

    def test_dry_run_writes_nothing(self, run: Run, config: Path) -> None:
        said = run("train", "--config", config, "--dry-run")
        assert said.code == 0 and "parameters" in said.out and "characters" in said.out
        assert not (config.parent / "run").exists()

    def test_print_config_is_a_config(self, run: Run, config: Path) -> None:
        said = run("train", "--config", config, "--print-config", "--set", "model.cell=gru")
        assert said.code == 0 and "cell: gru" in said.out
        (config.parent / "again.yaml").write_text(said.out, encoding="utf-8")
        assert run("train", "--config", "again.yaml", "--print-config").out == said.out


class TestTerminal:
    """Where the output is not a terminal: lines, but not too many."""

    @pytest.fixture
    def terminal(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Terminal:
        self.now = 1000.0
        monkeypatch.setattr("charrnn.cli.train.time.monotonic", lambda: self.now)
        monkeypatch.setattr("charrnn.cli.train.time.strftime", lambda form: "NOW" if form == "%Y-%m-%d %H:%M:%S" else form)
        return Terminal(config_for(tmp_path, max_steps=20000))

    def report(self, step: int) -> Any:
        from charrnn.training import StepReport

        metrics = {"nats_per_char": 1.38, "bits_per_char": 1.9940, "perplexity": 3.9, "accuracy": 0.6}
        return StepReport(step, 0.5, 60.0, 9, metrics, 0.8312, 2e-3, 84210.4, step / 20000)

    def test_a_line_comes_after_some_seconds(self, terminal: Terminal, capsys: pytest.CaptureFixture[str]) -> None:
        terminal.step(self.report(1100))
        self.now += REPORT_SECONDS + 0.1
        terminal.step(self.report(1200))
        terminal.step(self.report(1250))
        assert capsys.readouterr().out == "NOW step 1200/20000  1.994 bits/char  grad 0.83  lr 2.0e-03  84,210 chars/s\n"
        terminal.evaluated({"val_nats_per_char": 1.4216, "val_bits_per_char": 2.0510, "val_accuracy": 0.561}, "It\nwrites.", True)
        assert capsys.readouterr().out == (
            "NOW val 1.4216 nats/char, 2.0510 bits/char, accuracy 56.1%, the best so far\nNOW     It\nNOW     writes.\n"
        )
        self.now += REPORT_SECONDS + 0.1
        terminal.step(self.report(1300))
        assert "1.994 bits/char (val 2.051 ▁, best 2.051)  grad" in capsys.readouterr().out

    def test_each_line_says_when_it_was_and_a_terminal_is_spared_that(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        terminal = Terminal(config_for(tmp_path))
        terminal.evaluated({}, "It\nwrites.", True)
        terminal.warn("odd")
        said = capsys.readouterr()
        for line in (said.out + said.err).splitlines():
            then = datetime.strptime(line[: STAMP - 1], "%Y-%m-%d %H:%M:%S")
            assert abs(datetime.now() - then) < timedelta(minutes=1)
        assert [line[STAMP:] for line in said.out.splitlines()] == ["    It", "    writes."]
        assert said.err[STAMP:] == "charrnn: warning: odd\n"
        monkeypatch.setattr("sys.stdout.isatty", lambda: True)
        terminal.note("even")
        assert capsys.readouterr().out == "even\n"

    def test_the_first_steps_show_life(self, terminal: Terminal, capsys: pytest.CaptureFixture[str]) -> None:
        """However slow they are, and however far the first report is."""
        terminal.stepped(1, 1 / 20000)
        assert capsys.readouterr().out == ""
        self.now += REPORT_SECONDS + 0.1
        terminal.stepped(2, 2 / 20000)
        terminal.stepped(3, 3 / 20000)
        assert capsys.readouterr().out == "NOW step 2/20000\n"
        self.now += REPORT_SECONDS + 0.1
        terminal.step(self.report(100))
        assert capsys.readouterr().out.startswith("NOW step 100/20000  1.994 bits/char")
        self.now += REPORT_SECONDS + 0.1
        terminal.stepped(101, 101 / 20000)  # from here on, the lines that say more are enough
        assert capsys.readouterr().out == ""

    def test_a_bar_moves_from_the_first_step(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("sys.stdout.isatty", lambda: True)
        monkeypatch.setattr("sys.stderr.isatty", lambda: True)
        with Terminal(config_for(tmp_path, max_steps=100)) as terminal:
            terminal.stepped(1, 0.01)
            assert "1%" in (shown := capsys.readouterr().err) and "step 1/100" in shown
            time.sleep(0.15)
            terminal.stepped(40, 0.4)
            assert "40%" in (shown := capsys.readouterr().err) and "step 40/100" in shown
            terminal.step(dataclasses.replace(self.report(50), progress=0.5))
            time.sleep(0.15)
            terminal.stepped(60, 0.6)
            assert "60%" in (shown := capsys.readouterr().err) and "step 50/100  1.994 bits/char" in shown

    def test_without_a_limit_in_steps_the_share_stands_there(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        terminal = Terminal(config_for(tmp_path, max_steps=None, max_minutes=3))
        terminal._spoke = 0.0
        terminal.step(self.report(1200))
        assert capsys.readouterr().out[STAMP:].startswith("step 1200 (6%)  1.994")

    @pytest.mark.parametrize(
        "status, last, fragments",
        [
            ("finished", 1.45, ["after 2,000 steps; best val 1.4400 nats/char (2.0775 bits/char) at step 1,500", "not overfitted"]),
            ("finished", 1.60, ["it has overfitted since (1.6000 at the end)", "charrnn sample runs/a"]),
            ("already_finished", 1.44, ["This run is finished already"]),
            ("early_stopped", 1.5, ["Stopped early at step 2,000, with no better value in the last 500 steps; best val 1.4400"]),
            ("finished", math.nan, ["at step 1,500, and the last value is not finite; to let it write"]),
            ("finished", math.inf, ["at step 1,500, and the last value is not finite; to let it write"]),
            ("interrupted", 1.44, ["saved at step 2,000; go on with: charrnn train --config runs/a/config.yaml --resume"]),
            ("terminated", 1.44, ["saved at step 2,000; go on with: charrnn train --config runs/a/config.yaml --resume"]),
            ("diverged", 1.44, ["Gave up at step 2,000"]),
        ],
    )
    def test_the_last_sentence(self, status: Any, last: float, fragments: list[str]) -> None:
        from charrnn.training import Outcome

        best = {"val_nats_per_char": 1.44, "val_bits_per_char": 2.07748}
        said = summary(Outcome(best, 1500, {"val_nats_per_char": last}, 2000, 60.0, Path("runs/a"), status))
        assert "\n" not in said and all(fragment in said for fragment in fragments), said

    @pytest.mark.parametrize(
        "task, best_by, last, said",
        [
            (
                "classify",
                ("accuracy", False),
                0.80,
                "best val accuracy 0.8123 at step 1,500, and it has overfitted since (0.8000 at the end)",
            ),
            (
                "classify",
                ("accuracy", False),
                0.81,
                "accuracy 0.8123 at step 1,500, and it has not overfitted since; to use it: charrnn classify",
            ),
            (
                "fill",
                ("nats_per_example", True),
                0.51,
                "best val 0.5000 nats/example at step 1,500, and it has overfitted since (0.5100 at",
            ),
        ],
    )
    def test_the_last_sentence_is_of_what_chose_the_best(self, task: str, best_by: tuple[str, bool], last: float, said: str) -> None:
        from charrnn.training import Outcome

        best = {"val_nats_per_example": 0.5, "val_perplexity": 1.6, "val_accuracy": 0.8123}
        outcome = Outcome(best, 1500, {f"val_{best_by[0]}": last}, 2000, 60.0, Path("runs/a"), "finished", task, best_by)
        assert said in summary(outcome)
        assert summary(outcome).endswith(f"to use it: charrnn {task} runs/a")

    def test_other_tasks_are_told_in_their_units(self, terminal: Terminal, capsys: pytest.CaptureFixture[str]) -> None:
        report = dataclasses.replace(self.report(1100), metrics={"nats_per_example": 0.5, "perplexity": 1.6, "accuracy": 0.8})
        self.now += REPORT_SECONDS + 0.1
        terminal.step(report)
        assert capsys.readouterr().out.startswith("NOW step 1100/20000  0.500 nats/example  grad")
        metrics = {"val_nats_per_blank": 0.5, "val_bits_per_blank": 0.7213, "val_accuracy": 0.8, "val_accuracy_at_5": 0.95}
        terminal.evaluated(metrics | {f"val_f1_{i}": 0.1 for i in range(9)}, "x", False)
        assert capsys.readouterr().out == (
            "NOW val 0.5000 nats/blank, 0.7213 bits/blank, accuracy 80.0%, accuracy_at_5 0.9500, f1_0 0.1000, f1_1 0.1000\nNOW     x\n"
        )

    def test_a_run_without_a_val_split_says_so(self) -> None:
        from charrnn.training import Outcome

        assert "no value was measured on a val split" in summary(Outcome({}, 0, {}, 20, 1.0, Path("runs/a"), "finished"))

    def test_a_run_whose_values_were_never_finite_says_that(self) -> None:
        from charrnn.training import Outcome

        said = summary(Outcome({}, 0, {"val_nats_per_char": math.nan, "val_bits_per_char": math.nan}, 20, 1.0, Path("a"), "early_stopped"))
        assert said.startswith("Stopped early at step 20, with no better value in the last 20 steps; no value on the val split was finite;")
        assert "no value was measured" not in said


class TestBugs:
    """What is nobody's mistake but ours keeps its traceback."""

    def test_an_exception_passes(self, run: Run, monkeypatch: pytest.MonkeyPatch, config: Path) -> None:
        def broken(*_: object) -> None:
            raise ZeroDivisionError("ours")

        monkeypatch.setattr("charrnn.config.load_config", broken)
        with pytest.raises(ZeroDivisionError):
            main(["train", "--config", str(config)])

    @pytest.mark.parametrize("error", [MemoryError(), RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")])
    def test_out_of_memory_names_a_remedy(self, run: Run, monkeypatch: pytest.MonkeyPatch, config: Path, error: Exception) -> None:
        def full(*_: object) -> None:
            raise error

        monkeypatch.setattr("charrnn.config.load_config", full)
        monkeypatch.setitem(sys.modules, "charrnn.ops.backends", sys.modules.get("charrnn.ops.backends"))
        said = run("train", "--config", config)
        assert said.code == 1 and said.err.startswith("charrnn: error: out of memory; lower train.batch_size")
        monkeypatch.setattr("charrnn.model_file.find_model", full)
        remedy = "lower --num-samples, --best-of or --beam-width, shorten the prime, or set --device cpu"
        assert run("sample").err == f"charrnn: error: out of memory; {remedy}\n"
        assert run("eval").err == "charrnn: error: out of memory; set --device cpu, or end other programs\n"

    def test_ctrl_c(self, run: Run, monkeypatch: pytest.MonkeyPatch, config: Path) -> None:
        def interrupted(*_: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr("charrnn.config.load_config", interrupted)
        assert run("train", "--config", config).code == 130


def test_a_closed_pipe_is_quiet(model: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "charrnn", "info", str(model)]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, cwd=ROOT, check=False)
    os.close(writing)
    assert done.stderr == ""


class TestEnds:
    """A training whose listener goes away, or that is told to go."""

    @pytest.fixture
    def start(self, config: Path) -> Callable[..., subprocess.Popen[str]]:
        def start(**environment: str) -> subprocess.Popen[str]:
            command = [sys.executable, "-m", "charrnn", "train", "--config", str(config), "--set", "train.max_steps=100000"]
            pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "encoding": "utf-8"}
            return subprocess.Popen(command, cwd=ROOT, env=os.environ | environment, **pipes)

        return start

    def step(self, config: Path) -> int:
        from charrnn.checkpoint import load_state

        return int(load_state(config.parent / "run/last.state.pt")["counters"]["step"])

    def test_a_pipe_closed_in_training(self, start: Callable[..., subprocess.Popen[str]], config: Path) -> None:
        with start() as process:
            assert process.stdout and process.stderr
            assert "parameters" in process.stdout.readline()
            process.stdout.close()
            assert process.stderr.read() == ""
        assert process.returncode == 1 and self.step(config) > 0

    def test_sigterm(self, start: Callable[..., subprocess.Popen[str]], config: Path) -> None:
        with start() as process:
            assert process.stdout and process.stderr
            while "val " not in process.stdout.readline():
                pass
            process.send_signal(signal.SIGTERM)
            last = process.stdout.read().splitlines()[-1]
            assert process.stderr.read() == ""
        assert process.returncode == 75
        assert last[STAMP:].startswith(f"Terminated and saved at step {self.step(config):,}; go on with: ")

    def test_an_output_that_cannot_show_a_character(self, start: Callable[..., subprocess.Popen[str]], config: Path) -> None:
        (config.parent / "text.txt").write_text("été âgé où çà\n" * 100, encoding="utf-8")
        with start(PYTHONIOENCODING="ascii") as process:
            assert process.stdout and process.stderr
            while "?" not in process.stdout.readline():
                pass
            process.send_signal(signal.SIGTERM)
            process.communicate()
        assert process.returncode == 75


class TestTextOfEveryKind:
    def test_what_was_found_out_is_said(self, run: Run, config: Path) -> None:
        text = config.parent / "text.txt"
        text.write_bytes("秦川雄帝宅，函谷壮皇居。\n".encode("gb18030") * 40)
        said = run("train", "--config", config, "--dry-run", "--set", "data.filters.drop_lines_with=□")
        assert f"{text}: read as gb18030, which was detected; if that is wrong, set data.encoding\n" in said.out

    def test_poems_from_json_to_a_score(self, run: Run, config: Path) -> None:
        """A text beside the corpus is read in its format, and without its filters."""
        poems = [{"title": f"题{n}", "author": "某", "paragraphs": ["床前明月光，", "疑是地上霜。"]} for n in range(30)]
        path = config.parent / "poems.json"
        path.write_text(json.dumps(poems))
        asked = ["--set", f"data.path={path}", "--set", 'data.template="{author}\\n{body}"', "--set", "data.filters.min_length=3"]
        said = run("train", "--config", config, *asked)
        assert f"{path}: read as chinese_poetry, by name and content; for plain text set data.format: text\n" in said.out
        assert "30 documents in 1 file" in said.out
        other = config.parent / "other.json"
        other.write_text(json.dumps([*poems[:1], {"title": "短", "author": "", "paragraphs": ["霜"]}]))
        scored = run("eval", config.parent / "run", "--file", other, "--json")
        assert json.loads(scored.out)["chars"] == len("某\n床前明月光，\n疑是地上霜。") + 1 + len("霜") + 1
        assert "warning" in scored.err and "other.json: read as chinese_poetry" in scored.err

    def test_a_mistake_in_a_record_is_one_line(self, run: Run, config: Path) -> None:
        path = config.parent / "poems.json"
        path.write_text(json.dumps([{"title": "a", "paragraphs": ["b"]}, {"title": "c"}]))
        said = run("train", "--config", config, "--set", f"data.path={path}")
        assert_mistake(said, f"{path}: record 2 (line 1): no field 'paragraphs', which data.format names; its fields are title")
