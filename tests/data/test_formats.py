"""Every format to exactly its documents, what is guessed and said, and what is said of text that is not in its format."""

from __future__ import annotations

import gzip
import json
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from charrnn.config import DataConfig
from charrnn.data import decoding, files, formats, records
from charrnn.data.corpus import load_corpus
from charrnn.data.formats import Reading, read_documents, read_file
from charrnn.errors import DataError

from .texts import whole

POEMS = [
    {"author": "李白", "paragraphs": ["床前明月光，疑是地上霜。", "举头望明月，低头思故乡。"], "title": "静夜思", "id": "1"},
    {"author": "和岘", "paragraphs": ["气和玉烛，睿化著鸿明。"], "rhythmic": "导引", "title": None},
    {"author": "韩绛", "paragraphs": ["嵩峤云高，洛川波暖。", "□□离宫，□棱斗焕。"], "rhythmic": "踏莎行"},
]
VERSES = [
    "静夜思\n床前明月光，疑是地上霜。\n举头望明月，低头思故乡。",
    "气和玉烛，睿化著鸿明。",
    "踏莎行\n嵩峤云高，洛川波暖。\n□□离宫，□棱斗焕。",
]
TUNES = "%abc-2.1\n% a collection\n\nX:1\nT:One\nK:D\nABc|dAF|\n\nX:2\nT:Two\nK:G\n\nGAB|\n"
SONG = """[ti:The Road]
[ar: Nobody ]
[al:Songs]
[00:05.00][00:15.00]Over the hill
[00:01.50]The road goes on
[00:10]<00:10.00>And <00:11.20>on
and never ends
[00:20.00]
"""
CSV = 'title,text,author\nOne,"a, b\nand ""c""",Ann\n\nTwo,d,Bob\n'


def written(folder: Path, name: str, content: str | bytes | list[Any]) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, list):
        content = json.dumps(content, ensure_ascii=False, indent=2)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def reading(path: Path, **data: Any) -> Reading:
    return read_documents(DataConfig.model_validate({"path": str(path)} | data))


def documents(path: Path, **data: Any) -> list[str]:
    return list(reading(path, **data))


def refused(path: Path, **data: Any) -> str:
    with pytest.raises(DataError) as caught:
        documents(path, **data)
    assert "\n" not in str(caught.value)
    return str(caught.value).replace(f"{path.parent}/", "")


# What is read, with a format that is given and with one that is guessed

CASES: list[tuple[str, str, str | list[Any], dict[str, Any], list[str]]] = [
    ("text.txt", "lines", "One\n\n  two \r\nthree", {}, ["One", "  two ", "three"]),
    ("text.txt", "blank_lines", "a\nb\n\n\nc\n", {}, ["a\nb", "c"]),
    ("poems.txt", "title_body", "望岳:会当凌绝顶\n登高： 风急：猿啸哀 \n\n无题\n", {}, ["望岳\n会当凌绝顶", "登高\n风急：猿啸哀", "无题"]),
    ("tunes.abc", "pattern", TUNES, {"pattern": "^X:"}, ["X:1\nT:One\nK:D\nABc|dAF|", "X:2\nT:Two\nK:G\n\nGAB|"]),
    ("poems.json", "chinese_poetry", POEMS, {}, VERSES),
    ("texts.jsonl", "jsonl", '{"text": "a\\nb", "n": 1}\n\n{"n": 2, "text": ["c", "d"]}\n{"text": null}\n', {}, ["a\nb", "c\nd"]),
    ("texts.csv", "csv", CSV, {}, ['a, b\nand "c"', "d"]),
    ("texts.tsv", "tsv", 'label\tbody\n1\tsay "no\n0\tyes\n', {}, ['say "no', "yes"]),
    ("song.lrc", "lrc", SONG, {}, ["The Road\nThe road goes on\nOver the hill\nAnd on\nand never ends\nOver the hill"]),
]
GUESSED = [case for case in CASES if case[1] not in ("lines", "blank_lines", "title_body")]


@pytest.mark.parametrize("name, kind, content, data, expected", CASES, ids=[case[1] for case in CASES])
@pytest.mark.parametrize("piece", [1, 3, 1 << 20])
def test_a_format_is_read_to_its_documents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, kind: str, content: Any, data: dict[str, Any], expected: list[str],
    piece: int,
) -> None:  # fmt: skip
    monkeypatch.setattr(decoding, "PIECE", piece)
    path = written(tmp_path, name, content)
    found = reading(path, format=kind, **data)
    assert list(found) == expected == list(found)
    assert not found.is_stream
    packed = written(tmp_path, f"{name}.gz", gzip.compress(path.read_bytes()))
    assert documents(packed, format=kind, **data) == expected


@pytest.mark.parametrize("name, kind, content, data, expected", GUESSED, ids=[case[1] for case in GUESSED])
def test_a_format_is_guessed_and_said(
    tmp_path: Path, name: str, kind: str, content: Any, data: dict[str, Any], expected: list[str]
) -> None:
    path = written(tmp_path, name, content)
    found = reading(path)
    assert list(found) == expected
    assert found.formats == [kind]
    note = f"{path}: read as {kind}, by name and content; for plain text set data.format: text"
    assert found.notes()[0] == note
    corpora = [load_corpus(DataConfig(path=str(path), cache=str(tmp_path / "cache"), val_fraction=0), 1) for _ in range(2)]
    for corpus in corpora:
        assert sorted(whole(corpus).split("⏹")) == sorted([*expected, ""]) and corpus.documents == len(expected)
        assert corpus.notes == found.notes()
    plain = load_corpus(DataConfig(path=str(path), cache=str(tmp_path / "cache"), format="text"), 1)
    assert whole(plain) == path.read_text() and plain.notes == []


def test_titles_and_bodies_are_guessed(tmp_path: Path) -> None:
    lines = [f"题{n}:正文第{n}句" for n in range(40)]
    path = written(tmp_path, "poems.txt", "\n".join(lines) + "\n")
    assert documents(path) == [line.replace(":", "\n") for line in lines]
    assert documents(path, documents="lines") == lines
    mostly = written(tmp_path, "mostly.txt", "\n".join([*lines, "no title"]))
    assert len(documents(mostly)) == 41


@pytest.mark.parametrize(
    "name, content",
    [
        ("prose.txt", "It was late: the lamp was out.\nHe said:\nnothing at all\n"),
        ("play.txt", "ROMEO: Ay me.\nJULIET: Ay.\n" * 20),  # the same names again and again
        ("times.txt", "".join(f"{n}:30 went out\n" for n in range(9))),
        ("verses.txt", "One line\nand one more\n\nanother verse\n"),
        ("notes.md", "".join(f"key{n}: value\n" for n in range(9))),
        ("config.json", '{"paragraphs": 3}'),
        ("words.lrc", "no stamps here\n"),
        ("tune.abc", "no tune here\n"),
    ],
)
def test_what_is_in_doubt_is_one_stream(tmp_path: Path, name: str, content: str) -> None:
    found = reading(written(tmp_path, name, content))
    assert found.is_stream and found.notes() == []
    assert "".join(found) == content


@pytest.mark.parametrize(
    "name, content, kind, columns",
    [
        ("dev.tsv", "label\ttext_a\n1\tgood\n", "tsv", "label, text_a"),
        ("a.jsonl", '{"label": 1, "review": "good"}\n', "jsonl", "label, review"),
    ],
)
def test_a_table_whose_text_has_another_name(tmp_path: Path, name: str, content: str, kind: str, columns: str) -> None:
    path = written(tmp_path, name, content)
    found = reading(path)
    assert found.is_stream and "".join(found) == content
    said = f"read as one stream of plain text; for the documents in it set data.format: {kind} and data.field to one of {columns}"
    assert found.notes() == [f"{path}: {said}"]
    assert documents(path, field=columns.split(", ")[1]) == ["good"]


def test_an_array_of_other_objects(tmp_path: Path) -> None:
    path = written(tmp_path, "authors.json", [{"name": "李白", "desc": "诗人"}])
    said = "JSON without the paragraphs of chinese_poetry, read as one stream of plain text; for the documents in it write one object a"
    assert reading(path).is_stream and reading(path).notes() == [f"{path}: {said} line, as jsonl"]


def test_an_empty_array_is_no_text(tmp_path: Path) -> None:
    found = reading(written(tmp_path, "a.json", " [\r\n]\n"))
    assert not found.is_stream and list(found) == []
    written(tmp_path, "b.json", POEMS)
    assert documents(tmp_path) == VERSES


def test_a_field_that_no_file_has(tmp_path: Path) -> None:
    said = "data.field 'words': is of jsonl, csv and tsv, and the text is one stream; set data.format to one of them, or leave "
    assert refused(written(tmp_path, "a.txt", "one\ntwo\n"), field="words") == f"{said}data.field out"
    said = "a.csv: no field 'words', which data.field names; its fields are title, text, author"
    assert refused(written(tmp_path, "a.csv", CSV), field="words") == said
    assert refused(tmp_path / "a.csv", field="Text") == f"{said.replace('words', 'Text')}; did you mean 'text'?"


def test_a_text_of_ones_own_needs_no_field_of_the_corpus(tmp_path: Path) -> None:
    config = DataConfig(path="a.csv", field="words")
    assert "".join(read_file(config, written(tmp_path, "a.txt", "one\ntwo\n"))) == "one\ntwo\n"


def test_a_folder_of_many_files(tmp_path: Path) -> None:
    for number in range(300):
        written(tmp_path, f"poems/{number % 7}/{number:03}.json", [{"title": f"题{number}", "paragraphs": ["字", f"{number}"]}])
    written(tmp_path, "poems/empty.json", "")
    found = reading(tmp_path / "poems")
    assert sorted(found) == sorted(f"题{number}\n字\n{number}" for number in range(300))
    assert found.notes() == ["301 files read: 300 as chinese_poetry, by name and content; for plain text set data.format: text"]


def test_a_folder_of_several_formats(tmp_path: Path) -> None:
    written(tmp_path, "all/a.json", POEMS[:1])
    written(tmp_path, "all/b.lrc", "[00:01]sung\n")
    written(tmp_path, "all/c.jsonl", '{"text": "told"}\n')
    assert documents(tmp_path / "all") == [VERSES[0], "sung", "told"]
    written(tmp_path, "all/README.md", "About this.\n")
    found = reading(tmp_path / "all")
    assert found.is_stream
    assert "a.json looks like chinese_poetry and" in found.notes()[0] and "README.md like plain text" in found.notes()[0]


# Template

RECORD = {"title": "题", "author": "某", "text": "文", "year": 712, "empty": ""}


@pytest.mark.parametrize(
    "template, expected",
    [
        ("{title}\n{body}", "题\n文"),
        ("{title}\\n{text}", "题\n文"),
        ("《{title}》 {author} ({year})\n{empty}\n{text}!", "《题》 某 (712)\n文!"),
        ("{empty}{text}", "文"),
    ],
)
def test_a_template(tmp_path: Path, template: str, expected: str) -> None:
    path = written(tmp_path, "a.jsonl", json.dumps(RECORD))
    assert documents(path, template=template) == [expected]


def test_a_template_of_plain_documents(tmp_path: Path) -> None:
    path = written(tmp_path, "a.txt", "one\ntwo\n")
    assert documents(path, documents="lines", template="<{body}>") == ["<one>", "<two>"]
    assert "no field 'title', which data.template names; its fields are body" in refused(path, documents="lines", template="{title}")
    assert refused(path, template="<{body}>").startswith("data.template: needs documents, and the text is one stream; set data.documents")
    assert refused(path, documents="lines", template="body").startswith("data.template 'body': names no field")


def test_an_unknown_field_in_a_template(tmp_path: Path) -> None:
    path = written(tmp_path, "a.csv", CSV)
    said = "a.csv: record 1 (line 2): no field 'titel', which data.template names; its fields are title, text, author"
    assert refused(path, template="{titel}") == f"{said}; did you mean 'title'?"


# Filters

VERSE = [
    {"title": "甲", "author": "李白", "text": "床前明月光，疑是地上霜。举头望明月，低头思故乡。"},
    {"title": "乙", "author": "杜甫", "text": "两个黄鹂鸣翠柳，一行白鹭上青天。窗含西岭千秋雪，门泊东吴万里船。"},
    {"title": "丙", "author": "李白", "text": "短歌"},
    {"title": "丁", "author": "李白", "text": "完好一行\n残□一行"},
    {"title": "戊", "author": "某", "text": "□□"},
    {"title": "己", "author": "某", "text": "短歌"},
]


@pytest.mark.parametrize(
    "filters, titles, dropped",
    [
        ({"author": "李白"}, "甲丙丁", {"author": 3}),
        ({"author": ["杜甫", "某"]}, "乙戊己", {"author": 3}),
        ({"form": "五绝"}, "甲", {"form": 5}),
        ({"form": ["五言絕句", "4x7"]}, "甲乙", {"form": 4}),
        ({"min_length": 3, "max_length": 30}, "甲丁", {"max_length": 1, "min_length": 3}),
        # 己 says the same as 丙, so its text is called 丙 here.
        ({"drop_duplicates": True}, "甲乙丙丁戊", {"drop_duplicates": 1}),
        ({"drop_lines_with": "□"}, "甲乙丙丁丙", {"drop_lines_with": 1}),
        ({"author": "某", "drop_duplicates": True, "drop_lines_with": ["□"]}, "己", {"author": 4, "drop_lines_with": 1}),
    ],
)
def test_filters(tmp_path: Path, filters: dict[str, Any], titles: str, dropped: dict[str, int]) -> None:
    path = written(tmp_path, "a.jsonl", "\n".join(json.dumps(record) for record in VERSE))
    found = reading(path, filters=filters)
    kept = list(found)
    texts = {record["text"]: record["title"] for record in reversed(VERSE)} | {"完好一行": "丁"}
    if "某" in filters.get("author", ""):
        texts["短歌"] = "己"
    assert "".join(texts[text] for text in kept) == titles
    assert found.found.dropped == dropped
    counted = ", ".join(f"{count} by {rule}" for rule, count in dropped.items())
    total = sum(dropped.values())
    assert f"data.filters: {total} document{'' if total == 1 else 's'} left out: {counted}" in found.notes()
    assert ("data.filters: 2 lines left out by drop_lines_with" in found.notes()) == (filters == {"drop_lines_with": "□"})
    config = DataConfig.model_validate({"path": str(path), "cache": str(tmp_path / "cache"), "filters": filters, "val_fraction": 0})
    assert load_corpus(config, 1).notes == load_corpus(config, 1).notes == found.notes()


def test_lines_are_left_out_of_a_stream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "PIECE", 4)
    path = written(tmp_path, "a.txt", "whole\nbro□ken\nend")
    found = reading(path, filters={"drop_lines_with": "□"})
    assert "".join(found) == "whole\nend"
    assert found.notes() == ["data.filters: 1 line left out by drop_lines_with"]
    said = refused(path, filters={"min_length": 3})
    assert said == "data.filters.min_length: needs documents, and the text is one stream; set data.documents or data.format"


def test_filters_that_leave_nothing_or_cannot_be(tmp_path: Path) -> None:
    path = written(tmp_path, "a.jsonl", json.dumps(VERSE[0]))
    config = DataConfig.model_validate({"path": str(path), "cache": str(tmp_path / "cache"), "filters": {"min_length": 99}})
    with pytest.raises(DataError, match=r"a.jsonl: nothing is left of the text; .* 1 document left out: 1 by min_length; expected filters"):
        load_corpus(config, 1)
    assert refused(path, filters={"form": "六绝"}).startswith("data.filters.form: form '六绝': unknown; expected 五绝")
    path = written(tmp_path, "b.jsonl", '{"text": "a"}')
    assert "no field 'author', which data.filters.author names" in refused(path, filters={"author": "x"})


@given(texts=st.lists(st.sampled_from([f"text {n}" for n in range(50)]), max_size=200))
def test_duplicates_are_those_of_a_set(texts: list[str]) -> None:
    from charrnn.data.filtering import Seen

    seen = Seen()
    assert [text for text in texts if seen.add(text)] == list(dict.fromkeys(texts))


def test_many_different_texts_are_no_duplicates() -> None:
    from charrnn.data.filtering import Seen

    seen = Seen()
    assert all(seen.add(str(n)) for n in range(20_000))
    assert not any(seen.add(str(n)) for n in range(20_000))


# Lyrics


@pytest.mark.parametrize(
    "content, expected",
    [
        ("[00:02]b\n[00:01]a\n[00:02]c\n", "a\nb\nc"),
        ("[01:00]c\n[00:59.99]b\n[0:07:50]a\n", "a\nb\nc"),
        ("[00:10]a\n[offset:+5000]\n[00:12]b\n", "b\na"),  # brought forward to 7 seconds
        ("[offset:-500]\n[00:10]a\n[00:09]b\n", "b\na"),
        ("[00:01][00:03]x\n[00:02]y\n", "x\ny\nx"),
        ("[by:someone]\n[00:01]  [Chorus] la \n", "[Chorus] la"),
    ],
)
def test_lyrics_in_the_order_in_which_they_are_sung(tmp_path: Path, content: str, expected: str) -> None:
    assert documents(written(tmp_path, "song.lrc", content)) == [expected]


def test_who_sings(tmp_path: Path) -> None:
    path = written(tmp_path, "song.lrc", SONG)
    assert documents(path, template="{author}: {title} ({al})") == ["Nobody: The Road (Songs)"]
    bad = written(tmp_path, "bad.lrc", "[offset:soon]\n[00:01]a\n")
    assert refused(bad) == "bad.lrc: [offset:soon]: not a number; expected milliseconds"


# JSON, by the piece

PLAIN = st.none() | st.booleans() | st.integers() | st.text(st.sampled_from('ab"\\\n{}[],: 漢😀'), max_size=8)
VALUES = st.recursive(PLAIN, lambda inner: st.lists(inner, max_size=3))


@given(
    objects=st.lists(st.dictionaries(st.text(max_size=3), VALUES, max_size=3), max_size=5),
    indent=st.sampled_from([None, 1]),
    ascii=st.booleans(),
    piece=st.sampled_from([1, 2, 7, 100]),
)
@examples(max_examples=60)
def test_json_by_the_piece_is_json_at_once(objects: list[dict[str, Any]], indent: int | None, ascii: bool, piece: int) -> None:
    text = json.dumps(objects, indent=indent, ensure_ascii=ascii)
    pieces = [text[at : at + piece] for at in range(0, len(text), piece)]
    found = list(records.json_objects(pieces, "a.json"))
    assert [value for _, value in found] == objects
    lines = [line for line, _ in found]
    assert lines == sorted(lines)


@given(text=st.text(st.sampled_from('[]{}",:ab1 \n\\'), max_size=12), piece=st.sampled_from([1, 3, 100]))
def test_json_that_is_none_is_never_read(text: str, piece: int) -> None:
    try:
        value = json.loads(text)
        valid = isinstance(value, dict) or (isinstance(value, list) and all(isinstance(item, dict) for item in value))
    except ValueError:
        valid = not text.strip()
    try:
        list(records.json_objects([text[at : at + piece] for at in range(0, len(text), piece)], "a.json"))
        assert valid
    except DataError:
        assert not valid


def test_a_huge_array_passes_through_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "LONGEST", 1000)
    monkeypatch.setattr(decoding, "PIECE", 100)
    path = written(tmp_path, "a.json", [{"title": "t", "paragraphs": ["abc" * 20]}] * 200)
    assert len(documents(path)) == 200
    path = written(tmp_path, "b.json", '[{"paragraphs": ["' + "abc" * 2000 + '"]}]')
    assert refused(path, format="chinese_poetry") == "b.json: line 1: a record of more than 1,000 characters; write one a line, as jsonl"


# Text that is not in its format


@pytest.mark.parametrize(
    "kind, content, said",
    [
        (
            "chinese_poetry",
            '[{"paragraphs": ["a"], "title": "b"},\n {"title": "c"}]',
            "x: record 2 (line 2): no field 'paragraphs', which data.format names; its fields are title; mend the record",
        ),
        ("chinese_poetry", '[{"paragraphs": ["a"]}]', "x: record 1 (line 1): no field 'title', which data.template names; its fields are"),
        ("chinese_poetry", '[{"paragraphs": [{}], "title": "b"}]', "x: record 1 (line 1): field 'paragraphs' holds [{}]; expected text or"),
        ("chinese_poetry", '[\n  {"paragraphs": ["a"]\n  "title": 1}]', "x: line 3, column 3: not valid JSON: Expecting ',' delim"),
        ("chinese_poetry", '[{"title": "a", "paragraphs": ["b"]}', "x: line 1, column 37: not valid JSON: Expecting ',' or ']'; mend"),
        ("chinese_poetry", '[{"title": "a', "x: line 1, column 12: not valid JSON: Unterminated string starting at; mend"),
        ("chinese_poetry", "[1]", "x: record 1 (line 1): holds 1; expected an object with fields"),
        ("jsonl", '{"text": "a"}\n{"text": a}\n', "x: line 2, column 10: not valid JSON: Expecting value; expected one object a line"),
        ("jsonl", '{"text": "a"}\n\n{"txt": "b"}\n', "x: record 2 (line 3): no field 'text', which its first"),
        ("jsonl", '["a"]\n', "x: line 1: holds ['a']; expected an object such as"),
        ("jsonl", '{"label": 1}\n', "x: no field is called text, body, content, lyrics, poem or verse; set data.field to the one that"),
        ("csv", "title,text\na,b\nc\n", "x: line 3: 1 field, and the header has 2; put quotes around what holds a comma or a line end"),
        ("csv", 'title,text\na,"b\nc"\nd,e,f\n', "x: line 4: 3 fields, and the header has 2; put quotes around"),
        ("csv", 'title,text\na,"b\n', "x: line 2: not valid CSV: unexpected end of data; expected quotes that close"),
        ("csv", "text,text\na,b\n", "x: line 1: two columns are called 'text'; expected a header of different names"),
        ("csv", "title;text\na;b\n", "x: line 1: one column, 'title;text'; expected commas between columns, so put them for its ';'"),
        ("csv", "a,b\n1,2\n", "x: no field is called text, body, content, lyrics, poem or verse; set data.field to the one that holds"),
        ("tsv", "a\ttext\n1\n", "x: line 2: 1 field, and the header has 2; mend the row"),
    ],
)
def test_text_that_is_not_in_its_format(tmp_path: Path, kind: str, content: str, said: str) -> None:
    assert refused(written(tmp_path, "x", content), format=kind).startswith(said)


def test_a_header_of_very_many_columns_is_looked_at_once(tmp_path: Path) -> None:
    path = written(tmp_path, "a.csv", ",".join(map(str, range(200_000))) + "\n")
    started = time.process_time()
    assert refused(path, format="csv").startswith("a.csv: no field is called text")
    assert time.process_time() - started < 5  # each compared with each, it was minutes


def test_no_document_begins(tmp_path: Path) -> None:
    path = written(tmp_path, "a.abc", "T:One\n")
    assert refused(path, pattern="^X:").startswith("a.abc: no line begins with data.pattern '^X:'; expected one where each document begins")


def test_a_field_that_is_not_there(tmp_path: Path) -> None:
    path = written(tmp_path, "a.csv", CSV)
    said = "a.csv: line 1: no column 'words', which data.field names; its columns are title, text, author"
    assert refused(path, format="csv", field="words") == said


def test_half_a_character_in_json(tmp_path: Path) -> None:
    path = written(tmp_path, "a.jsonl", '{"text": "ab\\ud83d"}\n' * 3)
    with pytest.raises(DataError, match=r"a.jsonl: holds halves of characters \(surrogates\)"):
        load_corpus(DataConfig(path=str(path), cache=str(tmp_path / "cache"), filters={"drop_duplicates": True}), 1)  # type: ignore[arg-type]


# Archives


def zipped(path: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def test_a_zip_is_read_in_place_in_the_order_of_names(tmp_path: Path) -> None:
    members = {"b.txt": b"second\n", "a/x.txt": b"first", "__MACOSX/a": b"no", ".hidden": b"no", "c.txt.gz": gzip.compress(b"third")}
    path = zipped(tmp_path / "texts.zip", members)
    assert "".join(reading(path)) == "first\nsecond\nthird"
    poems = zipped(tmp_path / "poems.zip", {f"{n}.json": json.dumps([poem]).encode() for n, poem in enumerate(POEMS)})
    found = reading(poems)
    assert list(found) == VERSES and found.formats == ["chinese_poetry"] * 3
    corpus = load_corpus(DataConfig(path=str(poems), cache=str(tmp_path / "cache")), 1)
    assert corpus.documents == 3 and corpus.files == 1
    assert {p.name for p in tmp_path.iterdir()} == {"texts.zip", "poems.zip", "cache"}


def test_progress_of_an_archive_ends_at_the_whole(tmp_path: Path) -> None:
    path = zipped(tmp_path / "texts.zip", {"a.txt": b"first\n" * 99, "b.txt": b"second\n" * 99})
    seen: list[tuple[int, int]] = []
    load_corpus(DataConfig(path=str(path), cache=str(tmp_path / "cache")), 1, lambda done, total: seen.append((done, total)))
    assert seen == sorted(seen) and seen[-1] == (path.stat().st_size, path.stat().st_size)


@pytest.mark.parametrize("name", ["../x.txt", "a/../../x.txt", "/etc/x.txt", "..\\x.txt", "C:\\x.txt"])
def test_a_path_out_of_an_archive(tmp_path: Path, name: str) -> None:
    path = zipped(tmp_path / "a.zip", {"good.txt": b"text", name: b"text"})
    assert refused(path).startswith(f"a.zip: {name}: a path that leads out of the archive; expected members inside it")


def test_a_bomb(tmp_path: Path) -> None:
    path = zipped(tmp_path / "a.zip", {"good.txt": b"text", "bomb.txt": bytes(3_000_000)})
    assert refused(path).startswith("a.zip: bomb.txt: ")
    assert "bytes that unpack to 3,000,000 or more; expected at most 100 times as many" in refused(path)
    packed = written(tmp_path, "b.txt.gz", gzip.compress(b"0" * 3_000_000))
    assert refused(packed).startswith("b.txt.gz: ") and "expected at most 100 times as many" in refused(packed)


def test_a_bomb_whose_header_lies(tmp_path: Path) -> None:
    """No more is unpacked than the header says, and then its checksum is wrong."""
    path = zipped(tmp_path / "a.zip", {"bomb.txt": bytes(3_000_000)})
    size = (3_000_000).to_bytes(4, "little")
    path.write_bytes(path.read_bytes().replace(size, (1000).to_bytes(4, "little")))
    assert refused(path).startswith("a.zip: bomb.txt: not a whole zip archive (Bad CRC-32")


def test_members_that_share_their_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """None of them unpacks to too much alone."""
    monkeypatch.setattr(files, "BOMB_BYTES", 1000)
    monkeypatch.setattr(files, "BOMB_RATIO", 3)
    content = bytes(range(256)) * 2
    path = zipped(tmp_path / "a.zip", {f"{n}.txt": content for n in range(9)}, zipfile.ZIP_STORED)
    archive = path.read_bytes()
    central = archive.index(b"PK\x01\x02")
    body, rest = archive[: central // 9], bytearray(archive[central:])
    end = rest.index(b"PK\x05\x06")
    rest[end + 16 : end + 20] = len(body).to_bytes(4, "little")
    path.write_bytes(body + bytes(rest))
    assert "a.zip: its 9 members: " in refused(path)


def test_other_archives_that_cannot_be_read(tmp_path: Path) -> None:
    encrypted = zipped(tmp_path / "a.zip", {"a.txt": b"text"})
    content = bytearray(encrypted.read_bytes())
    content[6] |= 1
    content[content.index(b"PK\x01\x02") + 8] |= 1
    encrypted.write_bytes(bytes(content))
    assert refused(encrypted) == "a.zip: a.txt: encrypted; unpack it by hand and name the folder in data.path"
    assert refused(written(tmp_path, "b.zip", b"no archive")).startswith("b.zip: not a whole zip archive (File is not a zip file); unpack")
    assert refused(zipped(tmp_path / "c.zip", {})) == "c.zip: the archive holds no files; expected text files in it"
    assert "d.zip: e.zip: an archive within an archive" in refused(zipped(tmp_path / "d.zip", {"e.zip": b"PK"}))


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz", "a.TGZ", "a.tar.bz2", "a.tar.xz"])
def test_a_tar_archive_is_no_text(tmp_path: Path, name: str) -> None:
    with tarfile.open(tmp_path / name, "w:gz" if name[-2:].lower() == "gz" else "w") as archive:
        archive.add(written(tmp_path, "a.txt", "text\n"), "a.txt")
    assert refused(tmp_path / name) == f"{name}: a tar archive; unpack it by hand and name the folder in data.path"


def test_a_member_that_is_no_gzip_file(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("b.txt.gz", "text")
    assert refused(tmp_path / "a.zip").startswith("a.zip: b.txt.gz: not a whole gzip file (")


def test_zeros_in_every_place_are_not_utf_16(tmp_path: Path) -> None:
    path = written(tmp_path, "a.dat", b"data\x80" + bytes(3000) + bytes(range(200)))
    assert refused(path).startswith("a.dat: not utf-8 at byte 4; is it text at all?")


def test_an_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"^data.path '.*empty': the directory holds no files; expected text files in it$"):
        reading(tmp_path / "empty")


# Encodings

TEXTS = {
    "gb18030": "秦川雄帝宅，函谷壮皇居。\n绮殿千寻起，离宫百雉余。\n连甍遥接汉，飞观迥凌虚。\n",
    "big5": "秦川雄帝宅，函谷壯皇居。\n綺殿千尋起，離宮百雉餘。\n連甍遙接漢，飛觀迥凌虛。\n",
    "shift_jis": "吾輩は猫である。名前はまだ無い。\nどこで生れたかとんと見当がつかぬ。\n",
    "cp1252": "Das Übel der Bäume, süß und müßig.\n“L'été est passé”, dit-elle – déjà.\n",
    "utf-16": "text and more text\nГород\n",
}


@pytest.mark.parametrize("encoding", TEXTS)
def test_an_encoding_is_detected_and_said(tmp_path: Path, encoding: str) -> None:
    path = written(tmp_path, "a.txt", TEXTS[encoding].encode(encoding))
    found = reading(path)
    assert "".join(found) == TEXTS[encoding]
    assert found.encodings == [encoding]
    assert found.notes() == [f"{path}: read as {encoding}, which was detected; if that is wrong, set data.encoding"]
    given = reading(path, encoding=encoding)
    assert "".join(given) == TEXTS[encoding] and given.notes() == []
    config = DataConfig(path=str(path), cache=str(tmp_path / "cache"))
    assert load_corpus(config, 1).notes == load_corpus(config, 1).notes == found.notes()


@pytest.mark.parametrize("text", ["plain\n", "żółć 漢字\n", "\ufeffżółć\n"])
def test_utf_8_is_nothing_to_talk_about(tmp_path: Path, text: str) -> None:
    found = reading(written(tmp_path, "a.txt", text))
    assert "".join(found) == text.removeprefix("\ufeff")
    assert found.notes() == []


def test_utf_16_without_its_mark_is_seen_by_its_zeros(tmp_path: Path) -> None:
    for encoding in ("utf-16-le", "utf-16-be"):
        assert "".join(reading(written(tmp_path, "a.txt", "some text é\n".encode(encoding)))) == "some text é\n"


def test_what_tells_the_encoding_may_come_late(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "PIECE", 64)
    text = "plain words\n" * 20 + TEXTS["gb18030"]
    found = reading(written(tmp_path, "a.txt", text.encode("gb18030")))
    assert "".join(found) == text and found.encodings == ["gb18030"]


def test_a_long_line_is_cut_between_characters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "SAMPLE", 101)
    text = "a" + TEXTS["gb18030"].replace("\n", "")
    assert reading(written(tmp_path, "a.txt", text.encode("gb18030"))).is_stream
    assert documents(tmp_path / "a.txt") == [text]


def test_damaged_utf_8_is_not_something_else(tmp_path: Path) -> None:
    content = "größer, müßig, süß, öde Bäume\n".encode() + b"\xff\n"
    path = written(tmp_path, "a.txt", content)
    assert refused(path) == "a.txt: not utf-8 at byte 38; its bytes would fit cp1252: set data.encoding"


def test_mixed_encodings_in_one_folder(tmp_path: Path) -> None:
    written(tmp_path, "all/1.txt", "ascii is the same in all of them\n")
    written(tmp_path, "all/2.txt", TEXTS["gb18030"])
    written(tmp_path, "all/3.txt", TEXTS["gb18030"].encode("gb18030"))
    said = refused(tmp_path / "all").replace(f"{tmp_path}/", "")
    assert said == (
        "all/3.txt: gb18030, and all/2.txt is utf-8; expected one encoding in all files, so convert one of them, "
        "or set data.encoding if both are in the same"
    )
    (tmp_path / "all/2.txt").write_bytes(TEXTS["big5"].encode("big5"))
    assert "3.txt: gb18030, and all/2.txt is big5;" in refused(tmp_path / "all").replace(f"{tmp_path}/", "")
    (tmp_path / "all/2.txt").write_bytes("明月\n".encode("gb18030"))
    found = reading(tmp_path / "all")
    assert "".join(found).endswith(TEXTS["gb18030"])
    assert "2.txt and 1 more: read as gb18030, which was detected" in found.notes()[0]


def test_poems_in_an_encoding_of_old(tmp_path: Path) -> None:
    content = json.dumps(POEMS, ensure_ascii=False).encode("gb18030")
    found = reading(written(tmp_path, "a.json", content))
    assert list(found) == VERSES
    said = [note.partition(", ")[0].removeprefix(f"{tmp_path}/") for note in found.notes()]
    assert said == ["a.json: read as chinese_poetry", "a.json: read as gb18030"]


# Script


def test_to_simplified_and_traditional(tmp_path: Path) -> None:
    path = written(tmp_path, "a.txt", "理发店的头发\n皇后在后面\n")
    found = reading(path, script="traditional")
    assert "".join(found) == "理髮店的頭髮\n皇后在後面\n"
    (note,) = found.notes()
    assert note == "converted to traditional characters: 5 of 13 (38.46%) were ambiguous and chosen by the words around them"
    poems = written(tmp_path, "b.json", [{"title": "靜夜思", "author": "李賀", "paragraphs": ["乾坤"]}])
    assert documents(poems, script="simplified", filters={"author": "李贺"}) == ["静夜思\n乾坤"]


def test_a_script_needs_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "opencc", None)
    said = refused(written(tmp_path, "a.txt", "头发\n"), script="traditional")
    assert said == "data.script: traditional needs OpenCC, which is not installed; pip install 'charrnn[zh]'"


# A text beside the corpus


def test_a_file_is_read_as_the_corpus_was(tmp_path: Path) -> None:
    path = written(tmp_path, "a.json", POEMS)
    config = DataConfig.model_validate({"path": "elsewhere", "template": "{author}\n{body}", "filters": {"min_length": 999}})
    assert next(iter(read_file(config, path))).startswith("李白\n床前")
    stream = read_file(config, path, "none")
    assert stream.is_stream and "".join(stream) == path.read_text()


# Any documents at all

LINE = st.text(st.sampled_from('ab"漢,\t{}:é'), min_size=1, max_size=9).filter(lambda text: bool(text.strip()))


@given(texts=st.lists(LINE, min_size=1, max_size=9), batch=st.sampled_from([1, 5, 1000]))
@examples(max_examples=40)
@pytest.mark.parametrize("kind", ["jsonl", "csv", "chinese_poetry"])
def test_what_was_written_is_read(kind: str, texts: list[str], batch: int) -> None:
    writers: dict[str, Callable[[], str]] = {
        "jsonl": lambda: "\n".join(json.dumps({"text": text}) for text in texts),
        "csv": lambda: "\n".join(["text,n", *('"' + text.replace('"', '""') + '",1' for text in texts)]),
        "chinese_poetry": lambda: json.dumps([{"title": "", "paragraphs": [text]} for text in texts]),
    }
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(formats, "BATCH", batch)
        assert documents(written(Path(folder), "a", writers[kind]()), format=kind) == texts
