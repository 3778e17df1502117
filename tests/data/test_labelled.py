"""Labelled texts and characters: what they become, and that one that cannot be used is named with its line."""

from __future__ import annotations

import gzip
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from charrnn.config import DataConfig
from charrnn.data.batch import IGNORED
from charrnn.data.files import sources
from charrnn.data.labelled import Example, Labelled, lines, load_labelled, load_labelled_file, own, sentences, texts, unsettled_texts
from charrnn.errors import DataError

ROWS = [("good", "很好 nice"), ("bad", "太差了"), ("good", "喜欢"), ("so-so", "还行吧"), ("bad", 'no "thanks')]
TSV = "label\ttext\n" + "".join(f"{label}\t{text}\n" for label, text in ROWS)
CSV = "text,stars,label\n" + "".join('"{}",5,{}\n'.format(text.replace('"', '""'), label) for label, text in ROWS)
JSONL = "".join(json.dumps({"label": label, "text": text}, ensure_ascii=False) + "\n" for label, text in ROWS)
CONLL = "-DOCSTART- -X- O\n\n我 O\n在 O\n北 B-LOC\n京 I-LOC\n\n\n好 O\n。 O\n"


def settings(path: Path, **data: Any) -> DataConfig:
    return DataConfig.model_validate({"path": str(path), "val_fraction": 0, **data})


def written(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def content(labelled: Labelled, split: str = "train") -> list[tuple[str, Any]]:
    """What a split holds, as text and labels again."""
    corpus = labelled.corpus
    ids, targets = corpus.split(split), labelled.split(split)
    found: list[tuple[str, Any]] = []
    for start, end in corpus.edges(split):
        text = "".join(corpus.vocabulary.decode([i]) or "⁇" for i in ids[start:end].tolist())
        inside, last = targets[start:end].tolist(), int(targets[end])
        if last == IGNORED:
            found.append((text, [labelled.labels[i] for i in inside]))
        else:
            assert set(inside) <= {IGNORED}
            found.append((text, labelled.labels[last]))
    return found


def refused(work: Callable[[], Any]) -> str:
    with pytest.raises(DataError) as caught:
        work()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name, text", [("a.tsv", TSV), ("a.csv", CSV), ("a.jsonl", JSONL), ("a.tsv", TSV.replace("\n", "\r\n"))])
def test_named_columns_become_texts_with_labels(tmp_path: Path, name: str, text: str) -> None:
    found = load_labelled(settings(written(tmp_path, name, text)), 1)
    assert found.labels == ("bad", "good", "so-so")
    assert sorted(content(found)) == sorted((text, label) for label, text in ROWS)
    assert found.targets.shape == found.corpus.ids.shape and found.corpus.documents == 5


def test_packed_and_encoded_otherwise_it_is_the_same(tmp_path: Path) -> None:
    plain = content(load_labelled(settings(written(tmp_path, "a.tsv", TSV)), 1))
    marked = written(tmp_path, "marked.tsv", b"\xef\xbb\xbf" + TSV.encode())
    packed = written(tmp_path, "b.tsv.gz", gzip.compress(TSV.encode()))
    with zipfile.ZipFile(tmp_path / "c.zip", "w") as archive:
        archive.writestr("inside.tsv", TSV)
    foreign = written(tmp_path, "d.tsv", TSV.encode("gb18030"))
    for path in (marked, packed, tmp_path / "c.zip", foreign):
        assert content(load_labelled(settings(path, encoding="gb18030" if path == foreign else "auto"), 1)) == plain


def test_field_label_script_and_filters_are_those_of_the_configuration(tmp_path: Path) -> None:
    path = written(tmp_path, "a.data", "stars\ttext_a\n5\t頭髮\n1\t漢語很好\n5\t發展\n1\t頭髮\n")
    config = settings(path, format="tsv", field="text_a", label="stars", script="simplified", filters={"max_length": 3})
    found = load_labelled(config, 1)
    assert sorted(content(found)) == [("发展", "5"), ("头发", "1"), ("头发", "5")]
    assert any(note.startswith("converted to simplified characters") for note in found.corpus.notes)
    assert "data.filters: 1 document left out: 1 by max_length" in found.corpus.notes


def test_splits_are_drawn_by_seed_or_given(tmp_path: Path) -> None:
    rows = [(f"{'ab'[i % 2]}", f"text {chr(65 + i % 4)}{chr(65 + i % 5)}") for i in range(20)]
    path = written(tmp_path, "a.tsv", "label\ttext\n" + "".join(f"{label}\t{text}\n" for label, text in rows))
    config = settings(path, val_fraction=0.25, test_fraction=0.1)
    found = load_labelled(config, 1)
    assert [len(content(found, split)) for split in ("train", "val", "test")] == [13, 5, 2]
    assert sorted(content(found, "train") + content(found, "val") + content(found, "test")) == sorted((t, label) for label, t in rows)
    assert content(load_labelled(config, 1), "val") == content(found, "val") != content(load_labelled(config, 2), "val")
    val = written(tmp_path, "val.tsv", "label\ttext\nb\ttext ⅋\na\ttext A\n")
    given = load_labelled(config.model_copy(update={"val_path": str(val)}), 1)
    assert content(given, "val") == [("text ⁇", "b"), ("text A", "a")]  # in its order, and of train's vocabulary
    assert [len(content(given, split)) for split in ("train", "test")] == [18, 2]
    assert load_labelled(config.model_copy(update={"val_path": str(val), "script": "traditional"}), 1).corpus.notes == [
        "converted to traditional characters: 0 of 140 (0.00%) were ambiguous and chosen by the words around them",
        "data.val_path: converted to traditional characters: 0 of 12 (0.00%) were ambiguous and chosen by the words around them",
    ]
    assert given.corpus.unknown == 1 and given.corpus.contents != found.corpus.contents


def test_a_file_is_read_with_the_vocabulary_and_the_labels_of_a_model(tmp_path: Path) -> None:
    config = settings(written(tmp_path, "a.tsv", TSV), filters={"max_length": 4})
    model = load_labelled(config, 1)
    path = written(tmp_path, "b.jsonl", '{"label": "good", "text": "喜欢 ABCDEFG"}\n{"label": "bad", "text": "很差"}\n')
    found = load_labelled_file(config, path, model.corpus.vocabulary, model.labels)
    assert content(found, "test") == [("喜欢" + "⁇" * 8, "good"), ("⁇差", "bad")] and found.labels == model.labels


@pytest.mark.parametrize(
    "text, data, message",
    [
        ("lable\ttext\n1\ta\n", {},
         "record 1 (line 2): no field 'label', which data.label names; its fields are lable, text; did you mean 'lable'?"),
        ("label\ttext_a\n1\ta\n", {},
         "no field is called text, body, content, lyrics, poem or verse; set data.field to the one that holds the text: label, text_a"),
        ("label\ttext\n1\ta\n\n0\t \n", {}, "record 2 (line 4): field 'text' is empty; expected text, so fill it or take the row out"),
        ("label\ttext\n1\ta\n \tb\n", {}, "record 2 (line 3): field 'label' is empty; expected a label, so fill it or take the row out"),
        ("label\ttext\n1\ta\n1\tb\n", {}, "only one label, '1'; there is nothing to decide"),
        ("label\ttext\n", {}, "holds no labelled text; expected some to learn from"),
        ("label\ttext\n1\ta\n0\tb\n", {"val_fraction": 0.9},
         "2 labelled texts leave none to train on; add some, or lower data.val_fraction and data.test_fraction"),
        ("label\ttext\n1\ta\tc\n0\tb\n", {}, "line 2: 3 fields, and the header has 2; mend the row"),
        ("label\ttext\n" + "".join(f"{i}\tx{i}\n" for i in range(150)), {}, "150 different labels for 150 texts or characters; "
         "expected labels that come again and again, so set data.label to their column"),
    ],
)  # fmt: skip
def test_a_text_that_cannot_be_used_is_named(tmp_path: Path, text: str, data: dict[str, Any], message: str) -> None:
    path = written(tmp_path, "a.tsv", text)
    assert refused(lambda: load_labelled(settings(path, **data), 1)) == f"{path}: {message}"


def test_plain_text_has_no_labels(tmp_path: Path) -> None:
    path = written(tmp_path, "a.txt", "good\tvery\n")
    expected = f"{path}: not named .tsv, .csv or .jsonl; expected named columns with text and label, so set data.format to what it is"
    assert refused(lambda: load_labelled(settings(path), 1)) == expected


def test_an_unknown_label_is_named_with_its_line(tmp_path: Path) -> None:
    model = load_labelled(settings(written(tmp_path, "a.tsv", TSV)), 1)
    path = written(tmp_path, "b.tsv", "label\ttext\ngood\tx\nGood\ty\n")
    expected = f"{path}: line 3: unknown label 'Good'; expected one of bad, good, so-so; did you mean 'good'?"
    assert refused(lambda: load_labelled_file(settings(path), path, model.corpus.vocabulary, model.labels)) == expected
    assert refused(lambda: load_labelled(settings(tmp_path / "a.tsv", val_path=str(path)), 1)) == expected
    path = written(tmp_path, "b.conll", "a O\nb B-PER\n")
    expected = f"{path}: line 2: unknown label 'B-PER'; expected one of B-LOC, O"
    assert refused(lambda: load_labelled_file(settings(path), path, model.corpus.vocabulary, ("B-LOC", "O"), sentences)) == expected


@pytest.mark.parametrize(
    "text", [CONLL, CONLL.replace(" ", "\t"), CONLL.replace("\n", "\r\n"), "\ufeff" + CONLL, CONLL.replace(" ", " x ")]
)
def test_conll_columns_become_characters_with_labels(tmp_path: Path, text: str) -> None:
    found = load_labelled(settings(written(tmp_path, "a.conll", text)), 1, sentences)
    assert found.labels == ("B-LOC", "I-LOC", "O")
    assert sorted(content(found)) == [("好。", ["O", "O"]), ("我在北京", ["O", "O", "B-LOC", "I-LOC"])]


def test_a_tab_parts_columns_of_which_one_is_a_space(tmp_path: Path) -> None:
    found = load_labelled(settings(written(tmp_path, "a.conll", "a\tO\n \tO\n\u3000\tX\nb\tO\n")), 1, sentences)
    assert content(found) == [("a \u3000b", ["O", "O", "X", "O"])]


def test_converted_characters_keep_their_labels(tmp_path: Path) -> None:
    found = load_labelled(settings(written(tmp_path, "a.conll", "頭 B\n髮 I\n發 B\n展 I\n"), script="simplified"), 1, sentences)
    assert content(found) == [("头发发展", ["B", "I", "B", "I"])]


@pytest.mark.parametrize(
    "text, message",
    [
        ("字 O\n词\n", "line 2: one column, '词'; expected a character and its label, as in 字 B-LOC"),
        ("字 x O\n\n词 O\n", "line 3: 2 columns, and the first row has 3; expected as many in all, so mend the row"),
        ("字 O\n词语 O\n", "line 2: '词语' is 2 characters; expected one character in the first column, each with a line of its own"),
        ("字 O\n\tO\n", "line 2: the first column is empty; expected one character in the first column, each with a line of its own"),
        ("字\tO\n词\t\n", "line 2: the last column is empty; expected the character's label"),
        (b"\xe5\xad\x97 O\n\xed\xa0\xbd\xed\xb8\x80 O\n", "line 2: bytes ED A0 BD ED B8 80: no whole character; "
         "expected text without CESU-8 surrogates or damage, so mend it there"),
        ("字 O\n".encode() * 30 + b"\xed\xa0\xbd O\n", "line 31: bytes ED A0 BD: no whole character; "
         "expected text without CESU-8 surrogates or damage, so mend it there"),
    ],
)  # fmt: skip
def test_a_row_that_cannot_be_used_is_named(tmp_path: Path, text: str | bytes, message: str) -> None:
    path = written(tmp_path, "a.conll", text)
    assert refused(lambda: load_labelled(settings(path), 1, sentences)) == f"{path}: {message}"


def test_the_other_sentences_are_read(tmp_path: Path) -> None:
    path = written(tmp_path, "a.conll", "好 O\n\n字\n词 O\n\n人 B\n")
    *found, last = list(sentences(settings(path), sources([path]), []))
    assert found[0] == Example("好", ("O",), str(path), 1) and isinstance(found[1], DataError)
    assert last == Example("人", ("B",), str(path), 6)


def test_the_other_rows_are_read(tmp_path: Path) -> None:
    tsv = b"label\ttext\n1\tone\n1\n\ttwo\n0\t\n1\t\xed\xa0\xbd\n" + "0\t三\n".encode()
    jsonl = b'{"text": "one", "label": 1}\nno\n[1]\n{"text": "\\ud800"}\n{"text": 5}\n{"text": [1]}\n{"text": "six", "label": 0}\n'
    csv = 'label,text\n1,one\n1,a,b\n1,"a"b\n0,six\n'
    expected: dict[str, list[str]] = {
        "a.tsv": ["one", "line 3", "record 3 (line 4)", "record 4 (line 5)", "record 5 (line 6)", "三"],
        "a.jsonl": ["one", "line 2, column 1", "line 3", "record 4 (line 4)", "record 5 (line 5)", "record 6 (line 6)", "six"],
        "a.csv": ["one", "line 3", "line 4", "six"],
    }
    for name, text in (("a.tsv", tsv), ("a.jsonl", jsonl), ("a.csv", csv.encode())):
        path = written(tmp_path, name, text)
        found = list(texts(settings(path), sources([path]), []))
        assert [str(e).removeprefix(f"{path}: ").split(":")[0] if isinstance(e, DataError) else e.text for e in found] == expected[name]


def test_a_surrogate_pair_in_ascii_is_damage_and_not_another_encoding(tmp_path: Path) -> None:
    path = written(tmp_path, "a.tsv", b"label\ttext\n1\tone\n1\tsmile \xed\xa0\xbd\xed\xb8\x80\n0\ttwo\n")
    notes: list[str] = []
    one, broken, two = list(texts(settings(path), sources([path]), notes))
    assert (one, two, notes) == (Example("one", "1", str(path), 2), Example("two", "0", str(path), 4), [])
    assert isinstance(broken, DataError) and "(line 3): bytes ED A0 BD ED B8 80: no whole character" in str(broken)


def test_a_column_that_is_missing_is_named_with_those_there_are(tmp_path: Path) -> None:
    path = written(tmp_path, "a.tsv", "text\tsort\nx\tgood\n")
    fact = "no field 'label', which data.label names; its fields are text, sort"
    expected = f"{path}: record 1 (line 2): {fact}; set data.label to one of them"
    assert refused(lambda: load_labelled(settings(path), 1)) == expected


def test_a_label_may_be_missing_where_nothing_is_learnt(tmp_path: Path) -> None:
    path = written(tmp_path, "a.tsv", "text\nx\n")
    assert list(unsettled_texts(settings(path), sources([path]), [])) == [Example("x", None, str(path), 2)]
    assert own(settings(path, format="csv", filters={"min_length": 3}), sources([path])) == settings(path)


def test_lines_are_texts_and_an_empty_one_is_named(tmp_path: Path) -> None:
    path = written(tmp_path, "a.txt", "很好很好很好很好很好\r\n \n".encode() + b"\xff\xfe\n" + "漢語".encode())
    notes: list[str] = []
    first, empty, broken, last = list(lines(settings(path, script="simplified"), sources([path]), notes))
    assert first == Example("很好很好很好很好很好", None, str(path), 1) and last == Example("汉语", None, str(path), 4)
    assert str(empty) == f"{path}: line 2: the line is empty; expected a text, so fill it or take it out"
    assert str(broken).startswith(f"{path}: line 3: bytes FF FE: no whole character; ")
    foreign = written(tmp_path, "b.txt", "这个东西很好，我很喜欢，下次还会再来买的".encode("gb18030"))
    assert [e.text for e in lines(settings(foreign), sources([foreign]), notes) if isinstance(e, Example)]
    assert notes[-1] == f"{foreign}: read as gb18030, which was detected; if that is wrong, set data.encoding"


def test_columns_of_characters_know_no_filters(tmp_path: Path) -> None:
    path = written(tmp_path, "a.conll", CONLL)
    expected = "data.filters: is of texts, and CoNLL columns hold labelled characters; leave it out"
    assert refused(lambda: load_labelled(settings(path, filters={"min_length": 3}), 1, sentences)) == expected
