"""Splits to the character, the cache, memory, and what is said of text that cannot be used."""

from __future__ import annotations

import contextlib
import errno
import gzip
import os
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from charrnn import lock
from charrnn.config import DataConfig
from charrnn.data import corpus, decoding
from charrnn.data.corpus import load_corpus, load_file
from charrnn.data.files import find_files
from charrnn.errors import DataError, UserError

from .test_documents import documents_at_once
from .texts import corpus_of, settings, shown, whole

VERSE = "The moss has covered the stone,\nand the fog the willow tree.\n"
EVERYTHING = "".join(map(chr, range(33, 127)))


def refused(folder: Path, content: str | bytes, **data: Any) -> str:
    with pytest.raises(DataError) as caught:
        corpus_of(folder, content, **data)
    assert "\n" not in str(caught.value)
    assert [p.name for p in (folder / "cache").glob("*")] == []
    return str(caught.value)


# Splits


def test_a_stream_whose_splits_have_files_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "val.txt").write_text("the fog\nü is old\n")
    (tmp_path / "test.txt").write_text("stone")
    loaded = corpus_of(tmp_path, VERSE * 4, val_path=str(tmp_path / "val.txt"), test_path=[str(tmp_path / "test.txt")])
    assert [shown(loaded, split) for split in ("train", "val", "test")] == [VERSE * 4, "the fog\n⁇ is old\n", "stone"]
    assert (loaded.documents, loaded.files, loaded.unknown) == (0, 3, 1)
    assert loaded.vocabulary == corpus_of(tmp_path, VERSE * 4).vocabulary  # theirs is not in it
    assert len(entries(tmp_path)) == 2


def test_documents_whose_splits_have_files_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "val.txt").write_text("fog\nmoss\n")
    loaded = corpus_of(
        tmp_path, "stone\ntree\nwillow\ngrass of moss\n", documents="lines", val_path=str(tmp_path / "val.txt"), test_fraction=0.5
    )
    assert shown(loaded, "val") == "fog⏹moss⏹"
    assert sorted((shown(loaded, "train") + shown(loaded, "test")).split("⏹")) == ["", "grass of moss", "stone", "tree", "willow"]
    assert (loaded.documents, shown(loaded, "test").count("⏹")) == (6, 2)
    again = corpus_of(
        tmp_path, "stone\ntree\nwillow\ngrass of moss\n", documents="lines", val_path=str(tmp_path / "val.txt"), test_fraction=0.5
    )
    assert len(entries(tmp_path)) == 1 and whole(again) == whole(loaded)


def test_another_val_text_is_another_corpus(tmp_path: Path) -> None:
    val = tmp_path / "val.txt"
    contents = []
    for text in ("the fog\n", "the fox\n"):
        val.write_text(text)
        loaded = corpus_of(tmp_path, VERSE * 4, val_path=str(val))
        assert shown(loaded, "val").startswith("the fo")
        contents.append(loaded.contents)
    moved = tmp_path / "moved.txt"
    val.rename(moved)
    contents.append(corpus_of(tmp_path, VERSE * 4, val_path=str(moved)).contents)  # the same wherever it lies
    assert contents[0] != contents[1] == contents[2]
    assert len(entries(tmp_path)) == 2


def test_what_is_guessed_of_the_other_files_is_said_too(tmp_path: Path) -> None:
    (tmp_path / "val.csv").write_text("text,label\nfog,a\nmoss,b\n")
    (tmp_path / "train.tsv").write_text("text\tlabel\nstone of moss\ta\nfog tree\tb\n")
    for _ in range(2):  # made, and found
        loaded = load_corpus(settings(tmp_path / "train.tsv", val_path=str(tmp_path / "val.csv")), 1)
        assert [note.split(", ")[0] for note in loaded.notes] == [
            f"{tmp_path}/train.tsv: read as tsv", f"{tmp_path}/val.csv: read as csv",
        ]  # fmt: skip
    assert shown(loaded, "val") == "fog⏹moss⏹"


@pytest.mark.parametrize(
    "content, data, message",
    [
        (None, {}, "data.val_path '{val}': no such file; it is looked for relative to "),
        ("", {}, "{val}: empty; expected text"),
        ("x", {}, "data.val_path: {val} holds one character; expected at least 2"),
        (
            "one\n\ntwo\n",
            {"documents": "lines", "filters": {"min_length": 4}},
            "{val}: nothing is left of the text; data.filters: 2 documents",
        ),
    ],
)
def test_other_files_that_cannot_be_used(tmp_path: Path, content: str | None, data: dict[str, Any], message: str) -> None:
    val = tmp_path / "val.txt"
    if content is not None:
        val.write_text(content)
    assert refused(tmp_path, VERSE * 4, val_path=str(val), **data).startswith(message.format(val=val))


def test_documents_and_a_stream_do_not_mix(tmp_path: Path) -> None:
    (tmp_path / "val.csv").write_text("text,label\nfog,a\nmoss,b\n")
    assert refused(tmp_path, VERSE, val_path=str(tmp_path / "val.csv")) == (
        f"data.val_path: {tmp_path}/val.csv is read as documents, and {tmp_path}/text.txt is read as one stream; expected both alike, "
        "so set data.format or data.documents, or name a text of the same kind"
    )


def test_a_corpus_with_blanks_is_another_one(tmp_path: Path) -> None:
    plain = corpus_of(tmp_path, VERSE * 4)
    blanked = load_corpus(settings(tmp_path / "text.txt"), 1, blank=True)
    assert (plain.vocabulary.blank, blanked.vocabulary.blank) == (None, 1)
    assert blanked.ids.tolist() == [i + 1 for i in plain.ids.tolist()]
    assert corpus_of(tmp_path, VERSE * 4).vocabulary == plain.vocabulary and len(entries(tmp_path)) == 2


def test_what_a_task_makes_of_a_text_is_no_other_text(tmp_path: Path) -> None:
    corpus_of(tmp_path, VERSE * 4)
    corpus_of(tmp_path, VERSE * 4, example_length=9, blanks={"share": 0.5}, labels="punctuation", label="x", audio={"num_mels": 9})
    assert len(entries(tmp_path)) == 1


@pytest.mark.parametrize("documents", ["none", "lines"])
def test_a_file_of_ones_own_lies_in_memory(tmp_path: Path, documents: str) -> None:
    trained = corpus_of(tmp_path, VERSE * 4, documents=documents)
    (tmp_path / "own.txt").write_text("the fog\nüs\n")
    own = load_file(settings(tmp_path / "text.txt", documents=documents), trained.vocabulary, tmp_path / "own.txt")
    own.forget_pages()
    assert shown(own, "test") == ("the fog\n⁇s\n" if documents == "none" else "the fog⏹⁇s⏹")
    assert (own.documents, own.unknown, own.vocabulary) == (0 if documents == "none" else 2, 1, trained.vocabulary)
    assert len(own.split("train")) == len(own.split("val")) == 0
    with pytest.raises(UserError, match="split 'vall': there is no such split; expected train, val, test; did you mean 'val'"):
        own.split("vall")


def test_a_stream_is_its_text(tmp_path: Path) -> None:
    loaded = corpus_of(tmp_path, VERSE * 4)
    assert whole(loaded) == VERSE * 4
    assert (loaded.documents, loaded.files, loaded.unknown) == (0, 1, 0)
    assert loaded.vocabulary.symbols == ("unknown",)
    assert loaded.ids.dtype == np.uint8
    assert not loaded.ids.flags.writeable


def test_the_split_of_tinyshakespeare(tmp_path: Path) -> None:
    """nanoGPT's: train is data[: int(n * 0.9)]."""
    text = (EVERYTHING * 12000)[:1115394]
    loaded = corpus_of(tmp_path, text)
    assert loaded.ranges == {"train": (0, 1003854), "test": (1003854, 1003854), "val": (1003854, 1115394)}
    assert shown(loaded, "val") == text[int(len(text) * 0.9) :]


@pytest.mark.parametrize(
    "count, val, test, train_size, test_size, val_size",
    [
        (100, 0.05, 0.05, 90, 5, 5),  # 1 - 0.05 - 0.05 is 0.8999999999999999 in floats
        (100, 0.1, 0.05, 85, 5, 10),
        (1000, 0.1, 0.2, 700, 200, 100),  # 0.1 + 0.2 is 0.30000000000000004
        (100, 0.07, 0.0, 93, 0, 7),
        (100, 0.29, 0.0, 71, 0, 29),  # 100 * 0.29 is 28.999999999999996
        (1000, 1e-3, 1e-3, 998, 1, 1),
        (11, 0.1, 0.0, 9, 0, 2),
        (7, 0.0, 0.0, 7, 0, 0),
    ],
)
def test_split_sizes(count: int, val: float, test: float, train_size: int, test_size: int, val_size: int) -> None:
    config = DataConfig(path="x", val_fraction=val, test_fraction=test)
    assert corpus._sizes(count, config) == {"train": train_size, "test": test_size, "val": val_size}


@given(count=st.integers(1, 10**9), val=st.integers(0, 49), test=st.integers(0, 49))
def test_split_sizes_are_exact(count: int, val: int, test: int) -> None:
    sizes = corpus._sizes(count, DataConfig(path="x", val_fraction=val / 100, test_fraction=test / 100))
    assert sum(sizes.values()) == count
    assert sizes["val"] == -(-count * val // 100) and sizes["test"] == -(-count * test // 100)
    if not test:
        assert sizes["train"] == int(count * Fraction(100 - val, 100))


def test_test_lies_between_train_and_val(tmp_path: Path) -> None:
    text = EVERYTHING + "0123456"
    loaded = corpus_of(tmp_path, text[:100], val_fraction=0.2, test_fraction=0.1)
    assert [shown(loaded, split) for split in ("train", "test", "val")] == [text[:70], text[70:80], text[80:100]]


# Documents in an order drawn from the seed

LINE = st.text(st.sampled_from("abcdé漢 "), max_size=12)


@given(
    lines=st.lists(LINE, min_size=3, max_size=30),
    kind=st.sampled_from(["lines", "blank_lines"]),
    piece=st.sampled_from([1, 4, 9, 64]),
    block=st.sampled_from([1, 2, 5, 16, 1000]),
)
@examples(max_examples=25)
def test_shuffled_by_the_piece_and_the_block(
    tmp_path_factory: pytest.TempPathFactory, lines: list[str], kind: str, piece: int, block: int
) -> None:
    text = "\n".join(["ab", "c", *lines])
    documents = documents_at_once(text, kind)
    config: dict[str, Any] = {"documents": kind, "val_fraction": 0.0 if len(documents) < 2 else 0.2}
    at_once = corpus_of(tmp_path_factory.mktemp("once"), text, **config)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpus, "PIECE", piece)
        patch.setattr(decoding, "PIECE", piece)
        patch.setattr(corpus, "BLOCK", block)
        by_the_piece = corpus_of(tmp_path_factory.mktemp("pieces"), text, **config)
    assert np.array_equal(at_once.ids, by_the_piece.ids)
    assert at_once.ranges == by_the_piece.ranges
    assert sorted(whole(at_once).split("⏹")) == sorted(["", *documents])
    assert at_once.documents == len(documents)
    for split in ("train", "val"):
        assert shown(at_once, split)[-1:] in ("⏹", "")
    assert shown(at_once, "val").count("⏹") == (-(-len(documents) // 5) if len(documents) > 1 else 0)


def test_the_order_is_the_seeds(tmp_path: Path) -> None:
    text = "\n".join(f"line {n}" for n in range(100))
    first, same, other = (whole(corpus_of(tmp_path, text, seed=seed, documents="lines")) for seed in (1, 1, 2))
    assert first == same != other
    assert sorted(first.split("⏹")) == sorted(other.split("⏹"))
    assert first != text.replace("\n", "⏹") + "⏹"


def test_the_order_is_a_fair_one(tmp_path: Path) -> None:
    """Each of the 6 orders of 3 documents comes about as often as the others."""
    orders = [whole(corpus_of(tmp_path, "ab\ncd\nef", seed=seed, documents="lines")) for seed in range(60)]
    counts = [orders.count(order) for order in set(orders)]
    assert len(counts) == 6 and min(counts) > 2


def test_a_seed_does_not_matter_to_a_stream(tmp_path: Path) -> None:
    corpus_of(tmp_path, VERSE, seed=1)
    corpus_of(tmp_path, VERSE, seed=2)
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_two_documents_are_one_for_each_split(tmp_path: Path) -> None:
    loaded = corpus_of(tmp_path, "one\ntwo", documents="lines")
    assert {shown(loaded, "train"), shown(loaded, "val")} == {"one⏹", "two⏹"}


# Vocabulary


def test_the_smallest_dtype(tmp_path: Path) -> None:
    for characters, dtype in ((255, np.uint8), (256, np.uint16), (65536, np.uint32)):
        text = "".join(chr(0x10000 + i) for i in range(characters))
        loaded = corpus_of(tmp_path, text)
        assert loaded.ids.dtype == dtype
        assert whole(loaded) == text


def test_rare_characters_are_unknown(tmp_path: Path) -> None:
    loaded = corpus_of(tmp_path, "aaabbbccd" * 2 + "e", vocabulary={"max_size": 3})
    assert loaded.vocabulary.characters == "abc"
    assert whole(loaded) == "aaabbbcc⁇" * 2 + "⁇"
    assert loaded.unknown == 3
    assert corpus_of(tmp_path, "aaabbbccd" * 2, vocabulary={"min_count": 5}).vocabulary.characters == "ab"


# Text that cannot be used


def test_unusable_text(tmp_path: Path) -> None:
    assert refused(tmp_path, "").endswith("text.txt: empty; expected text to learn from")
    assert refused(tmp_path, b"\xef\xbb\xbf").endswith("text.txt: empty; expected text to learn from")
    assert refused(tmp_path, " \n \n", documents="lines").endswith("text.txt: empty; expected text to learn from")
    assert refused(tmp_path, "aaaa").endswith("text.txt: only one distinct character, 'a'; there is nothing to predict")
    assert "text.txt: 2 characters leave 1 for train; expected at least 2" in refused(tmp_path, "ab")
    assert "text.txt: 9 characters leave 1 for val; expected at least 2, so add text or change" in refused(tmp_path, "abcdefghi")
    assert "1 document leaves none to train on; add documents" in refused(tmp_path, "one line", documents="lines")
    assert "no character occurs 9 times" in refused(tmp_path, "abab", vocabulary={"min_count": 9})
    assert "leave only 'a' of its 2 characters" in refused(tmp_path, "aab", vocabulary={"max_size": 1})
    assert "not utf-8 at byte 2" in refused(tmp_path, b"ab\x81")


def test_a_tiny_text_may_go_without_validation(tmp_path: Path) -> None:
    loaded = corpus_of(tmp_path, "ab", val_fraction=0)
    assert loaded.ranges == {"train": (0, 2), "test": (2, 2), "val": (2, 2)}


# Files


def found(path: str | list[str]) -> list[str]:
    return [p.name for p in find_files(DataConfig(path=path))]


def test_files_lists_globs_and_directories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    Path("inner/.hidden").mkdir(parents=True)
    for name in ("b.txt", "a.txt", "c.md", "inner/d.txt", "inner/.e.txt", "inner/.hidden/f.txt", "[g].txt"):
        Path(name).write_text("text")
    assert found("a.txt") == ["a.txt"]
    assert found("~/a.txt") == ["a.txt"]
    assert found("*.txt") == ["[g].txt", "a.txt", "b.txt"]
    assert found("[g].txt") == ["[g].txt"]
    assert found("**/d*") == ["d.txt"]
    assert found("inner") == ["d.txt"]
    assert found(["b.txt", "./b.txt", "inner", "*.md"]) == ["b.txt", "d.txt", "c.md"]
    Path("empty").mkdir()
    for path, why in {
        "none.txt": "no such file",
        "x" * 300: "File name too long",
        "*.rst": "no file matches",
        "empty": "holds no files",
        "/dev/null": "not an ordinary file",
        "~nobody-here/a": "no such home directory",
    }.items():
        with pytest.raises(UserError, match=rf"^data.path '.*': .*{why}"):
            found(path)


def test_text_that_changes_while_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"

    def append(done: int, _total: int) -> None:
        if done > len(VERSE) // 2 and path.stat().st_size == len(VERSE):
            with path.open("a") as file:
                file.write("more")

    with pytest.raises(DataError, match=r"text.txt: changed while it was read; start again when nothing writes to it"):
        corpus_of(tmp_path, VERSE, progress=append)
    path.write_text(VERSE)  # what was read in between is found nowhere, not even by who has the old text again
    assert whole(load_corpus(settings(path, cache=str(tmp_path / "cache")), 1)) == VERSE
    assert len(entries(tmp_path)) == 1


def test_progress_ends_at_the_whole(tmp_path: Path) -> None:
    (tmp_path / "1.txt").write_text(VERSE)
    (tmp_path / "2.txt.gz").write_bytes(gzip.compress(EVERYTHING.encode() * 999))
    (tmp_path / "3.txt").write_text("")
    paths = sorted(tmp_path.glob("*.txt*"))
    seen: list[tuple[int, int]] = []
    load_corpus(settings(paths), 1, lambda done, total: seen.append((done, total)))
    total = sum(path.stat().st_size for path in paths)
    assert seen == sorted(seen) and seen[-1] == (total, total)


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A standard library of three files, of which one is broken far from its beginning."""
    root = tmp_path / "lib"
    for name, content in {
        "a.py": b"import os\n" * 9,
        "broken.py": b"import sys\n" * 9 + b"\xff",
        "z.py": b"import re\n" * 9,
        "test/t.py": b"assert",
        "site-packages/s.py": b"assert",
        "notes.txt": b"assert",
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"stdlib": str(root)})
    monkeypatch.setattr(decoding, "PIECE", 16)
    return root


@pytest.mark.parametrize("documents", ["none", "files"])
def test_a_broken_file_of_the_library_is_left_out_whole(tmp_path: Path, library: Path, documents: str) -> None:
    config = DataConfig.model_validate({"source": "python-stdlib", "cache": str(tmp_path / "cache"), "documents": documents})
    loaded = load_corpus(config, 1)
    files = {"import os\n" * 9, "import re\n" * 9}
    assert whole(loaded) == "".join(sorted(files)) if documents == "none" else set(whole(loaded).split("⏹")) == files | {""}
    assert loaded.files == 2
    assert "y" not in loaded.vocabulary


def test_no_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
    with pytest.raises(DataError, match=r"^data.source python-stdlib: .* holds no Python files; name a text in data.path instead"):
        find_files(DataConfig(source="python-stdlib"))


def test_the_standard_library(tmp_path: Path) -> None:
    loaded = load_corpus(DataConfig(source="python-stdlib", cache=str(tmp_path)), 1)
    assert len(loaded.ids) > 10_000_000
    assert "def __init__(self" in shown(loaded, "val")
    assert "\r" not in loaded.vocabulary


# The cache


def entries(folder: Path) -> list[Path]:
    return sorted((folder / "cache").iterdir())


def test_same_content_same_entry(tmp_path: Path) -> None:
    corpus_of(tmp_path, VERSE)
    (entry,) = entries(tmp_path)
    written = (entry / "ids.bin").stat().st_mtime_ns
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/copy.md").write_text(VERSE)
    load_corpus(settings(tmp_path / "elsewhere/copy.md", cache=str(tmp_path / "cache")), 1)
    assert entries(tmp_path) == [entry]
    assert (entry / "ids.bin").stat().st_mtime_ns == written


@pytest.mark.parametrize(
    "data",
    [
        {"val_fraction": 0.2},
        {"test_fraction": 0.2},
        {"documents": "lines"},
        {"vocabulary": {"max_size": 9}},
        {"vocabulary": {"min_count": 2}},
        {"encoding": "ascii"},
    ],
)
def test_other_settings_other_entry(tmp_path: Path, data: dict[str, Any]) -> None:
    corpus_of(tmp_path, VERSE)
    corpus_of(tmp_path, VERSE, **data)
    assert len(entries(tmp_path)) == 2


def test_other_content_other_entry(tmp_path: Path) -> None:
    """Also where the same bytes lie in other files, or under a name that says they are packed."""
    one, two = tmp_path / "1.txt", tmp_path / "2.txt"
    for first, second in (("abcd\n" * 9, "efgh"), ("abcd\n" * 9 + "e", "fgh"), ("abcd\n" * 9 + "f", "gh")):
        one.write_text(first)
        two.write_text(second)
        assert whole(load_corpus(settings([one, two]), 1)) == first.removesuffix("\n") + "\n" + second
    load_corpus(settings([two, one]), 1)
    assert len(entries(tmp_path)) == 4
    packed = gzip.compress(VERSE.encode())
    (tmp_path / "text.gz").write_bytes(packed)
    assert whole(load_corpus(settings(tmp_path / "text.gz"), 1)) == VERSE
    (tmp_path / "text.latin").write_bytes(packed)
    assert whole(load_corpus(settings(tmp_path / "text.latin", encoding="latin-1"), 1)) != VERSE
    assert len(entries(tmp_path)) == 6


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


@pytest.mark.parametrize(
    "damage",
    [
        lambda entry: truncate(entry / "ids.bin"),
        lambda entry: os.truncate(entry / "ids.bin", 0),
        lambda entry: (entry / "ids.bin").unlink(),
        lambda entry: truncate(entry / "meta.json"),
        lambda entry: (entry / "meta.json").write_text("[]"),
        lambda entry: (entry / "meta.json").write_bytes(b"\xff"),
        lambda entry: (entry / "meta.json").write_text((entry / "meta.json").read_text().replace("uint8", "uint16")),
        lambda entry: (entry / "meta.json").write_text((entry / "meta.json").read_text().replace("train", "brain")),
        lambda entry: (entry / "meta.json").write_text((entry / "meta.json").read_text().replace("unknown", "forgotten")),
        lambda entry: (entry / "meta.json").unlink(),
        lambda entry: (entry / "ids.bin").write_bytes((entry / "ids.bin").read_bytes()[:-1] + b"\xff"),
        lambda entry: (entry / "meta.json").write_text((entry / "meta.json").read_text().replace('"documents": 0', '"documents": 1')),
        lambda entry: (entry / "checksum").unlink(),
    ],
)
def test_a_damaged_entry_is_made_again(tmp_path: Path, damage) -> None:  # type: ignore[no-untyped-def]
    corpus_of(tmp_path, VERSE)
    (entry,) = entries(tmp_path)
    written = {path: path.read_bytes() for path in entry.iterdir()}
    damage(entry)
    assert whole(corpus_of(tmp_path, VERSE)) == VERSE
    assert entries(tmp_path) == [entry]
    assert {path: path.read_bytes() for path in entry.iterdir()} == written


BUILD = """
import sys, pathlib
from charrnn.config import DataConfig
from charrnn.data import corpus
encode = corpus._encode
def encode_together(*arguments):  # the other process is here too before either goes on
    pathlib.Path(sys.argv[3]).touch()
    while not pathlib.Path(sys.argv[4]).exists():
        pass
    encode(*arguments)
corpus._encode = encode_together
print(len(corpus.load_corpus(DataConfig(path=sys.argv[1], cache=sys.argv[2], documents="lines"), 1).ids))
"""


@pytest.mark.parametrize("damaged", [False, True])
def test_two_builders_at_once(tmp_path: Path, damaged: bool) -> None:
    path = tmp_path / "text.txt"
    path.write_text(VERSE * 999)
    if damaged:
        load_corpus(settings(path, documents="lines"), 1)
        truncate(entries(tmp_path)[0] / "ids.bin")
    names = ("one", "other"), ("other", "one")
    jobs = [
        subprocess.Popen(
            [sys.executable, "-c", BUILD, str(path), str(tmp_path / "cache"), *(str(tmp_path / name) for name in order)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for order in names
    ]
    outputs = [job.communicate(timeout=60)[0] for job in jobs]
    assert outputs == [f"{len(VERSE) * 999}\n"] * 2
    assert len(entries(tmp_path)) == 1


@contextlib.contextmanager
def building(path: Path, ready: Path, go: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process, which has begun to build and waits for `go`."""
    command = [sys.executable, "-c", BUILD, *map(str, (path, path.parent / "cache", ready, go))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as job:
        try:
            while not ready.exists() and job.poll() is None:
                time.sleep(0.01)
            yield job
        finally:
            job.kill()


def test_what_killed_jobs_leave_is_taken_away_and_what_live_ones_build_is_not(tmp_path: Path) -> None:
    path, cache = tmp_path / "text.txt", tmp_path / "cache"
    path.write_text(VERSE)
    (tmp_path / "other.txt").write_text(VERSE * 2)
    with building(path, tmp_path / "begun", tmp_path / "never"):
        pass
    (dead,) = (folder for folder in cache.glob(".building-*") if folder.is_dir())
    with building(path, tmp_path / "begun again", tmp_path / "go") as live:
        assert not dead.exists()
        (workshop,) = (folder for folder in cache.glob(".building-*") if folder.is_dir())
        load_corpus(settings(tmp_path / "other.txt"), 1)
        assert workshop.is_dir()
        (tmp_path / "go").touch()
        assert live.communicate(timeout=60)[0] == f"{len(VERSE)}\n"
    assert len(entries(tmp_path)) == 2 and not list(cache.glob(".*"))


def test_where_there_are_no_locks_nothing_is_taken_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody can tell then whether its job lives."""
    left = tmp_path / "cache/.building-0"
    left.mkdir(parents=True)
    monkeypatch.setattr(lock, "fcntl", None)
    assert whole(corpus_of(tmp_path, VERSE)) == VERSE
    assert left.is_dir()
    monkeypatch.undo()
    corpus_of(tmp_path, VERSE * 2)
    assert not left.exists() and not list((tmp_path / "cache").glob(".*"))


def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"^data.cache .*/file/cache: cannot be written: .*; free some space or name another directory"):
        corpus_of(tmp_path, VERSE, cache=str(tmp_path / "file" / "cache"))


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    assert "cannot be written: No space left on device; free some space" in refused(tmp_path, VERSE)


# Memory

PEAK = """
import resource, sys
from charrnn.config import DataConfig
from charrnn.data.corpus import load_corpus
load_corpus(DataConfig(path=sys.argv[1], cache=sys.argv[2], documents=sys.argv[3]), 1)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="ru_maxrss is in other units elsewhere")
@pytest.mark.parametrize("documents, megabytes", [("none", 60), ("blank_lines", 15)])
def test_memory_does_not_grow_with_the_file(tmp_path: Path, documents: str, megabytes: int) -> None:
    peaks = []
    for name, repeats in (("small", 1), ("large", megabytes)):
        with (tmp_path / name).open("w") as file:
            for _ in range(repeats):
                file.write((VERSE * 19 + "\n") * (10**6 // len(VERSE) // 19))
        arguments = [str(tmp_path / name), str(tmp_path / "cache"), documents]
        ran = subprocess.run([sys.executable, "-c", PEAK, *arguments], capture_output=True, text=True, check=True, timeout=60)
        peaks.append(int(ran.stdout) / 1024)
    assert peaks[1] - peaks[0] < 60


def test_the_hash_of_the_text_is_that_of_its_bytes(tmp_path: Path) -> None:
    """Neither where it lies nor how it is cut decides it; the entry in the cache is named after that too."""
    loaded = corpus_of(tmp_path, VERSE)
    (tmp_path / "elsewhere").mkdir()
    assert corpus_of(tmp_path / "elsewhere", VERSE).contents == loaded.contents
    assert corpus_of(tmp_path, VERSE, val_fraction=0.2).contents == loaded.contents
    assert corpus_of(tmp_path, VERSE[::-1]).contents != loaded.contents
