"""`charrnn look` and `charrnn bptt`: inside of a language model while it reads, and how far back its gradients reach."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from charrnn.cli.arguments import Device, Model, Overrides, config_of, expect_seed, load, reading_of, split_of, task_of
from charrnn.cli.output import expect_apart, expect_place, json_line, progress_bar, warn, write, write_bytes
from charrnn.errors import UserError, counted, printable

if TYPE_CHECKING:
    from charrnn.bptt import Triangle
    from charrnn.checkpoint import Loaded
    from charrnn.evaluation import Window
    from charrnn.finding import Found
    from charrnn.inside import Looked, View
    from charrnn.models.char_rnn import CharRNN

LOOKED, SEARCHED, BACK = 1000, 100_000, 200  # characters, where --length is left out
LONGEST = {"look": 20_000, "look --find": 10_000_000, "bptt": 1000}
SAMPLE, LED = 240, 200  # characters that a unit that was found is shown on, and that are read before them
DISTANCES = (1, 2, 5, 10, 20, 50, 100)  # characters back, of the table

Text = Annotated[str | None, typer.Option("--text", help="what the model reads")]
File = Annotated[Path | None, typer.Option("--file", metavar="FILE", help="a text that the model reads the beginning of")]
Length = Annotated[int | None, typer.Option("--length", "-n", metavar="N", help="characters that are read of a text", show_default=False)]


def look(
    model: Model = None,
    text: Text = None,
    file: File = None,
    by: Annotated[
        Literal["surprisal", "cell", "gate"] | None,
        typer.Option(help="what a character is coloured by; left out, what --unit or --gate are of, or surprisal", show_default=False),
    ] = None,
    layer: Annotated[int | None, typer.Option(metavar="L", help="from 0, which reads the characters; left out, the last")] = None,
    unit: Annotated[
        str | None, typer.Option(metavar="N", help="a number, with h or c before it of a cell: c17; left out of a gate, the mean of all")
    ] = None,
    gate: Annotated[str | None, typer.Option(help="input, forget, candidate or output of lstm; reset, update or candidate of gru")] = None,
    find: Annotated[
        bool, typer.Option("--find", help="search for cells that follow something nameable, in the val split or a --file")
    ] = False,
    top: Annotated[
        int | None, typer.Option(metavar="K", help="likely next characters, by default 5; with --find units of each feature, by default 3")
    ] = None,
    length: Length = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", metavar="HTML", help="write a page that needs nothing but itself")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="a JSON object for each character, or feature")] = False,
    seed: Annotated[int, typer.Option(help="of the controls of --find")] = 1,
    device: Device = "auto",
    set_: Overrides = None,
) -> None:
    """Look inside a language model while it reads: colour each character by its surprisal, by a cell or by a gate.

    Below each character stand those that the model takes to be next. Where standard output is no terminal, or NO_COLOR is set, each
    character has a line: it, its surprisal in bits, the number of a cell or gate, and the next ones. --find tells which single cells
    follow quotes, lines, brackets and the like, by the share of variance explained on text that nothing was chosen on.
    """
    command = "look --find" if find else "look"
    length = _length(length, SEARCHED if find else LOOKED, command)
    expect_seed(seed)
    if top is not None and not 0 <= top <= 100:
        raise UserError(f"--top {top}: expected 0 to 100")
    if find:
        shown = (("--text", text), ("--by", by), ("--layer", layer), ("--unit", unit), ("--gate", gate))
        if given := next((flag for flag, value in shown if value is not None), None):
            raise UserError(f"{given}: has no meaning for --find, which searches all cells in a long text; leave it out")
    else:
        _expect_one(text, file, command)
    if out is not None:
        expect_place(out, "--out", (".html", ".htm"))
    loaded, network = _loaded(model, device, "look")
    if out is not None:
        expect_apart(out, [file] if file else [], [loaded.path])
    from charrnn.inside import look as looking
    from charrnn.inside import view_of

    if find:
        _find(loaded, network, file, length, 3 if top is None else max(1, top), out, as_json, seed, set_)
        return
    view = view_of(network, by, layer, unit, gate)
    stream = _limited(_stream(loaded, text, file, set_), length, warned=True)
    looked = list(looking(network, loaded.vocabulary, stream, view, 5 if top is None else top))
    if not looked:
        raise UserError(f"{'--text' if file is None else file}: holds no characters; expected some for the model to read")
    if out is not None:
        from charrnn.coloured import looked_page

        write(out, [looked_page(looked, view, printable(str(loaded.path)))])
    else:
        _show(looked, view, as_json)


def bptt(
    model: Model = None,
    text: Text = None,
    file: File = None,
    compare: Annotated[
        list[str] | None, typer.Option("--compare", metavar="MODEL", help="another to be set beside it; may be repeated")
    ] = None,
    layer: Annotated[int, typer.Option(metavar="L", help="from 0, which reads the characters; -1: the last")] = -1,
    length: Length = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", metavar="PNG", help="draw the triangles")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="a JSON object for each model")] = False,
    device: Device = "auto",
    set_: Overrides = None,
) -> None:
    """Show how far back a language model's gradients reach: of every loss of a text by every state before it.

    The half-life is in how many characters the gradient of a loss by the state halves, in the mean of ten halvings: a tenth of the
    distance at which it is down to a thousandth, the median over the later half of the text. Beside it stand the distance of the first
    halving, and what is left so many characters back, the median over all losses.
    """
    length = _length(length, BACK, "bptt")
    _expect_one(text, file, "bptt")
    if out is not None:
        from charrnn.plots import require_matplotlib

        require_matplotlib("--out")
        expect_place(out, "--out", (".png",))
    from charrnn.bptt import triangle

    found: list[tuple[Loaded, Triangle]] = []
    characters: list[str] = []
    for name in (model, *(compare or [])):
        loaded, network = _loaded(name, device, "bptt")
        stack = network.recurrent
        if not -stack.num_layers <= layer < stack.num_layers:
            expected = f"expected 0 to {stack.num_layers - 1}, or -1 for the last"
            raise UserError(f"--layer {layer}: {loaded.path} has {stack.num_layers}; {expected}")
        windows = list(_limited(_stream(loaded, text, file, set_ if name == model else None), length))
        end = loaded.vocabulary.end
        characters = ([] if end is None else [""]) + [c for window in windows for c in window.characters]
        ids = ([] if end is None else [end]) + [i for window in windows for i in window.ids]
        if len(ids) < 3:
            place = "--text" if file is None else printable(str(file))
            raise UserError(
                f"{place}: {counted(len(characters), 'character')}; expected at least 3, of which one can owe to another; give more"
            )
        found.append((loaded, triangle(network, ids, layer)))
    if out is not None:
        from charrnn.plots import triangles_png

        expect_apart(out, [file] if file else [], [loaded.path for loaded, _ in found])
        names = [called if (called := _called(loaded)) == one.cell else f"{called}, {one.cell}" for loaded, one in found]
        picture, note = triangles_png([one for _, one in found], names, characters[: min(len(one.state) for _, one in found)])
        write_bytes(out, picture)
        if note:
            warn(f"{out}: {note}")
    _tell(found, as_json)


def _called(loaded: Loaded) -> str:
    """A model of a run by its run, another by its file."""
    path = loaded.path
    return path.parent.name if path.stem in ("best", "last") and path.parent.name else path.stem


def _loaded(model: str | None, device: str, command: str) -> tuple[Loaded, CharRNN]:
    from charrnn.models.char_rnn import CharRNN

    loaded, network = load(model, device, "lm", command)
    assert isinstance(network, CharRNN)
    return loaded, network


def _length(length: int | None, usual: int, command: str) -> int:
    if length is not None and not 1 <= length <= LONGEST[command]:
        raise UserError(f"--length {length}: expected 1 to {LONGEST[command]:,} characters for {command}")
    return length or usual


def _expect_one(text: str | None, file: Path | None, command: str) -> None:
    if (text is None) == (file is None):
        raise UserError(f"{command}: {'nothing to read' if text is None else '--text and --file'}; expected one of --text and --file")


def _stream(loaded: Loaded, text: str | None, file: Path | None, set_: list[str] | None) -> Iterator[Window]:
    from charrnn.evaluation import documents_stream

    pieces: Iterable[tuple[str, list[int]]]
    if file is None:
        pieces = [(text or "", [])]
    else:
        pieces = reading_of(loaded, config_of(loaded, set_).data, file).pieces()
    return documents_stream(loaded.vocabulary, pieces)


def _limited(stream: Iterator[Window], length: int, *, warned: bool = False) -> Iterator[Window]:
    """Its first so many characters. `warned`: that there are more is said."""
    from charrnn.evaluation import Window

    read = 0
    for window in stream:
        if read == length or read + len(window.ids) > length:
            if warned:
                warn(f"the first {length:,} characters are read; --length reads more")
            if left := length - read:
                yield Window(window.characters[:left], window.ids[:left])
            return
        read += len(window.ids)
        yield window


def _show(looked: Sequence[Looked], view: View, as_json: bool) -> None:
    """On standard output: in colours, or a line each."""
    from charrnn.coloured import colours_of, on_terminal
    from charrnn.journal import sayable

    if as_json:
        for one in looked:
            likely = [{"char": character, "probability": share} for character, share in one.likely]
            typer.echo(json_line(sayable({"char": one.character, "bits": one.bits, "value": one.value}) | {"next": likely}))
        return
    colours = colours_of(sys.stdout.isatty(), os.environ)
    if colours != "none":
        for line in on_terminal(looked, view, shutil.get_terminal_size().columns, colours):
            typer.echo(line, color=True)
        return
    for one in looked:
        shown = json.dumps(one.character, ensure_ascii=False) if one.character else "end"
        told = [shown if shown.isprintable() else printable(shown), "-" if one.bits is None else f"{one.bits:.3f}"]
        if view.by != "surprisal":
            told.append("-" if one.value is None else f"{one.value:+.4f}")
        told.append(" ".join(f"{_named(character)} {share:.1%}" for character, share in one.likely))
        typer.echo("\t".join(told))


def _named(character: str) -> str:
    from charrnn.errors import glyph

    return glyph(character)


def _find(
    loaded: Loaded,
    network: CharRNN,
    file: Path | None,
    length: int,
    top: int,
    out: Path | None,
    as_json: bool,
    seed: int,
    set_: list[str] | None,
) -> None:
    from charrnn.coloured import found_page
    from charrnn.evaluation import split_stream
    from charrnn.finding import find

    config = config_of(loaded, set_)
    if file is not None:
        stream, what = _stream(loaded, None, file, set_), printable(str(file))
    else:
        corpus = task_of(loaded, config).corpus
        stream, what = split_stream(corpus, "val"), split_of(config, "val")
    characters = [c for window in _limited(stream, length) for c in window.characters]
    with progress_bar(" chars", len(characters)) as bar:

        def progress(done: int) -> None:
            bar.update(done - bar.n)

        found = find(network, loaded.vocabulary, characters, top=top, seed=seed, progress=progress)
    samples = [_sample(loaded, network, characters, found, number) for number in range(len(found.follows))]
    if out is not None:
        write(out, [found_page(found, samples, printable(str(loaded.path)))])
    if as_json:
        _print_found_json(found)
    elif out is None:
        _print_found(loaded, found, what, samples)


def _sample(loaded: Loaded, network: CharRNN, characters: Sequence[str], found: Found, number: int) -> tuple[View, list[Looked]]:
    """The beginning of the second half in the colours of a feature's best unit."""
    from charrnn.evaluation import Window
    from charrnn.inside import View
    from charrnn.inside import look as looking

    unit = found.follows[number].units[0]
    view = View("cell", unit.layer, unit.state, unit.number)
    start = len(characters) // 2
    led = min(LED, start)
    read = list(characters[start - led : start + SAMPLE])
    window = Window(read, [loaded.vocabulary.id(c) if c else loaded.vocabulary.end or 0 for c in read])
    return view, list(islice(looking(network, loaded.vocabulary, [window], view, 0), led, None))


def _print_found(loaded: Loaded, found: Found, what: str, samples: Sequence[tuple[View, Sequence[Looked]]]) -> None:
    from charrnn.coloured import FOUND_HEADS, colours_of, found_note, found_rows, marks, on_terminal
    from charrnn.tables import aligned

    typer.echo(f"{loaded.path} (step {loaded.step:,}) on {what}")
    for line in aligned([FOUND_HEADS, *found_rows(found)], left=(0, 1, 2, 3)):
        typer.echo(line)
    typer.echo(found_note(found))
    colours = colours_of(sys.stdout.isatty(), os.environ)
    view, looked = samples[0]
    typer.echo(f"\n{view}, which follows: {found.follows[0].feature}")
    if colours != "none":
        for line in on_terminal(looked, view, shutil.get_terminal_size().columns, colours):
            typer.echo(line, color=True)
        return
    digits, line, below = marks(view, looked), "", ""
    for one, digit in zip(looked, digits):
        shown = one.character if one.character == " " else _named(one.character)
        line, below = line + shown, below + digit + " " * (len(shown) - 1)
        if one.character in ("", "\n"):
            typer.echo(f"{line}\n{below}")
            line, below = "", ""
    if line:
        typer.echo(f"{line}\n{below}")


def _print_found_json(found: Found) -> None:
    from charrnn.journal import sayable

    for one in found.follows:
        units = [
            sayable({"layer": unit.layer, "state": unit.state, "unit": unit.number, "rises": rises, "r2_first": fitted, "r2": explained})
            for unit, rises, fitted, explained in zip(one.units, one.rises, one.fitted, one.explained)
        ]
        shared = {"feature": one.feature, "form": one.form, "control_r2": one.control, "probe_r2": one.probe}
        typer.echo(json_line(sayable(shared | {"probe_control_r2": one.probe_control, "counted": found.counted}) | {"units": units}))


def _tell(found: Sequence[tuple[Loaded, Triangle]], as_json: bool) -> None:
    from charrnn.bptt import states_named
    from charrnn.journal import sayable
    from charrnn.plots import life_told
    from charrnn.tables import aligned

    if as_json:
        for loaded, one in found:
            reach = {f"left_{d}_back": one.reach(d) for d in DISTANCES}
            named = {"model": str(loaded.path), "cell": one.cell, "layer": one.layer, "steps": len(one.state)}
            lists = {"state": one.state.tolist(), "weight_hh": one.weight.tolist(), "nats": one.nats.tolist()}
            typer.echo(json_line(sayable(named | {"half_life": one.half_life(), "first_halving": one.fallen(1)} | reach) | lists))
        return
    steps = min(len(one.state) for _, one in found)
    distances = [d for d in DISTANCES if d < steps]
    rows = [["model", "cell", "layer", "by", "half-life", "first halving", *(f"{d} back" for d in distances)]]
    for loaded, one in found:
        left = [f"{one.reach(d):.3g}" for d in distances]
        lives = [life_told(one), f"{one.fallen(1):.1f}"]
        rows.append([printable(str(loaded.path)), one.cell, str(one.layer), states_named(one.cell), *lives, *left])
    for line in aligned(rows, left=(0, 1, 3)):
        typer.echo(line)
