"""From bytes to text to documents: what a piece boundary falls into must never be seen."""

from __future__ import annotations

import gzip
import io
import tempfile
from itertools import groupby, pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from charrnn.config import DataConfig
from charrnn.data import corpus, decoding
from charrnn.data.decoding import read_text
from charrnn.data.documents import split_documents
from charrnn.errors import DataError

from .texts import corpus_of, rejoined, whole

PIECES = [1, 2, 3, 7]
TEXT = st.text(st.sampled_from("ab \t\n\r\u3000\x0c\x85\u2028é漢😀\ufeff"), max_size=40)


def documents_at_once(text: str, kind: str) -> list[str]:
    """The definition: what split_documents says, of a text that is all there."""
    if kind == "files":
        return [text] if text.strip() else []
    if kind == "lines":
        return [line for line in text.split("\n") if line.strip()]
    runs = groupby(text.split("\n"), key=lambda line: bool(line.strip()))
    return ["\n".join(lines) for inked, lines in runs if inked]


@pytest.fixture(params=PIECES)
def tiny_pieces(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(decoding, "PIECE", request.param)
    return int(request.param)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-16-le", "utf-32", "gb18030", "utf-7"])
@given(text=TEXT, mark=st.booleans(), packed=st.booleans(), piece=st.sampled_from(PIECES))
@settings(max_examples=30)
def test_reading_by_the_piece_is_reading_at_once(encoding: str, text: str, mark: bool, packed: bool, piece: int) -> None:
    content = (("\ufeff" if mark else "") + text).encode(encoding)
    expected = io.StringIO(content.decode(encoding).removeprefix("\ufeff"), newline=None).read()
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        path = Path(folder, "text.txt.GZ" if packed else "text.txt")
        path.write_bytes(gzip.compress(content) if packed else content)
        patch.setattr(decoding, "PIECE", piece)
        assert "".join(read_text(path, encoding)) == expected


@pytest.mark.parametrize("kind", ["lines", "blank_lines", "files"])
@given(text=st.text(st.sampled_from("ab \t\n\u3000\x0c\x85"), max_size=40), cuts=st.lists(st.integers(0, 40)))
@settings(max_examples=150)
def test_documents_of_pieces_are_documents_of_the_whole(kind: str, text: str, cuts: list[int]) -> None:
    pieces = [text[a:b] for a, b in pairwise([0, *sorted(cuts), len(text)])]
    assert rejoined(split_documents(pieces, kind)) == documents_at_once(text, kind)


@pytest.mark.parametrize(
    "kind, text, documents",
    [
        ("lines", "one\r\n\r\n  two \r\nthree", ["one", "  two ", "three"]),
        ("lines", "\n \n\u3000\nlast\n", ["last"]),
        ("blank_lines", "\ufeffa\r\nb\r\n\r\n\r\nc\r\n", ["a\nb", "c"]),
        ("blank_lines", " \na\n\t \nb \n\u3000\nc", ["a", "b ", "c"]),
        ("files", "\n a\n\nb\n", ["\n a\n\nb\n"]),
    ],
)
def test_documents(tmp_path: Path, tiny_pieces: int, kind: str, text: str, documents: list[str]) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(text.encode())
    assert rejoined(split_documents(read_text(path), kind)) == documents


@pytest.mark.parametrize("kind", ["lines", "blank_lines", "files"])
@pytest.mark.parametrize("text", ["", "\n", " \n\t\n", "\u3000"])
def test_white_space_is_no_document(kind: str, text: str) -> None:
    assert rejoined(split_documents([text[:1], text[1:]], kind)) == []


def test_a_long_line_passes_through_in_pieces() -> None:
    pieces = list(split_documents(["a" * 1000] * 50 + ["\nb"], "lines"))
    assert max(len(text) for text, _ in pieces) == 1000


def test_files_of_a_stream_meet_at_a_line_end(tmp_path: Path) -> None:
    for name, content in {"1": b"one", "2": b"", "3": b"three\n", "4": "\ufefffour".encode()}.items():
        (tmp_path / "texts").mkdir(exist_ok=True)
        (tmp_path / "texts" / name).write_bytes(content)
    config = DataConfig(path=str(tmp_path / "texts"), cache=str(tmp_path / "cache"))
    assert whole(corpus.load_corpus(config, 1)) == "one\nthree\nfour"


def test_files_are_documents(tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    for name, content in {"1": "one\n\nmore", "2": " \n", "3": "three\n"}.items():
        (tmp_path / "texts" / name).write_text(content)
    config = DataConfig(path=str(tmp_path / "texts"), cache=str(tmp_path / "cache"), documents="files")
    loaded = corpus.load_corpus(config, 1)
    assert sorted(whole(loaded).split("⏹")) == ["", "one\n\nmore", "three\n"]
    assert (loaded.documents, loaded.files) == (2, 3)


@pytest.mark.parametrize(
    "encoding, content, offset",
    [
        ("utf-8", b"abc\xffdef", 3),
        ("utf-8", b"\xef\xbb\xbfabc\xffdef", 6),
        ("utf-8-sig", b"\xef\xbb\xbfabc\xffdef", 6),
        ("U8", "漢字".encode() + b"\xe6\xbc", 6),  # ends in the midst of a character
        ("utf-8", "漢".encode() + b"\xe6\xbcab", 3),
        ("utf-16", b"\xff\xfea\x00\x00\xd8b\x00", 4),
        ("utf-16-le", b"a\x00b\x00c", 4),
        ("gb18030", "漢字".encode("gb18030") + b"\xff\xff", 4),
        ("ascii", b"caf\xe9", 3),
    ],
)
def test_undecodable_names_file_and_byte(tmp_path: Path, tiny_pieces: int, encoding: str, content: bytes, offset: int) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"^.*text.txt: not {encoding} at byte {offset}; ") as caught:
        list(read_text(path, encoding))
    assert "\n" not in str(caught.value)
    packed = tmp_path / "text.gz"
    packed.write_bytes(gzip.compress(content))
    with pytest.raises(DataError, match=f"at byte {offset} of what is packed in it; "):
        list(read_text(packed, encoding))


@pytest.mark.parametrize(
    "content, hint",
    [
        ("Das Übel\n".encode("cp1252"), " or cp1252: set data.encoding"),
        ("床前明月光\n".encode("gb18030"), "fit gb18030 or "),
        ("吾輩は猫である。\n".encode("shift_jis"), "shift_jis"),
        ("text".encode("utf-16"), "its bytes would fit utf-16: set data.encoding"),
        ("text é".encode("utf-16-le"), "its bytes would fit utf-16-le: set data.encoding"),
        ("text é".encode("utf-16-be"), "its bytes would fit utf-16-be: set data.encoding"),
        (b"GIF89a\x00\xd8\x01\x00\xd8\x01", "is it text at all?"),
    ],
)
def test_undecodable_suggests(tmp_path: Path, content: bytes, hint: str) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"not utf-8 at byte \d+; ") as caught:
        list(read_text(path))
    assert hint in str(caught.value)


def test_a_suggestion_fits_where_the_error_is(tmp_path: Path) -> None:
    """The first pages of a file say nothing about the byte at which it failed."""
    path = tmp_path / "text.txt"
    path.write_bytes(b"a" * (1 << 17) + b"\x81\n")
    with pytest.raises(DataError, match=r"at byte 131072; is it text at all\? mend it there, or leave the file out$"):
        list(read_text(path))


@pytest.mark.parametrize(
    "encoding, why", [("utf-99", "Python knows no such encoding"), ("rot13", "not a text encoding"), ("\0", "no such")]
)
def test_unknown_encoding(tmp_path: Path, encoding: str, why: str) -> None:
    (tmp_path / "text.txt").write_text("text")
    with pytest.raises(DataError, match=rf"^data.encoding .*: .*{why}.*try utf-8, "):
        list(read_text(tmp_path / "text.txt", encoding))


def test_utf_16_without_its_mark(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_bytes("text".encode("utf-16-le"))
    with pytest.raises(DataError, match=r"text.txt: not utf-16 at byte 0; its bytes would fit utf-16-le: set data.encoding"):
        list(read_text(tmp_path / "text.txt", "utf-16"))


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "punycode", "idna", "undefined"])
def test_an_encoding_that_the_text_is_not_in(tmp_path: Path, encoding: str) -> None:
    with pytest.raises(DataError, match=rf"text.txt: not {encoding} at byte [01]; its bytes would fit utf-8 or .*: set data.encoding"):
        corpus_of(tmp_path, "Où est le café ?\n" * 9, encoding=encoding)


def test_surrogates_are_no_characters(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"text.txt: holds halves of characters \(surrogates\) in utf-7; set data.encoding"):
        corpus_of(tmp_path, b"abc+2AA-" * 9, encoding="utf-7")


@pytest.mark.parametrize("damage", [lambda b: b[:-9], lambda b: b[:40], lambda b: b[:30] + b"\xff\xff" + b[32:], lambda b: b"plain text"])
def test_a_gzip_file_that_is_none(tmp_path: Path, damage) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "text.txt.gz"
    path.write_bytes(damage(gzip.compress(bytes(range(32, 127)) * 9)))
    with pytest.raises(DataError, match=r"text.txt.gz: not a whole gzip file \(.+\); unpack it by hand or fetch it again"):
        list(read_text(path))


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot be read: Is a directory"):
        list(read_text(tmp_path))
