"""`charrnn runs`: what became of them, and which can go."""

from __future__ import annotations

import difflib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from charrnn.cli.output import json_line, warn
from charrnn.errors import UserError, counted, printable, short

if TYPE_CHECKING:
    from charrnn.runs import Run

DEFAULT = "list"


class _Listing(TyperGroup):
    """`charrnn runs` alone, or with folders, lists them."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args or (args[0] not in self.commands and args[0] not in ctx.help_option_names):
            # Closer than other hints have to be: `runs`, which is a folder's name, is not far from `prune`.
            close = difflib.get_close_matches(args[0], self.commands, n=1, cutoff=0.8) if args else []
            if close and not args[0].startswith("-") and not Path(args[0]).exists():
                raise UserError(f"charrnn runs: {short(args[0])} is neither a command nor a folder; did you mean {close[0]!r}?")
            args = [DEFAULT, *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_Listing, rich_markup_mode=None, help="The run directories in folders: list them (`charrnn runs [FOLDER]...`), free their space."
)
Folders = Annotated[list[str] | None, typer.Argument(metavar="[FOLDER]...", help="where to look; runs/ by default", show_default=False)]


@app.command(DEFAULT)
def list_(
    folders: Folders = None,
    sort: Annotated[Literal["name", "best", "age"], typer.Option(help="best: the best value first; age: the newest first")] = "name",
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object a run")] = False,
) -> None:
    """List runs with state, best value, age and size: what `charrnn runs` does."""
    runs = _found(folders)
    if sort == "best":
        runs.sort(key=lambda run: run.rank())
    elif sort == "age":
        runs.sort(key=lambda run: -(run.touched or 0.0))
    if as_json:
        for run in runs:
            typer.echo(json_line(_as_json(run)))
    elif runs:
        typer.echo("\n".join(table(runs)))
    else:
        typer.echo(f"no runs in {_named(folders)}")


@app.command()
def prune(
    folders: Folders = None,
    keep_best: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="runs that are over and not among the N best of their folder, task and metric")
    ] = None,
    older_than: Annotated[str | None, typer.Option(metavar="AGE", help="runs last written to so long ago: 45m, 12h, 30d, 2w")] = None,
    failed: Annotated[bool, typer.Option("--failed", help="runs that failed or diverged")] = False,
    states: Annotated[
        bool, typer.Option("--states", help="not runs, only the state that finished ones would be resumed from; their models stay")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="do it, and do not only tell")] = False,
) -> None:
    """Free the space of runs that are not needed: those of which all that is asked is true. Never of one that is running."""
    from charrnn.runs import Policy, choose, kept, remove, seconds_of

    policy = Policy(keep_best, seconds_of(older_than, "--older-than") if older_than is not None else None, failed, states)
    if policy.is_empty:
        raise UserError("charrnn runs prune: nothing says which runs go; give --keep-best N, --older-than 30d, --failed or --states")
    chosen, left = choose(_found(folders), policy)
    freed = 0
    for removal in chosen:
        name, what = printable(str(removal.run.path)), ", ".join(removal.files) if states else counted(len(removal.files), "file")
        if yes:
            size, hindrance = remove(removal, policy)
            freed += size
            if hindrance:
                left.append(hindrance)
            if size or not hindrance:
                typer.echo(f"{name}  {what}, {size:,} bytes")
        else:
            typer.echo(f"{name}  {removal.run.state.replace('_', ' ')}, {what}, {removal.bytes:,} bytes")
        if note := kept(removal):
            left.append(note)
    for line in left:
        warn(line)
    if yes:
        typer.echo(f"{freed:,} bytes freed")
    elif chosen:
        typer.echo(f"{sum(removal.bytes for removal in chosen):,} bytes would be freed; nothing is deleted without --yes")
    else:
        typer.echo(f"nothing to delete in {_named(folders)}")


def table(runs: Sequence[Run]) -> list[str]:
    """A line for each, under headings."""
    from charrnn.runs import duration
    from charrnn.tables import aligned

    now = time.time()
    rows = [["run", "state", "task", "step", "best", "of", "at step", "age", "size", "why"]]
    for run in runs:
        rows.append(
            [
                printable(str(run.path)),
                run.state.replace("_", " "),
                run.task or "",
                "" if run.step is None else f"{run.step:,}",
                "" if run.best is None else f"{run.best:.4f}",
                "" if run.best_by is None else f"val {run.best_by.replace('_per_', '/')}",
                "" if run.best_step is None else f"{run.best_step:,}",
                "" if run.touched is None else duration(now - run.touched),
                _size(run.bytes),
                run.why,
            ]
        )
    return aligned(rows, left=(0, 1, 2, 5, 9))


def _found(folders: list[str] | None) -> list[Run]:
    from charrnn.model_file import RUNS
    from charrnn.paths import user_path
    from charrnn.runs import find

    if not folders and not RUNS.exists():
        return []
    return list(find([user_path(folder, "folder") for folder in folders or [str(RUNS)]]))


def _named(folders: list[str] | None) -> str:
    from charrnn.model_file import RUNS

    return printable(", ".join(folders or [str(RUNS)]))


def _as_json(run: Run) -> dict[str, Any]:
    return {
        "run": str(run.path),
        "state": run.state,
        "why": run.why,
        "task": run.task,
        "step": run.step,
        "best": run.best,
        "best_by": run.best_by,
        "best_step": run.best_step,
        "touched": run.touched,
        "bytes": run.bytes,
    }


def _size(count: int) -> str:
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= unit:
            return f"{count / unit:.1f} {name}"
    return f"{count} B"
