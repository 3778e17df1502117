"""The command line: a command parses, calls one function and prints. The only room that prints.

A command is a function in a module of this package, and one line here. What it needs is imported inside it:
`charrnn --help` must not wait for torch.
"""

from __future__ import annotations

import importlib
import io
import sys
from collections.abc import Sequence
from typing import NoReturn

import typer

from charrnn.cli.output import tell
from charrnn.errors import UserError, says_out_of_memory
from charrnn.exits import TOLD, Exit

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
    "serve": "serve fewer models, or set --device cpu",
    "look": "lower --length, or set --device cpu",
    "bptt": "lower --length, or set --device cpu",
}

# As `charrnn --help` lists them: each a function of a module here, or the commands of one.
COMMANDS = {
    "train": "train.train",
    "sample": "sample.sample",
    "eval": "evaluating.evaluate",
    "score": "evaluating.score",
    "fill": "fill.fill",
    "classify": "classify.classify",
    "tag": "tag.tag",
    "transcribe": "transcribe.transcribe",
    "caption": "caption.caption",
    "look": "look.look",
    "bptt": "look.bptt",
    "plot": "seeing.plot",
    "report": "seeing.report",
    "watch": "seeing.watch",
    "serve": "serve.serve",
    "info": "info.info",
    "backends": "info.backends",
    "runs": "runs.app",
    "data": "data.app",
}

EPILOGS = {"train": TOLD}


def application(only: str | None = None) -> typer.Typer:
    """The commands, or the one that is asked for: to make them all takes as long as to read a model."""
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
    for name in COMMANDS if only not in COMMANDS else [only]:
        module, _, what = COMMANDS[name].partition(".")
        command = getattr(importlib.import_module(f"charrnn.cli.{module}"), what)
        if isinstance(command, typer.Typer):
            app.add_typer(command, name=name)
        else:
            app.command(name, epilog=EPILOGS.get(name))(command)
    app.callback()(lambda: None)  # or one command alone would be taken for all of the program
    return app


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line: one line and exit 2 for a mistake of the user's, a traceback for a mistake of ours."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that cannot show a character is no reason to stop
            stream.reconfigure(errors="replace")
    first = next(iter(sys.argv[1:] if arguments is None else arguments), "")
    try:
        typer.main.get_command(application(first)).main(args=arguments, prog_name="charrnn")
    except Exception as error:
        explanation = _explain(error, LESS_MEMORY.get(first, "end other programs"))
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
        return Exit.MISTAKE, error.lines
    if says_out_of_memory(error):
        return Exit.FAILED, [f"out of memory; {less_memory}"]
    torch, ops = sys.modules.get("torch"), sys.modules.get("charrnn.ops.backends")
    if ops and isinstance(error, ops.UnsupportedBackend):
        return Exit.MISTAKE, [f"model.backend: {error}; set model.backend: auto"]
    if torch and isinstance(error, torch.OutOfMemoryError):
        return Exit.FAILED, [f"the GPU is out of memory; {less_memory}"]
    return None
