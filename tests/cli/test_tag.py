"""`charrnn tag`: what a person types, and what they get."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from charrnn.checkpoint import load_model
from charrnn.config import Config
from tests import test_cli
from tests.cli.learning import learn
from tests.test_cli import Run, assert_mistake

run = test_cli.run

# What stands before a mark says which it is.
PROSE = "天地，玄黄。宇宙，洪荒。日月，盈昃。\n" * 30
CONLL = "我 O\n在 O\n北 B-LOC\n京 I-LOC\n\n上 B-LOC\n海 I-LOC\n有 O\n我 O\n\n" * 30


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models that have learned those by heart, in two seconds each."""
    folder = tmp_path_factory.mktemp("tag")
    (folder / "prose.txt").write_text(PROSE, encoding="utf-8")
    (folder / "places.conll").write_text(CONLL, encoding="utf-8")
    for name, data, crf in (
        ("marks", {"path": "prose.txt", "labels": "punctuation", "marks": "，。"}, False),
        ("lines", {"path": "prose.txt", "labels": "punctuation", "marks": "，。", "documents": "lines"}, False),
        ("pauses", {"path": "prose.txt", "labels": "segmentation", "marks": "，。"}, False),
        ("places", {"path": "places.conll"}, True),
    ):
        train(folder, name, data, crf)
    return folder


def train(folder: Path, name: str, data: dict[str, Any], crf: bool) -> None:
    config = Config.model_validate(
        {
            "task": "tag",
            "run": str(folder / name),
            "device": "cpu",
            "data": data | {"path": str(folder / data["path"]), "cache": str(folder / "cache"), "example_length": 32},
            "model": {"embedding_size": 12, "hidden_size": 12, "bidirectional": True, "crf": crf},
            "train": {"max_steps": 50, "batch_size": 8, "precision": "fp32"},
        }
    )
    learn(config, folder / f"{name}.safetensors", 50)


def test_marks_are_put_in_and_all_else_stays(run: Run, folder: Path) -> None:
    Path("raw.txt").write_bytes("\ufeff「天地玄黄」\r\n\r\n　宇宙 洪荒，日，月盈昃".encode())
    said = run("tag", folder / "marks.safetensors", "--file", "raw.txt", "--out", "restored.txt")
    assert said == (0, "", "")
    assert Path("restored.txt").read_bytes().decode() == "「天地，玄黄。」\r\n\r\n　宇宙， 洪荒。日月，盈昃。"
    said = run("tag", folder / "marks.safetensors", "--text", "天地玄黄宇宙洪荒", "-t", "日月盈昃")
    assert said == (0, "天地，玄黄。宇宙，洪荒。\n日月，盈昃。\n", "")


def test_the_text_that_is_read_is_never_written_to(run: Run, folder: Path) -> None:
    Path("raw.txt").write_text("天地玄黄", encoding="utf-8")
    Path("other.txt").write_text("宇宙洪荒", encoding="utf-8")
    said = run("tag", folder / "marks.safetensors", "--file", "other.txt", "--file", "./raw.txt", "--out", "raw.txt")
    fact = "--out raw.txt: the same file as raw.txt, which this command reads; expected another, for what it holds would be lost"
    assert said == (2, "", f"charrnn: error: {fact}; name another file\n") and Path("raw.txt").read_text(encoding="utf-8") == "天地玄黄"


def test_a_pause_is_written_as_asked(run: Run, folder: Path) -> None:
    assert run("tag", folder / "pauses.safetensors", "-t", "天地玄黄，").out == "天地|玄黄|\n"
    assert run("tag", folder / "pauses.safetensors", "-t", "天地玄黄", "--mark", " / ").out == "天地 / 玄黄 / \n"


def test_labels_are_written_as_columns(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("我在北京\n上海有我\n".encode())))
    expected = "我 O\n在 O\n北 B-LOC\n京 I-LOC\n\n上 B-LOC\n海 I-LOC\n有 O\n我 O\n\n"
    assert run("tag", folder / "places.safetensors", "-") == (0, expected, "")
    Path("again.conll").write_text(expected, encoding="utf-8")
    assert json.loads(run("eval", folder / "places.safetensors", "--file", "again.conll", "--json").out)["f1"] == 1


def test_json_has_an_object_for_each_document(run: Run, folder: Path) -> None:
    Path("raw.txt").write_text("天地 玄黄\n\n日月\n", encoding="utf-8")
    said = run("tag", folder / "lines.safetensors", "--file", "raw.txt", "--json")
    one, other = map(json.loads, said.out.splitlines())
    assert (one["text"], one["read"], one["line"], one["labels"]) == ("天地， 玄黄。\n", "天地玄黄", 1, ["O", "，", "O", "。"])
    assert (other["file"], other["line"], other["read"]) == ("raw.txt", 3, "日月")
    assert all(0.5 < share <= 1 for share in one["probabilities"]) and len(one["probabilities"]) == 4
    said = run("tag", folder / "places.safetensors", "-t", "我在北京", "--json")
    found = json.loads(said.out)
    assert found["labels"] == ["O", "O", "B-LOC", "I-LOC"] and all(0.5 < share <= 1 for share in found["probabilities"])


def test_a_text_longer_than_any_seen_is_answered_whole(run: Run, folder: Path) -> None:
    line = "天地玄黄宇宙洪荒日月盈昃"
    Path("long.txt").write_text(line * 400, encoding="utf-8")
    said = run("tag", folder / "marks.safetensors", "--file", "long.txt")
    assert said.out == "天地，玄黄。宇宙，洪荒。日月，盈昃。" * 400 and said.code == 0
    said = run("tag", folder / "places.safetensors", "-t", "我在北京" * 500)
    assert said.out == "我 O\n在 O\n北 B-LOC\n京 I-LOC\n" * 500 + "\n"


def test_a_line_that_is_no_text_costs_no_other_its_answer(run: Run, folder: Path) -> None:
    damage = "no whole character; expected text without CESU-8 surrogates or damage, so mend it there"
    Path("raw.txt").write_bytes("天地玄黄\n".encode() + b"\xed\xa0\xbd\xed\xb8\x80\n" + "日月盈昃\n".encode())
    said = run("tag", folder / "marks.safetensors", "--file", "raw.txt")
    assert said.code == 2 and said.out == "天地，玄黄。\n\n日月，盈昃。\n"
    assert said.err == f"charrnn: error: raw.txt: line 2: bytes ED A0 BD ED B8 80: {damage}\n"
    Path("raw.txt").write_bytes("我在北京\n\n".encode() + b"\xed\xa0\xbd\xed\xb8\x80\n" + "上海有我\n".encode())
    said = run("tag", folder / "places.safetensors", "--file", "raw.txt")
    assert said.code == 2 and said.out.count("B-LOC") == 2
    assert said.err.splitlines() == [
        "charrnn: error: raw.txt: line 2: the line is empty; expected a text, so fill it or take it out",
        f"charrnn: error: raw.txt: line 3: bytes ED A0 BD ED B8 80: {damage}",
    ]


def test_a_file_that_cannot_be_read_costs_no_other_its_answer(run: Run, folder: Path) -> None:
    Path("empty.txt").touch()
    Path("blank.txt").write_text("\n \n", encoding="utf-8")
    Path("good.txt").write_text("天地\n", encoding="utf-8")
    files = [part for name in ("missing.txt", "empty.txt", "blank.txt", "good.txt") for part in ("--file", name)]
    said = run("tag", folder / "marks.safetensors", *files)
    assert said.code == 2 and said.out == "天地，\n"
    assert said.err.splitlines() == [
        "charrnn: error: --file missing.txt: no such file; expected a text",
        "charrnn: error: empty.txt: holds no text; expected some to tag",
        "charrnn: error: blank.txt: holds no text; expected some to tag",
    ]
    said = run("tag", folder / "places.safetensors", "--file", "empty.txt")
    assert said == (2, "", "charrnn: error: empty.txt: holds no text; expected a text a line\n")


def test_a_run_keeps_what_it_decided_by_and_goes_on(run: Run, folder: Path) -> None:
    config = load_model(folder / "marks.safetensors").config
    settings = ["run=run", f"data.path={folder / 'prose.txt'}", "train.max_steps=6", "train.evaluate_every=3", "train.save_every=3"]
    Path("config.yaml").write_text(config.to_yaml(), encoding="utf-8")
    sets = [part for setting in settings for part in ("--set", setting)]
    assert run("train", "--config", "config.yaml", *sets, "--set", "train.ema_decay=0.5").code == 0
    kept = load_model(Path("run/last.safetensors"))
    assert kept.step == 6 and kept.weights["decision"].any() and kept.labels == ("O", "，", "。")
    found = json.loads(run("eval", "run/last.safetensors", "--json").out)
    for name in ("f1", "segmentation_f1", "nats_per_char", "accuracy"):
        assert found[name] == pytest.approx(kept.metrics[f"val_{name}"], abs=2e-3), name
    said = run("train", "--config", "run/config.yaml", "--resume", "--set", "train.max_steps=9")
    assert said.code == 0 and "f1" in said.out
    assert load_model(Path("run/last.safetensors")).step == 9
    assert "decision" not in load_model(folder / "places.safetensors").weights  # a CRF decides for itself


def test_figures_stand_below_each_other(run: Run, folder: Path) -> None:
    figures = [line for line in run("eval", folder / "marks.safetensors").out.splitlines() if line[0].islower() and "." in line][:11]
    assert figures[-1].startswith("segmentation_f1") and len({line.rindex(".") for line in figures}) == 1


@pytest.mark.parametrize("model", ["marks", "pauses"])
def test_a_file_without_characters_to_label_is_named(run: Run, folder: Path, model: str) -> None:
    Path("empty.txt").write_text("\n，\n", encoding="utf-8")
    expected = "charrnn: error: empty.txt: holds no characters to label; expected some to measure on, so name another text\n"
    assert run("eval", folder / f"{model}.safetensors", "--file", "empty.txt") == (2, "", expected)


def test_what_the_model_does_not_know_is_told(run: Run, folder: Path) -> None:
    said = run("tag", folder / "marks.safetensors", "-t", "天地犇玄黄")
    assert said.code == 0 and said.out.replace("，", "").replace("。", "") == "天地犇玄黄\n"
    assert said.err == "charrnn: warning: --text: the model does not know '犇' (U+7287); read as unknown\n"


@pytest.mark.parametrize(
    "model, arguments, message",
    [
        ("marks", [], "there is nothing to tag; expected one of --text TEXT, --file FILE or - for standard input"),
        ("marks", ["-t", "天", "--file", "x"], "--text and --file are both given; expected one of --text TEXT, --file FILE or -"),
        ("marks", ["x"], "x: expected - for standard input, or nothing; a file is named with --file"),
        ("marks", ["-t", "天", "--mark", "/"], "--mark '/': is written by a model of labels: segmentation, and this one is of punctuation"),
        ("marks", ["-t", "天", "--out", "no/where"], "--out no/where: cannot be written: it is not in a directory"),
    ],
)
def test_mistakes(run: Run, folder: Path, model: str, arguments: list[str], message: str) -> None:
    assert_mistake(run("tag", folder / f"{model}.safetensors", *arguments), message)


def test_a_model_of_another_task_is_refused(run: Run, folder: Path) -> None:
    said = run("fill", folder / "marks.safetensors", "天_")
    assert said.code == 2 and said.err.endswith("a model of task tag; charrnn fill needs one of task fill; use charrnn tag\n")
