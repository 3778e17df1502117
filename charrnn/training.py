"""The training loop: step, report, evaluate, save, and what happens when something goes wrong between them.

Nothing here knows a task, a cell or a backend. Nothing here prints: a Reporter is told.
"""

from __future__ import annotations

import contextlib
import copy
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import nn

from charrnn import finetuning, heartbeat
from charrnn.atomic import WriteError
from charrnn.checkpoint import Loaded, UnfitState, check_shapes, copy_weights, load_model, load_state, save_model
from charrnn.config import Config, read_config
from charrnn.cuda_graph import Eager, choose_stepper
from charrnn.data.batch import Batch
from charrnn.device import float32_products, keep_freed_memory, resolve_device, resolve_precision, seeded
from charrnn.distributed import ALONE, CALM, GRACE_SECONDS, INTERRUPTED, TERMINATED, Ranks, already_told, find_ranks, joined, leaving
from charrnn.errors import CheckpointError, ConfigError, UserError, did_you_mean, listed
from charrnn.evaluation import measure, metrics_of
from charrnn.feeding import feed
from charrnn.gradients import Carried, Shards
from charrnn.interrupt import Interrupt
from charrnn.journal import Limits
from charrnn.metrics import Tally
from charrnn.model_file import find_model, read_header
from charrnn.novelty import keep_text
from charrnn.optimization import Average, LossWatch, Schedule, build_optimizer, load_optimizer
from charrnn.paths import user_path
from charrnn.planning import Plan, can_be_scored, describe
from charrnn.run_directory import RunDirectory, changes, refuse_changes
from charrnn.run_files import REFUSED
from charrnn.run_state import Counters, believe
from charrnn.tasks import load_task
from charrnn.tasks.task import Pretrained, Settling, State, Task, chosen_by
from charrnn.threads import Threads

__all__ = ["Counters", "Outcome", "Plan", "Reporter", "StepReport", "Trainer", "plan", "train"]

Status = heartbeat.Ending | Literal["already_finished"]
RETREATS = 3  # times that a run goes back before it gives up


@dataclass(frozen=True)
class StepReport:
    """The steps since the last report, under the names of metrics.jsonl."""

    step: int
    epoch: float  # passes over the train split
    seconds: float  # of training, evaluations and resumed runs included
    chars: int  # read since the run began
    metrics: dict[str, float]  # of what was asked in these steps: nats_per_char, accuracy …
    grad_norm: float
    learning_rate: float
    chars_per_second: float  # of training, evaluations left out
    progress: float  # 0..1 of the run

    def line(self) -> dict[str, Any]:
        """The line of metrics.jsonl."""
        fields = asdict(self)
        del fields["progress"]
        return {name: value for key, found in fields.items() for name, value in (found if key == "metrics" else {key: found}).items()}


@dataclass(frozen=True)
class Outcome:
    best: dict[str, float]  # val_ metrics; empty where there is no val split
    best_step: int
    last: dict[str, float]
    steps: int
    seconds: float
    run: Path
    status: Status
    task: str = "lm"
    best_by: tuple[str, bool] = ("nats_per_char", True)  # the metric that chose the best, and whether less of it is better


class Reporter(Protocol):
    """Who tells a person. A KeyboardInterrupt raised in here ends the run as Ctrl-C does: saved, and resumable.

    Another exception ends it too, and is raised again when the run is saved.
    """

    def note(self, text: str) -> None: ...
    def warn(self, text: str) -> None: ...
    def encoding(self, done: int, total: int) -> None: ...
    def stepped(self, step: int, progress: float) -> None: ...
    def step(self, report: StepReport) -> None: ...
    def evaluated(self, metrics: dict[str, float], sample: str, is_best: bool) -> None: ...
    def done(self, outcome: Outcome) -> None: ...


class Astray(Exception):
    """The loss shows that the weights have left the road."""


class Silent:
    """The Reporter of a process that is not the first: it tells nobody."""

    def note(self, text: str) -> None: ...
    def warn(self, text: str) -> None: ...
    def encoding(self, done: int, total: int) -> None: ...
    def stepped(self, step: int, progress: float) -> None: ...
    def step(self, report: StepReport) -> None: ...
    def evaluated(self, metrics: dict[str, float], sample: str, is_best: bool) -> None: ...
    def done(self, outcome: Outcome) -> None: ...


def train(config: Config, *, resume: bool = False, overwrite: bool = False, init_from: str | None = None, reporter: Reporter) -> Outcome:
    """Train what `config` describes into its run directory. Raises UserError for what the user can mend.

    Started by torchrun, this process is one of several that train it together; the first of them writes and tells.
    """
    ranks = find_ranks()
    if ranks.several and config.device == "cuda":
        config = config.model_copy(update={"device": f"cuda:{ranks.local_rank}"})
    device = resolve_device(config.device)
    if ranks.several and device.type == "cuda":
        device = torch.device("cuda", ranks.local_rank if device.index is None else device.index)
        torch.cuda.set_device(device)
    if ranks.restarts:  # torchrun has started all of them again with the command that it has
        resume, overwrite = True, False
    with joined(device, ranks):
        try:
            return _together(config, ranks, device, resume, overwrite, init_from, reporter if ranks.first else Silent())
        except UserError as error:
            if already_told(error):
                raise leaving(2) from None
            if not ranks.first:  # the first one sees the same mistake, mostly, and all are ended when it has told it
                time.sleep(GRACE_SECONDS)
            raise


def _together(
    config: Config, ranks: Ranks, device: torch.device, resume: bool, overwrite: bool, init_from: str | None, reporter: Reporter
) -> Outcome:
    run = RunDirectory(user_path(config.run, "run"))
    with contextlib.ExitStack() as stack:

        def take() -> Config:
            """The run directory, for this job alone."""
            wanted = run.settled(config) if resume else config
            run.refuse(wanted, resume=resume, overwrite=overwrite)
            hindrance = stack.enter_context(run.held())
            run.refuse(wanted, resume=resume, overwrite=overwrite)  # another job may have been there in between
            if hindrance:
                reporter.note(f"{run.path}: {hindrance}; start no second job in it")
            return wanted

        config = ranks.from_first(ranks.on_first(take)) or config
        return _train(config, run, ranks, device, resume, init_from, reporter)


def _train(
    config: Config, run: RunDirectory, ranks: Ranks, device: torch.device, resume: bool, init_from: str | None, reporter: Reporter
) -> Outcome:
    resumed = bool(ranks.from_first(ranks.on_first(lambda: resume and run.has_state())))
    if resume and not resumed:
        reporter.note(f"{run.path}: there is nothing to resume yet; the run starts at step 0")
    if init_from and resumed:
        reporter.note(f"--init-from {init_from} has no effect: {run.path} is resumed with the weights it has")
    weights = load_model(find_model(init_from)) if init_from and not resumed else None
    if weights is not None:
        config = finetuning.prepare(config, weights)
    task = ranks.first_then_all(lambda: load_task(config, reporter.encoding))
    trainer = Trainer(task, run, reporter, device, ranks)
    if weights is not None:
        trainer.begin_with(weights)
    elif not resumed:
        trainer.begin()
    if resumed:
        _go_on(trainer, reporter)
        if ended := trainer.already_finished():
            ranks.on_first(lambda: _keep_text(task, run))
            trainer.tidy()
            reporter.done(ended)
            return ended

    def make() -> None:
        run.make(config, resume=resumed)
        _keep_text(task, run)

    ranks.on_first(make)
    if weights is not None:
        trainer.save()  # a run that is lost before its first save would else begin again without these weights
    begun_with = [_begun_with(weights, task)] if weights is not None else []
    for note in (trainer.plan.summary(), *begun_with, *trainer.shared_out(), *trainer.plan.notes):
        reporter.note(note)
    for warning in trainer.plan.warnings:
        reporter.warn(warning)
    outcome = trainer.train()
    reporter.done(outcome)
    return outcome


def _is_behind(run: RunDirectory, step: int) -> bool:
    """Whether the model was not written any more after the last state."""
    try:
        return read_header(run.last).metadata.get("step") != str(step)
    except CheckpointError:
        return True


def _go_on(trainer: Trainer, reporter: Reporter) -> None:
    """Take up the last state, or else the one before it. Raises UnfitState where neither can be gone on from, and UserError."""
    run, ranks = trainer.run, trainer.ranks
    faults: list[UnfitState] = []

    def refuse() -> None:
        fact = "; nor can the state before it, previous.state.pt: ".join(fault.fact for fault in faults)
        raise UnfitState(run.state, fact, faults[0].remedy)

    def go_back() -> None:
        kept = f"; what was refused is kept as {REFUSED}" if run.state.exists() else ""
        before = f"back to step {trainer.counters.step}, of the state before it, {run.previous.name}"
        reporter.warn(f"{run.state}: {faults[0].fact}; {before}{kept}")
        run.put_state_aside()

    for path in (run.state, run.previous):
        if path == run.previous and not ranks.from_first(path.exists()):
            break
        state, fault = ranks.from_first(_read_state(path) if ranks.first else ({}, []))
        try:
            if not fault:
                trainer.resume(state, path)
        except UnfitState as problem:
            fault = [problem.fact, problem.remedy]
        # Whether it fits may be seen by one process alone, and all must go back together.
        fault = next((one for one in ranks.gather(fault) if one), [])
        if not fault:
            if faults:
                ranks.on_first(go_back)
            return
        faults.append(UnfitState(path, *fault))
    ranks.on_first(refuse)


def _read_state(path: Path) -> tuple[dict[str, Any], list[str]]:
    """A state; or of one that is no use the fact and the remedy, which processes can tell each other."""
    try:
        return load_state(path), []
    except UnfitState as fault:
        return {}, [fault.fact, fault.remedy]


def _begun_with(loaded: Loaded, task: Task) -> str:
    return finetuning.report(loaded, task.corpus, head=finetuning.keeps_head(loaded, task.config, task.labels))


def _keep_text(task: Task, run: RunDirectory) -> None:
    if task.config.train.keep_text and not run.text.exists():
        keep_text(run.text, task.corpus.split("train"), task.vocabulary)
        task.corpus.forget_pages()


def plan(config: Config, reporter: Reporter | None = None, *, init_from: str | None = None) -> Plan:
    """What `train` would do, without doing it."""
    device = resolve_device(config.device)
    weights = load_model(find_model(init_from)) if init_from else None
    if weights is not None:
        config = finetuning.prepare(config, weights)
    task = load_task(config, reporter.encoding if reporter else None)
    model = task.model()
    planned = describe(task, model, device)
    if can_be_scored(task):
        _best_by(task, model)
    if weights is None:
        return planned
    return replace(planned, notes=[_begun_with(weights, task), *planned.notes])


class Trainer:
    """One run. All that changes from step to step is in `capture`, and `restore` puts it back."""

    def __init__(self, task: Task, run: RunDirectory, reporter: Reporter, device: torch.device, ranks: Ranks = ALONE) -> None:
        self.task, self.run, self.reporter, self.device, self.ranks = task, run, reporter, device, ranks
        self.config, settings = task.config, task.config.train
        self.settings = settings
        model = task.model()
        self.plan = describe(task, model, device)
        self.model = model.to(device).train()
        self.parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = build_optimizer(settings, self.model)
        self.schedule = Schedule(settings)
        self.average = Average(self.model, settings.ema_decay) if settings.ema_decay else None
        precision = resolve_precision(settings.precision, device)
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision == torch.float16)
        if ranks.several and self.config.is_windowed and (columns := next(task.batches("train")).columns) < ranks.size:
            raise UserError(f"train.batch_size: {columns} streams for {ranks.size} processes; expected at least one each, so raise it")
        self.shards = Shards(
            task, self.model, 1 if ranks.several else self.plan.shards,
            precision=precision, label_smoothing=settings.label_smoothing, scaler=self.scaler, seed=self.config.seed,
            ranks=ranks, told=reporter.warn,
        )  # fmt: skip
        eager = Eager(self.shards, self.optimizer, self.parameters, self.scaler, self.average, settings.max_grad_norm)
        self.stepper = choose_stepper(task, eager, reporter, alone=not ranks.several)
        self.steps_per_epoch = task.steps_per_epoch()
        self.has_val = can_be_scored(task)
        self.best_by = _best_by(task, model if self.has_val else None)
        # One thread a shard is a number of its own, and a GPU does not care.
        free = device.type == "cpu" and settings.shards == 1
        self.threads = Threads(settings.threads if free else torch.get_num_threads(), reporter.note)
        self.interrupt = Interrupt(polled=ranks.several)
        self.heart = heartbeat.Heartbeat(run.heartbeat)
        self.watch = LossWatch()
        self.counters = Counters()
        self.batches = feed(task, device)
        self.windows = self.batches()
        # Reading a number from a GPU waits for all that was asked of it, so there the loss is looked at only where it must be.
        self.looks_always = device.type == "cpu"
        self.since_report = self.since_look = Tally.zero(device)
        self.chars_reported, self.pace_seconds, self.unseen = 0, 0.0, 0
        self.grad_norm = torch.zeros((), device=device)
        self.learning_rate = 0.0
        self.whole = True  # not in the middle of a step
        self.started = time.monotonic()
        self.saved_seconds = 0.0  # of training, at the last save
        self.agreed_seconds = 0.0  # of the first process's clock, for decisions that all of several have to make alike
        self.state_kept = False  # that there is a state to go on from
        self.good: dict[str, Any] = {}

    def shared_out(self) -> list[str]:
        """What there is to say of several processes, a line each."""
        ranks, wanted = self.ranks, self.settings.batch_size
        if not ranks.several:
            return []
        alone = ["train.shards has no effect: each process has a group of its own"] if self.settings.shards > 1 else []
        what = "streams" if self.config.is_windowed else "examples"
        return [f"{ranks.size} processes, each with {wanted / ranks.size:g} of the {wanted} {what} of a step", *alone]

    def train(self) -> Outcome:
        """Run to the end, whichever end it is, and leave the run directory complete. Raises WriteError when it cannot."""
        self.started = time.monotonic() - self.counters.seconds
        keep_freed_memory()
        with self.interrupt.listening(), self.threads, self.shards, float32_products(self.device, tf32=self.settings.tf32):
            try:
                status = self._run()
            except Exception as error:
                self.beat("failed", _first_line(error))
                raise
            self.beat(status, "the loss kept running away" if status == "diverged" else "")
        return self._outcome(status)

    def _run(self) -> heartbeat.Ending:
        """The loop and the last save."""
        self.good = self.capture()
        try:
            status = self._loop()
            self.interrupt.close()
        except KeyboardInterrupt:
            self.interrupt.close()  # a reporter may have raised it
            status = "interrupted"
        except Exception:  # of the reporter, mostly: whoever listened has gone, and the steps since the last save are still good
            if self.whole and not self.ranks.several:  # the others would not come to save theirs
                self._keep()
            raise
        self._keep()
        return "terminated" if status == "interrupted" and self.interrupt.terminated else status

    def _loop(self) -> heartbeat.Ending:
        settings = self.settings
        self._told_of_step()
        while True:
            self._agree()
            counters = self.counters  # a retreat puts others in their place
            try:
                self._when_due(settings.log_every, counters.reported, self.report)
                self._when_due(settings.evaluate_every, counters.evaluated, self.evaluate)
                self._when_due(1 if self._saves_by_the_clock() else settings.save_every, counters.saved, self.save)
                if ended := self._ended():
                    self._when_due(1, counters.reported, self.report)
                    self._when_due(1, counters.evaluated, self.evaluate)
                    return ended
                with self.interrupt.held():
                    self.step()
                    if self.looks_always:
                        self.look()
                self.threads.look()
                self._told_of_step()
            except Astray:
                with self.interrupt.held():
                    goes_on = self.retreat()
                if not goes_on:
                    return "diverged"

    def _agree(self) -> None:
        """Of several processes: one clock for all, and what any of them is asked by a signal is done by all, between two steps.

        Raises KeyboardInterrupt in all of them then.
        """
        if not self.ranks.several:
            return
        wish = CALM if not self.interrupt.requested else TERMINATED if self.interrupt.terminated else INTERRUPTED
        wish, self.agreed_seconds = self.ranks.agree(wish, time.monotonic() - self.started)
        if wish != CALM:
            self.interrupt.terminated = wish == TERMINATED
            raise KeyboardInterrupt

    def _told_of_step(self) -> None:
        self.reporter.stepped(self.counters.step, min(1.0, self.progress()))
        self.beat()

    def beat(self, state: heartbeat.State = "running", why: str = "") -> None:
        """Let those who look on from elsewhere know. A file for them that cannot be written is a warning."""
        if not self.ranks.first:
            return
        step, progress = self.counters.step, self.progress()
        try:
            if state == "running":
                self.heart.beat(step, progress)
                return
            with self.interrupt.ignored():
                self.heart.end(step, progress, state, why)
        except WriteError as problem:
            self.reporter.warn(str(problem))

    def _keep(self) -> None:
        """The last save, of weights that have been looked at: a stop may come between a bad step and the look at it."""
        with self.interrupt.ignored():
            try:
                self.look()
            except Astray:
                self.restore(self.good)
            self.save()

    def step(self) -> None:
        """One optimizer step."""
        self.whole = False
        started = time.perf_counter()
        counters, settings = self.counters, self.settings
        self.learning_rate = settings.learning_rate * counters.learning_rate_scale * self.schedule.factor(self.progress(), counters.step)
        windows = [self._next_window() for _ in range(settings.accumulate)]
        tally, self.grad_norm = self.stepper.step(windows, self.learning_rate, counters.step + 1)
        counters.step += 1
        counters.chars += sum(window.chars for window in windows)
        self.since_report, self.since_look = self.since_report + tally, self.since_look + tally
        self.unseen += 1
        self.pace_seconds += time.perf_counter() - started
        self.whole = True

    def look(self) -> None:
        """Raises Astray where the loss of the steps since the last look says so. To be done before weights are shown or kept."""
        if not self.unseen:
            return
        started = time.perf_counter()
        with self.interrupt.held():
            found, steps = self.since_look, self.unseen
            self.since_look, self.unseen = Tally.zero(self.device), 0
            count = max(1, int(found.count))
            # The scale of fp16 is found by overflowing it; GradScaler leaves such steps out.
            finite = self.scaler.is_enabled() or math.isfinite(float(self.grad_norm))
            self.pace_seconds += time.perf_counter() - started  # on a GPU this was the wait for the steps
            if not (finite and self.watch.healthy(float(found.nats) / count, steps, count)):
                raise Astray

    def retreat(self) -> bool:
        """Back to the last good state with half the learning rate; False where that has been done often enough."""
        at, before = self.counters.step, self.counters
        self.restore(self.good)
        self.counters.learning_rate_scale = before.learning_rate_scale
        if before.retreats >= RETREATS:
            self.reporter.warn(
                f"step {at}: the loss has run away again after going back {RETREATS} times; the last good state is kept; "
                "lower train.learning_rate and go on with --resume"
            )
            return False
        self.counters.retreats = before.retreats + 1
        self.counters.learning_rate_scale /= 2
        rate = self.settings.learning_rate * self.counters.learning_rate_scale
        self.reporter.warn(
            f"step {at}: the loss is not finite, or three times its running mean and a nat above it; back to step {self.counters.step} "
            f"with the learning rate halved to {rate:.2g} ({self.counters.retreats} of {RETREATS})"
        )
        return True

    def report(self) -> None:
        """Tell how the steps since the last report went, and remember this state as a good one."""
        counters, pace = self.counters, max(self.pace_seconds, 1e-9)
        if int(self.since_report.count) == 0:  # nothing but unknown characters: there is no mean to tell
            counters.reported = counters.step
            return
        report = StepReport(
            step=counters.step,
            epoch=round(self.epochs(), 4),
            seconds=round(self.seconds(), 3),
            chars=counters.chars,
            metrics=self.since_report.as_metrics(unit=self.task.unit),
            grad_norm=float(self.grad_norm),
            learning_rate=self.learning_rate,
            chars_per_second=round((counters.chars - self.chars_reported) / pace, 1),
            progress=min(1.0, self.progress()),
        )
        with self.interrupt.held():
            counters.reported = counters.step
            self.since_report, self.chars_reported, self.pace_seconds = Tally.zero(self.device), counters.chars, 0.0
            self.ranks.on_first(lambda: self.run.append_metrics(report.line()))
            self.good = self.capture()
        self.reporter.step(report)

    def evaluate(self) -> None:
        """Measure the weights that would be used, the averaged ones where there are, show what they write, keep the best."""
        counters, shown = self.counters, self.average.model if self.average else self.model
        self._share_means()
        found = measure(self.task, shown, "val", lambda chars: self.beat(), ranks=self.ranks) if self.has_val else None
        if found is not None and isinstance(self.task, Settling):
            found = self.task.settle([self.model, shown], found)
        metrics = found.as_metrics("val_") if found is not None else {}
        draw = seeded(torch.device("cpu"), self.config.seed, counters.step)
        sample = self.ranks.on_first(lambda: self.task.preview(shown, draw)) or ""
        # Without a val split there is nothing to choose by: the last is the best.
        loss = self._loss_of(metrics)
        is_best = not self.has_val or loss < self._loss_of(counters.best)
        with self.interrupt.held():
            if is_best and not self.state_kept:  # --resume refuses a run that has a model and nothing to go on from
                state = self._state()
                self.ranks.on_first(lambda: self.run.write_state(state))
                self.state_kept = True
            counters.evaluated, counters.last = counters.step, metrics
            counters.stale = 0 if is_best else counters.stale + 1
            if self.has_val:
                self.schedule.observe(loss)
            if is_best:
                write = self._model_writer(metrics)
                self.ranks.on_first(lambda: write(self.run.best))
                counters.best, counters.best_step, counters.retreats = metrics, counters.step, 0
            where = {"step": counters.step, "epoch": round(self.epochs(), 4), "seconds": round(self.seconds(), 3)}

            def journal() -> None:
                if metrics:
                    self.run.append_metrics(where | {"chars": counters.chars} | metrics)
                self.run.append_sample(f"step {counters.step}{self._told(metrics)}", sample)

            self.ranks.on_first(journal)
            self.good = self.capture()
        self.reporter.evaluated(metrics, sample, is_best)

    def _loss_of(self, metrics: dict[str, float]) -> float:
        """What chooses the best model, as a number of which less is better; infinite where nothing was measured."""
        name, less = self.best_by
        value = metrics.get(f"val_{name}")
        return math.inf if value is None else value if less else -value

    def _told(self, metrics: dict[str, float]) -> str:
        if not metrics:
            return ""
        unit, name = self.task.unit, self.best_by[0]
        nats = f", {metrics[f'val_nats_per_{unit}']:.4f} nats per {'character' if unit == 'char' else unit}"
        return nats if name == f"nats_per_{unit}" else f"{nats}, {name} {metrics[f'val_{name}']:.4f}"

    def save(self) -> None:
        """Write what the run can be resumed from: last.state.pt alone is enough, so a crash between the two files harms nothing."""
        counters = self.counters
        with self.interrupt.held():
            counters.saved, self.saved_seconds = counters.step, self.seconds()
            self._share_means()
            metrics = counters.last if counters.evaluated == counters.step else {}
            state = self._state()
            write = self._model_writer(metrics)
            self.ranks.on_first(lambda: self.run.write(state, write, counters.step, self.settings.keep))
            self.state_kept = True

    def _saves_by_the_clock(self) -> bool:
        minutes = self.settings.save_every_minutes
        return minutes is not None and self.seconds() - self.saved_seconds >= 60 * minutes

    def _state(self) -> dict[str, Any]:
        """What is written to go on from."""
        somewhere = self.config.model_copy(update={"run": Config.model_fields["run"].default})  # a run directory may be moved
        return {**self._of_all(self.capture()), "config": somewhere.to_yaml()}

    def _model_writer(self, metrics: dict[str, float]) -> Callable[[Path], None]:
        """What writes the weights that would be used, the averaged ones where there are."""
        shown, task, step = self.average.model if self.average else self.model, self.task, self.counters.step
        return lambda path: save_model(path, shown, self.config, task.vocabulary, step, metrics, task.labels)

    def _of_all(self, state: dict[str, Any]) -> dict[str, Any]:
        """A captured state with what the groups of all processes carry."""
        together = self.shards.together(Carried(state["generators"], state["carried"]))
        return {**state, "generators": together.generators, "carried": together.state}

    def _share_means(self) -> None:
        """Running means, which no loss moves, differ between processes, for each has seen its own columns: all take the mean of them."""
        if not self.ranks.several:
            return
        for model in [self.model, *([self.average.model] if self.average else [])]:
            for (_, own), (_, learned) in zip(model.named_parameters(), self.model.named_parameters()):
                if not learned.requires_grad and own.is_floating_point():
                    self.ranks.sum_(own.data).div_(self.ranks.size)

    def capture(self) -> dict[str, Any]:
        """A copy of all that the next steps depend on: tensors and plain types."""
        self.counters.seconds = self.seconds()
        tally, carried = self.since_report, self.shards.carried()
        return copy.deepcopy(
            {
                "model": {name: parameter.detach() for name, parameter in self.model.named_parameters()},
                "average": {name: p.detach() for name, p in self.average.model.named_parameters()} if self.average else None,
                "optimizer": self.optimizer.state_dict(),
                "schedule": self.schedule.state_dict(),
                "scaler": self.scaler.state_dict(),
                "watch": self.watch.state_dict(),
                "generators": carried.generators,
                "carried": carried.state,
                "counters": asdict(self.counters),
                "since_report": (tally.nats, tally.count, tally.correct),
                "pace": {"chars": self.chars_reported, "seconds": self.pace_seconds},
                "last_step": {"grad_norm": self.grad_norm, "learning_rate": self.learning_rate},
                "journals": self.run.journal_sizes(),
                "text": _fingerprint(self.task),
            }
        )

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a captured state; the state itself is left as it is."""
        self.whole = False
        state = copy.deepcopy(state)
        copy_weights(state["model"], self.model)
        if self.average:
            copy_weights(state["average"] or state["model"], self.average.model)
        load_optimizer(self.optimizer, state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        if self.scaler.is_enabled() and state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        self.watch = LossWatch(**state["watch"])
        self.counters = Counters(**state["counters"])
        if change := self.shards.load(Carried(state["generators"], state["carried"])):
            self.shards.reseed(self.counters.step)
            self.reporter.note(f"resumed {change}: dropout draws anew, so the run is no longer the same to the bit")
        self.windows = self.batches(epoch=self.counters.epoch, first=self.counters.window)
        self.since_report = Tally.of(state["since_report"], self.device)
        self.since_look, self.unseen = Tally.zero(self.device), 0
        self.chars_reported, self.pace_seconds = state["pace"]["chars"], state["pace"]["seconds"]
        self.grad_norm, self.learning_rate = state["last_step"]["grad_norm"].reshape(()), state["last_step"]["learning_rate"]
        self.ranks.on_first(lambda: self.run.cut_journals(state["journals"]))
        self.whole = True

    def resume(self, state: dict[str, Any], path: Path | None = None) -> None:
        """Take up a state that was read from a file, the last one or that of another path.

        Raises UserError where the text or a setting is no longer what it was saved with, and UnfitState where it is no state of this run.
        """
        path = path or self.run.state
        try:
            state = believe(state, {f"val_{name}" for name in (self.best_by[0], *Tally.costs(self.task.unit))})
        except ValueError as error:
            raise _does_not_fit(path, str(error)) from None
        try:
            before = read_config(state["config"], "its config") if state["config"] is not None else self.config
        except ConfigError as error:
            raise _does_not_fit(path, str(error)) from None
        refuse_changes(before, self.config, str(self.run.path))
        if state["text"] != _fingerprint(self.task):
            what, remedy = self.task.corpus.what, f"start another run with --init-from {self.run.path}"
            fact = "the text has changed since; put it back" if what == "text" else f"the {what} have changed since; put them back"
            raise UserError(f"{self.run.path}: cannot resume: {fact}, or {remedy}")
        try:
            self._check_sizes(state)
            own = self.shards.own(Carried(state["generators"], state["carried"]))
            self.restore({**state, "generators": own.generators, "carried": own.state})
        except WriteError:
            raise
        except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError, RuntimeError) as error:
            fact = f"it has no {error}" if isinstance(error, KeyError) else str(error) or type(error).__name__
            raise _does_not_fit(path, fact) from error
        if found := changes(before, self.config):
            self.reporter.note(f"resumed with other settings: {listed(found)}")
        self.state_kept = True
        self.counters.retreats = 0  # whoever resumes a run that gave up wants it to try
        self.started = time.monotonic() - self.counters.seconds
        self.saved_seconds = self.agreed_seconds = self.counters.seconds

    @torch.no_grad()
    def _check_sizes(self, state: dict[str, Any]) -> None:
        """Raises ValueError where tensors are not of this model's sizes, which copying and the first step would stretch or stumble over."""
        expected = {name: tuple(p.shape) for name, p in self.model.named_parameters()}
        for name in ("model", "average") if self.average and state["average"] else ("model",):
            check_shapes({key: tuple(weight.shape) for key, weight in state[name].items()}, expected, f"{name}: ")
        if state["carried"] is not None:
            self.model.eval()  # no dropout: nothing is drawn for this
            _, _, carried = self.task.loss(self.model, next(iter(self.task.batches("train"))), None)
            self.model.train()
            if _sizes(state["carried"]) != _sizes(carried):
                raise ValueError("carried: not of the sizes that this model's state has")
            if not all(tensor.is_floating_point() for layer in state["carried"] for tensor in layer):
                raise ValueError("carried: expected floating point")

    def begin(self) -> None:
        """Start from weights that others have trained, where the task asks for some. Raises UserError where they cannot be had."""
        if isinstance(self.task, Pretrained):
            self.task.begin(self.model)
            if self.average:
                copy_weights(dict(self.model.named_parameters()), self.average.model)

    def begin_with(self, loaded: Loaded) -> None:
        """Start from the weights of another model, for which `prepare` has made the configuration."""
        head = finetuning.keeps_head(loaded, self.config, self.task.labels)
        weights = dict(self.model.named_parameters()) | finetuning.widen(loaded, self.task.vocabulary, head=head)
        copy_weights(weights, self.model)
        if self.average:
            copy_weights(weights, self.average.model)

    def already_finished(self) -> Outcome | None:
        return self._outcome("already_finished") if self._ended() and self.counters.evaluated == self.counters.step else None

    def tidy(self) -> None:
        """Finish what a job that was killed between the state of its last step and its end has left undone."""
        if self.ranks.from_first(_is_behind(self.run, self.counters.step)):
            self.save()
        self.ranks.on_first(self.run.sweep)
        ended = self._ended()
        if ended and heartbeat.says_running(self.run.heartbeat):
            self.beat(ended)

    def seconds(self) -> float:
        """Of training, evaluations and resumed runs included; in several processes as they last agreed."""
        return self.agreed_seconds if self.ranks.several else time.monotonic() - self.started

    def epochs(self) -> float:
        return self.counters.epoch + self.counters.window / self.steps_per_epoch

    def progress(self) -> float:
        """The largest share used up of the limits that are set; 1 and more is the end."""
        limits = Limits(self.settings.max_steps, self.settings.max_epochs, self.settings.max_minutes)
        return limits.progress(self.counters.step, self.epochs(), self.seconds())

    def _ended(self) -> heartbeat.Ending | None:
        if self.settings.patience and self.counters.stale >= self.settings.patience:
            return "early_stopped"
        return "finished" if self.progress() >= 1 else None

    def _when_due(self, every: int, last: int, action: Callable[[], None]) -> None:
        step = self.counters.step
        if step == 0 or step % every or last == step:
            return
        self.look()
        try:
            action()
        except WriteError as problem:  # a full disk now is no reason to lose what is in memory; at the end it is an error
            self.reporter.warn(f"{problem}; training goes on")

    def _next_window(self) -> Batch:
        counters = self.counters
        window = next(self.windows, None)
        if window is None:
            counters.epoch, counters.window = counters.epoch + 1, 0
            self.windows = self.batches(epoch=counters.epoch)
            window = next(self.windows)
        counters.window += 1
        return window

    def _outcome(self, status: Status) -> Outcome:
        counters = self.counters
        return Outcome(
            counters.best, counters.best_step, counters.last, counters.step, counters.seconds, self.run.path, status,
            self.config.task, self.best_by,
        )  # fmt: skip


def _best_by(task: Task, model: nn.Module | None) -> tuple[str, bool]:
    """What chooses the best model. Raises UserError where train.best_by names what the val split is not measured by; None: nothing is."""
    name, less = chosen_by(task)
    if task.config.train.best_by is not None and model is not None:
        known = metrics_of(task, model, "val")
        if name not in known:
            hint = did_you_mean(name, known)
            raise UserError(f"train.best_by {name!r}: the val split is not measured by that; expected one of {', '.join(known)}{hint}")
    return name, less


def _first_line(error: Exception) -> str:
    """Of a mistake of the user's its message alone, as the command line tells it."""
    lines = str(error).splitlines() or [""]
    return lines[0] if isinstance(error, UserError) else f"{type(error).__name__}: {lines[0]}".removesuffix(": ")


def _does_not_fit(path: Path, fact: str) -> UnfitState:
    return UnfitState(path, f"does not fit this run: {fact}")


def _sizes(state: State) -> list[list[torch.Size]]:
    return [[tensor.shape for tensor in layer] for layer in state]


def _fingerprint(task: Task) -> dict[str, Any]:
    """What a text must have in common with that of a saved run; the settings it was read with are compared in the configuration."""
    return {"contents": task.corpus.contents, "vocabulary": task.vocabulary.to_json(), "train_chars": len(task.corpus.split("train"))}
