"""Plain text to documents, by the piece: a text is never all in memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import accumulate

from charrnn.errors import DataError

LONGEST = 1 << 26  # characters of one line or document that has to be whole in memory


def split_documents(texts: Iterable[str], documents: str) -> Iterator[tuple[str, list[int]]]:
    """One file's text as its documents: pieces of text, each with the places in it behind which a document closes.

    `lines`: each line is one, without its end. `blank_lines`: each run of lines between blank ones. `files`: the whole text, as it
    stands. `none`: there are none, and none closes. What is blank (nothing but white space) is never a document.
    """
    if documents == "none":
        return ((text, []) for text in texts)
    return {"files": _whole, "lines": _lines, "blank_lines": _paragraphs}[documents](texts)


def _whole(texts: Iterable[str]) -> Iterator[tuple[str, list[int]]]:
    blank, opened = "", False
    for text in texts:
        if not opened:
            text = blank + text
            if _is_blank(text):
                blank = text
                continue
            opened = True
        yield text, []
    if opened:
        yield "", [0]


def _lines(texts: Iterable[str]) -> Iterator[tuple[str, list[int]]]:
    blank = ""  # the beginning of a line that has been blank so far
    opened = False  # a line that is not blank has been passed on in part
    for text in texts:
        *ended, rest = (blank + text).split("\n")
        first = ended[:1] if opened else []  # goes on with that line, and so may be blank
        parts = first + [line for line in ended[len(first) :] if line and not line.isspace()]
        opened = (opened and not ended) or not _is_blank(rest)
        blank = "" if opened else rest
        yield "".join(parts) + ("" if blank else rest), list(accumulate(map(len, parts)))
    if opened:
        yield "", [0]


def _paragraphs(texts: Iterable[str]) -> Iterator[tuple[str, list[int]]]:
    blank = ""  # the beginning of a line that has been blank so far
    begun = False  # a line that is not blank has been passed on in part
    opened = False  # and so has a document
    for text in texts:
        *ended, rest = (blank + text).split("\n")
        parts: list[str] = []
        closes: list[int] = []
        size = 0
        for line in ended:
            if begun or not _is_blank(line):
                if opened and not begun:
                    parts.append("\n")
                    size += 1
                parts.append(line)
                size += len(line)
                opened, begun = True, False
            elif opened:
                closes.append(size)
                opened = False
        if begun or not _is_blank(rest):
            if opened and not begun:
                parts.append("\n")
            parts.append(rest)
            opened, begun, blank = True, True, ""
        else:
            blank = rest
        yield "".join(parts), closes
    if opened:
        yield "", [0]


def _is_blank(text: str) -> bool:
    return not text or text.isspace()


def assembled(pieces: Iterable[tuple[str, list[int]]], name: str) -> Iterator[str]:
    """The documents of what split_documents yields, each whole. Raises DataError where one is too long for that."""
    opened: list[str] = []
    size = 0
    for text, closes in pieces:
        begin = 0
        for close in closes:
            opened.append(text[begin:close])
            yield "".join(opened)
            opened, begin, size = [], close, 0
        opened.append(text[begin:])
        size += len(text) - begin
        if size > LONGEST:
            raise DataError(f"{name}: a document of more than {LONGEST:,} characters; cut it up, or set data.documents: none")


def lines_of(texts: Iterable[str], name: str) -> Iterator[str]:
    """The lines of a text, without their ends. Raises DataError where one is too long to be held."""
    rest = ""
    for text in texts:
        *ended, rest = (rest + text).split("\n")
        yield from ended
        if len(rest) > LONGEST:
            raise DataError(f"{name}: a line of more than {LONGEST:,} characters; expected text with line ends")
    if rest:
        yield rest
