"""`charrnn data fetch` and `charrnn data inspect`: texts to learn from."""

from __future__ import annotations

import math
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from charrnn.cli.arguments import Overrides, source_of
from charrnn.cli.output import json_line, progress_bar
from charrnn.errors import counted, printable

if TYPE_CHECKING:
    from charrnn.inspecting import Inspection

app = typer.Typer(help="Texts to learn from: fetch public ones, look into your own.", no_args_is_help=True, rich_markup_mode=None)


@app.command()
def fetch(
    name: Annotated[str | None, typer.Argument(help="a corpus of the table; left out, the table", show_default=False)] = None,
    to: Annotated[Path | None, typer.Option(metavar="DIR", help="where its texts go; data/downloads/NAME by default")] = None,
) -> None:
    """Fetch a public corpus, verified and unpacked."""
    from charrnn import fetching

    if name is None:
        for key, source in fetching.SOURCES.items():
            size = f"{source.size:,} bytes" if source.size else "size not known"
            typer.echo(f"{key:<17}{source.about}\n{'':<17}{size}, {source.licence}, {source.address}")
            typer.echo(f"{'':<17}SHA-256 {source.sha256 or 'not known: what comes cannot be verified'}")
        return
    source = fetching.source_of(name)
    into = to or Path("data/downloads", name)
    with progress_bar("B", source.size) as bar:

        def progress(done: int, total: int | None) -> None:
            bar.total = total or bar.total
            bar.update(done - bar.n)

        found = fetching.fetch(source, into, progress)
    came = f"{found.size:,} bytes from {source.address}" if found.fresh else f"all there already, from {source.address}"
    typer.echo(f"{name}: {came}; {source.licence}")
    sure = "as it should be" if found.verified else "which could not be verified, for no sum to compare it with is known"
    typer.echo(f"SHA-256 {found.sha256}, {sure}")
    place = into if len(found.files) > 1 else found.files[0]
    typer.echo(f"{counted(len(found.files), 'file')}: --set data.path={shlex.quote(str(place))}")


@app.command()
def inspect(
    paths: Annotated[list[str], typer.Argument(metavar="PATH...", help="files, directories or globs, as in data.path")],
    set_: Overrides = None,
    seed: Annotated[int, typer.Option(help="which documents are shown")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object")] = False,
) -> None:
    """Show what a text is made of, and three documents of it as a model would read them."""
    from dataclasses import asdict

    from charrnn.config import build_config
    from charrnn.inspecting import inspect as look

    path = paths[0] if len(paths) == 1 else paths
    config = build_config({"data": {"path": path}, "train": {"max_steps": 1}}, "charrnn data inspect", set_ or [])
    with progress_bar(" chars", None) as bar:

        def progress(done: int) -> None:
            bar.update(done - bar.n)

        found = look(config.data, seed, progress)
    if as_json:
        typer.echo(json_line({"path": path, **asdict(found)}))
        return
    _print_inspection(source_of(config), found)


def _print_inspection(name: str, found: Inspection) -> None:
    files = f"{found.files:,} {'file' if found.files == 1 else 'files'}, {found.bytes:,} bytes"
    form = "plain text, one stream" if found.is_stream else ", ".join(found.formats)
    typer.echo(f"{name}: {files}, {form}, {', '.join(found.encodings)}")
    for note in found.notes:
        typer.echo(f"note        {note}")
    typer.echo(f"characters  {found.characters:,}, {found.vocabulary_size:,} distinct, {found.once:,} of them occur once")
    typer.echo("rarest      " + ", ".join(f"{_shown(character)} {count:,}" for character, count in found.rarest))
    for strange in found.strange:
        code = f"U+{ord(strange.character):04X}"
        seen = "" if _shown(strange.character) == code else f" {strange.character}"
        typer.echo(f"strange     {code}{seen} {strange.count:,} times: {strange.why}")
    if not found.is_stream:
        typer.echo(f"documents   {found.documents:,}, {found.duplicates:,} of them copies of an earlier one")
        typer.echo(f"lengths     {found.shortest:,} to {found.longest:,} characters, half of them up to {found.median:,}")
        most = max(count for _, _, count in found.lengths)
        for first, last, count in found.lengths:
            typer.echo(f"{f'{first:,}–{last:,}':>21}  {count:>11,}  {'#' * math.ceil(40 * count / most)}")
        if found.forms:
            in_form = sum(count for _, count in found.forms)
            shares = ", ".join(f"{form} {count:,} ({count / found.documents:.1%})" for form, count in found.forms[:8])
            typer.echo(f"forms       {in_form:,} ({in_form / found.documents:.1%}) are regular verse: {shares}")
    for sample in found.samples:
        what = f"from character {sample.number:,} on" if found.is_stream else f"document {sample.number:,}"
        typer.echo(f"--- {what}, {len(sample.text):,} characters ---")
        typer.echo("\n".join(map(printable, sample.text.split("\n"))))


def _shown(character: str) -> str:
    """A character, or its number where it cannot be seen."""
    return character if character.isprintable() and character.strip() else f"U+{ord(character):04X}"
