"""What was said in which recording: a manifest names recordings and their transcripts, by line.

What is wrong with one of them comes in its place as a DataError, so that who can do without it goes on.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from charrnn.config import DataConfig
from charrnn.data.audio import RECORDING
from charrnn.data.files import Source
from charrnn.data.manifests import Columns, beside, kind_by_name, rows, unknown_kind
from charrnn.errors import DataError

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
    columns = Columns(config.audio.field, "data.audio.field", config.field or TRANSCRIPT, RECORDING)
    for source in files:
        kind = kind_by_name(source, config)
        if kind is None:
            yield unknown_kind(source, config, "not named .tsv, .csv or .jsonl", columns)
            continue
        for row in rows(config, source, kind, columns, beside(source.path.parent, RECORDING), notes):
            yield row if isinstance(row, DataError) else Utterance(row.path, row.text, row.source, row.record.line)
