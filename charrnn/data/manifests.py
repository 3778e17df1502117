"""Manifests: tables that name files, by a path, with a text for each.

What is wrong with a row comes in its place as a DataError, so that who can do without it goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from charrnn.config import DataConfig
from charrnn.data.files import Source, why_unreadable
from charrnn.data.formats import Reading
from charrnn.data.records import NAMED_COLUMNS, Record
from charrnn.errors import DataError, short

Locate = Callable[[str], Path]  # the file that a name in a manifest leads to; raises DataError with the reason where it is none


class Row(NamedTuple):
    """A file with its text, which has no space around it."""

    path: Path
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
            yield found if isinstance(found, DataError) else _row(found, columns, locate)
    except DataError as error:
        yield error
    else:
        notes += reading.notes()


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
    try:
        return Row(locate(path), text.strip(), name, record)
    except DataError as error:
        return DataError(f"{record.place(name)}: {short(path)}: {error}, so mend the path or take the row out")
