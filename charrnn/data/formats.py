"""What a text is, and its documents as a model reads them: format, template, script and filters.

`read_documents` is the door for who wants the documents as strings; a corpus takes them in pieces, which is faster.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

from charrnn.config import DataConfig, FiltersConfig
from charrnn.data.decoding import AUTO, codec, detect, detect_all, halves, opening_text, read_text
from charrnn.data.documents import LONGEST, assembled, split_documents
from charrnn.data.files import OnBytes, Source, find_files, sources
from charrnn.data.filtering import Filters
from charrnn.data.records import COLONS, READERS, TEXT_FIELDS, TOLERANT, Record
from charrnn.data.script import Converter
from charrnn.errors import DataError, counted, did_you_mean, printable

BATCH = 1 << 20  # characters of documents that are handed on together
NEARLY_ALL = 0.95  # of the lines of a text that is one of titles and bodies
LONGEST_TITLE = 60
NAMED = 200  # characters of column names in a note
TEMPLATES = {"title_body": "{title}\n{body}", "chinese_poetry": "{title}\n{body}", "lrc": "{title}\n{body}"}  # else the text alone
_FIELD = re.compile(r"\{([^{}]*)\}")
_SUFFIXES = (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".lrc", ".abc", ".txt")  # others are not looked into


@dataclass
class Found:
    """What one pass over the documents met."""

    dropped: dict[str, int] = field(default_factory=dict)  # documents, by the filter that they fell to
    lines: int = 0  # left out of documents or of the stream
    blank: int = 0  # records without text
    characters: int = 0
    ambiguous: int = 0  # characters that stand for several in the script they were converted to


class Reading:
    """How the text of a configuration is read, settled against its files; iterated, its documents as the model reads them.

    Where the text is one stream (`is_stream`), there are no documents, and an iteration yields the stream in pieces.

    name       of the text, for an error
    formats    of each source: text, lines, blank_lines, files, title_body, pattern, chinese_poetry, jsonl, csv, tsv or lrc
    encodings  of each source, after `settle` or an iteration; `ascii` where it would be the same in any
    found      what the last whole iteration left out and converted
    notes()    the same as sentences for a person: what was guessed, detected, left out, converted
    """

    def __init__(self, config: DataConfig, sources: list[Source]) -> None:
        if config.encoding != AUTO:
            codec(config.encoding)
        self.config, self.sources = config, sources
        self.files = list(dict.fromkeys(source.path for source in sources))
        self.name = str(self.files[0]) if len(self.files) == 1 else " from ".join([f"{len(self.files)} files", *map(str, self.files[:1])])
        self.formats, self._guessed = _formats(config, self.sources)
        self.is_stream = set(self.formats) == {"none"}
        self.encodings: list[str] | None = None if config.encoding == AUTO else [config.encoding] * len(self.sources)
        self.found = Found()
        if self.is_stream:
            rule = Filters(config.filters).need_documents
            if config.field is not None:
                remedy = "set data.format to one of them, or leave data.field out"
                raise DataError(f"data.field {config.field!r}: is of jsonl, csv and tsv, and the text is one stream; {remedy}")
            key = "template" if config.template is not None else f"filters.{rule}" if rule else None
            if key:
                raise DataError(f"data.{key}: needs documents, and the text is one stream; set data.documents or data.format")

    def __iter__(self) -> Iterator[str]:
        if self.is_stream:
            return (text for text, _ in self.pieces() if text)
        return assembled(self.pieces(), "data.path")

    def settle(self, *, tolerant: bool = False) -> None:
        """Find the encodings. Raises DataError where one cannot be found, or two differ. `tolerant`: UTF-8 may be damaged."""
        if self.encodings is None:
            # The standard library is UTF-8, and what is not is left out.
            library = self.config.source != "files"
            self.encodings = ["utf-8"] * len(self.sources) if library else detect_all(self.sources, tolerant=tolerant)

    def pieces(self, on_bytes: OnBytes | None = None) -> Iterator[tuple[str, list[int]]]:
        """All of the text in pieces, each with the places in it behind which a document closes.

        In a stream, a file that does not end its last line ends it where another follows.
        """
        self.settle()
        assert self.encodings is not None
        work = _Work(self.config)
        unended = False
        for source, kind, encoding in zip(self.sources, self.formats, self.encodings):
            joint = "\n" if unended else ""
            for text, closes in work.pieces(read_text(source, encoding, on_bytes), source.name, kind):
                if text and self.is_stream:
                    text, joint, unended = joint + text, "", not text.endswith("\n")
                yield text, closes
        self.found = work.found()

    def texts(self) -> Iterator[tuple[str, Iterator[str]]]:
        """Each source's name and its text, in pieces, in which a byte that is none of its encoding is half of a character."""
        self.settle(tolerant=True)
        for source, encoding in zip(self.sources, self.encodings or []):
            yield source.name, read_text(source, encoding, errors="surrogateescape")

    def records(self) -> Iterator[tuple[str, Record, str] | DataError]:
        """Each record that the filters keep, with the name of its source and the document that it becomes.

        What is wrong with a record comes in its place, so that who can do without it goes on.
        """
        work = _Work(self.config)
        for (name, texts), kind in zip(self.texts(), self.formats):
            template = _Template(self.config.template, kind)
            for record in TOLERANT[kind](texts, name, self.config):
                if isinstance(record, DataError):
                    yield record
                    continue
                blank = work.blank
                try:
                    if broken := halves(record.text(record.body, name, "data.field")):
                        raise half(record.place(name), broken)
                    document = next(work.documents([record], name, template), None)
                except DataError as error:
                    yield error
                    continue
                if document is not None:
                    yield name, record, document
                elif work.blank > blank:
                    yield DataError(f"{record.place(name)}: field {record.body!r} is empty; expected text, so fill it or take the row out")
        work.blank = 0  # each was told
        self.found = work.found()

    def to_json(self) -> dict[str, Any]:
        """What a pass found out, for who keeps it; `recall` takes it back."""
        return {"encodings": self.encodings, "found": asdict(self.found)}

    def recall(self, kept: dict[str, Any]) -> None:
        self.encodings, self.found = list(kept["encodings"]), Found(**kept["found"])

    def emptiness(self) -> DataError:
        """What there is to say where nothing came of a whole iteration."""
        if self.found.dropped or self.found.lines:
            return DataError(f"{self.name}: nothing is left of the text; {'; '.join(self.notes())}; expected filters that keep some")
        return DataError(f"{self.name}: empty; expected text to learn from")

    def notes(self) -> list[str]:
        """What a person should know of how the text was read, a sentence each. Nothing of what the configuration says itself."""
        return [note for note in (self._guessed, self._encoding_note(), *self._left_out(), self._script_note()) if note]

    def _encoding_note(self) -> str | None:
        chosen = [(s, e) for s, e in zip(self.sources, self.encodings or []) if e not in ("ascii", "utf-8")]
        if self.config.encoding != AUTO or not chosen:
            return None
        others = f" and {len(chosen) - 1} more" if len(chosen) > 1 else ""
        return f"{chosen[0][0].name}{others}: read as {chosen[0][1]}, which was detected; if that is wrong, set data.encoding"

    def _left_out(self) -> Iterator[str]:
        found = self.found
        if found.dropped:
            rules = ", ".join(f"{count:,} by {rule}" for rule, count in found.dropped.items())
            yield f"data.filters: {counted(sum(found.dropped.values()), 'document')} left out: {rules}"
        if found.lines:
            yield f"data.filters: {counted(found.lines, 'line')} left out by drop_lines_with"
        if found.blank:
            yield f"{counted(found.blank, 'record')} without text left out"

    def _script_note(self) -> str | None:
        if self.config.script is None:
            return None
        share = self.found.ambiguous / max(1, self.found.characters)
        return (
            f"converted to {self.config.script} characters: {self.found.ambiguous:,} of {self.found.characters:,} ({share:.2%}) were "
            "ambiguous and chosen by the words around them"
        )


def read_documents(config: DataConfig) -> Reading:
    """The documents of a configuration, to be iterated, with what was detected.

        reading = read_documents(config)
        for document in reading: ...        # any number of times; nothing is kept in memory
        reading.is_stream                   # then these were pieces of one text
        reading.sources, reading.formats, reading.encodings     # side by side
        reading.found.dropped, reading.found.ambiguous
        reading.notes()

    Raises DataError, here or in the midst, where the text cannot be used.
    """
    return Reading(config, sources(find_files(config)))


def read_file(config: DataConfig, file: Path | Source, documents: str | None = None) -> Reading:
    """A text of the user's own, read as that of the configuration: in its format, encoding, template and script, and without its filters.

    With `documents`, it is plain text and cut by that, whatever the configuration says: a model that knows no end of a document reads
    a stream, `none`.
    """
    found = [file] if isinstance(file, Source) else sources([file])
    changes: dict[str, Any] = {"source": "files", "path": str(found[0].path), "filters": FiltersConfig()}
    if config.format == "auto" and all(source.suffix not in (".jsonl", ".ndjson", ".csv", ".tsv") for source in found):
        changes["field"] = None  # of the corpus, and this text has none
    if documents is not None:
        changes |= {"format": "text", "documents": documents, "template": None, "field": None, "pattern": None}
    return Reading(config.model_copy(update=changes), found)


def half(place: str, broken: str) -> DataError:
    """What there is to say of what `halves` found."""
    return DataError(f"{place}: {broken}: no whole character; expected text without CESU-8 surrogates or damage, so mend it there")


def whole_text(source: Source, encoding: str) -> tuple[str, list[DataError]]:
    """A text with its line ends as they are, without its byte order mark; and what is wrong with which of its lines.

    A line that holds half of a character is left empty, so that the others keep their numbers. Raises DataError where there is no text.
    """
    encoding = detect(source, tolerant=True) if encoding == AUTO else encoding
    with source.opened() as raw:
        content = raw.read()
    try:
        text = codec(encoding).decode(content, "surrogateescape")[0].removeprefix("\ufeff")
    except UnicodeError as error:
        raise DataError(f"{source.name}: no text in {encoding}: {error}; set data.encoding to what it is in") from None
    faults = []
    if halves(text):
        lines = text.split("\n")
        for i, line in enumerate(lines):
            if broken := halves(line):
                faults.append(half(f"{source.name}: line {i + 1}", broken))
                lines[i] = ""
        text = "\n".join(lines)
    return text, faults


class _Work:
    """One pass over the documents."""

    def __init__(self, config: DataConfig) -> None:
        self.config = config
        self.filters = Filters(config.filters)
        self.converter = Converter(config.script) if config.script else None
        self.is_plain = not (config.template or self.converter or self.filters.are_any)
        self.blank = self.characters = 0

    def found(self) -> Found:
        ambiguous = self.converter.ambiguous if self.converter else 0
        return Found(dict(self.filters.dropped), self.filters.lines, self.blank, self.characters, ambiguous)

    def pieces(self, texts: Iterable[str], name: str, kind: str) -> Iterator[tuple[str, list[int]]]:
        if kind in READERS:
            return _batched(self.documents(READERS[kind](texts, name, self.config), name, _Template(self.config.template, kind)))
        if self.is_plain:
            return split_documents(texts, kind)
        if kind == "none":
            return ((self._converted(self.filters.without_lines(text)), []) for text in _whole_lines(texts, name))
        documents = assembled(split_documents(texts, kind), name)
        records = (Record(number, 0, {"body": document}, "body") for number, document in enumerate(documents, start=1))
        return _batched(self.documents(records, name, _Template(self.config.template, kind)))

    def documents(self, records: Iterable[Record], name: str, template: _Template) -> Iterator[str]:
        asker = "data.field" if self.config.field else "data.format" if template.kind == "chinese_poetry" else "its first record"
        for record in records:
            body = record.text(record.body, name, asker)
            if not body.strip():
                self.blank += 1
                continue
            if self.filters.authors and not self._keeps_author(record, name):
                continue
            if self.filters.marks:
                body = self.filters.without_lines(body)
                if not self.filters.keeps_lines(body):
                    continue
            if not self.filters.keeps_form(body):
                continue
            document = template.fill(record, body, name)
            if self.filters.marks:
                document = self.filters.without_lines(document)
            document = self._converted(document)
            if document.strip() and self.filters.keeps(document):
                yield document

    def _keeps_author(self, record: Record, name: str) -> bool:
        author = record.text("author", name, "data.filters.author").strip()
        return self.filters.keeps_author({author, self.converter.uncounted(author)} if self.converter else {author})

    def _converted(self, text: str) -> str:
        if self.converter is None:
            return text
        self.characters += len(text)
        return self.converter(text)


class _Template:
    """What a document becomes: text with fields in braces. A line of it whose fields are all empty is left out."""

    def __init__(self, template: str | None, kind: str) -> None:
        text = TEMPLATES.get(kind, "{body}") if template is None else template.replace("\\n", "\n")
        self.lines = [_FIELD.split(line) for line in text.split("\n")]  # text, field, text, field, … text
        if not any(len(parts) > 1 for parts in self.lines):
            raise DataError(f"data.template {text!r}: names no field; expected one such as '{{title}}\\n{{body}}'")
        self.kind, self.is_body = kind, text == "{body}"

    def fill(self, record: Record, body: str, name: str) -> str:
        if self.is_body:
            return body
        lines = []
        for text, *rest in self.lines:
            values = [body if record.names_body(key) else record.text(key, name, "data.template") for key in rest[::2]]
            if values and not any(values):
                continue
            lines.append(text + "".join(value + after for value, after in zip(values, rest[1::2])))
        return "\n".join(lines)


def _batched(documents: Iterable[str]) -> Iterator[tuple[str, list[int]]]:
    batch: list[str] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += len(document)
        if size >= BATCH:
            yield "".join(batch), list(accumulate(map(len, batch)))
            batch, size = [], 0
    if batch:
        yield "".join(batch), list(accumulate(map(len, batch)))


def _whole_lines(texts: Iterable[str], name: str) -> Iterator[str]:
    """The text again, cut at line ends."""
    rest = ""
    for text in texts:
        whole, end, rest = (rest + text).rpartition("\n")
        if end:
            yield whole + end
        if len(rest) > LONGEST:
            raise DataError(f"{name}: a line of more than {LONGEST:,} characters; expected text with line ends")
    if rest:
        yield rest


def _formats(config: DataConfig, sources: list[Source]) -> tuple[list[str], str | None]:
    """How each source is read, and what there is to say where that was guessed."""
    if config.documents is not None or config.source != "files":
        return [config.documents or "none"] * len(sources), None
    if config.pattern is not None:
        return ["pattern"] * len(sources), None
    if config.format != "auto":
        return ["none" if config.format == "text" else config.format] * len(sources), None
    guesses = [_guess(source, config) for source in sources]
    kinds = dict.fromkeys(kind for kind, _ in guesses if kind)
    remark = next((f"{s.name}: {remark}" for s, (_, remark) in zip(sources, guesses) if remark), None)
    if not kinds or set(kinds) == {"none"}:
        return ["none"] * len(sources), remark
    first = {kind: next(s.name for s, (guess, _) in zip(sources, guesses) if guess == kind) for kind in kinds}
    if "none" in kinds:
        other = next(kind for kind in kinds if kind != "none")
        return ["none"] * len(sources), (
            f"{first[other]} looks like {other} and {first['none']} like plain text, so all is read as one stream of plain text; "
            "to read documents, name the files of one format in data.path, or set data.format"
        )
    counts = [f"{sum(guess == kind for guess, _ in guesses):,} as {kind}" for kind in kinds]
    what = f"{sources[0].name}: read as {next(iter(kinds))}" if len(sources) == 1 else f"{len(sources):,} files read: {', '.join(counts)}"
    formats = [kind or next(iter(kinds)) for kind, _ in guesses]
    return formats, f"{what}, by name and content; for plain text set data.format: text"


def _guess(source: Source, config: DataConfig) -> tuple[str | None, str | None]:
    """The format of a source where name and content leave no doubt, else `none`; None where it is empty. And a remark."""
    if source.suffix not in _SUFFIXES:
        return "none", None
    text = opening_text(source, config.encoding)
    if not text.strip():
        return None, None
    columns: list[str] | None = None
    if source.suffix == ".json":
        if _POETRY.match(text):
            return "chinese_poetry", None
        remark = "JSON without the paragraphs of chinese_poetry, read as one stream of plain text; for the documents in it "
        return "none", f"{remark}write one object a line, as jsonl" if _OBJECTS.match(text) else None
    if source.suffix in (".jsonl", ".ndjson"):
        kind, columns = "jsonl", _first_object(text)
    elif source.suffix in (".csv", ".tsv"):
        kind, columns = source.suffix[1:], _header(text, "," if source.suffix == ".csv" else "\t")
    else:
        looks = {".lrc": _looks_lrc, ".abc": _looks_abc, ".txt": _looks_title_body}[source.suffix]
        return ({".lrc": "lrc", ".abc": "pattern", ".txt": "title_body"}[source.suffix] if looks(text) else "none"), None
    if columns and (config.field in columns if config.field else not set(TEXT_FIELDS).isdisjoint(columns)):
        return kind, None
    if columns and config.field:
        fact = f"no field {config.field!r}, which data.field names; its fields are {', '.join(columns)}"
        raise DataError(f"{source.name}: {fact}{did_you_mean(config.field, columns)}")
    names = printable(f" to one of {', '.join(columns)}")[:NAMED] if columns else ""
    return "none", f"read as one stream of plain text; for the documents in it set data.format: {kind} and data.field{names}"


_SENTENCE = re.compile("[。！？!?；;]")  # ends in it, so it is no title
_POETRY = re.compile(r'\s*\[\s*(\{[^{}]*?"paragraphs"\s*:\s*\[|\]\s*$)')  # or an array of nothing, which is no text
_OBJECTS = re.compile(r"\s*\[\s*\{")


def _first_object(text: str) -> list[str] | None:
    try:
        value, _ = json.JSONDecoder().raw_decode(text.lstrip())
    except (ValueError, RecursionError):
        return None
    return list(value) if isinstance(value, dict) else None


def _header(text: str, delimiter: str) -> list[str] | None:
    """The names in the first row, where the second has as many fields."""
    try:
        rows = list(csv.reader(text.split("\n")[:50], delimiter=delimiter))
    except csv.Error:
        return None
    rows = [row for row in rows if row]
    return rows[0] if len(rows) > 1 and (len(rows[0]) > 1 or rows[0][0] in TEXT_FIELDS) else None


def _looks_lrc(text: str) -> bool:
    return re.search(r"^\s*\[\d+:\d+", text, re.MULTILINE) is not None


def _looks_abc(text: str) -> bool:
    return re.search("^X:", text, re.MULTILINE) is not None


def _looks_title_body(text: str) -> bool:
    """Whether nearly every line is a title, a colon and a text. A play or a chat has the same names again and again, and is none."""
    *lines, last = text.split("\n")
    lines = [line for line in (lines if len(lines) > 1 else [*lines, last]) if line.strip()]
    titles = []
    for line in lines:
        title, *rest = COLONS.split(line, maxsplit=1)
        is_name = len(title) <= LONGEST_TITLE and any(c.isalpha() for c in title) and not _SENTENCE.search(title)
        if is_name and rest and rest[0].strip():
            titles.append(title)
    return len(lines) > 1 and len(titles) >= NEARLY_ALL * len(lines) and len(set(titles)) * 2 > len(titles)
