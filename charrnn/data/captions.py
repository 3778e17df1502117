"""What is said of which picture: a manifest names pictures and their captions, one picture with as many as it has.

What is wrong with one of them comes in its place as a DataError, so that who can do without it goes on.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

from charrnn.config import DataConfig, ImagesConfig
from charrnn.data.arrays import ARRAY
from charrnn.data.decoding import opening_text, read_text
from charrnn.data.documents import lines_of
from charrnn.data.files import Source, why_unreadable
from charrnn.data.images import ENDINGS, FEATURES, PICTURE, READY, Shelf, is_ready
from charrnn.data.manifests import Columns, Locate, beside, kind_by_name, rows, unknown_kind
from charrnn.data.records import IMAGE_TOKEN
from charrnn.errors import DataError, counted, short
from charrnn.paths import user_path

CAPTION = "caption"  # the column that holds it where `data.field` names none
OTHERS = ", a token file of Flickr8k, or the JSON of Karpathy or neuraltalk"  # manifests that are known


class Captioned(NamedTuple):
    """A picture and what is said of it, more than once perhaps."""

    image: Path
    captions: tuple[str, ...]
    source: str
    line: int  # of the manifest `source`, where the picture comes first; 0 where lines do not tell, as in JSON on one
    split: str | None = None  # train, val or test, where the manifest says so
    record: int = 0
    name: str = ""  # of the picture, as the manifest has it: that of ready features is another

    def place(self) -> str:
        return f"{self.source}: line {self.line}" if self.line else f"{self.source}: record {self.record}"


def manifest(config: DataConfig, files: list[Source], notes: list[str]) -> Iterator[Captioned | DataError]:
    """The pictures of all files, in the order in which they come first, each with its captions from wherever they stand.

    A file is TSV, CSV or JSONL with a picture's path in `data.images.field` and a caption in `data.field`, in a row for each caption;
    a token file of Flickr8k (`name.jpg#0`, a tab, the caption); Karpathy's JSON, whose splits are kept; or neuraltalk's. Which it is,
    name and content say. Paths are relative to `data.images.folder`, else to the file's own folder. Captions are without the space around
    them. Pictures are looked for, but not read. `notes` takes what a person should know of how files were read. One that cannot be read
    any further gives one DataError.
    """
    key = "data.images.field"
    columns = Columns(config.images.field, key, config.field or CAPTION, PICTURE if config.images.features is None else FEATURES)
    found: list[Path | DataError] = []  # a picture where it comes first
    first: dict[Path, Captioned] = {}
    captions: dict[Path, list[str]] = {}
    if pictured := [source for source in files if source.suffix in ENDINGS]:
        others = f" and {counted(len(pictured) - 1, 'other')}" if len(pictured) > 1 else ""
        fact = f"{pictured[0].name}{others}: named as pictures are, and what is said of pictures is to be read"
        found.append(DataError(f"{fact}; expected a manifest with columns{OTHERS}; name that, and not the folder of the pictures"))
    for source in files:
        if source.suffix in ENDINGS:
            continue
        try:
            kind, locate = _kind(source, config, columns), cache(_locate(source, config.images))
        except DataError as error:
            found.append(error)
            continue
        for row in rows(config, source, kind, columns, locate, notes):
            if isinstance(row, DataError):
                found.append(row)
                continue
            if row.path not in first:
                # A column called split is the user's own; that of JSON is known for what it says.
                split = row.record.fields.get("split") if kind == "image_json" else None
                first[row.path] = Captioned(row.path, (), row.source, row.record.line, split, row.record.number, row.name)
                captions[row.path] = []
                found.append(row.path)
            captions[row.path].append(row.text)
    for entry in found:
        yield entry if isinstance(entry, DataError) else first[entry]._replace(captions=tuple(captions[entry]))


def is_manifest(source: Source, config: DataConfig) -> bool:
    """Whether a file says what is in pictures, or is something else, such as a list of their names. Raises DataError for no text."""
    return _kind_of(source, config) is not None


def names(source: Source, config: DataConfig) -> Iterator[tuple[int, str]]:
    """The lines of a list of pictures' names, each with its number. Raises DataError for no text."""
    for at, line in enumerate(lines_of(read_text(source, config.encoding), source.name), start=1):
        if line.strip():
            yield at, line.strip()


def _kind(source: Source, config: DataConfig, columns: Columns) -> str:
    kind = _kind_of(source, config)
    if kind is None:
        raise unknown_kind(source, config, "not named .tsv, .csv or .jsonl, and nothing else that is known", columns, OTHERS)
    return kind


def _kind_of(source: Source, config: DataConfig) -> str | None:
    """A key of TOLERANT, where name and content leave no doubt."""
    if config.format != "auto":
        return kind_by_name(source, config)
    text = opening_text(source, config.encoding).lstrip("\ufeff \t\r\n")
    if source.suffix == ".json":
        return "image_json" if text[:1] in ("{", "[") else None
    line = text.partition("\n")[0].rstrip("\r")
    if IMAGE_TOKEN.fullmatch(line):
        return "image_tokens"
    if by_name := kind_by_name(source, config):
        return by_name
    for kind, delimiter in (("tsv", "\t"), ("csv", ",")):
        if {config.images.field, config.field or CAPTION} <= set(line.split(delimiter)):
            return kind
    return None


def _locate(source: Source, config: ImagesConfig) -> Locate:
    folder = source.path.parent if config.folder is None else user_path(config.folder, "data.images.folder")
    if config.features is not None:
        return Shelf(folder, config).locate if folder.suffix.lower() == ARRAY else _ready(folder)
    if not folder.is_dir():
        raise DataError(f"data.images.folder {short(str(folder))}: no such folder; expected the one that the manifest's paths begin in")
    return beside(folder, PICTURE)


def _ready(folder: Path) -> Locate:
    """Features by their own names, or by that of the picture that they are of: a.npy or a.jpg.npy, or .safetensors, for a.jpg."""
    own = beside(folder, FEATURES)

    def locate(name: str) -> Path:
        path = folder / name
        if is_ready(path):
            return own(name)
        named = [made for ending in READY for made in (path.with_suffix(ending), path.with_name(path.name + ending))]
        made = next((made for made in named if why_unreadable(made, FEATURES) is None), None)
        if made is None:
            raise DataError(f"no such file; expected {FEATURES} at {named[0]} or with {READY[1]}")
        return made

    return locate
