"""`charrnn classify`: the label of each of a person's texts, and how well they are told where the labels are known."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from charrnn.cli.arguments import Device, Model, Overrides, config_of, load
from charrnn.cli.output import end_with, expect_apart, expect_place, json_line, tell, warn, watched, write_bytes
from charrnn.errors import DataError, UserError, counted, printable

if TYPE_CHECKING:
    from charrnn.classifying import Answer
    from charrnn.config import Config
    from charrnn.data.labelled import Example
    from charrnn.metrics import Confusion

BEGINNING = 60  # characters of a text that are shown
STDIN = "standard input"


def classify(
    model: Model = None,
    source: Annotated[str | None, typer.Argument(metavar="[-]", help="-: a text a line from standard input", show_default=False)] = None,
    text: Annotated[list[str] | None, typer.Option("--text", "-t", help="a text; may be repeated")] = None,
    file: Annotated[
        str | None,
        typer.Option("--file", "-f", metavar="FILE", help="a text a line; or .tsv, .csv, .jsonl, scored where it has the label's column"),
    ] = None,
    top: Annotated[int | None, typer.Option(metavar="N", help="so many labels for each text, the likeliest first")] = None,
    confusion: Annotated[Path | None, typer.Option(metavar="PNG", help="draw what was answered for what; needs a file with labels")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="a JSON object for each text, and one for the figures")] = False,
    device: Device = "auto",
    set_: Overrides = None,
) -> None:
    """Tell the label of each text.

    A line for each: the label, its probability and the beginning of the text. A line that cannot be used is named on standard error;
    the others are answered, and the exit code is 2.
    """
    if model == "-" and source is None:
        model, source = None, "-"
    ways = [name for name, given in (("--text", text), ("--file", file), ("-", source)) if given is not None]
    if len(ways) != 1:
        fact = f"{' and '.join(ways)} are both given" if ways else "there is nothing to classify"
        raise UserError(f"{fact}; expected one of --text TEXT, --file FILE or - for standard input")
    if source not in (None, "-"):
        raise UserError(f"{printable(str(source))}: expected - for standard input, or nothing; a file is named with --file")
    if top is not None and top < 1:
        raise UserError(f"--top {top}: expected at least 1 label")
    if confusion is not None:
        from charrnn.plots import require_matplotlib

        if text is not None:
            raise UserError("--confusion: needs the truth beside each text; expected --file with a label's column, so leave it out")
        require_matplotlib("--confusion")
        expect_place(confusion, "--confusion", (".png",))
    from charrnn import classifying
    from charrnn.paths import user_path
    from charrnn.tables import columns, confusion_table, named

    loaded, network = load(model, device, "classify")
    if confusion is not None and file not in (None, "-"):
        expect_apart(confusion, [user_path(str(file), "--file")], [loaded.path], "--confusion")
    notes: list[str] = []
    config = config_of(loaded, set_)
    examples = _examples(config, text, "-" if source else file, notes)
    answers = classifying.classify(network, loaded.vocabulary, loaded.labels, examples, config.data.example_length)
    width = max(columns(named(label)) for label in loaded.labels)
    pairs: Counter[tuple[str, str]] = Counter()
    count = faults = 0
    for answer in answers:
        count += 1
        if isinstance(answer, DataError):
            faults += 1
            tell(answer)
            continue
        if isinstance(answer.example.labels, str):
            pairs[answer.example.labels, answer.label] += 1
        typer.echo(_as_json(answer, top, text is None) if as_json else _line(answer, top or 1, width))
    for note in notes:
        warn(note)
    if count == 0:
        raise DataError(f"{printable(file or STDIN)}: holds no text; expected some to classify")
    if pairs:
        found = classifying.confusion_of(pairs, loaded.labels)
        if as_json:
            typer.echo(json_line(_figures(found, loaded.labels)))
        else:
            accuracy, macro_f1 = found.as_metrics().values()
            known = f"{counted(pairs.total(), 'text')} with a label"
            typer.echo(f"\naccuracy {accuracy:.2%}   macro-F1 {macro_f1:.2%}   {known}\n{confusion_table(found, loaded.labels)}")
        if confusion is not None:
            _draw(confusion, found, loaded.labels)
    elif confusion is not None:
        field = config.data.label
        raise UserError(f"--confusion: none of the texts has a label in field {field!r}; name the field with --set data.label=…")
    end_with(faults, f"{faults:,} of {counted(count, 'text')} could not be used")


def _examples(config: Config, texts: list[str] | None, file: str | None, notes: list[str]) -> Iterator[Example | DataError]:
    from charrnn.data import labelled
    from charrnn.data.files import Source, sources
    from charrnn.paths import user_path

    if texts is not None:
        return labelled.typed(config.data, texts, "--text")
    if file is None or file == "-":
        found = [Source(Path(STDIN), content=sys.stdin.buffer.read())]
    else:
        found = sources([user_path(file, "--file")])
    read = labelled.unsettled_texts if labelled.have_columns(found) else labelled.lines
    return watched(read(labelled.own(config.data, found), found, notes), " texts")


def _line(answer: Answer, top: int, width: int) -> str:
    from charrnn.tables import filled, named

    chances = "  ".join(f"{filled(named(label), width)} {chance:6.1%}" for label, chance in answer.chances[:top])
    beginning = " ".join(answer.example.text[: 4 * BEGINNING].split())[:BEGINNING]
    return f"{chances}  {printable(beginning)}"


def _as_json(answer: Answer, top: int | None, from_file: bool) -> str:
    example = answer.example
    told = {"label": answer.label, "probability": answer.chances[0][1], "probabilities": dict(answer.chances[:top]), "text": example.text}
    if from_file:
        told |= {"file": example.source, "line": example.line}
    if example.labels is not None:
        told["truth"] = example.labels
    return json_line(told)


def _figures(found: Confusion, labels: tuple[str, ...]) -> dict[str, object]:
    one = found.by_label()
    by_label = {
        label: {"texts": texts, "precision": precision, "recall": recall, "f1": f1}
        for label, texts, precision, recall, f1 in zip(
            labels, one.true.tolist(), one.precision().tolist(), one.recall().tolist(), one.f1().tolist()
        )
    }
    counts = found.counts.tolist()
    return {"texts": int(found.counts.sum()), **found.as_metrics(), "labels": list(labels), "confusion": counts, "by_label": by_label}


def _draw(path: Path, found: Confusion, labels: tuple[str, ...]) -> None:
    from charrnn.plots import confusion_png

    picture, note = confusion_png(found, labels)
    write_bytes(path, picture, "--confusion")
    if note:
        warn(f"{path}: {note}")
