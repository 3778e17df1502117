"""The formats whose documents have fields: each reader turns a text that comes in pieces into records, one after the other.

A record is as much as is ever in memory. A DataError names file and place where a text is not in its format: the readers of rows
(JSONL, CSV, TSV) put it where the record would come, and who can do without one record goes on; READERS raise it.
"""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain
from typing import Any, Literal, NamedTuple

from charrnn.config import DataConfig
from charrnn.data.documents import LONGEST, lines_of
from charrnn.errors import DataError, did_you_mean, short

TEXT_FIELDS = ("text", "body", "content", "lyrics", "poem", "verse")  # what others call the column that holds the text
COLONS = re.compile("[:：]")
NAMED_COLUMNS = {".tsv": "tsv", ".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl"}  # by a file's name
CHOSEN = ("data.field", "data.label", "data.audio.field", "data.images.field")  # the keys that hold a column's name
TOKEN = 16  # characters of JSON; an error nearer to the end of a piece may be the cut's
IMAGE_TOKEN = re.compile(r"(\S.*)#\d+\t(.*)")  # a picture's name, the number of its caption, and the caption
KARPATHY_SPLITS = {"train": "train", "restval": "train", "val": "val", "test": "test"}
_STAMP = re.compile(r"\s*\[(\d+):(\d+(?:[.:]\d+)?)\]")
_WORD_STAMP = re.compile(r"<\d+:\d+(?:[.:]\d+)?>")
_TAG = re.compile(r"\s*\[([A-Za-z#][\w#]*):([^\]]*)\]\s*$")
_TAGS = {"ti": "title", "ar": "author"}

Reader = Callable[[Iterable[str], str, DataConfig], Iterator["Record"]]
Tolerant = Callable[[Iterable[str], str, DataConfig], Iterator["Record | DataError"]]


class Record(NamedTuple):
    """`fields` as they were found; `body` is the name of the one that holds the text."""

    number: int
    line: int  # where it begins; 0 where lines do not tell
    fields: Mapping[str, Any]
    body: str

    def place(self, name: str) -> str:
        return f"{name}: record {self.number}" + (f" (line {self.line})" if self.line else "")

    def names_body(self, field: str) -> bool:
        """Whether a field is the one with the text: `body` is another name of it."""
        return field == self.body or (field == "body" and "body" not in self.fields)

    def text(self, field: str, name: str, asker: str) -> str:
        """A field as text; nothing where it is null. `asker` is what wants it, for an error."""
        if self.names_body(field):
            field = self.body
        value = self.fields.get(field)
        if isinstance(value, str):
            return value
        if isinstance(value, list) and all(isinstance(part, str) for part in value):
            return "\n".join(value)
        if isinstance(value, (bool, int, float)):
            return json.dumps(value)
        if field not in self.fields:
            known = ", ".join(self.fields)
            first = f"; set {asker} to one of them" if asker in CHOSEN else ""
            hint = did_you_mean(field, self.fields) or ("; mend the record" if self.number > 1 else first)
            raise DataError(f"{self.place(name)}: no field {field!r}, which {asker} names; its fields are {known}{hint}")
        if value is not None:
            raise DataError(f"{self.place(name)}: field {field!r} holds {short(value)}; expected text or a list of lines")
        return ""


def title_body(texts: Iterable[str], name: str, config: DataConfig) -> Iterator[Record]:
    """A document a line, its title before the first colon. A line without a colon has no title."""
    number = 0
    for at, line in enumerate(lines_of(texts, name), start=1):
        if not line or line.isspace():
            continue
        number += 1
        title, *rest = COLONS.split(line, maxsplit=1)
        yield Record(number, at, {"title": title.strip() if rest else "", "body": (rest[0] if rest else title).strip()}, "body")


def pattern(texts: Iterable[str], name: str, config: DataConfig) -> Iterator[Record]:
    """Each line that begins with the pattern begins a document. What stands before the first one belongs to none."""
    begins = re.compile(config.pattern or "^X:").match
    number = began = size = 0
    lines: list[str] = []
    for at, line in enumerate(lines_of(texts, name), start=1):
        if begins(line):
            if number:
                yield Record(number, began, {"body": "\n".join(lines).rstrip()}, "body")
            number, began, size = number + 1, at, 0
            lines = []
        if number:
            lines.append(line)
            size += len(line)
            if size > LONGEST:
                raise DataError(f"{name}: line {began}: a document of more than {LONGEST:,} characters; expected another pattern")
    if number == 0:
        raise DataError(f"{name}: no line begins with data.pattern {config.pattern!r}; expected one where each document begins")
    yield Record(number, began, {"body": "\n".join(lines).rstrip()}, "body")


def chinese_poetry(texts: Iterable[str], name: str, config: DataConfig) -> Iterator[Record]:
    """The JSON of chinese-poetry: `paragraphs`, with `title` or `rhythmic`, and `author`."""
    for number, (line, value) in enumerate(json_objects(texts, name), start=1):
        record = Record(number, line, value, "paragraphs")
        if "title" not in value and "rhythmic" in value:
            record = record._replace(fields=value | {"title": value["rhythmic"]})
        yield record


def jsonl(texts: Iterable[str], name: str, config: DataConfig) -> Iterator[Record | DataError]:
    """A JSON object a line."""
    number, body = 0, config.field
    for at, line in enumerate(lines_of(texts, name), start=1):
        if not line or line.isspace():
            continue
        number += 1
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            yield DataError(f"{name}: line {at}, column {error.colno}: not valid JSON: {error.msg}; expected one object a line")
            continue
        except (ValueError, RecursionError) as error:
            yield DataError(f"{name}: line {at}: not valid JSON: {error}; expected one object a line")
            continue
        if not isinstance(value, dict):
            yield DataError(f'{name}: line {at}: holds {short(value)}; expected an object such as {{"text": …}}')
            continue
        body = body or text_field(list(value), name)
        yield Record(number, at, value, body)


def separated(delimiter: str) -> Tolerant:
    """A reader of CSV, quotes as in a spreadsheet's; or of TSV, in which a quote is a character like others."""
    quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if delimiter == "," else csv.QUOTE_NONE

    def read(texts: Iterable[str], name: str, config: DataConfig) -> Iterator[Record | DataError]:
        csv.field_size_limit(LONGEST)
        rows = csv.reader((line + "\n" for line in lines_of(texts, name)), delimiter=delimiter, quoting=quoting, strict=True)
        header: list[str] = []
        number, at, body = 0, 1, ""
        while True:
            try:
                row = next(rows, None)
            except csv.Error as error:
                yield DataError(f"{name}: line {at}: not valid CSV: {error}; expected quotes that close, doubled within quotes")
                at = rows.line_num + 1
                continue
            if row is None:
                return
            if row and not header:
                header = row
                twice = next((column for column, count in Counter(row).items() if count > 1), None)
                if twice is not None:
                    raise DataError(f"{name}: line {at}: two columns are called {short(twice)}; expected a header of different names")
                if delimiter == "," and len(row) == 1 and ";" in row[0] and row[0] != config.field:  # as spreadsheets write it in Europe
                    remedy = "expected commas between columns, so put them for its ';'"
                    raise DataError(f"{name}: line {at}: one column, {short(row[0])}; {remedy}")
                body = config.field or text_field(header, name)
                if body not in header:
                    columns = ", ".join(header)
                    raise DataError(f"{name}: line {at}: no column {body!r}, which data.field names; its columns are {columns}")
            elif row:
                number += 1
                if len(row) != len(header):
                    fields = f"{len(row)} {'field' if len(row) == 1 else 'fields'}"
                    remedy = "put quotes around what holds a comma or a line end" if delimiter == "," else "mend the row"
                    yield DataError(f"{name}: line {at}: {fields}, and the header has {len(header)}; {remedy}")
                else:
                    yield Record(number, at, dict(zip(header, row)), body)
            at = rows.line_num + 1

    return read


def lrc(texts: Iterable[str], name: str, config: DataConfig) -> Iterator[Record]:
    """One song: its lines in the order in which they are sung, each as often as it has timestamps.

    An `[offset:]` is of the lines after it, in milliseconds, and above 0 brings them forward. A line without a timestamp goes with the
    one before it.
    """
    fields = {"title": "", "author": ""}
    sung: list[tuple[float, str]] = []
    shift, now, size = 0.0, 0.0, 0
    for line in lines_of(texts, name):
        times = []
        rest = line
        while match := _STAMP.match(rest):
            times.append(60 * int(match[1]) + float(match[2].replace(":", ".")) - shift)
            rest = rest[match.end() :]
        tag = None if times else _TAG.match(rest)
        if tag:
            key, value = tag[1].lower(), tag[2].strip()
            fields[_TAGS.get(key, key)] = value
            if key == "offset":
                shift = _milliseconds(value, name) / 1000
            continue
        words = _WORD_STAMP.sub("", rest).strip()
        if words:
            sung += [(time, words) for time in times or [now]]
            size += len(words) * max(1, len(times))
        if size > LONGEST:
            raise DataError(f"{name}: a song of more than {LONGEST:,} characters; expected the lyrics of one song in a file")
        now = times[-1] if times else now
    sung.sort(key=lambda line: line[0])
    yield Record(1, 0, fields | {"body": "\n".join(words for _, words in sung)}, "body")


def image_tokens(texts: Iterable[str], name: str, config: DataConfig) -> Iterator[Record | DataError]:
    """A caption a line, as the token files of Flickr8k and Flickr30k have them: `name.jpg#0`, a tab, the caption."""
    column, body = config.images.field, config.field or "caption"
    number = 0
    for at, line in enumerate(lines_of(texts, name), start=1):
        if not line or line.isspace():
            continue
        number += 1
        if match := IMAGE_TOKEN.fullmatch(line):
            yield Record(number, at, {column: match[1], body: match[2]}, body)
        else:
            yield DataError(f"{name}: line {at}: {short(line)}; expected a picture's name, # with a number, a tab and a caption")


def image_json(texts: Iterable[str], name: str, config: DataConfig) -> Iterator[Record | DataError]:
    """A record for each caption of each picture: of Karpathy's JSON, an object with `images`, or of neuraltalk's, an array of objects.

    Karpathy's say under `split` to which part a picture belongs; that restval is of train too is his own advice.
    """
    column, body = config.images.field, config.field or "caption"
    for number, (line, value) in enumerate(_images(texts, name), start=1):
        place = Record(number, line, {}, body).place(name)
        try:
            path, captions = _captioned(value)
        except DataError as error:
            yield DataError(f"{place}: {error}")
            continue
        split = value.get("split") if "filename" in value else None
        if split is not None and split not in KARPATHY_SPLITS:
            yield DataError(f"{place}: split {short(split)}; expected {', '.join(KARPATHY_SPLITS)}, or none")
            continue
        for caption in captions:
            yield Record(number, line, {column: path, body: caption, "split": KARPATHY_SPLITS.get(split or "")}, body)


def _images(texts: Iterable[str], name: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Objects with their lines, 0 where lines do not tell: of an array one after the other, and of `images` all at once."""
    pieces = iter(texts)
    opening = ""
    while not opening.strip() and (piece := next(pieces, None)) is not None:
        opening += piece
    if not opening.lstrip().startswith("{"):
        yield from json_objects(chain([opening], pieces), name)
        return
    try:
        value = json.loads("".join(chain([opening], pieces)))
    except json.JSONDecodeError as error:
        remedy = "mend it there, or fetch the file again"
        raise DataError(f"{name}: line {error.lineno}, column {error.colno}: not valid JSON: {error.msg}; {remedy}") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{name}: not valid JSON: {error}; mend it, or fetch the file again") from None
    images = value.get("images")
    if not isinstance(images, list):
        raise DataError(f"{name}: an object whose fields are {', '.join(value)}; expected `images`, a list, or an array of objects")
    for number, image in enumerate(images, start=1):
        if not isinstance(image, dict):
            raise DataError(f"{name}: record {number}: holds {short(image)}; expected an object with filename and sentences")
        yield 0, image


def _captioned(value: Mapping[str, Any]) -> tuple[str, list[str]]:
    """A picture's path and its captions. Raises DataError, without the place, where an object has none."""
    if "file_path" in value:
        path, found, expected = value["file_path"], value.get("captions"), "captions, a list of text"
    elif "filename" in value:
        folder, path, expected = value.get("filepath", ""), value["filename"], "sentences, a list of objects with raw"
        path = f"{folder}/{path}" if folder and isinstance(folder, str) and isinstance(path, str) else path
        found = value.get("sentences")
        if isinstance(found, list):
            found = [sentence.get("raw") if isinstance(sentence, dict) else None for sentence in found]
    else:
        raise DataError(f"its fields are {', '.join(value)}; expected file_path and captions, or filename and sentences")
    if not isinstance(path, str):
        raise DataError(f"the path is {short(path)}; expected text")
    if not isinstance(found, list) or not found or not all(isinstance(caption, str) for caption in found):
        raise DataError(f"{short(path)} has no captions that can be read; expected {expected}")
    return path, found


def _milliseconds(value: str, name: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise DataError(f"{name}: [offset:{value}]: not a number; expected milliseconds") from None


def text_field(names: list[str], place: str) -> str:
    """The field that holds the text, by its name. Raises DataError where none is called so."""
    found = next((name for name in TEXT_FIELDS if name in names), None)
    if found is None:
        expected = f"{', '.join(TEXT_FIELDS[:-1])} or {TEXT_FIELDS[-1]}"
        raise DataError(f"{place}: no field is called {expected}; set data.field to the one that holds the text: {', '.join(names)}")
    return found


def json_objects(texts: Iterable[str], name: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a JSON array, or the one object that the text is, each with its line; one at a time is in memory."""
    reader = _Json(texts, name)
    is_array = reader.next_is("[")
    number = 0
    if is_array and reader.next_is("]"):
        is_array = False
    elif is_array or not reader.ended:
        while True:
            number += 1
            line, value = reader.value()
            if not isinstance(value, dict):
                raise DataError(f"{name}: record {number} (line {line}): holds {short(value)}; expected an object with fields")
            yield line, value
            if not (is_array and reader.next_is(",")):
                break
    if is_array and not reader.next_is("]"):
        raise reader.error("Expecting ',' or ']'", reader.at)
    if not reader.is_over():
        raise reader.error("Extra data", reader.at)


class _Json:
    """JSON that comes in pieces, and where in it we are."""

    def __init__(self, texts: Iterable[str], name: str) -> None:
        self.texts, self.name = iter(texts), name
        self.buffer, self.at = "", 0
        self.ended = False
        self.line, self.column, self.known = 1, 1, 0  # where the place `known` of the buffer lies in the text
        self.decode = json.JSONDecoder().raw_decode

    def next_is(self, character: str) -> bool:
        """Whether it comes next, behind white space; then it is taken."""
        self.is_over()
        found = self.buffer.startswith(character, self.at)
        self.at += found
        return found

    def is_over(self) -> bool:
        """Whether only white space is left."""
        while True:
            while self.at < len(self.buffer) and self.buffer[self.at] in " \t\n\r":
                self.at += 1
            if self.at < len(self.buffer):
                return False
            if not self._fill():
                return True

    def value(self) -> tuple[int, Any]:
        self.is_over()
        while True:
            try:
                value, end = self.decode(self.buffer, self.at)
            except json.JSONDecodeError as error:
                is_cut = error.pos >= len(self.buffer) - TOKEN or error.msg.startswith("Unterminated string")
                if not is_cut or not self._fill():
                    raise self.error(error.msg, error.pos) from None
            except (ValueError, RecursionError) as error:
                raise self.error(str(error), self.at) from None
            else:
                self.line, self.column = self._position(self.at)
                self.known = self.at
                line, self.at = self.line, end
                if end > len(self.buffer) // 2:
                    self._forget()
                return line, value

    def error(self, problem: str, at: int) -> DataError:
        line, column = self._position(at)
        return DataError(f"{self.name}: line {line}, column {column}: not valid JSON: {problem}; mend it there, or fetch the file again")

    def _position(self, at: int) -> tuple[int, int]:
        lines = self.buffer.count("\n", self.known, at)
        return self.line + lines, at - self.buffer.rfind("\n", self.known, at) if lines else self.column + at - self.known

    def _forget(self) -> None:
        self.line, self.column = self._position(self.at)
        self.buffer, self.at, self.known = self.buffer[self.at :], 0, 0

    def _fill(self) -> bool:
        """Read on. Whether there was more."""
        for text in self.texts:
            if text:
                self._forget()
                self.buffer += text
                if len(self.buffer) > LONGEST + len(text):
                    problem = f"a record of more than {LONGEST:,} characters; write one a line, as jsonl"
                    raise DataError(f"{self.name}: line {self.line}: {problem}")
                return True
        self.ended = True
        return False


TOLERANT: dict[str, Tolerant] = {
    "title_body": title_body,
    "pattern": pattern,
    "chinese_poetry": chinese_poetry,
    "jsonl": jsonl,
    "csv": separated(","),
    "tsv": separated("\t"),
    "lrc": lrc,
    "image_tokens": image_tokens,
    "image_json": image_json,
}


def _strict(read: Tolerant) -> Reader:
    def records(texts: Iterable[str], name: str, config: DataConfig) -> Iterator[Record]:
        for record in read(texts, name, config):
            if isinstance(record, DataError):
                raise record
            yield record

    return records


READERS: dict[str, Reader] = {name: _strict(read) for name, read in TOLERANT.items()}
