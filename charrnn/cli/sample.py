"""`charrnn sample`."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

import typer

from charrnn.cli.arguments import Device, Model, expect_seed, load, named, reading_of
from charrnn.cli.output import expect_apart, expect_place, warn, write
from charrnn.errors import DataError, UserError, counted, printable

if TYPE_CHECKING:
    from torch import nn

    from charrnn.checkpoint import Loaded
    from charrnn.constraints import Constraint
    from charrnn.engine import Language, NativeEngine
    from charrnn.novelty import Index

QUOTED = 80  # characters of a copied run that are shown
MEASURED = 500  # characters by which the cost of int8 is told: a fraction of a second


def sample(
    context: typer.Context,
    model: Model = None,
    prime: Annotated[str, typer.Option("--prime", "--primetext", "--start-string", help="text to go on from; empty: a fresh start")] = "",
    prime_file: Annotated[Path | None, typer.Option(metavar="FILE", help="the same from a file, without its last line end")] = None,
    length: Annotated[int, typer.Option("--length", "-n", help="new characters at most; a document may end earlier")] = 500,
    temperature: Annotated[float, typer.Option("--temperature", "-t", help="0 is greedy, 1 is the model's own odds")] = 0.8,
    top_k: Annotated[int | None, typer.Option(help="only the k most probable characters")] = None,
    top_p: Annotated[float | None, typer.Option(help="only the most probable that together hold this share")] = None,
    min_p: Annotated[float | None, typer.Option(help="only those at least this share as probable as the best")] = None,
    repetition_penalty: Annotated[float, typer.Option(help="above 1 makes recent characters less probable")] = 1.0,
    repetition_window: Annotated[int, typer.Option(help="so many characters are recent")] = 64,
    no_repeat_ngram: Annotated[int, typer.Option(help="never write a run of so many characters twice; 0 is off")] = 0,
    num_samples: Annotated[int, typer.Option(help="texts, decoded as one batch")] = 1,
    seed: Annotated[int | None, typer.Option(help="the same seed writes the same text")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="end when this was written, \\n for a line end; may be repeated")] = None,
    continue_documents: Annotated[bool, typer.Option("--continue", help="after the end of a document begin the next one")] = False,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="write to a file")] = None,
    no_echo: Annotated[bool, typer.Option("--no-echo", help="leave out the prime")] = False,
    on_unknown: Annotated[Literal["drop", "error"], typer.Option(help="a prime character that the model does not know")] = "drop",
    device: Device = "auto",
    backend: Annotated[
        Literal["auto", "native", "torch"], typer.Option(help="what runs the model; auto: native where it can, which starts at once")
    ] = "auto",
    quantize: Annotated[
        Literal["int8"] | None, typer.Option(help="weights in bytes: faster, and it is told what that costs", show_default=False)
    ] = None,
    novelty: Annotated[bool, typer.Option("--novelty", help="tell, on standard error, what is copied from the training text")] = False,
    novelty_min: Annotated[
        int | None,
        typer.Option(metavar="N", help="it marks runs of so many characters; left out 12, or 5 in a large alphabet"),
    ] = None,
    novelty_text: Annotated[
        Path | None, typer.Option(metavar="FILE", help="the training text, where the run did not keep it (train.keep_text)")
    ] = None,
    no_copy: Annotated[int, typer.Option(metavar="N", help="never write N characters that stand in the training text; 0 is off")] = 0,
    form: Annotated[str | None, typer.Option(help="verse in form: 五绝, 七绝, 五律, 七律 or NxM, lines x characters")] = None,
    rhyme: Annotated[bool, typer.Option("--rhyme", help="the even lines rhyme, in Chinese")] = False,
    tone: Annotated[bool, typer.Option("--tone", help="the tones 平仄 of regulated verse, in a form of 5 or 7 characters")] = False,
    acrostic: Annotated[str, typer.Option(metavar="TEXT", help="each line begins with the next of these characters")] = "",
    acrostic_at: Annotated[Literal["start", "end"], typer.Option(help="where in its line: end is 藏尾")] = "start",
    lines: Annotated[int | None, typer.Option(help="end after so many lines, in any language")] = None,
    max_line: Annotated[int | None, typer.Option(help="characters of a line at most; after a space where there is one")] = None,
    best_of: Annotated[int | None, typer.Option(metavar="N", help="draw N texts for each one wanted, and keep the likeliest")] = None,
    beam_width: Annotated[int | None, typer.Option(metavar="K", help="the likeliest text that a beam of K finds; draws nothing")] = None,
) -> None:
    """Let a model write, character by character."""
    from charrnn import generation
    from charrnn.data.forms import parse_form
    from charrnn.options import SamplingOptions, expect
    from charrnn.verse.options import VerseOptions

    given = {name for name in context.params if getattr(context.get_parameter_source(name), "name", "") == "COMMANDLINE"}
    options = SamplingOptions(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        repetition_window=repetition_window,
        no_repeat_ngram=no_repeat_ngram,
    )
    if prime and prime_file:
        raise UserError("--prime and --prime-file are both given; expected one text to go on from, so leave one of them out")
    expect_seed(seed)
    expect(no_copy == 0 or no_copy >= 2, "--no-copy", no_copy, "at least 2 characters; 0 is off")
    expect(novelty_min is None or novelty_min >= 1, "--novelty-min", novelty_min, "at least 1 character")
    if novelty_min is not None and not novelty:
        raise UserError("--novelty-min: says what --novelty marks, which is not given; add it, or leave both out")
    if novelty_text and not (novelty or no_copy):
        raise UserError("--novelty-text: the text for --novelty or --no-copy, and neither is given; add one of them, or leave it out")
    expect(num_samples >= 1, "--num-samples", num_samples, "at least 1")
    expect(best_of is None or best_of >= 1, "--best-of", best_of, "at least 1 text to choose from")
    asked = VerseOptions(
        form=parse_form(form, "--form") if form is not None else None,
        rhyme=rhyme,
        tone=tone,
        acrostic=acrostic,
        acrostic_at=acrostic_at,
        lines=lines,
        max_line=max_line,
    )
    _refuse_together(given, whole=asked.count is not None, greedy=temperature == 0)
    only_torch = {"--beam-width": beam_width is not None, "--best-of": best_of is not None, "--novelty-text": novelty_text is not None}
    writer = _writer(model, device, backend, quantize == "int8", next((flag for flag, asked in only_torch.items() if asked), None))
    loaded = writer.loaded
    if out:
        expect_place(out)  # said before the model writes, not after
        expect_apart(out, [file for file in (prime_file, novelty_text) if file], [loaded.path])
    text = _read_prime(prime_file) if prime_file else prime
    place = f"--prime-file {prime_file}" if prime_file else "--prime"
    primed, warnings = generation.prepare_prime(loaded.vocabulary, text, on_unknown, place)
    for warning in warnings:
        warn(warning)
    index = _index_of(loaded, novelty_text) if novelty or no_copy else None
    constraints: list[Constraint] = []
    if asked.asked:
        from charrnn.verse.build import build_verse

        verse, whole = build_verse(loaded.vocabulary, asked, length if "length" in given else None, primed.text)
        length = length if whole is None else whole
        constraints.append(verse)
    if index and no_copy:
        from charrnn.novelty import NoCopy

        constraints.append(NoCopy(index, no_copy, primed.ids))  # the last, for it may yield and a verse may not
    constraint: Constraint | None = None
    if constraints:
        from charrnn.constraints import Every

        constraint = Every(constraints)
    ends = [s.replace("\\n", "\n").replace("\\t", "\t") for s in stop or []]
    if beam_width is not None:
        from charrnn import search

        found = search.beam_search(
            writer.network,
            loaded.vocabulary,
            primed.ids,
            width=beam_width,
            length=length,
            count=num_samples,
            stop=ends,
            no_repeat_ngram=no_repeat_ngram,
            constraint=constraint,
        )
        pieces = iter([found])
    else:
        candidates = num_samples * (best_of or 1)
        pieces = generation.generate(
            writer.engine or writer.network,
            loaded.vocabulary,
            primed.ids,
            length=length,
            options=options,
            generator=int.from_bytes(os.urandom(8), "little") if seed is None else seed,
            num_samples=candidates,
            stop=ends,
            continue_documents=continue_documents,
            separator=loaded.separator,
            constraints=[constraint.copy() for _ in range(candidates)] if constraint else [],
        )
        if best_of is not None:
            from charrnn import search

            drawn = ["".join(parts) for parts in zip(*pieces)] or [""] * candidates
            groups = [drawn[i : i + best_of] for i in range(0, candidates, best_of)]
            pieces = iter([search.best_of(writer.network, loaded.vocabulary, primed.ids, groups)])
    grown: list[list[str]] = [[] for _ in range(num_samples)]
    if index or quantize:
        pieces = _remembered(pieces, grown)
    written = _arrange(pieces, "" if no_echo else primed.text, num_samples)
    if out:
        write(out, written)
    else:
        for piece in written:
            typer.echo(piece, nl=False)
            sys.stdout.flush()
    texts = list(map("".join, grown))
    if quantize:
        _print_loss(writer, primed.ids + loaded.vocabulary.encode(texts[0]))
    if index and no_copy and (copied := sum(index.completed(no_copy, primed.ids, loaded.vocabulary.encode(text)) for text in texts)):
        of = f"{copied:,} of {sum(map(len, texts)):,} characters"
        warn(f"--no-copy {no_copy}: {of} could only complete a copy, whichever was drawn, so there none was refused")
    if index and novelty:
        _print_novelty(index, primed.text, texts, novelty_min)


class _Writer(NamedTuple):
    """A model and what runs it: the engine, or the network with PyTorch."""

    loaded: Loaded | Language
    engine: NativeEngine | None
    module: nn.Module | None

    @property
    def network(self) -> nn.Module:
        assert self.module is not None
        return self.module


def _writer(model: str | None, device: str, backend: str, int8: bool, flag: str | None) -> _Writer:
    """The model that a person names, with the native engine where that can and may run it. `flag`: what is asked that only PyTorch can.

    Raises UserError where the engine must run it and cannot.
    """
    path = None
    if backend == "torch":
        reason: object = "--backend torch has none"
    elif flag:
        reason = f"{flag} needs PyTorch"
    elif device not in ("auto", "cpu"):
        reason = "it runs on the CPU"
    else:
        from charrnn import engine

        path = named(model)
        try:
            language = engine.open_language_model(path)
            return _Writer(language, engine.NativeEngine(language, int8=int8), None)
        except engine.Unfit as fault:
            reason = fault
    loaded, network = load(path or model, device, "lm")  # what is wrong with a file, or with a name, is said here
    if int8:
        raise UserError(f"--quantize int8: needs the native engine, and {reason}; leave it out")
    if backend == "native":
        raise UserError(f"--backend native: {reason}; leave it out, or expect the text a moment later with --backend torch")
    return _Writer(loaded, None, network)


def _print_loss(writer: _Writer, ids: list[int]) -> None:
    """What bytes for weights cost, on the end of a text."""
    from charrnn.engine import Language, NativeEngine, loss_of

    assert isinstance(writer.loaded, Language) and writer.engine
    ids = ids[-MEASURED:]
    if ids:
        loss = loss_of(NativeEngine(writer.loaded), writer.engine, ids)
        over = f"over the last {counted(len(ids), 'character')} of the text"
        typer.echo(f"charrnn: int8 costs {loss:.4f} bits per character, {over}", err=True)


def _refuse_together(given: set[str], *, whole: bool, greedy: bool) -> None:
    """Options of `charrnn sample` that would contradict each other. `whole`: a verse that must not end early, or begin again."""
    chance = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "repetition_window")
    verse = next((name for name in ("form", "lines", "acrostic") if name in given), "lines")
    pairs = [
        *((name, "beam_width", "a beam search draws nothing") for name in (*chance, "best_of")),
        *(("continue_documents", name, "a text of one document is sought") for name in ("beam_width", "best_of")),
        *((name, verse, "the verse ends where its last line does") for name in ("continue_documents", "stop") if whole),
    ]
    for one, other, why in pairs:
        if {one, other} <= given:
            flag = f"--{one.removesuffix('_documents').replace('_', '-')}"
            raise UserError(f"{flag} and --{other.replace('_', '-')} are both given; expected one of them, for {why}; leave {flag} out")
    if greedy and "best_of" in given:
        raise UserError("--best-of with --temperature 0: expected a temperature above 0, for the greedy texts are all the same")


def _read_prime(path: Path) -> str:
    try:
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"--prime-file {path}: not UTF-8 text at byte {error.start}; save it as UTF-8") from None
    except OSError as error:
        raise DataError(f"--prime-file {path}: cannot be read: {error.strerror or error}; name a text file") from None
    return _as_read(text).removesuffix("\n")


def _as_read(text: str) -> str:
    """As the model's own text was read."""
    return text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")


def _index_of(loaded: Loaded | Language, file: Path | None) -> Index:
    """The index of the text that a model learned from, which its run kept or a person names."""
    from charrnn import novelty

    if file:
        from charrnn.checkpoint import Loaded

        assert isinstance(loaded, Loaded)
        return novelty.index_of(reading_of(loaded, loaded.config.data, file), loaded.vocabulary)
    index, warnings = novelty.kept_index(loaded.path, loaded.vocabulary)
    for warning in warnings:
        warn(warning)
    return index


def _remembered(steps: Iterator[list[str]], grown: list[list[str]]) -> Iterator[list[str]]:
    """The same steps, each also put to what its text grew by before."""
    for pieces in steps:
        for text, piece in zip(grown, pieces):
            text.append(piece)
        yield pieces


def _arrange(steps: Iterator[list[str]], prime: str, count: int) -> Iterator[str]:
    """What to write, in order: one text as it comes, or the first as it comes and the others after it, each under a number."""
    if count == 1:
        last = prime
        yield prime
        for (piece,) in steps:
            last = piece or last
            yield piece
        if not last.endswith("\n"):
            yield "\n"
        return
    yield f"--- 1 ---\n{prime}"
    texts = [[prime] for _ in range(count)]
    for pieces in steps:
        for text, piece in zip(texts, pieces):
            text.append(piece)
        yield pieces[0]
    for number, whole in enumerate(map("".join, texts), start=1):
        if number > 1:
            yield f"--- {number} ---\n{whole}"
        if not whole.endswith("\n"):
            yield "\n"


def _print_novelty(index: Index, prime: str, texts: list[str], least: int | None) -> None:
    """The lines of each text that hold a copied run, marked, and what it comes to."""
    from charrnn.novelty import GRAM, examine, telling

    least = least or telling(index.vocabulary)
    live = sys.stderr.isatty()
    for number, text in enumerate(texts, start=1):
        whole = prime + text
        found = examine(index, index.vocabulary.encode(whole), least, len(prime))
        typer.echo(f"--- novelty of {number} ---" if len(texts) > 1 else "--- novelty ---", err=True)
        for line in _marked(whole, found.copied, live):
            typer.echo(line, err=True)
        start, stop = found.longest
        run = whole[start:stop] if stop - start <= QUOTED else whole[start : start + QUOTED] + "…"
        told = f"{stop - start:,} characters {printable(json.dumps(run, ensure_ascii=False))}" if stop > start else "none"
        share = f"{found.novel_share:.1%} of {found.grams:,} {GRAM}-grams are new" if found.grams else f"no {GRAM}-grams"
        mark = "underlined" if live else "in [[ ]]"
        typer.echo(f"longest copied run: {told}; {share}; {mark}: copied runs of {least} characters and more", err=True)


def _marked(text: str, spans: Sequence[tuple[int, int]], live: bool) -> Iterator[str]:
    """The lines that hold a part of a span, with it underlined on a terminal and in brackets elsewhere."""
    at = 0
    for line in text.split("\n"):
        stop = at + len(line)
        parts, done = [], at
        for start, end in ((max(start, at), min(end, stop)) for start, end in spans if start < stop and end > at):
            copied = printable(text[start:end])
            parts += [printable(text[done:start]), typer.style(copied, underline=True) if live else f"[[{copied}]]"]
            done = end
        if parts:
            yield "".join([*parts, printable(text[done:stop])])
        at = stop + 1
