"""`charrnn fill`: what stands in the blanks of a text."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from charrnn.cli.arguments import Device, load
from charrnn.cli.output import json_line, warn
from charrnn.errors import DataError, UserError, characters_listed, printable
from charrnn.exits import Exit

if TYPE_CHECKING:
    from charrnn.filling import Filled, Filling


class Given(NamedTuple):
    place: str  # for a message
    named: dict[str, str | int]  # the same, for --json
    text: str | UserError


def fill(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="a run directory or a .safetensors file", show_default=False)],
    texts: Annotated[
        list[str] | None,
        typer.Argument(metavar="TEXT|-", help="each _, ＿ or □ is one character to be found; - reads lines", show_default=False),
    ] = None,
    file: Annotated[Path | None, typer.Option(metavar="FILE", help="texts from a file instead, each line one")] = None,
    top: Annotated[int, typer.Option(help="so many fillings of each text")] = 5,
    blank: Annotated[
        str | None,
        typer.Option(metavar="CHARS", help="what stands for a character to be found, by default _＿□; others are read as they stand"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object for each text")] = False,
    device: Device = "auto",
) -> None:
    """Fill the blanks of a text with what suits both sides of them.

    The most likely fillings come first, each with its probability: of one blank the model's own, of several the share among the
    fillings that were found. Below them stands what each blank would most likely hold while the others are empty.
    """
    from charrnn import filling

    if top < 1:
        raise UserError(f"--top {top}: expected at least 1 filling")
    if blank == "":
        raise UserError("--blank: expected at least one character that stands for one to be found, such as _")
    if bool(texts) == bool(file):
        fact = "TEXT and --file are both given" if texts else "there is no text"
        raise UserError(f"{fact}; expected one or more texts, --file FILE, or - for standard input")
    loaded, network = load(model, device, "fill")
    blanks = filling.BLANKS if blank is None else blank
    warned: set[str] = set()
    failed = said = False
    for place, named, text in _from_file(file) if file else _from_arguments(texts or []):
        try:
            if isinstance(text, UserError):
                raise text
            found = filling.fill(network, loaded.vocabulary, text, longest=loaded.config.data.example_length, top=top, blanks=blanks)
        except UserError as error:
            failed = True
            typer.echo(f"charrnn: error: {printable(place)}: {error}", err=True)
            continue
        if strange := [c for c in filling.unknown_to(loaded.vocabulary, text, blanks) if c not in warned]:
            warned.update(strange)
            warn(f"{place}: the model does not know {characters_listed(strange)}; read as unknown")
        if as_json:
            typer.echo(json_line(named | {"text": text} | _as_json(found)))
            continue
        if said:
            typer.echo()
        said = True
        _print(found)
    if failed:
        raise typer.Exit(Exit.MISTAKE)


def _from_arguments(texts: Sequence[str]) -> Iterator[Given]:
    for number, text in enumerate(texts, start=1):
        if text == "-":
            yield from _lines("-", sys.stdin.buffer.read())
        else:
            yield Given(f"text {number}" if len(texts) > 1 else "text", {}, text)


def _from_file(path: Path) -> Iterator[Given]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"--file {path}: cannot be read: {error.strerror or error}; name a text file") from None
    return _lines(str(path), content)


def _lines(name: str, content: bytes) -> Iterator[Given]:
    """Each line with its place. One that is no text costs no other line its answer."""
    lines = content.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    if not lines[-1]:
        del lines[-1]
    if not lines:
        raise DataError(f"{printable(name)}: holds no lines; expected texts with blanks, each on a line of its own")
    for number, line in enumerate(lines, start=1):
        try:
            text: str | UserError = line.removesuffix(b"\r").decode("utf-8")
        except UnicodeDecodeError as error:
            text = DataError(f"not UTF-8 text at byte {error.start} of the line; save it as UTF-8")
        if isinstance(text, str) and not text.strip():
            text = DataError("the line is empty; expected a text with a blank, so take the line out")
        yield Given(f"{name}:{number}", {"file": name, "line": number}, text)


def _as_json(found: Filled) -> dict[str, object]:
    return {
        "fillings": [{"text": f.text, "characters": list(f.characters), "probability": f.probability} for f in found.fillings],
        "blanks": [{"at": b.place, "choices": [{"char": character, "probability": p} for character, p in b.choices]} for b in found.blanks],
    }


def _print(found: Filled) -> None:
    live = sys.stdout.isatty()
    places = [blank.place for blank in found.blanks]
    for filling in found.fillings:
        typer.echo(f"{_share(filling.probability)}  {_marked(filling, places, live)}")
    for number, blank in enumerate(found.blanks, start=1):
        choices = "  ".join(f"{_shown(character)} {_share(p).strip()}" for character, p in blank.choices)
        typer.echo(f"    blank {number}: {choices}")


def _marked(filling: Filling, places: Sequence[int], live: bool) -> str:
    """On one line, with what was filled in underlined on a terminal."""
    filled = set(places) if live else set()
    characters = ("\\n" if c == "\n" else printable(c) for c in filling.text)
    return "".join(typer.style(c, underline=True, bold=True) if at in filled else c for at, c in enumerate(characters))


def _share(probability: float) -> str:
    return f"{probability:6.1%}" if probability >= 0.0005 else f"{probability:6.0e}"


def _shown(character: str) -> str:
    return json.dumps(character) if character.isspace() else printable(character)
