"""`charrnn info` and `charrnn backends`: what there is."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from charrnn.cli.arguments import Model
from charrnn.errors import printable


def info(model: Model = None) -> None:
    """Show what is in a checkpoint."""
    from charrnn.checkpoint import build_model, load_model
    from charrnn.model_file import find_model
    from charrnn.models import count_parameters, recurrent_sizes

    loaded = load_model(find_model(model))
    network, shape = build_model(loaded), loaded.config.model
    typer.echo(f"file        {loaded.path} ({loaded.path.stat().st_size:,} bytes)")
    typer.echo(f"task        {loaded.config.task}")
    for part, made in network.described().items():
        typer.echo(f"{part:<12}{made}")
    typer.echo(f"parameters  {count_parameters(network):,}")
    if shape.bidirectional:
        wide, forward, reverse = recurrent_sizes(network)  # both directions are of one size
        recurrent = f"2 × {forward:,} = {forward + reverse:,}"
        typer.echo(f"directions  2: outputs 2 × {shape.hidden_size:,} = {wide:,} wide, recurrent parameters {recurrent}")
    symbols, characters = ", ".join(loaded.vocabulary.symbols), loaded.vocabulary.characters
    typer.echo(f"vocabulary  {len(characters):,} characters and {symbols}: {_begun(characters)}")
    if loaded.labels:
        typer.echo(f"labels      {len(loaded.labels):,}: {', '.join(map(_begun, loaded.labels))}")
    typer.echo(f"step        {loaded.step:,}")
    for name, value in loaded.metrics.items():
        typer.echo(f"{name:<24} {value:.6g}")
    typer.echo("config")
    typer.echo("\n".join("  " + line for line in loaded.config.to_yaml().splitlines()))


def _begun(text: str) -> str:
    """A text in quotes, its beginning where it is long."""
    return printable(json.dumps(text if len(text) <= 120 else text[:120] + "…", ensure_ascii=False))


def backends(
    bench: Annotated[bool, typer.Option("--bench", help="time them here, forward and backward, in half a minute")] = False,
) -> None:
    """Show which backend runs which cell, and where."""
    import torch

    from charrnn.ops.backends import BACKENDS, Request, backend, choose
    from charrnn.ops.cells import CELLS

    if bench:
        return _bench()
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


def _bench() -> None:
    """Milliseconds of one layer on the CPU, forward and backward, by backend, cell, width and precision; `auto` has what it would take."""
    import torch

    from charrnn.ops.backends import BACKENDS, Request, backend, choose
    from charrnn.ops.cells import CELLS
    from charrnn.ops.timing import Work, milliseconds, right

    timed = [name for name in BACKENDS if name != "reference"]  # which is there to be read
    work = Work("lstm", 128)
    shape = f"batch {work.batch}, window {work.steps}, {torch.get_num_threads()} threads"
    typer.echo(f"one layer on the CPU, {shape}: milliseconds forward and backward, * what model.backend: auto takes")
    typer.echo(f"{'cell':<10}{'units':<7}{'precision':<11}" + "".join(f"{name:<12}" for name in timed).rstrip())
    for cell in CELLS:
        for hidden in (128, 256, 512):
            for precision, name in ((torch.float32, "fp32"), (torch.bfloat16, "bf16")):
                work = Work(cell, hidden, precision=precision)
                request = Request(cell, autocast=precision if precision != torch.float32 else None, final_state=False)
                answers = {one: "no" for one in timed if backend(one).refuses(request)}
                answers |= {one: "wrong" for one in timed if one not in answers and not right(work, one)}  # is not timed
                for one, taken in milliseconds(work, [one for one in timed if one not in answers]).items():
                    answers[one] = f"{taken:.2f}" + " *" * (choose(request) is backend(one))
                typer.echo(f"{cell:<10}{hidden:<7}{name:<11}" + "".join(f"{answers[one]:<12}" for one in timed).rstrip())
    typer.echo("`no`: it cannot run that; `wrong`: its results are not those of `reference`, please report it")
