"""Manifests: tables that name files, by a path, with a text for each.

What is wrong with a row comes in its place as a DataError, so that who can do without it goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, TypeVar

from charrnn.config import DataConfig
from charrnn.data.examples import sound, usable
from charrnn.data.files import Source, sources, why_unreadable
from charrnn.data.formats import Reading
from charrnn.data.labelled import own
from charrnn.data.records import NAMED_COLUMNS, Record
from charrnn.errors import DataError, Faults, short

LONGEST = 5000  # characters of what is said in a file: five minutes of speech. More is a column of something else
HEADED = ("tsv", "csv")  # tables whose first row says what is in each column of all the others
T = TypeVar("T")
R = TypeVar("R")
Locate = Callable[[str], Path]  # the file that a name in a manifest leads to; raises DataError with the reason where it is none


class Row(NamedTuple):
    """A file with its text, which has no space around it."""

    path: Path
    name: str  # the path as the manifest has it
    text: str
    source: str
    record: Record


class Columns(NamedTuple):
    """What a manifest says of a file: under which name, and what that is for an error."""

    path: str  # the column with the path …
    path_key: str  # … and the key that names it
    text: str
    what: str  # a path leads to: `a recording`


def rows(config: DataConfig, source: Source, kind: str, columns: Columns, locate: Locate, notes: list[str]) -> Iterator[Row | DataError]:
    """The rows of a manifest, in their order. Files are looked for, but not read.

    `kind` is how it is read, a key of TOLERANT. `notes` takes what a person should know of how that went. A manifest that cannot be read
    any further gives one DataError.
    """
    try:
        reading = Reading(config.model_copy(update={"format": kind, "field": columns.text, "documents": None, "pattern": None}), [source])
        for found in reading.records():
            if isinstance(found, DataError):
                yield found
                continue
            row, (_, record, _) = _row(found, columns, locate), found
            yield row
            if kind in HEADED and isinstance(row, DataError) and not (columns.path in record.fields or record.names_body(columns.path)):
                return  # so it is of every other row
    except DataError as error:
        yield error
    else:
        notes += reading.notes()


def load_own(
    config: DataConfig,
    path: Path,
    read: Callable[[DataConfig, list[Source], list[str]], Iterator[T | DataError]],
    what: str,
    load: Callable[[list[T], list[str]], R],
    strangers: Callable[[R], Iterable[DataError | None]],
) -> tuple[R, tuple[DataError, ...]]:
    """What `load` makes of a manifest of the user's own, given its notes too, and what is wrong with some of it. Without the filters.

    What cannot be used is left out. What `strangers` names is not: that is told, and measured. `what`: one of the examples, for an
    error. Raises Faults where nothing can be used.
    """
    notes: list[str] = []
    faults: list[DataError] = []
    files = sources([path])
    found = sound(read(own(config, files), files, notes), faults)
    if not found:
        raise Faults(faults or [DataError(f"{path}: holds no {what}; expected some to measure on")])
    loaded = usable(found, lambda some: load(some, notes), faults)
    faults += filter(None, strangers(loaded))
    return loaded, tuple(faults)


def kind_by_name(source: Source, config: DataConfig) -> str | None:
    """How a manifest with named columns is read, as data.format or its name says; None where they say nothing of it."""
    kind = NAMED_COLUMNS.get(source.suffix) if config.format == "auto" else config.format
    return kind if kind in NAMED_COLUMNS.values() else None


def unknown_kind(source: Source, config: DataConfig, fact: str, columns: Columns, others: str = "") -> DataError:
    """What there is to say of a manifest of no kind that is known. `fact`: why not, by its name."""
    fact = fact if config.format == "auto" else f"data.format is {config.format}"
    remedy = "so set data.format to tsv, csv or jsonl"
    return DataError(f"{source.name}: {fact}; expected a manifest with columns {columns.path} and {columns.text}{others}, {remedy}")


def beside(folder: Path, what: str) -> Locate:
    """Paths relative to a folder, each of a file that can be opened."""

    def locate(name: str) -> Path:
        path = folder / name
        if reason := why_unreadable(path, what):
            raise DataError(f"{reason} at {path}")
        return path

    return locate


def _row(found: tuple[str, Record, str], columns: Columns, locate: Locate) -> Row | DataError:
    name, record, text = found
    try:
        path = record.text(columns.path, name, columns.path_key).strip()
    except DataError as error:
        return error
    if not path:
        fact = f"field {columns.path!r} is empty; expected {columns.what}'s path"
        return DataError(f"{record.place(name)}: {fact}, so fill it or take the row out")
    if len(text) > LONGEST:
        fact = f"{len(text):,} characters of text for {columns.what}; expected at most {LONGEST:,}"
        return DataError(f"{record.place(name)}: {fact}, so mend the row or cut the file it names")
    try:
        return Row(locate(path), path, text.strip(), name, record)
    except DataError as error:
        return DataError(f"{record.place(name)}: {short(path)}: {error}, so mend the path or take the row out")
