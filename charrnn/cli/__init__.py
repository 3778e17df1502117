"""The command line: a command parses, calls one function and prints. The only room that prints.

A command is a function in a module of this package, and one line here. What it needs is imported inside it:
`charrnn --help` must not wait for torch.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from typing import NoReturn

import typer

from charrnn.cli import caption, classify, data, evaluating, fill, info, sample, tag, train, transcribe
from charrnn.cli.output import tell
from charrnn.errors import UserError

# What a command can do with less memory.
LESS_MEMORY = {
    "train": "lower train.batch_size, train.tbptt_window or model.hidden_size",
    "sample": "lower --num-samples, --best-of or --beam-width, shorten the prime, or set --device cpu",
    "eval": "set --device cpu, or end other programs",
    "score": "set --device cpu, or end other programs",
    "tag": "set --device cpu, or cut the text up",
    "fill": "lower --top, or set --device cpu",
    "classify": "set --device cpu, or end other programs",
    "transcribe": "lower data.audio.max_seconds with --set, lower --beam, or set --device cpu",
    "caption": "lower --beam or --num, or set --device cpu",
}

app = typer.Typer(
    help="Character-level recurrent neural networks: train on text, let them write, fill in, classify, tag, transcribe and caption.",
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

# As `charrnn --help` lists them.
app.command()(train.train)
app.command()(sample.sample)
app.command("eval")(evaluating.evaluate)
app.command()(evaluating.score)
app.command()(fill.fill)
app.command()(classify.classify)
app.command()(tag.tag)
app.command()(transcribe.transcribe)
app.command()(caption.caption)
app.command()(info.info)
app.command()(info.backends)
app.add_typer(data.app, name="data")


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
        code, lines = explanation
        for line in lines:
            tell(line)
        sys.exit(code)
    raise AssertionError("a command always exits")


def _explain(error: Exception, less_memory: str) -> tuple[int, list[str]] | None:
    """Exit code and lines for an exception that is not a bug. What needs torch to be named is only named where torch is loaded."""
    if isinstance(error, UserError):
        return 2, error.lines
    if isinstance(error, MemoryError):
        return 1, [f"out of memory; {less_memory}"]
    torch, ops = sys.modules.get("torch"), sys.modules.get("charrnn.ops.backends")
    if ops and isinstance(error, ops.UnsupportedBackend):
        return 2, [f"model.backend: {error}; set model.backend: auto"]
    if torch and isinstance(error, torch.OutOfMemoryError):
        return 1, [f"the GPU is out of memory; {less_memory}"]
    if isinstance(error, RuntimeError) and "can't allocate memory" in str(error):  # how torch says it of a CPU
        return 1, [f"out of memory; {less_memory}"]
    return None
