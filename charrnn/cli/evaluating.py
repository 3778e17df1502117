"""`charrnn eval` and `charrnn score`: how well a model predicts."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from charrnn.cli.arguments import Device, Model, Overrides, config_of, load, reading_of, split_of, task_of
from charrnn.cli.output import end_with, json_line, progress_bar, warn, watched
from charrnn.errors import DataError, UserError, counted, printable

if TYPE_CHECKING:
    from torch import nn

    from charrnn.checkpoint import Loaded
    from charrnn.config import Config
    from charrnn.data.files import Source
    from charrnn.data.formats import Reading
    from charrnn.scoring import Document, Score


def evaluate(
    model: Model = None,
    split: Annotated[str, typer.Option(help="train, val or test, of the text the model was trained on")] = "val",
    file: Annotated[Path | None, typer.Option(metavar="FILE", help="a text of your own instead")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object, keys as in metrics.jsonl")] = False,
    per_char: Annotated[bool, typer.Option("--per-char", help="a line for each character: it and its surprisal in bits")] = False,
    beside: Annotated[
        str | None, typer.Option(metavar="OTHER_MODEL", help="of a model of task fill: have another, of task fill or lm, guess the same")
    ] = None,
    device: Device = "auto",
    set_: Overrides = None,
) -> None:
    """Measure how well a model predicts a text, the labels of texts, what is said in recordings, or captions of pictures.

    Of captions it also tells how well they are predicted with other pictures, and with none. Of a manifest of recordings or pictures,
    each row that cannot be used is named on standard error; the others are measured, and the exit code is 2.
    """
    loaded, network = load(model, device)
    config = config_of(loaded, set_)
    if per_char and not config.is_windowed:
        fact = f"a model of task {config.task}, which does not predict each character from those before it"
        raise UserError(f"{loaded.path}: {fact}; expected one of task lm for --per-char; leave --per-char out")
    if beside is not None:
        _evaluate_beside(loaded, network, config, split, file, load(beside, device), as_json)
    elif config.is_windowed:
        _evaluate_stream(loaded, network, config, split, file, per_char, as_json)
    else:
        _evaluate_examples(loaded, network, config, split, file, as_json)


def _evaluate_stream(
    loaded: Loaded, network: nn.Module, config: Config, split: str, file: Path | None, per_char: bool, as_json: bool
) -> None:
    """Of a model that reads on and on: from the first character to the last with one state."""
    from charrnn import evaluation
    from charrnn.journal import sayable

    if file:
        stream = evaluation.documents_stream(loaded.vocabulary, reading_of(loaded, config.data, file).pieces())
        total, what = None, str(file)
    else:
        corpus = task_of(loaded, config).corpus
        stream = evaluation.split_stream(corpus, split)
        total, what = len(corpus.split(split)), split_of(config, split)
    if per_char:
        _print_surprisal(evaluation.per_char(network, loaded.vocabulary, stream), as_json)
        return
    found = evaluation.evaluate_stream(network, loaded.vocabulary, watched(stream, " chars", total, lambda window: len(window.ids)))
    figures = found.as_metrics()
    if as_json:
        typer.echo(json_line(sayable(_asked(loaded, split, file) | figures)))
        return
    typer.echo(f"{loaded.path} (step {loaded.step:,}) on {what}: {found.chars:,} characters, state carried from the first to the last")
    typer.echo(
        f"{figures['nats_per_char']:.4f} nats/char   {figures['bits_per_char']:.4f} bits/char   perplexity {figures['perplexity']:,.3f}   "
        f"accuracy {figures['accuracy']:.2%}   {figures['chars_per_second']:,.0f} chars/s"
    )
    if file or found.unknown:
        typer.echo(f"{figures['unknown_share']:.2%} of the characters are unknown to the model and not scored")


def _evaluate_examples(loaded: Loaded, network: nn.Module, config: Config, split: str, file: Path | None, as_json: bool) -> None:
    """Of a model that reads examples, each from a fresh start: the figures of its task."""
    from charrnn.evaluation import measure
    from charrnn.journal import sayable
    from charrnn.tasks.task import Described, Examining, Findings

    task, read = task_of(loaded, config, file), "test" if file else split
    chars, started = len(task.corpus.split(read)), time.perf_counter()
    with progress_bar(" chars", chars) as bar:

        def progress(done: int) -> None:
            bar.update(done)

        found = measure(task, network, read, progress, printable(str(file)) if file else "")
    more: Findings | None = None
    if isinstance(task, Examining):
        with progress_bar(" examples", None) as bar:
            more = task.examine(network, read, found, progress)
        for note in more.notes:
            warn(note)
    faults = task.corpus.faults
    at_fault = f"{counted(len(faults), 'row')} of {printable(str(file))} could not be used as expected"
    count, figures, seconds = int(found.count), found.as_metrics(), time.perf_counter() - started
    further = dict(more.as_metrics()) if more is not None else {}
    if as_json:
        counts = {"unit": task.unit, "count": count, "chars": chars, "seconds": seconds}
        typer.echo(json_line(sayable(_asked(loaded, split, file) | counts | figures | further)))
        end_with(len(faults), at_fault)
        return
    what = str(file) if file else split_of(config, split)
    typer.echo(f"{loaded.path} (step {loaded.step:,}) on {what}: {counted(count, task.unit)}")
    width = max(20, *map(len, figures))
    for name, value in figures.items():
        typer.echo(f"{name:<{width}} {value:>10,.4f}")
    if isinstance(found, Described):
        typer.echo(found.describe())
    if more is not None:
        typer.echo(more.describe())
    if file:
        share = task.corpus.unknown / max(1, len(task.corpus.ids))
        typer.echo(f"{share:.2%} of the characters are unknown to the model, and were read as unknown")
    end_with(len(faults), at_fault)


def _evaluate_beside(
    loaded: Loaded, network: nn.Module, config: Config, split: str, file: Path | None, other: tuple[Loaded, nn.Module], as_json: bool
) -> None:
    """Two models on the same blanks, a row for each."""
    from charrnn.journal import sayable
    from charrnn.tasks import TASKS
    from charrnn.tasks.fill import Fill, measure_beside

    others, other_network = other
    if TASKS[config.task] is not Fill:
        fact = f"a model of task {config.task}, and what another model can guess as well are the blanks of task fill"
        raise UserError(f"{loaded.path}: {fact}; name a model of task fill first, or leave --beside out")
    if others.config.is_labelled:
        fact = f"a model of task {others.config.task}, which answers with labels"
        raise UserError(f"{others.path}: {fact}; expected one of task fill or lm, which guesses characters; name another with --beside")
    task = task_of(loaded, config, file)
    assert isinstance(task, Fill)
    both = measure_beside(task, network, other_network, others.config.task, others.vocabulary, "test" if file else split)
    count, own, figures = int(both.own.count), both.own.as_metrics(), both.other.as_metrics()
    if as_json:
        second = sayable({"model": str(others.path), "task": others.config.task, "step": others.step} | figures)
        compared = {"beside": second, "accuracy_ratio": both.accuracy_ratio, "left_out": both.left_out}
        said = sayable(_asked(loaded, split, file) | {"unit": task.unit, "count": count} | own | compared)
        typer.echo(json_line(said))
        return
    what = str(file) if file else split_of(config, split)
    typer.echo(f"{loaded.path} (step {loaded.step:,}) on {what}: {counted(count, task.unit)}")
    typer.echo("  ".join(f"{name:>14}" for name in own))
    for row, model in ((own, loaded), (figures, others)):
        values = "  ".join(f"{value:>{max(14, len(name))},.4f}" for name, value in row.items())
        typer.echo(f"{values}  {model.path} (task {model.config.task})")
    typer.echo(f"The first is right {both.accuracy_ratio:.3f} times as often as the second.")
    if others.config.task == "lm":
        typer.echo("The second is told all that stands before a blank, what others hide too, and nothing behind it.")
    if both.left_out:
        typer.echo(f"{counted(both.left_out, task.unit)} more were left out: the second does not know what stood there.")


def _asked(loaded: Loaded, split: str, file: Path | None) -> dict[str, Any]:
    """What the figures are of, for --json."""
    return {"model": str(loaded.path), **({"file": str(file)} if file else {"split": split}), "step": loaded.step}


def _print_surprisal(characters: Iterable[tuple[str, float | None]], as_json: bool) -> None:
    from charrnn.journal import sayable

    for character, bits in characters:
        if as_json:
            typer.echo(json_line(sayable({"char": character, "bits": bits})))
        else:
            shown = json.dumps(character, ensure_ascii=False) if character else "end"
            typer.echo(f"{shown}\t" + ("-" if bits is None else f"{bits:.3f}"))


def score(
    text: Annotated[str, typer.Argument(metavar="FILE|FOLDER|-", help="a text, a folder of texts, or - for standard input")],
    model: Annotated[
        str | None, typer.Option("--model", "-m", metavar="MODEL", help="a run directory or a .safetensors file; left out, the newest run")
    ] = None,
    documents: Annotated[
        Literal["none", "lines", "blank_lines", "files"] | None,
        typer.Option(help="what a document is; in a folder a file by default, in a file what it was for the model. none: all of the file"),
    ] = None,
    sort: Annotated[bool | None, typer.Option("--sort/--no-sort", help="the likeliest first; by default in a folder only")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="a JSON object for each document, keys as in eval --json")] = False,
    device: Device = "auto",
    set_: Overrides = None,
) -> None:
    """Tell how much a model likes each document: its bits per character, a line for each.

    Each document is read from a fresh start, and its end counts as a character where the model knows documents. Characters that the
    model does not know are read as unknown and not scored.
    """
    from charrnn import scoring

    loaded, network = load(model, device, "lm", "score")
    config = config_of(loaded, set_)
    in_folder, texts = _texts(text)
    cut = documents or ("files" if in_folder else None if loaded.vocabulary.end is not None else config.data.documents)
    readings: Iterable[tuple[str, Reading]] = ((name, reading_of(loaded, config.data, source, cut)) for name, source in texts)
    numbered = cut in ("lines", "blank_lines")
    if cut is None:
        readings = list(readings)  # of one text
        numbered = any(not {"none", "files"}.issuperset(reading.formats) for _, reading in readings)
    scores = scoring.score(network, loaded.vocabulary, _documents(readings))
    if in_folder if sort is None else sort:
        scores = iter(sorted(scores, key=_by_bits))
    count = chars = unknown = 0
    for found in scores:
        if not as_json and count == 0:
            typer.echo("bits/char    chars  unknown  document", err=True)
        count, chars, unknown = count + 1, chars + found.chars, unknown + found.unknown
        _print_score(found, as_json, numbered)
    if count == 0:
        raise DataError(f"{printable(text)}: holds nothing but blank text; expected documents to score")
    if not as_json:
        share = f"{unknown / chars:.2%} of them unknown to the model and not scored"
        typer.echo(f"{counted(count, 'document')}, {chars:,} characters, {share}", err=True)


def _texts(name: str) -> tuple[bool, list[tuple[str, Source]]]:
    """Whether a folder was named, or an archive, which is one; and the texts that a person named, with what each is called."""
    from charrnn.data.files import Source, files_in, kind, sources
    from charrnn.paths import user_path

    if name == "-":
        return False, [("-", Source(Path("standard input"), content=sys.stdin.buffer.read()))]
    path = user_path(name, "the text")
    if not path.exists():
        raise DataError(f"{printable(name)}: no such file or folder; expected a text, a folder of texts, or - for standard input")
    if not path.is_dir() and kind(path) != "zip":
        return False, [(name, Source(path))]
    files = files_in(path) if path.is_dir() else [path]
    if not files:
        raise DataError(f"{printable(name)}: the folder holds no files; expected texts to score")
    return True, [(source.name, source) for source in sources(files)]


def _documents(readings: Iterable[tuple[str, Reading]]) -> Iterator[Document]:
    from charrnn.scoring import documents_of

    with progress_bar(" documents", None) as bar:
        for source, reading in readings:
            number = 0
            for document in documents_of(source, reading):
                number = document.number
                yield document
                bar.update()
            if number == 0:
                warn(f"{source}: blank, so it has no score")


def _by_bits(score: Score) -> tuple[bool, float]:
    """The likeliest first; last what could not be scored."""
    bits = score.bits_per_char
    return (True, 0.0) if bits is None or math.isnan(bits) else (False, bits)


def _print_score(score: Score, as_json: bool, numbered: bool) -> None:
    if as_json:
        from charrnn.journal import sayable

        named = {"file": score.source, "document": score.number, "begins": score.beginning}
        typer.echo(json_line(sayable(named | score.as_metrics())))
        return
    bits = "-" if score.bits_per_char is None else f"{score.bits_per_char:.4f}"
    name = f"{score.source}:{score.number}" if numbered else score.source
    beginning = printable(" ".join(score.beginning.split()))
    typer.echo(f"{bits:>9}  {score.chars:>7,}  {score.unknown / score.chars:>7.1%}  {printable(name)}  {beginning}")
