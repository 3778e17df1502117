"""`charrnn plot`, `report` and `watch`: how runs learn, in a picture, on a page, and while they do."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from charrnn.cli.output import expect_apart, expect_place, warn, write, write_bytes
from charrnn.errors import UserError, counted, printable

if TYPE_CHECKING:
    from charrnn.journal import Journal
    from charrnn.watching import View

EVERY = 2.0  # seconds between two looks at a run
Runs = Annotated[list[str] | None, typer.Argument(metavar="RUN", help="run directories; the newest under ./runs by default")]
By = Annotated[Literal["steps", "chars", "minutes"], typer.Option(help="what the curves run along")]
Metric = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="a key of metrics.jsonl, such as accuracy; by default what a character costs, in bits"),
]


def plot(
    runs: Runs = None,
    by: By = "steps",
    metric: Metric = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help=".png or .svg; by default curves.png, of one run in its directory")
    ] = None,
) -> None:
    """Draw the training and validation curves of runs, several in one picture; a star is each run's best."""
    from charrnn.journal import Journal, common_metric, names_of
    from charrnn.plots import require_matplotlib
    from charrnn.run_files import CURVES

    paths = _found(runs)
    where = out or (paths[0] / CURVES if len(paths) == 1 else Path(CURVES))
    expect_place(where, endings=(".png", ".svg"))
    require_matplotlib("charrnn plot")
    journals = [Journal.of(path) for path in paths]
    metric = common_metric(journals, metric)
    picture, note = drawn(journals, names_of(paths), metric, by, "svg" if where.suffix.lower() == ".svg" else "png")
    if note:
        warn(note)
    for journal in journals:
        if journal.foreign:
            warn(f"{printable(str(journal.path))}: {counted(journal.foreign, 'line')} cannot be read, left out")
    write_bytes(where, picture)
    typer.echo(f"{printable(str(where))}: {counted(len(paths), 'run')}, {metric} by {by}")


def _found(runs: list[str] | None) -> list[Path]:
    from charrnn.journal import find_run

    return [find_run(name) for name in runs] if runs else [find_run(None)]


def drawn(journals: Sequence[Journal], names: Sequence[str], metric: str, by: str, kind: str) -> tuple[bytes, str | None]:
    """The picture of runs, png or svg, and what there is to say of it."""
    from charrnn.chart import courses
    from charrnn.plots import curves_picture

    return curves_picture(courses(journals, names, metric, by), metric, by, kind)


def report(
    runs: Runs = None,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="the page, .html")] = Path("report.html"),
    by: By = "steps",
    metric: Metric = None,
    picture: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="a PNG, JPEG or SVG file to show too; may be given several times")
    ] = None,
) -> None:
    """Write one HTML file about runs: curves, samples, configuration, and what they differ in.

    It needs nothing but itself: nothing is fetched from anywhere, and what runs and corpora hold is shown as text.
    """
    from charrnn.report import read_picture
    from charrnn.report import report as written

    expect_place(out, endings=(".html", ".htm"))
    paths = _found(runs)
    expect_apart(out, picture or [], [])
    page = written(paths, metric=metric, by=by, pictures=[read_picture(path) for path in picture or []])
    write(out, [page])
    typer.echo(f"{printable(str(out))}: {counted(len(paths), 'run')}, {len(page.encode()):,} bytes")


def watch(
    run: Annotated[str | None, typer.Argument(metavar="RUN", help="a run directory; the newest under ./runs by default")] = None,
    once: Annotated[bool, typer.Option("--once", help="show how it stands, and stop")] = False,
) -> None:
    """Follow a run that another process, or another machine, is training into a directory that can be read here.

    One block on a terminal, a line for each report elsewhere, until the run ends. A run that is not there yet is waited for.
    """
    from charrnn.watching import View

    try:
        path = _awaited(run, once)
        view = View.of(path)
        if once:
            typer.echo("\n".join(view.block(time.time())))
            return
        _follow(view)
    except KeyboardInterrupt:  # the usual way to leave
        raise typer.Exit(130) from None


def _awaited(name: str | None, once: bool) -> Path:
    """The run directory, once it has reported of itself. Raises UserError where nobody waits."""
    from charrnn.journal import find_run
    from charrnn.model_file import elsewhere
    from charrnn.paths import user_path
    from charrnn.run_files import METRICS

    told = False
    while name is not None and not once:
        path = user_path(name, "run")
        if path.is_file() or (path / METRICS).is_file():
            break
        if not told:
            fact = "has reported nothing yet" if path.exists() else f"is not there yet{elsewhere(path, '.jsonl')}"
            typer.echo(f"{printable(name)}: {fact}; waiting for it, Ctrl-C ends that", err=True)
            told = True
        time.sleep(EVERY)
    return find_run(name)


def _follow(view: View) -> None:
    """Show a run again and again until it ends."""
    from charrnn.tables import columns
    from charrnn.watching import View

    live = sys.stdout.isatty()
    height, shown = 0, (0, 0)
    while True:
        now = time.time()
        ending = view.ending(now)
        if live:
            wide = shutil.get_terminal_size().columns - 1
            lines = view.block(now)
            cut = [next(line[:i] for i in range(len(line), -1, -1) if columns(line[:i]) <= wide) for line in lines]
            # Up to the first line of the block that stands there, and each line, or what is left of it, anew.
            up = f"\x1b[{height}A" if height else ""
            typer.echo(up + "".join(f"\x1b[2K{line}\n" for line in cut) + ("\x1b[J" if height else ""), nl=False)
            height = len(cut)
        elif view.stamp != shown and view.journal.lines:
            typer.echo(view.line())
            shown = view.stamp
        if ending:
            if not live:
                typer.echo(f"{printable(str(view.run))}: {ending}")
            return
        sys.stdout.flush()
        time.sleep(EVERY)
        if not view.run.is_dir():
            raise UserError(f"{printable(str(view.run))}: the run is gone; it was removed or renamed while it was watched")
        view = View.of(view.run, view)
