"""Labelled texts: a label for each text, in named columns, or one for each character, in CoNLL columns. All of them are in memory."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np

from charrnn.config import DataConfig, FiltersConfig
from charrnn.data.batch import IGNORED
from charrnn.data.corpus import Corpus, Ids, expect_split
from charrnn.data.decoding import halves
from charrnn.data.documents import lines_of
from charrnn.data.examples import ORDER, corpus_of, load_parts, sound, vocabulary_of
from charrnn.data.files import Source, sources
from charrnn.data.filtering import Filters
from charrnn.data.formats import Reading, half
from charrnn.data.records import NAMED_COLUMNS
from charrnn.data.script import Converter
from charrnn.data.vocabulary import Vocabulary
from charrnn.errors import DataError, did_you_mean, short

DOCSTART = "-DOCSTART-"  # the line with which CoNLL-2003 begins a document
MANY = 100  # labels: more of them than half of what is labelled are names or numbers, not labels
SHOWN = 20  # labels in a message


class Example(NamedTuple):
    """A text with its label, with one for each of its characters, or with none."""

    text: str
    labels: str | tuple[str, ...] | None
    source: str
    line: int  # where the text begins

    def place(self, character: int = 0) -> str:
        """Of a character with a label, which has a line of its own."""
        return f"{self.source}: line {self.line + character}"


# Settings, files, and a list that takes what a person should know of how they were read.
Read = Callable[[DataConfig, list[Source], list[str]], Iterator[Example | DataError]]


def texts(config: DataConfig, files: list[Source], notes: list[str]) -> Iterator[Example | DataError]:
    """The rows of TSV, CSV and JSONL: the text in `data.field`, its label in `data.label`."""
    return _texts(config, files, notes, needed=True)


def unsettled_texts(config: DataConfig, files: list[Source], notes: list[str]) -> Iterator[Example | DataError]:
    """The same, where a row may lack the label."""
    return _texts(config, files, notes, needed=False)


def lines(config: DataConfig, files: list[Source], notes: list[str]) -> Iterator[Example | DataError]:
    """The lines of plain text, none of them labelled."""
    reading, converter = _lines(config, files)
    for name, pieces in reading.texts():
        for at, line in enumerate(lines_of(pieces, name), start=1):
            place = f"{name}: line {at}"
            if broken := halves(line):
                yield half(place, broken)
            elif not line.strip():
                yield DataError(f"{place}: the line is empty; expected a text, so fill it or take it out")
            else:
                yield Example(converter(line) if converter else line, None, name, at)
    notes += reading.notes()


def typed(config: DataConfig, texts: Sequence[str], source: str) -> Iterator[Example | DataError]:
    """Texts that a person typed, none of them labelled; `source` is what names them."""
    converter = Converter(config.script) if config.script else None
    for at, text in enumerate(texts, start=1):
        place = f"{source} {at}"
        if broken := halves(text):
            yield half(place, broken)
        elif not text.strip():
            yield DataError(f"{place}: the text is empty; expected some to read")
        else:
            yield Example(converter(text) if converter else text, None, source, at)


def sentences(config: DataConfig, files: list[Source], notes: list[str]) -> Iterator[Example | DataError]:
    """CoNLL columns, by tab or spaces: a character first, its label last, and a blank line behind each sentence."""
    if config.template is not None or Filters(config.filters).are_any:
        key = "filters" if config.template is None else "template"
        raise DataError(f"data.{key}: is of texts, and CoNLL columns hold labelled characters; leave it out")
    reading, converter = _lines(config, files)
    for name, pieces in reading.texts():
        yield from _sentences(lines_of(pieces, name), name, converter)
    notes += reading.notes()


def _texts(config: DataConfig, files: list[Source], notes: list[str], *, needed: bool) -> Iterator[Example | DataError]:
    label = config.label or "label"
    for kind, group in groupby(files, lambda source: _kind(source, config)):
        reading = Reading(config.model_copy(update={"format": kind}), list(group))
        for found in reading.records():
            if isinstance(found, DataError):
                yield found
                continue
            name, record, text = found
            if not needed and label not in record.fields:
                yield Example(text, None, name, record.line)
                continue
            try:
                value = record.text(label, name, "data.label").strip()
            except DataError as error:
                yield error
                continue
            if value:
                yield Example(text, value, name, record.line)
            else:
                yield DataError(f"{record.place(name)}: field {label!r} is empty; expected a label, so fill it or take the row out")
        notes += reading.notes()


def _kind(source: Source, config: DataConfig) -> str:
    kind = NAMED_COLUMNS.get(source.suffix) if config.format == "auto" else config.format
    if kind is None:
        remedy = "so set data.format to what it is"
        raise DataError(f"{source.name}: not named .tsv, .csv or .jsonl; expected named columns with text and label, {remedy}")
    return kind


def _lines(config: DataConfig, files: list[Source]) -> tuple[Reading, Converter | None]:
    plain = {"format": "lines", "documents": None, "field": None, "pattern": None, "template": None, "filters": FiltersConfig()}
    return Reading(config.model_copy(update=plain), files), Converter(config.script) if config.script else None


def _sentences(rows: Iterable[str], name: str, converter: Converter | None) -> Iterator[Example | DataError]:
    """What is wrong with a row is wrong with its sentence."""
    width = 0
    characters: list[str] = []
    labels: list[str] = []
    fault: DataError | None = None
    for at, row in enumerate(chain(rows, [""]), start=1):
        if not row.strip(" \t") or row.startswith(DOCSTART):
            if fault is not None:
                yield fault
            elif characters:
                yield Example(_converted("".join(characters), converter), tuple(labels), name, at - len(characters))
            characters, labels, fault = [], [], None
            continue
        if fault is not None:
            continue
        columns = row.split("\t") if "\t" in row else re.split(" +", row.strip(" "))
        fault = _fault(row, columns, width, f"{name}: line {at}")
        width = width or len(columns)
        characters.append(columns[0])
        labels.append(columns[-1].strip())


def _fault(row: str, columns: list[str], width: int, place: str) -> DataError | None:
    if broken := halves(row):
        return half(place, broken)
    if len(columns) < 2:
        return DataError(f"{place}: one column, {short(row)}; expected a character and its label, as in 字 B-LOC")
    if width and len(columns) != width:
        return DataError(f"{place}: {len(columns)} columns, and the first row has {width}; expected as many in all, so mend the row")
    if len(columns[0]) != 1:
        fact = f"{short(columns[0])} is {len(columns[0])} characters" if columns[0] else "the first column is empty"
        return DataError(f"{place}: {fact}; expected one character in the first column, each with a line of its own")
    if not columns[-1].strip():
        return DataError(f"{place}: the last column is empty; expected the character's label")
    return None


def _converted(text: str, converter: Converter | None) -> str:
    """As long as before: each character keeps its label."""
    if converter is None:
        return text
    converted = converter(text)
    return converted if len(converted) == len(text) else "".join(c if len(c) == 1 else o for o, c in ((o, converter(o)) for o in text))


@dataclass(frozen=True, eq=False)
class Labelled:
    """A corpus of documents, each closed by `end`, with labels beside its ids."""

    corpus: Corpus
    labels: tuple[str, ...]  # sorted; a target is an index of it
    targets: Ids  # (N,) int32: a text's at its `end`, or a character's at the character; IGNORED elsewhere

    def split(self, name: str) -> Ids:
        """The targets of a split, beside its ids. Raises UserError where there is no such split."""
        expect_split(name)
        start, stop = self.corpus.ranges[name]
        return self.targets[start:stop]


def load_labelled(config: DataConfig, seed: int, read: Read = texts) -> Labelled:
    """The splits of a configuration. Raises DataError naming file and line where a text cannot be used.

    Labels are those of `data.path`, and the vocabulary is that of what is trained on: what stands only in val or test is unknown.
    """
    parts = load_parts(config, seed, read, "labelled text")
    labels = tuple(sorted({label for example in parts.found for label in _labels(example)}))
    _expect_labels(labels, sum(len(_labels(example)) for example in parts.found), config, parts.name)
    vocabulary = vocabulary_of((example.text for example in parts.splits["train"]), config, parts.name)
    return _labelled(parts.splits, vocabulary, labels, config, parts.notes, parts.files)


def load_labelled_file(config: DataConfig, path: Path, vocabulary: Vocabulary, labels: tuple[str, ...], read: Read = texts) -> Labelled:
    """A file of the user's own, whole and in its order, as split `test` in a trained model's vocabulary and labels. Without the filters."""
    notes: list[str] = []
    files = sources([path])
    found = sound(read(own(config, files), files, notes))
    if not found:
        raise DataError(f"{path}: holds no labelled text; expected some to measure on")
    return _labelled({"train": [], "test": found, "val": []}, vocabulary, labels, config, notes, 1)


def own(config: DataConfig, files: list[Source]) -> DataConfig:
    """As the configuration reads its corpus, but without the filters, and in the format that the files' names show."""
    return config.model_copy(update={"filters": FiltersConfig()} | ({"format": "auto"} if have_columns(files) else {}))


def have_columns(files: Sequence[Source]) -> bool:
    """Whether their names say that they have named columns."""
    return all(source.suffix in NAMED_COLUMNS for source in files)


def unknown_label(example: Example, label: str, labels: tuple[str, ...], character: int = 0) -> DataError:
    expected = f"expected one of {listed(labels)}{did_you_mean(label, labels)}"
    return DataError(f"{example.place(character)}: unknown label {short(label)}; {expected}")


def listed(labels: Sequence[str]) -> str:
    """As a message names them: not all, where they are many."""
    return ", ".join(labels[:SHOWN]) + (", …" if len(labels) > SHOWN else "")


def _labels(example: Example) -> tuple[str, ...]:
    return (example.labels,) if isinstance(example.labels, str) else example.labels or ()


def _expect_labels(labels: tuple[str, ...], count: int, config: DataConfig, name: str) -> None:
    if len(labels) < 2:
        raise DataError(f"{name}: only one label, {labels[0]!r}; there is nothing to decide")
    if len(labels) > MANY and 2 * len(labels) > count:
        fact = f"{len(labels):,} different labels for {count:,} texts or characters"
        raise DataError(f"{name}: {fact}; expected labels that come again and again, so set data.label to their column")


def _labelled(
    parts: dict[str, list[Example]], vocabulary: Vocabulary, labels: tuple[str, ...], config: DataConfig, notes: list[str], files: int
) -> Labelled:
    index = {label: i for i, label in enumerate(labels)}
    targets: list[int] = []
    for example in (example for split in ORDER for example in parts[split]):
        asked = []
        for character, label in enumerate(_labels(example)):
            if label not in index:
                raise unknown_label(example, label, labels, character)
            asked.append(index[label])
        targets += [IGNORED] * len(example.text) + asked if isinstance(example.labels, str) else [*asked, IGNORED]
    found = np.array(targets, dtype=np.int32)
    texts = {split: [example.text for example in some] for split, some in parts.items()}
    beside = repr(labels).encode() + found.tobytes()
    return Labelled(corpus_of(texts, vocabulary, config, notes=notes, files=files, beside=beside), labels, found)
