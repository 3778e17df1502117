"""`charrnn classify`: a line for each text, a line for each mistake, and the figures where labels are known."""

from __future__ import annotations

import gzip
import io
import json
import sys
from pathlib import Path

import pytest

from charrnn.checkpoint import save_model
from charrnn.config import build_config
from charrnn.tasks import load_task
from tests.test_cli import Run, Said, said_to

TEXTS = "".join(f"{'好评' if n % 2 else '差评'}\t{'很好' if n % 2 else '太差'}{n} fox\n" for n in range(40))


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """The command line in this process, in a directory with a model that calls everything 好评 by 9 to 1."""
    import torch

    monkeypatch.chdir(tmp_path)
    Path("texts.tsv").write_text("label\ttext\n" + TEXTS, encoding="utf-8")
    settings = {
        "task": "classify",
        "data": {"path": "texts.tsv"},
        "model": {"embedding_size": 4, "hidden_size": 4},
        "train": {"max_steps": 1},
    }
    config = build_config(settings, "test")
    task = load_task(config)
    assert task.labels == ("好评", "差评")
    model = task.model()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith("head"):
                parameter.zero_()
            if name == "head.bias":
                parameter.copy_(torch.tensor([9.0, 1.0]).log())
    save_model(Path("model.safetensors"), model, config, task.vocabulary, 7, {}, task.labels)

    def run(*arguments: object) -> Said:
        return said_to(capsys, "classify", *arguments)

    return run


def test_a_drawing_never_takes_the_place_of_what_a_link_leads_to(run: Run) -> None:
    Path("found.png").symlink_to("texts.tsv")
    before = Path("texts.tsv").read_bytes()
    said = run("model.safetensors", "--file", "texts.tsv", "--confusion", "found.png")
    assert said.code == 2 and "--confusion found.png: the same file as texts.tsv, which this command reads; expected another" in said.err
    assert Path("texts.tsv").read_bytes() == before


def test_each_text_gets_a_line(run: Run) -> None:
    said = run("model.safetensors", "--text", "这个  很好\n吗", "--text", "x" * 500)
    assert said == Said(0, f"好评  90.0%  这个 很好 吗\n好评  90.0%  {'x' * 60}\n", "")
    assert run("model.safetensors", "--text", "a", "--top", "5").out == "好评  90.0%  差评  10.0%  a\n"


def test_json_tells_all(run: Run) -> None:
    (told,) = map(json.loads, run("model.safetensors", "--text", "很好\nx", "--json").out.splitlines())
    assert told == {
        "label": "好评",
        "probability": pytest.approx(0.9),
        "probabilities": {"好评": pytest.approx(0.9), "差评": pytest.approx(0.1)},
        "text": "很好\nx",
    }
    Path("some.txt").write_text("a\nb\n")
    told = [json.loads(line) for line in run("model.safetensors", "--file", "some.txt", "--json", "--top", "1").out.splitlines()]
    assert [(one["text"], one["file"], one["line"], list(one["probabilities"])) for one in told] == [
        ("a", "some.txt", 1, ["好评"]),
        ("b", "some.txt", 2, ["好评"]),
    ]


def test_lines_come_from_a_file_or_from_standard_input(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    content = "很好\n\n太差".encode() + b"\xed\xa0\xbd\nfox"
    Path("some.txt").write_bytes(content)
    Path("some.txt.gz").write_bytes(gzip.compress(content))
    expected = "好评  90.0%  很好\n好评  90.0%  fox\n"
    for name in ("some.txt", "some.txt.gz", "-"):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
        said = run("model.safetensors", *(["-"] if name == "-" else ["--file", name]))
        place = "standard input" if name == "-" else name
        assert (said.code, said.out) == (2, expected)
        assert said.err.splitlines() == [
            f"charrnn: error: {place}: line 2: the line is empty; expected a text, so fill it or take it out",
            f"charrnn: error: {place}: line 3: bytes ED A0 BD: no whole character; expected text without CESU-8 surrogates or damage, "
            "so mend it there",
            "2 of 4 texts could not be used",
        ]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a\n")))
    assert run("-", "--set", "data.encoding=ascii").code == 2  # the newest run, of which there is none


def test_a_file_with_labels_is_scored(run: Run) -> None:
    said = run("model.safetensors", "--file", "texts.tsv", "--confusion", "found.png")
    assert said.code == 0 and len(said.out.splitlines()) == 45
    assert said.out.splitlines()[40:] == [
        "",
        "accuracy 50.00%   macro-F1 33.33%   40 texts with a label",
        "truth \\ answer  好评  差评  texts  precision  recall     F1",
        "好评              20     0     20      50.0%  100.0%  66.7%",
        "差评              20     0     20       0.0%    0.0%   0.0%",
    ]
    assert Path("found.png").read_bytes().startswith(b"\x89PNG")
    figures = json.loads(run("model.safetensors", "--file", "texts.tsv", "--json").out.splitlines()[-1])
    assert (figures["texts"], figures["accuracy"], figures["macro_f1"]) == (40, 0.5, pytest.approx(1 / 3))
    assert (figures["labels"], figures["confusion"]) == (["好评", "差评"], [[20, 0], [20, 0]])
    assert figures["by_label"]["好评"] == {"texts": 20, "precision": 0.5, "recall": 1.0, "f1": pytest.approx(2 / 3)}


def test_rows_that_cannot_be_used_are_named_and_the_others_answered(run: Run) -> None:
    Path("some.csv").write_text("text,label\na,好评\n,好评\nb,\nc,好\nd,好评,x\ne,差评\n", encoding="utf-8")
    said = run("model.safetensors", "--file", "some.csv")
    assert said.code == 2
    assert said.err.splitlines() == [
        "charrnn: error: some.csv: record 2 (line 3): field 'text' is empty; expected text, so fill it or take the row out",
        "charrnn: error: some.csv: record 3 (line 4): field 'label' is empty; expected a label, so fill it or take the row out",
        "charrnn: error: some.csv: line 5: unknown label '好'; expected one of 好评, 差评; did you mean '好评'?",
        "charrnn: error: some.csv: line 6: 3 fields, and the header has 2; put quotes around what holds a comma or a line end",
        "4 of 6 texts could not be used",
    ]
    assert said.out.splitlines()[:2] == ["好评  90.0%  a", "好评  90.0%  e"]
    assert said.out.splitlines()[3] == "accuracy 50.00%   macro-F1 33.33%   2 texts with a label"


def test_columns_without_labels_are_answered(run: Run) -> None:
    Path("some.tsv").write_text("name\tbody\nx\t很好\n", encoding="utf-8")
    assert run("model.safetensors", "--file", "some.tsv") == Said(0, "好评  90.0%  很好\n", "")
    assert run("model.safetensors", "--file", "some.tsv", "--set", "data.field=name").out == "好评  90.0%  x\n"


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "there is nothing to classify; expected one of --text TEXT, --file FILE or - for standard input"),
        (["--text", "a", "--file", "b"],
         "--text and --file are both given; expected one of --text TEXT, --file FILE or - for standard input"),
        (["texts.tsv"], "texts.tsv: expected - for standard input, or nothing; a file is named with --file"),
        (["--text", "a", "--top", "0"], "--top 0: expected at least 1 label"),
        (["--file", "none.txt"], "none.txt: cannot be read: No such file or directory; expected a file that holds text"),
        (["--file", "empty.txt"], "empty.txt: holds no text; expected some to classify"),
        (["--text", "a", "--confusion", "a.png"],
         "--confusion: needs the truth beside each text; expected --file with a label's column, so leave it out"),
        (["--file", "texts.tsv", "--confusion", "texts.tsv"],
         "--confusion texts.tsv: expected a name that ends in .png; give the picture such a name"),
        (["--file", "texts.tsv", "--confusion", "none/a.png"],
         "--confusion none/a.png: cannot be written: it is not in a directory; name a file in a directory that exists"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line(run: Run, arguments: list[str], message: str) -> None:
    Path("empty.txt").write_text("")
    assert run("model.safetensors", *arguments) == Said(2, "", f"charrnn: error: {message}\n")


def test_a_picture_needs_labels(run: Run) -> None:
    Path("some.txt").write_text("a\n")
    said = run("model.safetensors", "--file", "some.txt", "--confusion", "a.png")
    assert (said.code, Path("a.png").exists()) == (2, False)
    expected = "charrnn: error: --confusion: none of the texts has a label in field 'label'; name the field with --set data.label=…\n"
    assert said.err == expected


def test_an_empty_text_is_named_by_its_number(run: Run) -> None:
    said = run("model.safetensors", "--text", "a", "--text", " ")
    assert said == Said(
        2, "好评  90.0%  a\n", "charrnn: error: --text 2: the text is empty; expected some to read\n1 of 2 texts could not be used\n"
    )
