"""The trials of a sweep, one by one, with whoever else is at work on them."""

from __future__ import annotations

import gc
import json
import platform
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import torch

from charrnn import training
from charrnn.atomic import WriteError, write_atomically
from charrnn.claims import Claim, Claims, Taken
from charrnn.distributed import find_ranks
from charrnn.errors import UserError
from charrnn.interrupt import Interrupt
from charrnn.journal import sayable
from charrnn.lock import Busy
from charrnn.ops.backends import UnsupportedBackend
from charrnn.runs import FAILED, Run, look, records_of
from charrnn.sweep import Sweep, Trial
from charrnn.training import Outcome, Reporter

LIVES = 5  # processes that may be lost over a trial at one and the same step
STOPPED = ("interrupted", "terminated")

Begin = Callable[[Trial], AbstractContextManager[Reporter]]


@dataclass
class Worked:
    """What one process has done of a sweep."""

    status: Literal["done", "interrupted", "terminated"] = "done"
    trials: dict[str, str] = field(default_factory=dict)  # by name, what became of those that it took

    @property
    def failed(self) -> list[str]:
        return [name for name, state in self.trials.items() if state in FAILED]


def work(sweep: Sweep, begin: Begin, *, retry_failed: bool = False, init_from: str | None = None) -> Worked:
    """Take trials until none is left to take; those that others are at work on are theirs. The folder is there, with its plan.

    A trial that was begun goes on where it was saved. What a user could mend of a trial, and a lack of memory, make it a failed one;
    then the next is taken. Raises WriteError where the disk takes no more, which is no trial's fault, and what is a mistake of ours.
    """
    if find_ranks().several:
        raise UserError("torchrun: a sweep takes one process for a trial; start `charrnn train --sweep` as often as you like without it")
    worker = _Worker(sweep, begin, init_from)
    interrupt = Interrupt()
    with interrupt.listening():
        try:
            if retry_failed:
                worker.forgive()
            worker.work(interrupt)
        except KeyboardInterrupt:
            worker.worked.status = "terminated" if interrupt.terminated else "interrupted"
    return worker.worked


class _Worker:
    def __init__(self, sweep: Sweep, begin: Begin, init_from: str | None) -> None:
        self.sweep, self.begin, self.init_from = sweep, begin, init_from
        self.claims = Claims(sweep.records)
        self.worked = Worked()
        self.forgiven: dict[str, int] = {}  # failed trials that are tried again, by the claim under which they failed
        self.busy: set[str] = set()  # trials that somebody trains by hand

    def forgive(self) -> None:
        """Try again what has failed so far, once; not what fails again while this process is at work."""
        for trial in self.sweep.trials:
            record = self.record(trial)
            if record and record["state"] in FAILED:
                self.forgiven[trial.name] = record["claim"]

    def work(self, interrupt: Interrupt) -> None:
        # From the beginning each time: what a lost process has left behind comes before what nobody has begun.
        while (found := self.next(interrupt)) is not None:
            trial, claim = found
            with claim:
                if (state := self.run(trial, claim, interrupt)) in STOPPED:
                    self.worked.status = cast(Any, state)
                    return
            gc.collect()  # of a trial's tensors nothing is left for the next
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def next(self, interrupt: Interrupt) -> tuple[Trial, Claim] | None:
        newest = self.claims.newest()
        for trial in self.sweep.trials:
            if trial.name in self.busy or self.is_over(trial):
                continue
            number = newest.get(trial.name, 0)
            claim = None
            try:
                with interrupt.held():
                    claim = self.claims.take(trial.name, number, step=_step(trial))
                    if claim is not None and not self.is_given_up(trial, claim):
                        return trial, claim
            except KeyboardInterrupt:  # at the end of the block
                if claim is not None:
                    claim.give_up()
                raise
        return None

    def is_given_up(self, trial: Trial, claim: Claim) -> bool:
        """Whether there is nothing to do of a trial that has just been claimed; the claim is given up then."""
        over = self.is_over(trial)  # another has ended it between the look at its record and the claim
        if not over and (why := self.hopeless(trial, claim.number - 1)):
            self.note(trial, claim, "failed", why)
            over = True
        if over:
            claim.give_up()
        return over

    def is_over(self, trial: Trial) -> bool:
        record = self.record(trial)
        return record is not None and self.forgiven.get(trial.name) != record["claim"]

    def hopeless(self, trial: Trial, number: int) -> str:
        """Why a trial is given up that has taken its processes down with it, one after the other; or nothing."""
        record = self.record(trial)
        lost = self.claims.abandoned(trial.name, number, record["claim"] if record else 0)
        steps = [claim.note.get("step") for claim in lost[-LIVES:]]
        if len(steps) < LIVES or any(step != _step(trial) for step in steps):
            return ""
        return f"{LIVES} processes were killed over it before they reached another step than {steps[0] or 0}; is there enough memory?"

    def run(self, trial: Trial, claim: Claim, interrupt: Interrupt) -> str:
        """Train one trial and note its end; its state."""
        try:
            with self.begin(trial) as reporter:
                fenced = cast(Reporter, _Fenced(reporter, claim))
                outcome = training.train(trial.config, resume=True, init_from=self.init_from, reporter=fenced)
        except Busy as busy:
            self.busy.add(trial.name)
            self.worked.trials[trial.name] = f"left: {busy}"
            return "left"
        except Taken:
            self.worked.trials[trial.name] = "left: another process has taken it over"
            return "left"
        except WriteError:
            raise
        except (UserError, UnsupportedBackend) as error:
            return self.ended(trial, claim, interrupt, "failed", str(error))
        except Exception as error:
            if _lacks_memory(error):
                return self.ended(trial, claim, interrupt, "failed", f"out of memory: {error or type(error).__name__}")
            self.ended(trial, claim, interrupt, "failed", f"{type(error).__name__}: {error}")
            raise
        if outcome.status in STOPPED:
            return outcome.status
        state = "finished" if outcome.status == "already_finished" else outcome.status
        why = "the loss keeps running away" if state == "diverged" else ""
        return self.ended(trial, claim, interrupt, state, why, outcome)

    def ended(self, trial: Trial, claim: Claim, interrupt: Interrupt, state: str, why: str, outcome: Outcome | None = None) -> str:
        with interrupt.held():
            claim.look()
            claim.check()
            self.note(trial, claim, state, why, outcome)
        self.worked.trials[trial.name] = state
        return state

    def note(self, trial: Trial, claim: Claim, state: str, why: str, outcome: Outcome | None = None) -> None:
        """What became of a trial, for all who look at the folder."""
        found: dict[str, Any] = {"state": state, "why": why, "claim": claim.number, "time": time.time(), "host": platform.node()}
        if outcome is not None:
            found |= {"step": outcome.steps, "best_step": outcome.best_step} | sayable(dict(outcome.best))
        write_atomically(self.record_file(trial), json.dumps(found).encode() + b"\n", "free some space")

    def record(self, trial: Trial) -> dict[str, Any] | None:
        """What was noted of a trial's end. Raises UserError where that is damaged: to run what was finished would be worse."""
        file = self.record_file(trial)
        try:
            found = json.loads(file.read_bytes())
            return {"state": str(found["state"]), "claim": int(found["claim"])}
        except FileNotFoundError:
            return None
        except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
            fact = f"{file}: cannot be read: {getattr(error, 'strerror', None) or 'damaged'}"
            raise UserError(f"{fact}; take it away, and the trial goes on where it was saved") from None

    def record_file(self, trial: Trial) -> Path:
        return self.sweep.records / f"{trial.name}.json"


def table_of(sweep: Sweep) -> list[tuple[Trial, Run | None]]:
    """Each trial with what its directory shows, the best first; None: nobody has begun it."""
    records = records_of(sweep.folder)
    rows = []
    for trial in sweep.trials:
        record = records.get(trial.name)
        rows.append((trial, look(trial.path, record) if trial.path.is_dir() else record))
    return sorted(rows, key=lambda row: row[1].rank() if row[1] else ("\uffff\uffff", 0.0))


class _Fenced:
    """A reporter that ends a run, without another word to its directory, once another process has taken the trial over."""

    def __init__(self, reporter: Reporter, claim: Claim) -> None:
        self._reporter, self._claim = reporter, claim

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reporter, name)

    def stepped(self, step: int, progress: float) -> None:
        self._claim.check()
        self._reporter.stepped(step, progress)


def _step(trial: Trial) -> int | None:
    """The last step that a trial has told of."""
    return look(trial.path).step if trial.path.is_dir() else None


def _lacks_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)
