"""`charrnn train`, and what a person sees of a run."""

from __future__ import annotations

import math
import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from charrnn.cli.arguments import OWN_TEXT, Overrides
from charrnn.cli.output import figures, warn
from charrnn.errors import UserError
from charrnn.exits import Exit
from charrnn.interrupt import NOTHING_LOST, Interrupt

if TYPE_CHECKING:
    from tqdm import tqdm

    from charrnn.config import Config
    from charrnn.tensorboard import TensorBoard
    from charrnn.training import Outcome, Plan, StepReport

REPORT_SECONDS = 5.0  # between two lines of progress where the output is not a terminal
EXIT_CODES = {"interrupted": Exit.INTERRUPTED, "terminated": Exit.REQUEUE, "diverged": Exit.FAILED}  # of how a run ended; 0 for the others
SPARK = 8  # columns of the curve of validation in a line
OVERFITS = 1.01  # a last value that is so many times the best is clearly above it


def train(
    config: Annotated[Path, typer.Option("--config", "-c", metavar="FILE", help="YAML; `configs/` holds some")],
    set_: Overrides = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on with the run where it was stopped")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace the run directory")] = False,
    init_from: Annotated[str | None, typer.Option(metavar="MODEL", help="go on from another model, with another text or task")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:N or mps; the config's by default")] = None,
    print_config: Annotated[bool, typer.Option("--print-config", help="print the configuration with all defaults, and stop")] = False,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="write curves and samples for TensorBoard too, into RUN/tensorboard")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="read the text, print sizes and warnings, and stop")] = False,
    sweep: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="YAML with a grid or a random search of settings: a run for each, in one folder"),
    ] = None,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="with --sweep: take up again what has failed")] = False,
) -> None:
    """Train the model that a YAML file describes."""
    from charrnn.config import load_config

    if sweep is not None:
        from charrnn.cli import sweeping

        for flag, given, remedy in (
            ("--overwrite", overwrite, "take the folder away by hand, or name another in `run`"),
            ("--print-config", print_config, "--dry-run prints the trials"),
        ):
            if given:
                raise UserError(f"{flag}: is of one run, and --sweep begins many; {remedy}")
        overrides = [*(set_ or []), *([f"device={device}"] if device else [])]
        sweeping.run(sweep, config, overrides, init_from=init_from, retry_failed=retry_failed, tensorboard=tensorboard, dry_run=dry_run)
        return
    if retry_failed:
        raise UserError("--retry-failed: is of the trials of a sweep; name its file with --sweep, or resume one run with --resume")

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
    early = Interrupt()  # for what comes before and after the loop, which has one of its own
    try:
        with early.listening(), Terminal(settings) as terminal, with_curves(settings, terminal) if tensorboard else terminal as reporter:
            outcome = training.train(settings, resume=resume, overwrite=overwrite, init_from=init_from, reporter=reporter)
    except KeyboardInterrupt:
        typer.echo(f"charrnn: {NOTHING_LOST}", err=True)
        raise typer.Exit(Exit.REQUEUE if early.terminated else Exit.INTERRUPTED) from None
    raise typer.Exit(EXIT_CODES.get(outcome.status, Exit.DONE))


def with_curves(settings: Config, terminal: Terminal) -> TensorBoard:
    from charrnn.paths import user_path
    from charrnn.tensorboard import TensorBoard

    return TensorBoard(user_path(settings.run, "run"), terminal)


def _print_plan(plan: Plan) -> None:
    typer.echo(plan.summary())
    typer.echo(f"{plan.steps_per_epoch:,} {plan.batches} in one pass, {plan.shards} shards")
    for note in plan.notes:
        typer.echo(note)
    for warning in plan.warnings:
        warn(warning)


class Terminal:
    """What a person sees of a run: a bar on a terminal, elsewhere a line now and then, with the time. The Reporter of training."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._live = sys.stdout.isatty() and sys.stderr.isatty()
        self._bar: tqdm[NoReturn] | None = None
        self._spoke = time.monotonic()  # what is over sooner than REPORT_SECONDS is not worth a line
        self._reported = False  # that a report has come
        self._val = ""  # of a line, what the last evaluation found
        self._course: list[float] = []  # what validation has cost so far, and the best of it
        self._best = math.nan
        self._begun: tuple[float, float] | None = None  # of this job: when it was first heard of, and how far the run was then

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
        self._begun = self._begun or (time.monotonic(), progress)
        where = None if self._reported else self._where(step, progress)
        if self._live:
            self._show(progress, where)
        elif where and step and self._due():
            self._say(where)

    def _where(self, step: int, progress: float) -> str:
        steps = self._config.train.max_steps
        share = "" if self._live else f" ({progress:.0%})"  # a bar shows it already
        return f"step {step}/{steps}" if steps else f"step {step}{share}"

    def step(self, report: StepReport) -> None:
        from charrnn.journal import cost, seconds_to_go
        from charrnn.tables import duration

        self._reported = True
        value, unit = cost(report.metrics)
        line = (
            f"{self._where(report.step, report.progress)}  {value:.3f} {unit}{self._val}  grad {report.grad_norm:.2f}  "
            f"lr {report.learning_rate:.1e}  {report.chars_per_second:,.0f} chars/s"
        )
        if not self._live and self._begun:  # a bar shows it already
            left = seconds_to_go(report.progress, time.monotonic() - self._begun[0], self._begun[1])
            line += f"  {duration(left)} to go" if left else ""
        if self._live:
            self._show(report.progress, line)
        elif self._due():
            self._say(line)

    def evaluated(self, metrics: dict[str, float], sample: str, is_best: bool) -> None:
        if metrics:
            self._remember(metrics, is_best)
            best = ", the best so far" if is_best else ""
            self._say(f"val {figures(metrics, 'val_')}{best}")
        self._say("\n".join("    " + line for line in sample.strip("\n").split("\n")))

    def _remember(self, metrics: dict[str, float], is_best: bool) -> None:
        """What lines tell of validation: its last cost, how that went, and what it was of the best so far."""
        from charrnn.journal import cost
        from charrnn.tables import sparkline

        value, _ = cost(metrics, "val_")
        if self._course:
            self._course.append(value)
        else:  # of a run that is resumed what was before belongs to it
            self._course, self._best = self._found(metrics, value)
        self._best = value if is_best else self._best
        best = f", best {self._best:.3f}" if math.isfinite(self._best) else ""
        self._val = f" (val {value:.3f} {sparkline(self._course, SPARK)}{best})"

    def _found(self, metrics: dict[str, float], value: float) -> tuple[list[float], float]:
        """What validation has cost in this run, this time included, and what it did where its best model was kept."""
        from charrnn.journal import Journal, cost_key
        from charrnn.paths import user_path

        try:
            journal = Journal.of(user_path(self._config.run, "run"))
        except UserError as problem:  # the run goes on without its past
            self.warn(str(problem))
            return [value], math.nan
        key = cost_key(metrics, "val_")
        assert key is not None
        by = self._config.train.best_by or key.removeprefix("val_")
        best = journal.best(by) or {}
        return journal.curve(key).y or [value], best.get(key, math.nan)

    def done(self, outcome: Outcome) -> None:
        self._close()
        self._say(summary(outcome))
        self._draw(outcome.run)

    def _draw(self, run: Path) -> None:
        """Leave the curves in the run directory, where matplotlib is there to draw them and there is anything to draw."""
        from charrnn.atomic import WriteError, write_atomically
        from charrnn.cli.seeing import drawn
        from charrnn.journal import Journal, names_of
        from charrnn.plots import has_matplotlib
        from charrnn.run_files import CURVES

        journal = Journal.of(run)
        metric = journal.default_metric()
        if metric is None or not has_matplotlib():
            return
        try:
            picture, _ = drawn([journal], names_of([run]), metric, "steps", "png")
            write_atomically(run / CURVES, picture)
        except WriteError as problem:  # the run itself is kept
            self.warn(str(problem))
        except KeyboardInterrupt:  # so is it where somebody is in a hurry
            return

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
        if not stream.isatty():  # whoever reads it later wants to know when it was
            now = time.strftime("%Y-%m-%d %H:%M:%S")
            text = "\n".join(f"{now} {line}" for line in text.split("\n"))
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
    from charrnn.journal import cost

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
    command = OWN_TEXT.get(outcome.task, outcome.task)
    use = f"{'to let it write' if command == 'sample' else 'to use it'}: charrnn {command} {run}"
    if not outcome.best:
        found = "no value on the val split was finite" if outcome.last else "no value was measured on a val split"
        return f"{ending}; {found}; {use}"
    name, less = outcome.best_by
    best, last = outcome.best[f"val_{name}"], outcome.last.get(f"val_{name}", math.nan)
    bits, unit = cost(outcome.best, "val_")
    told = f"{best:.4f} {name.replace('_per_', '/')}" if "_per_" in name else f"{name} {best:.4f}"
    also = f" ({bits:.4f} {unit})" if unit.startswith("bits") and name != unit.replace("/", "_per_") else ""
    value = f"best val {told}{also} at step {outcome.best_step:,}"
    if not math.isfinite(last):
        since = "the last value is not finite"
    else:
        overfitted = last > OVERFITS * best if less else last * OVERFITS < best
        since = f"it has overfitted since ({last:.4f} at the end)" if overfitted else "it has not overfitted since"
    return f"{ending}; {value}, and {since}; {use}"
