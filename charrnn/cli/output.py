"""Where a command writes: warnings and bars on standard error, or a file in the place of standard output."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NoReturn, TypeVar

import typer

from charrnn.errors import UserError, printable
from charrnn.exits import Exit

if TYPE_CHECKING:
    from pathlib import Path

    from tqdm import tqdm

ANOTHER_PLACE = "name a file in a directory that exists"  # what helps where --out cannot be written
SILENCE_SECONDS = 1.0  # before a bar appears
T = TypeVar("T")


def warn(text: str) -> None:
    typer.echo(f"charrnn: warning: {text}", err=True)


def tell(fault: object) -> None:
    """What cannot be used, while what can be is."""
    typer.echo(f"charrnn: error: {fault}", err=True)


def json_line(value: object) -> str:
    """JSON on one line: characters as they are, or all but ASCII as escapes where standard output cannot say one of them.

    So a file name that is no text is there as it was: a byte of it that is not UTF-8 is an escape from \\udc80 to \\udcff, as Python has
    it, and `os.fsencode` of the name that is read from the line is the name.
    """
    line = json.dumps(value, ensure_ascii=False)
    try:
        line.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        return json.dumps(value)
    return line


def end_with(faults: int, summary: str) -> None:
    """The last line and the exit code of a command that has told of so many faults; nothing where there are none."""
    if faults:
        typer.echo(summary, err=True)
        raise typer.Exit(Exit.MISTAKE)


def progress_bar(unit: str, total: int | None) -> tqdm[NoReturn]:
    """For work during which a terminal would else be silent for long."""
    from tqdm import tqdm

    return tqdm(total=total, unit=unit, unit_scale=True, delay=SILENCE_SECONDS, leave=False, disable=not sys.stderr.isatty())


def watched(found: Iterable[T], unit: str, total: int | None = None, size: Callable[[T], int] = lambda one: 1) -> Iterator[T]:
    """Each of them, under a bar that counts its `size` once it has been dealt with."""
    with progress_bar(unit, total) as bar:
        for one in found:
            yield one
            bar.update(size(one))


def expect_place(path: Path, flag: str = "--out", endings: Sequence[str] = ()) -> None:
    """Raises UserError where no file can be, or where its name has none of the endings.

    A command that reads the files it is named takes the next of them for its output where a person forgets the output's name; what it
    writes has an ending that nothing it reads has, so that none of these is ever overwritten. A pipe or a terminal needs none.
    """
    if endings and path.suffix.lower() not in endings and not (path.exists() and not path.is_file()):
        what = "page" if ".html" in endings else "picture"
        fact = f"{flag} {printable(str(path))}: expected a name that ends in {' or '.join(endings)}"
        raise UserError(f"{fact}; give the {what} such a name")
    try:
        if path.is_dir() or not path.parent.is_dir():
            raise UserError(f"{flag} {path}: cannot be written: it is {'' if path.is_dir() else 'not in '}a directory; {ANOTHER_PLACE}")
    except OSError as error:
        raise UserError(f"{flag} {path}: cannot be written: {error.strerror or error}; {ANOTHER_PLACE}") from None


def expect_apart(path: Path, read: Iterable[Path], models: Iterable[Path], flag: str = "--out") -> None:
    """Raises UserError where what is written would take the place of a file that the command reads, or of one that is a run's own.

    Whatever name or link leads there. To be asked before anything is written; a pipe or a terminal is not replaced. `models`: files.
    """
    from charrnn.run_files import own_files

    if not path.is_file():
        return
    owned = [file for model in models for file in own_files(model)]
    for files, what in ((read, "which this command reads"), (owned, "which is of the model's run")):
        for file in files:
            if file.exists() and file.samefile(path):
                fact = f"{flag} {printable(str(path))}: the same file as {printable(str(file))}, {what}"
                raise UserError(f"{fact}; expected another, for what it holds would be lost; name another file")


def write(path: Path, pieces: Iterable[str]) -> None:
    """Write when the whole text is there: what fails before leaves an older file as it was."""
    write_bytes(path, "".join(pieces).encode())


def write_bytes(path: Path, content: bytes, flag: str = "--out") -> None:
    from charrnn.atomic import WriteError, write_atomically

    try:
        if path.exists() and not path.is_file():  # a pipe or a terminal is written to, not replaced
            path.write_bytes(content)
        else:
            write_atomically(path.resolve(), content, f"free some space, or {ANOTHER_PLACE}")  # resolved: a link stays one
    except WriteError as error:
        raise UserError(f"{flag} {error}") from None
    except OSError as error:
        raise UserError(f"{flag} {path}: cannot be written: {error.strerror or error}; {ANOTHER_PLACE}") from None


def figures(metrics: dict[str, float], prefix: str = "", added: int = 3) -> str:
    """What a person is told of an evaluation: costs, accuracy, and of what the task adds the first so many."""
    told: list[str] = []
    for key, value in metrics.items():
        name, per, unit = key.removeprefix(prefix).partition("_per_")
        if per:
            told.append(f"{value:.4f} {name}/{unit}")
        elif name == "accuracy":
            told.append(f"accuracy {value:.1%}")
        elif name != "perplexity" and added > 0:
            told.append(f"{name} {value:.4f}")
            added -= 1
    return ", ".join(told)
