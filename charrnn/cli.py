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
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer

from charrnn.errors import DataError, UserError, printable

if TYPE_CHECKING:
    from torch import nn
    from tqdm import tqdm

    from charrnn.checkpoint import Loaded
    from charrnn.config import Config
    from charrnn.data.corpus import Corpus
    from charrnn.evaluation import Window
    from charrnn.training import Outcome, Plan, StepReport

REPORT_SECONDS = 5.0  # between two lines of progress where the output is not a terminal
SILENCE_SECONDS = 1.0  # before a bar appears
OVERFITS = 1.01  # a last value that is so many times the best is clearly above it
# What a command can do with less memory.
LESS_MEMORY = {
    "train": "lower train.batch_size, train.tbptt_window or model.hidden_size",
    "sample": "lower --num-samples, shorten the prime, or set --device cpu",
    "eval": "set --device cpu, or end other programs",
}

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

Model = Annotated[str | None, typer.Argument(help="a run directory or a .safetensors file; left out, the newest run", show_default=False)]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps")]
Overrides = Annotated[list[str] | None, typer.Option("--set", metavar="A.B=C", help="set a key of the configuration; may be repeated")]


@app.command()
def train(
    config: Annotated[Path, typer.Option("--config", "-c", metavar="FILE", help="YAML; `configs/` holds some")],
    set_: Overrides = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on with the run where it was stopped")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace the run directory")] = False,
    init_from: Annotated[str | None, typer.Option(metavar="MODEL", help="begin with the weights of another model")] = None,
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
            planned = training.plan(settings, terminal)
        _print_plan(planned)
        return
    with Terminal(settings) as terminal:
        outcome = training.train(settings, resume=resume, overwrite=overwrite, init_from=init_from, reporter=terminal)
    raise typer.Exit({"interrupted": 130, "terminated": 143, "diverged": 1}.get(outcome.status, 0))


@app.command()
def sample(
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
) -> None:
    """Let a model write, character by character."""
    import torch

    from charrnn import generation
    from charrnn.sampling import SamplingOptions

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
    loaded, network = _load(model, device)
    text = _read_prime(prime_file) if prime_file else prime
    place = f"--prime-file {prime_file}" if prime_file else "--prime"
    primed, warnings = generation.prepare_prime(loaded.vocabulary, text, on_unknown, place)
    for warning in warnings:
        _warn(warning)
    generator = torch.Generator()
    if seed is None:
        generator.seed()
    else:
        generator.manual_seed(seed)
    pieces = generation.generate(
        network,
        loaded.vocabulary,
        primed.ids,
        length=length,
        options=options,
        generator=generator,
        num_samples=num_samples,
        stop=[s.replace("\\n", "\n").replace("\\t", "\t") for s in stop or []],
        continue_documents=continue_documents,
        separator=loaded.config.data.separator,
    )
    written = _arrange(pieces, "" if no_echo else primed.text, num_samples)
    if out:
        _write(out, written)
        return
    for piece in written:
        typer.echo(piece, nl=False)
        sys.stdout.flush()


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
    from charrnn.config import build_config
    from charrnn.data.formats import read_file

    loaded, network = _load(model, device)
    # Where this machine keeps its cache is not for a model that may come from anywhere to say.
    settings = loaded.config.model_dump(mode="json", exclude={"data": {"cache"}})
    config = build_config(settings, str(loaded.path), set_ or [])
    if file:
        reading = read_file(config.data, file, documents=loaded.vocabulary.end is not None)
        reading.settle()
        for note in reading.notes():
            _warn(note)
        stream = evaluation.documents_stream(loaded.vocabulary, reading.pieces())
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
        typer.echo(json.dumps(_sayable({"model": str(loaded.path), **asked, "step": loaded.step, **figures})))
        return
    typer.echo(f"{loaded.path} (step {loaded.step:,}) on {what}: {found.chars:,} characters, state carried from the first to the last")
    typer.echo(
        f"{figures['nats_per_char']:.4f} nats/char   {figures['bits_per_char']:.4f} bits/char   perplexity {figures['perplexity']:,.3f}   "
        f"accuracy {figures['accuracy']:.2%}   {figures['chars_per_second']:,.0f} chars/s"
    )
    if file or found.unknown:
        typer.echo(f"{figures['unknown_share']:.2%} of the characters are unknown to the model and not scored")


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


class Terminal:
    """What a person sees of a run: a bar on a terminal, a line now and then elsewhere. The Reporter of training."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._live = sys.stdout.isatty() and sys.stderr.isatty()
        self._bar: tqdm[NoReturn] | None = None
        self._spoke = time.monotonic()  # what is over sooner than REPORT_SECONDS is not worth a line
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

    def step(self, report: StepReport) -> None:
        steps = self._config.train.max_steps
        share = "" if self._live else f" ({report.progress:.0%})"  # a bar shows it already
        where = f"step {report.step}/{steps}" if steps else f"step {report.step}{share}"
        line = (
            f"{where}  {report.bits_per_char:.3f} bits/char{self._val}  grad {report.grad_norm:.2f}  "
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

    def _show(self, progress: float, line: str) -> None:
        from tqdm import tqdm

        if self._bar is None:
            bar = "{percentage:3.0f}% {bar:12} {elapsed}<{remaining}  {desc}"
            self._bar = tqdm(total=1.0, initial=progress, bar_format=bar, leave=False, dynamic_ncols=True, mininterval=0, miniters=0)
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
    ending = {
        "finished": f"Finished after {outcome.steps:,} steps",
        "already_finished": f"This run is finished already, after {outcome.steps:,} steps",
        "early_stopped": f"Stopped early after {outcome.steps:,} steps without a better value",
        "interrupted": f"Interrupted and saved at step {outcome.steps:,}; {resume}",
        "terminated": f"Terminated and saved at step {outcome.steps:,}; {resume}",
        "diverged": f"Gave up at step {outcome.steps:,}: the loss keeps running away",
    }[outcome.status]
    if not outcome.best:
        return f"{ending}; no value was measured on a val split; to let it write: charrnn sample {run}"
    best, last = outcome.best["val_nats_per_char"], outcome.last.get("val_nats_per_char", math.nan)
    value = f"best val {best:.4f} nats/char ({outcome.best['val_bits_per_char']:.4f} bits/char) at step {outcome.best_step:,}"
    overfits = f"it has overfitted since ({last:.4f} at the end)" if last > OVERFITS * best else "it has not overfitted since"
    return f"{ending}; {value}, and {overfits}; to let it write: charrnn sample {run}"


def _print_plan(plan: Plan) -> None:
    typer.echo(plan.summary())
    typer.echo(f"{plan.steps_per_epoch:,} windows in one pass, {plan.shards} shards")
    for note in plan.notes:
        typer.echo(note)
    for warning in plan.warnings:
        _warn(warning)


def _load(model: str | None, device: str) -> tuple[Loaded, nn.Module]:
    from charrnn.checkpoint import build_model, find_model, load_model
    from charrnn.device import resolve_device

    where = resolve_device(device)
    loaded = load_model(find_model(model), str(where))
    return loaded, build_model(loaded)


def _read_prime(path: Path) -> str:
    try:
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"--prime-file {path}: not UTF-8 text at byte {error.start}; save it as UTF-8") from None
    except OSError as error:
        raise DataError(f"--prime-file {path}: cannot be read: {error.strerror or error}; name a text file") from None
    # As the model's own text was read.
    return text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n").removesuffix("\n")


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


def _write(path: Path, pieces: Iterable[str]) -> None:
    """Write when the whole text is there: what fails before leaves an older file as it was."""
    from charrnn.checkpoint import WriteError, write_atomically

    remedy = "name a file in a directory that exists"
    try:
        if path.is_dir() or not path.parent.is_dir():  # said before the model writes, not after
            raise UserError(f"--out {path}: cannot be written: it is {'' if path.is_dir() else 'not in '}a directory; {remedy}")
        text = "".join(pieces)
        if path.exists() and not path.is_file():  # a pipe or a terminal is written to, not replaced
            path.write_text(text, encoding="utf-8")
        else:
            write_atomically(path.resolve(), text.encode(), f"free some space, or {remedy}")  # resolved: a link stays one
    except WriteError as error:
        raise UserError(f"--out {error}") from None
    except OSError as error:
        raise UserError(f"--out {path}: cannot be written: {error.strerror or error}; {remedy}") from None


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
    for character, bits in characters:
        if as_json:
            typer.echo(json.dumps(_sayable({"char": character, "bits": bits}), ensure_ascii=False))
        else:
            shown = json.dumps(character, ensure_ascii=False) if character else "end"
            typer.echo(f"{shown}\t" + ("-" if bits is None else f"{bits:.3f}"))


def _sayable(values: dict[str, Any]) -> dict[str, Any]:
    """With null for what is not finite, which JSON cannot say."""
    return {key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in values.items()}


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
