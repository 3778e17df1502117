"""The command line: a command parses, calls one function and prints. The only module that prints.

What a command needs is imported inside it: `charrnn --help` must not wait for torch.
"""

from __future__ import annotations

import io
import json
import math
import shlex
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NoReturn

import typer

from charrnn.errors import DataError, UserError, counted, printable

if TYPE_CHECKING:
    from torch import nn
    from tqdm import tqdm

    from charrnn.checkpoint import Loaded
    from charrnn.config import Config, DataConfig
    from charrnn.data.corpus import Corpus
    from charrnn.data.files import Source
    from charrnn.data.formats import Reading
    from charrnn.evaluation import Window
    from charrnn.inspecting import Inspection
    from charrnn.novelty import Index
    from charrnn.scoring import Document, Score
    from charrnn.training import Outcome, Plan, StepReport

REPORT_SECONDS = 5.0  # between two lines of progress where the output is not a terminal
ANOTHER_PLACE = "name a file in a directory that exists"  # what helps where --out cannot be written
SILENCE_SECONDS = 1.0  # before a bar appears
OVERFITS = 1.01  # a last value that is so many times the best is clearly above it
# What a command can do with less memory.
LESS_MEMORY = {
    "train": "lower train.batch_size, train.tbptt_window or model.hidden_size",
    "sample": "lower --num-samples, --best-of or --beam-width, shorten the prime, or set --device cpu",
    "eval": "set --device cpu, or end other programs",
    "score": "set --device cpu, or end other programs",
}
QUOTED = 80  # characters of a copied run that are shown

app = typer.Typer(
    help="Character-level recurrent neural networks: train on text, let it write, measure it.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    # Flags are taken with `_` for `-`, as other programs of the field spell them.
    context_settings={
        "token_normalize_func": lambda name: name.replace("_", "-"),
        "help_option_names": ["-h", "--help"],
        "max_content_width": 110,
    },
)

data = typer.Typer(help="Texts to learn from: fetch public ones, look into your own.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(data, name="data")

Model = Annotated[str | None, typer.Argument(help="a run directory or a .safetensors file; left out, the newest run", show_default=False)]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps")]
Overrides = Annotated[list[str] | None, typer.Option("--set", metavar="A.B=C", help="set a key of the configuration; may be repeated")]


@app.command()
def train(
    config: Annotated[Path, typer.Option("--config", "-c", metavar="FILE", help="YAML; `configs/` holds some")],
    set_: Overrides = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on with the run where it was stopped")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace the run directory")] = False,
    init_from: Annotated[str | None, typer.Option(metavar="MODEL", help="go on from another model, with new characters too")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:N or mps; the config's by default")] = None,
    print_config: Annotated[bool, typer.Option("--print-config", help="print the configuration with all defaults, and stop")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="read the text, print sizes and warnings, and stop")] = False,
) -> None:
    """Train the model that a YAML file describes."""
    from charrnn.config import load_config

    settings = load_config(config, [*(set_ or []), *([f"device={device}"] if device else [])])
    if print_config:
        typer.echo(settings.to_yaml(), nl=False)
        return
    from charrnn import training

    if dry_run:
        with Terminal(settings) as terminal:
            planned = training.plan(settings, terminal, init_from=init_from)
        _print_plan(planned)
        return
    with Terminal(settings) as terminal:
        outcome = training.train(settings, resume=resume, overwrite=overwrite, init_from=init_from, reporter=terminal)
    raise typer.Exit({"interrupted": 130, "terminated": 143, "diverged": 1}.get(outcome.status, 0))


@app.command()
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
    import torch

    from charrnn import generation, search
    from charrnn.constraints import Constraint, Every
    from charrnn.data.forms import parse_form
    from charrnn.novelty import NoCopy
    from charrnn.sampling import SamplingOptions, expect
    from charrnn.verse.build import build_verse
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
    if seed is not None and not 0 <= seed < 1 << 63:
        raise UserError(f"--seed {seed}: expected a whole number from 0 to {(1 << 63) - 1}; a lower one does as well")
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
    loaded, network = _load(model, device)
    text = _read_prime(prime_file) if prime_file else prime
    place = f"--prime-file {prime_file}" if prime_file else "--prime"
    primed, warnings = generation.prepare_prime(loaded.vocabulary, text, on_unknown, place)
    for warning in warnings:
        _warn(warning)
    index = _index_of(loaded, novelty_text) if novelty or no_copy else None
    generator = torch.Generator()
    if seed is None:
        generator.seed()
    else:
        generator.manual_seed(seed)
    constraints: list[Constraint] = []
    if asked.asked:
        verse, whole = build_verse(loaded.vocabulary, asked, length if "length" in given else None, primed.text)
        length = length if whole is None else whole
        constraints.append(verse)
    if index and no_copy:
        constraints.append(NoCopy(index, no_copy, primed.ids))  # the last, for it may yield and a verse may not
    constraint = Every(constraints) if constraints else None
    ends = [s.replace("\\n", "\n").replace("\\t", "\t") for s in stop or []]
    if out:
        _expect_place(out)  # said before the model writes, not after
    if beam_width is not None:
        found = search.beam_search(
            network,
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
            network,
            loaded.vocabulary,
            primed.ids,
            length=length,
            options=options,
            generator=generator,
            num_samples=candidates,
            stop=ends,
            continue_documents=continue_documents,
            separator=loaded.config.data.separator,
            constraints=[constraint.copy() for _ in range(candidates)] if constraint else [],
        )
        if best_of is not None:
            drawn = ["".join(parts) for parts in zip(*pieces)] or [""] * candidates
            groups = [drawn[i : i + best_of] for i in range(0, candidates, best_of)]
            pieces = iter([search.best_of(network, loaded.vocabulary, primed.ids, groups)])
    grown: list[list[str]] = [[] for _ in range(num_samples)]
    if index:
        pieces = _remembered(pieces, grown)
    written = _arrange(pieces, "" if no_echo else primed.text, num_samples)
    if out:
        _write(out, written)
    else:
        for piece in written:
            typer.echo(piece, nl=False)
            sys.stdout.flush()
    texts = list(map("".join, grown))
    if index and no_copy and (copied := sum(index.completed(no_copy, primed.ids, loaded.vocabulary.encode(text)) for text in texts)):
        of = f"{copied:,} of {sum(map(len, texts)):,} characters"
        _warn(f"--no-copy {no_copy}: {of} could only complete a copy, whichever was drawn, so there none was refused")
    if index and novelty:
        _print_novelty(index, primed.text, texts, novelty_min)


@app.command("eval")
def evaluate(
    model: Model = None,
    split: Annotated[str, typer.Option(help="train, val or test, of the text the model was trained on")] = "val",
    file: Annotated[Path | None, typer.Option(metavar="FILE", help="a text of your own instead")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object, keys as in metrics.jsonl")] = False,
    per_char: Annotated[bool, typer.Option("--per-char", help="a line for each character: it and its surprisal in bits")] = False,
    device: Device = "auto",
    set_: Overrides = None,
) -> None:
    """Measure how well a model predicts a text."""
    from charrnn import evaluation
    from charrnn.metrics import sayable

    loaded, network = _load(model, device)
    config = _config_of(loaded, set_)
    if file:
        stream = evaluation.documents_stream(loaded.vocabulary, _reading(loaded, config.data, file).pieces())
        total, what = None, str(file)
    else:
        corpus = _corpus_of(loaded, config)
        stream = evaluation.split_stream(corpus, split)
        total, what = len(corpus.split(split)), f"the {split} split of {_source(config)}"
    if per_char:
        _print_surprisal(evaluation.per_char(network, loaded.vocabulary, stream), as_json)
        return
    found = evaluation.evaluate_stream(network, loaded.vocabulary, _watched(stream, total))
    figures = found.as_metrics()
    if as_json:
        asked = {"file": str(file)} if file else {"split": split}
        typer.echo(json.dumps(sayable({"model": str(loaded.path), **asked, "step": loaded.step, **figures})))
        return
    typer.echo(f"{loaded.path} (step {loaded.step:,}) on {what}: {found.chars:,} characters, state carried from the first to the last")
    typer.echo(
        f"{figures['nats_per_char']:.4f} nats/char   {figures['bits_per_char']:.4f} bits/char   perplexity {figures['perplexity']:,.3f}   "
        f"accuracy {figures['accuracy']:.2%}   {figures['chars_per_second']:,.0f} chars/s"
    )
    if file or found.unknown:
        typer.echo(f"{figures['unknown_share']:.2%} of the characters are unknown to the model and not scored")


@app.command()
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

    loaded, network = _load(model, device)
    config = _config_of(loaded, set_)
    in_folder, texts = _texts(text)
    cut = documents or ("files" if in_folder else None if loaded.vocabulary.end is not None else config.data.documents)
    readings: Iterable[tuple[str, Reading]] = ((name, _reading(loaded, config.data, source, cut)) for name, source in texts)
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


@app.command()
def info(model: Model = None) -> None:
    """Show what is in a checkpoint."""
    from charrnn.checkpoint import build_model, find_model, load_model
    from charrnn.models.char_rnn import count_parameters

    loaded = load_model(find_model(model))
    shape, characters = loaded.config.model, loaded.vocabulary.characters
    shown = characters if len(characters) <= 120 else characters[:120] + "…"
    typer.echo(f"file        {loaded.path} ({loaded.path.stat().st_size:,} bytes)")
    typer.echo(f"task        {loaded.config.task}")
    typer.echo(f"model       {shape.cell}, {shape.num_layers} × {shape.hidden_size}, embedding {shape.embedding_size}")
    typer.echo(f"parameters  {count_parameters(build_model(loaded)):,}")
    symbols = ", ".join(loaded.vocabulary.symbols)
    typer.echo(f"vocabulary  {len(characters):,} characters and {symbols}: {printable(json.dumps(shown, ensure_ascii=False))}")
    typer.echo(f"step        {loaded.step:,}")
    for name, value in loaded.metrics.items():
        typer.echo(f"{name:<24} {value:.6g}")
    typer.echo("config")
    typer.echo("\n".join("  " + line for line in loaded.config.to_yaml().splitlines()))


@app.command()
def backends() -> None:
    """Show which backend runs which cell, and where."""
    import torch

    from charrnn.ops.backends import BACKENDS, Request, backend, choose
    from charrnn.ops.cells import CELLS

    here = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    headings = [device if there else f"{device} (not here)" for device, there in here.items()]
    typer.echo(f"{'cell':<10}{'backend':<12}" + "".join(f"{heading:<20}" for heading in headings).rstrip())
    for cell in CELLS:
        for name in BACKENDS:
            answers = []
            for device in here:
                request = Request(cell=cell, device=device)
                reason = backend(name).refuses(request)
                answers.append(f"no: {reason}" if reason else "yes, auto" if choose(request) is backend(name) else "yes")
            typer.echo(f"{cell:<10}{name:<12}" + "".join(f"{answer:<20}" for answer in answers).rstrip())
    typer.echo("`auto` marks what model.backend: auto takes in fp32.")


@data.command()
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
    with _bar("B", source.size) as bar:

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


@data.command()
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
    with _bar(" chars", None) as bar:

        def progress(done: int) -> None:
            bar.update(done - bar.n)

        found = look(config.data, seed, progress)
    if as_json:
        typer.echo(json.dumps({"path": path, **asdict(found)}, ensure_ascii=False))
        return
    _print_inspection(_source(config), found)


class Terminal:
    """What a person sees of a run: a bar on a terminal, a line now and then elsewhere. The Reporter of training."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._live = sys.stdout.isatty() and sys.stderr.isatty()
        self._bar: tqdm[NoReturn] | None = None
        self._spoke = time.monotonic()  # what is over sooner than REPORT_SECONDS is not worth a line
        self._reported = False  # that a report has come
        self._val = ""

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def note(self, text: str) -> None:
        self._say(text)

    def warn(self, text: str) -> None:
        self._say(f"charrnn: warning: {text}", err=True)

    def encoding(self, done: int, total: int) -> None:
        megabytes = f"encoding {done / 1e6:,.1f} of {total / 1e6:,.1f} MB"
        if self._live:
            self._show(done / max(1, total), megabytes)
            if done >= total:
                self._close()
        elif self._due():
            self._say(megabytes)

    def stepped(self, step: int, progress: float) -> None:
        """Until the first report this is all that shows life; then it moves the bar."""
        where = None if self._reported else self._where(step, progress)
        if self._live:
            self._show(progress, where)
        elif where and self._due():
            self._say(where)

    def _where(self, step: int, progress: float) -> str:
        steps = self._config.train.max_steps
        share = "" if self._live else f" ({progress:.0%})"  # a bar shows it already
        return f"step {step}/{steps}" if steps else f"step {step}{share}"

    def step(self, report: StepReport) -> None:
        self._reported = True
        line = (
            f"{self._where(report.step, report.progress)}  {report.bits_per_char:.3f} bits/char{self._val}  grad {report.grad_norm:.2f}  "
            f"lr {report.learning_rate:.1e}  {report.chars_per_second:,.0f} chars/s"
        )
        if self._live:
            self._show(report.progress, line)
        elif self._due():
            self._say(line)

    def evaluated(self, metrics: dict[str, float], sample: str, is_best: bool) -> None:
        if metrics:
            nats, bits = metrics["val_nats_per_char"], metrics["val_bits_per_char"]
            self._val = f" (val {bits:.3f})"
            best = ", the best so far" if is_best else ""
            self._say(f"val {nats:.4f} nats/char, {bits:.4f} bits/char, accuracy {metrics['val_accuracy']:.1%}{best}")
        self._say("\n".join("    " + line for line in sample.strip("\n").split("\n")))

    def done(self, outcome: Outcome) -> None:
        self._close()
        self._say(summary(outcome))

    def _show(self, progress: float, line: str | None) -> None:
        """Move the bar, and write a line behind it. None: the one that stands there."""
        from tqdm import tqdm

        if self._bar is None:
            bar = "{percentage:3.0f}% {bar:12} {elapsed}<{remaining}  {desc}"
            self._bar = tqdm(total=1.0, initial=progress, desc=line, bar_format=bar, leave=False, dynamic_ncols=True, miniters=0)
        if line is not None:
            self._bar.set_description_str(line, refresh=False)
        self._bar.update(progress - self._bar.n)

    def _due(self) -> bool:
        if time.monotonic() - self._spoke < REPORT_SECONDS:
            return False
        self._spoke = time.monotonic()
        return True

    def _say(self, text: str, *, err: bool = False) -> None:
        stream = sys.stderr if err else sys.stdout
        if self._bar is not None:
            self._bar.write(text, file=stream)
        else:
            typer.echo(text, file=stream)
        stream.flush()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def summary(outcome: Outcome) -> str:
    """The one sentence at the end of a run."""
    run = shlex.quote(str(outcome.run))
    resume = f"go on with: charrnn train --config {shlex.quote(str(outcome.run / 'config.yaml'))} --resume"
    since_best = outcome.steps - outcome.best_step
    ending = {
        "finished": f"Finished after {outcome.steps:,} steps",
        "already_finished": f"This run is finished already, after {outcome.steps:,} steps",
        "early_stopped": f"Stopped early at step {outcome.steps:,}, with no better value in the last {since_best:,} steps",
        "interrupted": f"Interrupted and saved at step {outcome.steps:,}; {resume}",
        "terminated": f"Terminated and saved at step {outcome.steps:,}; {resume}",
        "diverged": f"Gave up at step {outcome.steps:,}: the loss keeps running away",
    }[outcome.status]
    if not outcome.best:
        found = "no value on the val split was finite" if outcome.last else "no value was measured on a val split"
        return f"{ending}; {found}; to let it write: charrnn sample {run}"
    best, last = outcome.best["val_nats_per_char"], outcome.last.get("val_nats_per_char", math.nan)
    value = f"best val {best:.4f} nats/char ({outcome.best['val_bits_per_char']:.4f} bits/char) at step {outcome.best_step:,}"
    if not math.isfinite(last):
        since = "the last value is not finite"
    else:
        since = f"it has overfitted since ({last:.4f} at the end)" if last > OVERFITS * best else "it has not overfitted since"
    return f"{ending}; {value}, and {since}; to let it write: charrnn sample {run}"


def _print_plan(plan: Plan) -> None:
    typer.echo(plan.summary())
    typer.echo(f"{plan.steps_per_epoch:,} windows in one pass, {plan.shards} shards")
    for note in plan.notes:
        typer.echo(note)
    for warning in plan.warnings:
        _warn(warning)


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


def _load(model: str | None, device: str) -> tuple[Loaded, nn.Module]:
    from charrnn.checkpoint import build_model, find_model, load_model
    from charrnn.device import resolve_device

    where = resolve_device(device)
    loaded = load_model(find_model(model), str(where))
    return loaded, build_model(loaded)


def _config_of(loaded: Loaded, set_: list[str] | None) -> Config:
    """The configuration of a model, with what the command line changes in it."""
    from charrnn.config import build_config

    # Where this machine keeps its cache is not for a model that may come from anywhere to say.
    settings = loaded.config.model_dump(mode="json", exclude={"data": {"cache"}})
    return build_config(settings, str(loaded.path), set_ or [])


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


def _reading(loaded: Loaded, data: DataConfig, text: Path | Source, documents: str | None = None) -> Reading:
    """A text of a person's own as the model reads it, or cut into `documents`. What there is to say of it is said."""
    from charrnn.data.formats import read_file

    reading = read_file(data, text, documents or (None if loaded.vocabulary.end is not None else "none"))
    reading.settle()
    for note in reading.notes():
        _warn(note)
    return reading


def _texts(name: str) -> tuple[bool, list[tuple[str, Source]]]:
    """Whether a folder was named, or an archive, which is one; and the texts that a person named, with what each is called."""
    from charrnn.config import user_path
    from charrnn.data.files import Source, files_in, kind, sources

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

    with _bar(" documents", None) as bar:
        for source, reading in readings:
            number = 0
            for document in documents_of(source, reading):
                number = document.number
                yield document
                bar.update()
            if number == 0:
                _warn(f"{source}: blank, so it has no score")


def _by_bits(score: Score) -> tuple[bool, float]:
    """The likeliest first; last what could not be scored."""
    bits = score.bits_per_char
    return (True, 0.0) if bits is None or math.isnan(bits) else (False, bits)


def _print_score(score: Score, as_json: bool, numbered: bool) -> None:
    if as_json:
        from charrnn.metrics import sayable

        named = {"file": score.source, "document": score.number, "begins": score.beginning}
        typer.echo(json.dumps(sayable(named | score.as_metrics()), ensure_ascii=False))
        return
    bits = "-" if score.bits_per_char is None else f"{score.bits_per_char:.4f}"
    name = f"{score.source}:{score.number}" if numbered else score.source
    beginning = printable(" ".join(score.beginning.split()))
    typer.echo(f"{bits:>9}  {score.chars:>7,}  {score.unknown / score.chars:>7.1%}  {printable(name)}  {beginning}")


def _index_of(loaded: Loaded, file: Path | None) -> Index:
    """The index of the text that a model learned from, which its run kept or a person names."""
    from charrnn import novelty

    if file:
        return novelty.index_of(_reading(loaded, loaded.config.data, file), loaded.vocabulary)
    index, warnings = novelty.kept_index(loaded.path, loaded.vocabulary)
    for warning in warnings:
        _warn(warning)
    return index


def _remembered(steps: Iterator[list[str]], grown: list[list[str]]) -> Iterator[list[str]]:
    """The same steps, each also put to what its text grew by before."""
    for pieces in steps:
        for text, piece in zip(grown, pieces):
            text.append(piece)
        yield pieces


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


def _expect_place(path: Path) -> None:
    """Raises UserError where no file can be."""
    try:
        if path.is_dir() or not path.parent.is_dir():
            raise UserError(f"--out {path}: cannot be written: it is {'' if path.is_dir() else 'not in '}a directory; {ANOTHER_PLACE}")
    except OSError as error:
        raise UserError(f"--out {path}: cannot be written: {error.strerror or error}; {ANOTHER_PLACE}") from None


def _write(path: Path, pieces: Iterable[str]) -> None:
    """Write when the whole text is there: what fails before leaves an older file as it was."""
    from charrnn.checkpoint import WriteError, write_atomically

    try:
        text = "".join(pieces)
        if path.exists() and not path.is_file():  # a pipe or a terminal is written to, not replaced
            path.write_text(text, encoding="utf-8")
        else:
            write_atomically(path.resolve(), text.encode(), f"free some space, or {ANOTHER_PLACE}")  # resolved: a link stays one
    except WriteError as error:
        raise UserError(f"--out {error}") from None
    except OSError as error:
        raise UserError(f"--out {path}: cannot be written: {error.strerror or error}; {ANOTHER_PLACE}") from None


def _corpus_of(loaded: Loaded, config: Config) -> Corpus:
    """The text that a model was trained on. Raises DataError where it is not there, or is another one."""
    from charrnn.data.corpus import load_corpus

    remedy = "give a text with --file, or say where the text is now: --set data.path=…"
    try:
        with _bar("B", None) as bar:

            def encoding(done: int, total: int) -> None:
                bar.update(done - bar.n)

            corpus = load_corpus(config.data, config.seed, encoding)
    except DataError as error:
        raise DataError(f"{error}; {remedy}") from None
    if corpus.vocabulary != loaded.vocabulary:
        raise DataError(f"{loaded.path}: {_source(config)} is not the text it was trained on, for its characters are others; {remedy}")
    return corpus


def _source(config: Config) -> str:
    path = config.data.path
    return config.data.source if path is None else printable(path if isinstance(path, str) else ", ".join(path))


def _watched(stream: Iterator[Window], total: int | None) -> Iterator[Window]:
    with _bar(" chars", total) as bar:
        for window in stream:
            yield window
            bar.update(len(window.ids))


def _bar(unit: str, total: int | None) -> tqdm[NoReturn]:
    """For work during which a terminal would else be silent for long."""
    from tqdm import tqdm

    return tqdm(total=total, unit=unit, unit_scale=True, delay=SILENCE_SECONDS, leave=False, disable=not sys.stderr.isatty())


def _print_surprisal(characters: Iterable[tuple[str, float | None]], as_json: bool) -> None:
    from charrnn.metrics import sayable

    for character, bits in characters:
        if as_json:
            typer.echo(json.dumps(sayable({"char": character, "bits": bits}), ensure_ascii=False))
        else:
            shown = json.dumps(character, ensure_ascii=False) if character else "end"
            typer.echo(f"{shown}\t" + ("-" if bits is None else f"{bits:.3f}"))


def _warn(text: str) -> None:
    typer.echo(f"charrnn: warning: {text}", err=True)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line: one line and exit 2 for a mistake of the user's, a traceback for a mistake of ours."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that cannot show a character is no reason to stop
            stream.reconfigure(errors="replace")
    try:
        typer.main.get_command(app).main(args=arguments, prog_name="charrnn")
    except Exception as error:
        command = next(iter(sys.argv[1:] if arguments is None else arguments), "")
        explanation = _explain(error, LESS_MEMORY.get(command, "end other programs"))
        if explanation is None:
            raise
        code, text = explanation
        typer.echo(f"charrnn: error: {text}", err=True)
        sys.exit(code)
    raise AssertionError("a command always exits")


def _explain(error: Exception, less_memory: str) -> tuple[int, str] | None:
    """Exit code and line for an exception that is not a bug. What needs torch to be named is only named where torch is loaded."""
    if isinstance(error, UserError):
        return 2, str(error)
    if isinstance(error, MemoryError):
        return 1, f"out of memory; {less_memory}"
    torch, ops = sys.modules.get("torch"), sys.modules.get("charrnn.ops.backends")
    if ops and isinstance(error, ops.UnsupportedBackend):
        return 2, f"model.backend: {error}; set model.backend: auto"
    if torch and isinstance(error, torch.OutOfMemoryError):
        return 1, f"the GPU is out of memory; {less_memory}"
    if isinstance(error, RuntimeError) and "can't allocate memory" in str(error):  # how torch says it of a CPU
        return 1, f"out of memory; {less_memory}"
    return None
