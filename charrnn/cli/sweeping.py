"""`charrnn train --sweep`: the trials of a sweep, and what a person sees of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from charrnn.cli.output import warn
from charrnn.cli.runs import table
from charrnn.errors import counted, printable
from charrnn.exits import Exit

if TYPE_CHECKING:
    from charrnn.sweep import Sweep, Trial
    from charrnn.training import Reporter


def run(
    file: Path, base: Path, overrides: Sequence[str], *, init_from: str | None, retry_failed: bool, tensorboard: bool, dry_run: bool
) -> None:
    """Work on the trials of a sweep with whoever else does, and show what became of all of them."""
    from charrnn.sweep import load_sweep, settle

    sweep = load_sweep(file, base, overrides)
    if dry_run:
        for trial in sweep.trials:
            typer.echo(printable(str(trial.path)))
        typer.echo(counted(len(sweep.trials), "trial"))
        return
    settle(sweep, file)
    from charrnn.cli.train import EXIT_CODES, Terminal, with_curves
    from charrnn.trials import work

    @contextmanager
    def begin(trial: Trial) -> Iterator[Reporter]:
        with Terminal(trial.config) as terminal:
            terminal.note(f"trial {1 + sweep.trials.index(trial)} of {len(sweep.trials)}: {printable(str(trial.path))}")
            with with_curves(trial.config, terminal) if tensorboard else terminal as reporter:
                yield reporter

    worked = work(sweep, begin, retry_failed=retry_failed, init_from=init_from)
    _summarize(sweep)
    for name, state in worked.trials.items():
        if state not in ("finished", "early_stopped"):
            warn(f"{printable(name)}: {printable(state)}")
    if worked.status != "done":
        typer.echo(f"{worked.status.capitalize()} and saved; the same command goes on")
    raise typer.Exit(EXIT_CODES.get(worked.status, Exit.FAILED if worked.failed else Exit.DONE))


def _summarize(sweep: Sweep) -> None:
    from charrnn.trials import table_of

    rows = table_of(sweep)
    typer.echo("\n".join(table([found for _, found in rows if found is not None])))
    if waiting := sum(found is None for _, found in rows):
        typer.echo(f"{counted(waiting, 'trial')} that nobody has begun")
    best = rows[0][1]
    if best is not None and best.best is not None and best.best_by is not None:
        step = f" at step {best.best_step:,}" if best.best_step is not None else ""
        typer.echo(f"the best: {printable(str(best.path))}, val {best.best_by.replace('_per_', '/')} {best.best:.4f}{step}")
