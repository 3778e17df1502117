"""What a text is made of."""

from __future__ import annotations

import json
import re
import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from charrnn import inspecting
from charrnn.cli import main
from charrnn.data import decoding
from charrnn.data.corpus import load_corpus
from charrnn.errors import DataError
from charrnn.inspecting import SHOWN, Inspection, Strange, inspect
from tests.data.texts import settings

COUPLET = "红纸满街铺灯，糖画龙蛇炉火。"
WUJUE = "静夜思:床前明月光，疑是地上霜。举头望明月，低头思故乡。"
QILÜ = "，".join(["一二三四五六七"] * 8)


def inspected(folder: Path, text: str | bytes, seed: int = 1, **data: Any) -> Inspection:
    path = folder / "text.txt"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return inspect(settings(path, **data), seed)


LINES = st.lists(st.text(st.sampled_from("ab漢 é😀"), max_size=9).filter(str.strip), min_size=1, max_size=30)


@given(lines=LINES)
@examples(deadline=None, max_examples=60)
def test_it_counts_what_is_there(lines: list[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    found = inspected(tmp_path_factory.getbasetemp(), "\n".join(lines), documents="lines")
    counts, lengths = Counter("".join(lines)), sorted(map(len, lines))
    assert found.documents == len(lines) and found.characters == sum(lengths)
    assert (found.vocabulary_size, found.once) == (len(counts), sum(1 for count in counts.values() if count == 1))
    assert dict(found.rarest) == dict(counts) and [count for _, count in found.rarest] == sorted(counts.values())
    assert (found.shortest, found.longest) == (lengths[0], lengths[-1])
    assert found.median == lengths[(len(lengths) - 1) // 2]
    assert sum(count for _, _, count in found.lengths) == len(lines)
    for first, last, count in found.lengths:
        assert count == sum(first <= length <= last for length in lengths)
    assert found.duplicates == len(lines) - len(set(lines))
    assert len(found.samples) == min(SHOWN, len(lines)) == len({sample.number for sample in found.samples})
    assert all(lines[sample.number - 1] == sample.text for sample in found.samples)


def test_lengths_that_are_far_apart(tmp_path: Path) -> None:
    found = inspected(tmp_path, "\n".join(["x" * 24] * 500 + ["y" * 5000]), documents="lines")
    assert found.lengths == [(23, 24, 500), (25, 5000, 1)]
    assert found.longest == 5000 and found.median == 24 and found.duplicates == 499


def test_every_document_is_drawn_as_often(tmp_path: Path) -> None:
    text = "\n".join(f"line {number}" for number in range(12))
    drawn = Counter(sample.number for seed in range(200) for sample in inspected(tmp_path, text, seed, documents="lines").samples)
    assert set(drawn) == set(range(1, 13)) and all(25 < count < 80 for count in drawn.values())  # of 50
    assert inspected(tmp_path, text, 5, documents="lines") == inspected(tmp_path, text, 5, documents="lines")


def test_the_forms_of_verse(tmp_path: Path) -> None:
    lines = [WUJUE, WUJUE, QILÜ, COUPLET, "no verse: one two six ten", "散文一篇而已，没有形式。"]
    found = inspected(tmp_path, "\n".join(lines), documents="lines")
    assert dict(found.forms) == {"五绝": 2, "七律": 1, "2x6": 1}
    assert found.forms[0] == ("五绝", 2) and found.duplicates == 1
    titled = inspected(tmp_path, "静夜思\n床前明月光，疑是地上霜。\n举头望明月，低头思故乡。\n\n" + "题\n" + QILÜ, documents="blank_lines")
    assert dict(titled.forms) == {"五绝": 1, "七律": 1}


def test_strange_characters(tmp_path: Path) -> None:
    text = "a，b，c, d\u200b\ufffd\ufffd\ufffd\x07\ue000\u00a0\u2028ＡA　\t\n"
    why = {strange.character: (strange.why, strange.count) for strange in inspected(tmp_path, text).strange}
    assert why == {
        "\ufffd": ("stands for bytes that someone could not read", 3),
        "，": ("another width of ',', which occurs 1 times", 2),
        "Ａ": ("another width of 'A', which occurs 1 times", 1),
        "\x07": ("a control character", 1),
        "\u00a0": ("a space that is not the usual one", 1),
        "\u200b": ("invisible (a format character)", 1),
        "\u2028": ("a line separator that is no line end", 1),
        "\ue000": ("private use: it looks different on every machine", 1),
    }
    assert inspected(tmp_path, text).strange[0] == Strange("\ufffd", "stands for bytes that someone could not read", 3)
    assert inspected(tmp_path, "床前明月光，疑是地上霜。\n").strange == []  # full-width alone is no mixture


def test_a_stream_shows_passages(tmp_path: Path) -> None:
    text = "".join(f"{number}\n" for number in range(2000))
    found = inspected(tmp_path, text)
    assert found.is_stream and found.documents == 0 and found.lengths == [] and found.characters == len(text)
    assert len(found.samples) == SHOWN
    for sample in found.samples:
        assert text[sample.number - 1 :].startswith(sample.text) and sample.text


def test_it_is_what_training_reads(tmp_path: Path) -> None:
    found = inspected(tmp_path, "\ufeffone\r\n\r\ntwo\r\n".encode(), documents="lines")
    read = load_corpus(settings(tmp_path / "text.txt", documents="lines", val_fraction=0.0), 1)
    assert (found.documents, found.characters) == (read.documents, len(read.ids) - read.documents) == (2, 6)
    assert found.vocabulary_size == len(read.vocabulary.characters)


def test_formats_are_found_as_in_training(tmp_path: Path) -> None:
    path = tmp_path / "poems.txt"
    path.write_text("".join(f"题{i}：床前明月光，疑是地上霜{i}。\n" for i in range(9)), encoding="gb18030")
    config = settings(path, filters={"drop_lines_with": "霜3"}, val_fraction=0.0)
    found, read = inspect(config), load_corpus(config, 1)
    assert (found.documents, found.formats, found.encodings) == (read.documents, ["title_body"], ["gb18030"]) and found.documents == 8
    assert found.notes == read.notes and len(found.notes) == 4
    assert all(re.fullmatch(r"题(\d)\n床前明月光，疑是地上霜\1。", sample.text) for sample in found.samples)
    path.write_text("题：霜3\n题目：霜3\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"poems\.txt: nothing is left of the text; .*2 by drop_lines_with; .*expected filters"):
        inspect(config)


def test_nothing_to_look_at(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"text\.txt: empty; expected text to learn from"):
        inspected(tmp_path, "")
    with pytest.raises(DataError, match=r"text\.txt: not utf-8 at byte 3; its bytes would fit gb18030"):
        inspected(tmp_path, "abc床前".encode("gb18030"), encoding="utf-8")


def test_memory_does_not_grow_with_the_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspecting, "BATCH", 1 << 14)
    monkeypatch.setattr(decoding, "PIECE", 1 << 14)

    def peak(copies: int) -> int:
        (tmp_path / "text.txt").write_text((WUJUE + "\n" + QILÜ + "\n") * copies, encoding="utf-8")
        config = settings(tmp_path / "text.txt", documents="lines")
        tracemalloc.start()
        inspect(config)
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return size

    assert peak(6000) - peak(1000) < 200_000  # of a megabyte more of text; a document takes eight bytes


def test_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "poems.txt").write_text(f"{WUJUE}\n{WUJUE}\n{QILÜ}\x1b[31m\n", encoding="utf-8")

    def run(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as end:
            main(["data", "inspect", *arguments])
        return int(end.value.code or 0), *capsys.readouterr()

    path = str(tmp_path / "poems.txt")
    code, out, _ = run(path, "--set", "data.documents=lines")
    assert code == 0
    assert f"{path}: 1 file, 370 bytes, lines, utf-8\n" in out.replace(str((tmp_path / "poems.txt").stat().st_size), "370")
    assert "documents   3, 1 of them copies of an earlier one\n" in out and "五绝 2 (66.7%)" in out
    assert f"--- document 1, {len(WUJUE)} characters ---\n{WUJUE}\n" in out
    assert "strange     U+001B 1 times: a control character\n" in out and "\x1b" not in out and "\\x1b[31m" in out
    code, out, _ = run(path, "--set", "data.documents=lines", "--json")
    told = json.loads(out)
    assert code == 0 and told["documents"] == 3 and told["forms"] == [["五绝", 2]] and told["samples"][0]["text"] == WUJUE
    code, out, _ = run(path)
    assert "plain text, one stream" in out and "--- from character 1 on, " in out
    code, _, err = run(path, "--set", "data.document=lines")
    assert code == 2 and "data: unknown key 'document'; did you mean 'documents'?" in err
    assert run(str(tmp_path / "poem.txt"))[0] == 2
