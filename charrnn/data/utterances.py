"""What was said in which recording: a manifest names recordings and their transcripts, by line.

What is wrong with one of them comes in its place as a DataError, so that who can do without it goes on.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from charrnn.config import DataConfig
from charrnn.data.audio import why_unreadable
from charrnn.data.files import Source
from charrnn.data.formats import Reading
from charrnn.data.labelled import NAMED_COLUMNS
from charrnn.data.records import Record
from charrnn.errors import DataError, short

TRANSCRIPT = "transcript"  # the column that holds it where `data.field` names none


class Utterance(NamedTuple):
    """A recording and what is said in it."""

    audio: Path
    transcript: str
    source: str
    line: int  # of the manifest `source`

    def place(self) -> str:
        return f"{self.source}: line {self.line}"


def manifest(config: DataConfig, files: list[Source], notes: list[str]) -> Iterator[Utterance | DataError]:
    """The rows of TSV, CSV and JSONL, in their order: a recording's path in `data.audio.field`, relative to the manifest's own folder.

    The transcript is in `data.field`, without the space around it. Recordings are looked for, but not read. `notes` takes what a
    person should know of how a manifest was read. A manifest that cannot be read any further gives one DataError.
    """
    for source in files:
        try:
            columns = {"format": _kind(source, config), "field": config.field or TRANSCRIPT, "documents": None, "pattern": None}
            reading = Reading(config.model_copy(update=columns), [source])
            for found in reading.records():
                yield found if isinstance(found, DataError) else _utterance(found, source, config)
        except DataError as error:
            yield error
        else:
            notes += reading.notes()


def _kind(source: Source, config: DataConfig) -> str:
    kind = NAMED_COLUMNS.get(source.suffix) if config.format == "auto" else config.format
    if kind is None or kind not in NAMED_COLUMNS.values():
        fact = "not named .tsv, .csv or .jsonl" if kind is None else f"data.format is {kind}"
        columns = f"{config.audio.field} and {config.field or TRANSCRIPT}"
        raise DataError(f"{source.name}: {fact}; expected a manifest with columns {columns}, so set data.format to tsv, csv or jsonl")
    return kind


def _utterance(found: tuple[str, Record, str], source: Source, config: DataConfig) -> Utterance | DataError:
    name, record, transcript = found
    try:
        audio = record.text(config.audio.field, name, "data.audio.field").strip()
    except DataError as error:
        return error
    if not audio:
        fact = f"field {config.audio.field!r} is empty; expected a recording's path"
        return DataError(f"{record.place(name)}: {fact}, so fill it or take the row out")
    path = source.path.parent / audio
    if reason := why_unreadable(path):
        return DataError(f"{record.place(name)}: {short(audio)}: {reason} at {path}, so mend the path or take the row out")
    return Utterance(path, transcript.strip(), name, record.line)
