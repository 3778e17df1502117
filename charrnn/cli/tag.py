"""`charrnn tag`: a label for each character of a person's texts, or the marks that the labels stand for put in."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from charrnn.cli.arguments import Device, Model, Overrides, config_of, load
from charrnn.cli.output import expect_apart, expect_place, json_line, progress_bar, tell, warn, write
from charrnn.errors import DataError, UserError, characters_listed, printable
from charrnn.exits import Exit

if TYPE_CHECKING:
    import torch
    from torch import nn

    from charrnn.checkpoint import Loaded
    from charrnn.config import DataConfig
    from charrnn.data.files import Source
    from charrnn.data.labelled import Example
    from charrnn.tagging import Tagged

STDIN = "standard input"
TOGETHER = 1 << 16  # characters of sentences that are read together


@dataclass(frozen=True)
class Asked:
    loaded: Loaded
    network: nn.Module
    data: DataConfig
    precision: torch.dtype
    as_json: bool
    mark: str  # what stands for a pause


def tag(
    model: Model = None,
    source: Annotated[str | None, typer.Argument(metavar="[-]", help="-: the text from standard input", show_default=False)] = None,
    text: Annotated[list[str] | None, typer.Option("--text", "-t", help="a text; may be repeated")] = None,
    file: Annotated[list[str] | None, typer.Option("--file", "-f", metavar="FILE", help="a text of your own; may be repeated")] = None,
    mark: Annotated[
        str | None, typer.Option(help="of a model of pauses: what is written at each; | by default", show_default=False)
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="write to a file")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="a JSON object for each document: labels and probabilities")] = False,
    device: Device = "auto",
    set_: Overrides = None,
) -> None:
    """Label each character of a text.

    A model of punctuation or of pauses writes the text with its marks put in: those of its marks that the text has are taken out
    first, all else stays where it is. Of a model of labels, each line is a text, and what is written are CoNLL columns. What cannot be
    used is named on standard error; the rest is answered, and the exit code is 2.
    """
    if model == "-" and source is None:
        model, source = None, "-"
    if source not in (None, "-"):
        raise UserError(f"{printable(str(source))}: expected - for standard input, or nothing; a file is named with --file")
    ways = [name for name, given in (("--text", text), ("--file", file), ("-", source)) if given]
    if len(ways) != 1:
        fact = f"{' and '.join(ways)} are both given" if ways else "there is nothing to tag"
        raise UserError(f"{fact}; expected one of --text TEXT, --file FILE or - for standard input")
    if out:
        expect_place(out)
    from charrnn.data.marks import BAR
    from charrnn.device import resolve_precision
    from charrnn.paths import user_path

    loaded, network = load(model, device, "tag")
    data = config_of(loaded, set_).data
    if out:
        expect_apart(out, [user_path(name, "--file") for name in file or []], [loaded.path])
    if mark is not None and data.labels != "segmentation":
        raise UserError(f"--mark {mark!r}: is written by a model of labels: segmentation, and this one is of {data.labels}; leave it out")
    faults: list[DataError] = []
    answer = _sentences if data.labels == "column" else _marked
    precision = resolve_precision(loaded.config.train.precision, next(network.parameters()).device)
    asked = Asked(loaded, network, data, precision, as_json, BAR if mark is None else mark)
    pieces = answer(asked, _sources(text, file, faults), faults)
    if out:
        write(out, pieces)
    else:
        for piece in pieces:
            typer.echo(piece, nl=False)
    for fault in faults:
        tell(fault)
    if faults:
        raise typer.Exit(Exit.MISTAKE)


def _sources(texts: list[str] | None, files: list[str] | None, faults: list[DataError]) -> Iterator[Source]:
    """What a person named. A file that cannot be had is a fault, and the others are read."""
    from charrnn.data.files import Source, sources
    from charrnn.paths import user_path

    if texts is not None:
        for number, text in enumerate(texts, start=1):
            name = f"--text {number}" if len(texts) > 1 else "--text"
            yield Source(Path(name), content=text.encode("utf-8", "surrogateescape"))
        return
    if files is None:
        yield Source(Path(STDIN), content=sys.stdin.buffer.read())
        return
    for name in files:
        path = user_path(name, "--file")
        if not path.is_file():
            fact = "is a directory" if path.is_dir() else "no such file"
            faults.append(DataError(f"--file {printable(name)}: {fact}; expected a text"))
            continue
        yield from sources([path])


def _marked(asked: Asked, texts: Iterator[Source], faults: list[DataError]) -> Iterator[str]:
    """Texts with their marks put in."""
    from charrnn.data.formats import whole_text
    from charrnn.data.marks import written_of
    from charrnn.data.script import Converter
    from charrnn.tagging import mark as put_marks

    loaded, data = asked.loaded, asked.data
    written = written_of(loaded.labels, asked.mark)
    for source in texts:
        try:
            text, broken = whole_text(source, data.encoding)
        except DataError as error:
            faults.append(error)
            continue
        faults += broken
        if not text.strip():
            if not broken:
                faults.append(DataError(f"{source.name}: holds no text; expected some to tag"))
            continue
        text = Converter(data.script)(text) if data.script else text
        found = put_marks(asked.network, loaded.vocabulary, data, text, asked.precision)
        _warn_of_unknown(source.name, loaded, [chr(p) for p in found.unmarked.points[found.unmarked.places]])
        documents = found.written(written)
        if not asked.as_json:
            yield from documents
            if not documents[-1].endswith("\n") and source.content is not None:  # typed, and not a file that ends so
                yield "\n"
            continue
        shown, spaces = found.unmarked.points[found.unmarked.places].tolist(), (found.unmarked.gaps < 0).tolist()
        read = "".join(" " if space else chr(point) for point, space in zip(shown, spaces))
        labels = _said(asked, found.tagged)
        edges = found.unmarked.read.edges.tolist()
        line = 1
        for number, (document, begin, end) in enumerate(zip(documents, edges, edges[1:]), start=1):
            named = {"file": source.name, "document": number, "line": line, "text": document, "read": read[begin:end]}
            line += document.count("\n")
            if end > begin:
                yield json_line(named | labels(begin, end)) + "\n"


def _sentences(asked: Asked, texts: Iterator[Source], faults: list[DataError]) -> Iterator[str]:
    """CoNLL columns, a blank line behind each sentence."""
    import numpy as np

    from charrnn import tagging
    from charrnn.data import labelled

    loaded, data = asked.loaded, asked.data
    notes: list[str] = []
    for source in texts:
        found = 0
        for block in _blocks(labelled.lines(labelled.own(data, [source]), [source], notes), faults):
            found += len(block)
            _warn_of_unknown(source.name, loaded, [character for example in block for character in example.text])
            ids = np.array([i for example in block for i in loaded.vocabulary.encode(example.text)])
            edges = np.cumsum([0, *(len(example.text) for example in block)])
            tagged = tagging.tag(asked.network, ids, edges, data, asked.precision)
            said_of = _said(asked, tagged) if asked.as_json else None
            for example, begin, end in zip(block, edges.tolist(), edges[1:].tolist()):
                if said_of:
                    named = {"file": example.source, "line": example.line, "text": example.text}
                    yield json_line(named | said_of(begin, end)) + "\n"
                    continue
                labels = [loaded.labels[k] for k in tagged.labels[begin:end]]
                yield "".join(f"{c}{' ' if c.strip() else chr(9)}{label}\n" for c, label in zip(example.text, labels)) + "\n"
        if not found and not any(source.name in str(fault) for fault in faults):
            faults.append(DataError(f"{source.name}: holds no text; expected a text a line"))
    for note in notes:
        warn(note)


def _blocks(examples: Iterator[Example | DataError], faults: list[DataError]) -> Iterator[list[Example]]:
    """Sentences to be read together. What is none is a fault."""
    block: list[Example] = []
    size = 0
    with progress_bar(" lines", None) as bar:
        for example in examples:
            bar.update()
            if isinstance(example, DataError):
                faults.append(example)
                continue
            block.append(example)
            size += len(example.text)
            if size >= TOGETHER:
                yield block
                block, size = [], 0
        if block:
            yield block


def _said(asked: Asked, tagged: Tagged) -> Callable[[int, int], dict[str, object]]:
    """Of the characters from one place to another: the label of each, and what the model gives for it."""
    import torch

    from charrnn.tagging import probabilities

    chances = probabilities(asked.network, tagged)  # (N, K)
    own = chances.gather(1, torch.from_numpy(tagged.labels).unsqueeze(1)).squeeze(1)  # (N,)
    labels = asked.loaded.labels

    def said(begin: int, end: int) -> dict[str, object]:
        shares = [round(share, 6) for share in own[begin:end].tolist()]
        return {"labels": [labels[k] for k in tagged.labels[begin:end]], "probabilities": shares}

    return said


def _warn_of_unknown(name: str, loaded: Loaded, characters: Sequence[str]) -> None:
    if strange := [c for c in dict.fromkeys(characters) if c not in loaded.vocabulary and not c.isspace()]:
        warn(f"{name}: the model does not know {characters_listed(strange)}; read as unknown")
