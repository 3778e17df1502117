"""A run seen from outside, of another process or machine: how far it is, how well it learns, whether anybody is still at it. Without torch.

All of it is read from files of its directory: metrics.jsonl, config.yaml, the lock of the job, and heartbeat.json where one is written.
"""

from __future__ import annotations

import json
import math
import platform
import re
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, get_args

from charrnn.errors import UserError, printable
from charrnn.heartbeat import Ending
from charrnn.journal import Journal, Limits, cost_key, figure, seconds_to_go, unit_of
from charrnn.lock import is_held
from charrnn.plain_yaml import parse_yaml
from charrnn.ranking import less_is_better
from charrnn.run_files import HEARTBEAT, LOCK, METRICS
from charrnn.tables import duration, sparkline

ENDED = (*get_args(Ending), "failed")
QUIET = 120.0  # seconds without a word, after which a run that no job holds is taken for ended, and of another the silence is told
SMALL = 1 << 20  # bytes of a file that is read here besides metrics.jsonl
WIDE = 24  # columns of a sparkline
_HOLDER = re.compile(r"process ([0-9]{1,9}) on (.*)")


@dataclass(frozen=True)
class Heartbeat:
    """What a run says of itself at short intervals."""

    state: str
    why: str
    progress: float  # NaN where it says none
    time: float  # seconds since 1970; NaN likewise

    @classmethod
    def of(cls, run: Path) -> Heartbeat | None:
        """None where there is none, or none that can be read: it is replaced while it is read."""
        try:
            found = json.loads(_beginning(run / HEARTBEAT) or "null")
        except (ValueError, RecursionError):
            return None
        if not isinstance(found, dict):
            return None
        time, progress = found.get("time"), found.get("progress")
        state, why = (found.get(key) if isinstance(found.get(key), str) else "" for key in ("state", "why"))
        return cls(str(state), str(why), figure(progress), _instant(time))


@dataclass(frozen=True)
class View:
    """A run at one moment."""

    run: Path
    journal: Journal
    limits: Limits
    heartbeat: Heartbeat | None
    holder: str  # `process 12 on host`, of the job that holds it; empty where none does
    written: float  # when it last wrote, seconds since 1970; NaN where nothing is known of that
    stamp: tuple[int, int]  # bytes and time of change of metrics.jsonl when it was read

    @classmethod
    def of(cls, run: Path, before: View | None = None) -> View:
        """Of a run directory. `before`: an earlier view, whose journal is taken where the file is the same. Raises UserError."""
        path = run / METRICS
        try:
            found = path.stat() if path.exists() else None
        except OSError as error:
            raise UserError(f"{printable(str(path))}: cannot be read: {error.strerror or error}; name a run that you may read") from None
        stamp = (found.st_size, found.st_mtime_ns) if found else (0, 0)
        journal = before.journal if before is not None and before.stamp == stamp else Journal.of(run)
        heartbeat = Heartbeat.of(run)
        said = [found.st_mtime if found else math.nan, heartbeat.time if heartbeat else math.nan]
        written = max(filter(math.isfinite, said), default=math.nan)
        return cls(run, journal, _limits(run), heartbeat, _holder(run), written, stamp)

    def progress(self) -> float:
        """0..1 of the run; NaN where nothing limits it and it says nothing."""
        said = self.heartbeat.progress if self.heartbeat else math.nan  # of a while ago, or ahead of the last report
        known = [part for part in (said, self._reported()) if math.isfinite(part)]
        return min(1.0, max(0.0, *known)) if known else math.nan

    def _reported(self) -> float:
        """How far the run had come at its last report; NaN where nothing limits it."""
        if not any(self.limits):
            return math.nan
        end = self.journal.at_end()
        return self.limits.progress(end.get("step", 0.0), end.get("epoch", 0.0), end.get("seconds", 0.0))

    def ending(self, now: float) -> str:
        """How the run has ended, in words; empty where it goes on, or may."""
        if self.holder:  # also where the heartbeat is still that of the job before
            return ""
        if self.heartbeat and self.heartbeat.state in ENDED:
            return self.heartbeat.state.replace("_", " ") + (f": {printable(self.heartbeat.why)}" if self.heartbeat.why else "")
        if self.progress() >= 1:
            return "finished"
        silent = now - self.written if math.isfinite(self.written) else math.inf
        return "no job is at work on it" if silent > QUIET else ""

    def _where(self) -> str:
        end, progress = self.journal.at_end(), self.progress()
        most = f"/{self.limits.max_steps:,}" if self.limits.max_steps else ""
        share = f" ({progress:.0%})" if math.isfinite(progress) else ""
        return f"step {end.get('step', 0):,.0f}{most}{share}"

    def _time(self) -> str:
        seconds = self.journal.at_end().get("seconds", 0.0)
        reported = self._reported()  # at these seconds
        left = seconds_to_go(reported if math.isfinite(reported) else self.progress(), seconds)
        return duration(seconds) + (f", {duration(left)} to go" if left else "")

    def line(self) -> str:
        """All of it, on one line."""
        parts = [self._where(), *(part for part in (self._training(), self._validation()) if part), self._time()]
        return "  ".join(parts)

    def block(self, now: float) -> list[str]:
        """All of it, on a few lines: name and state, progress, training, validation, and silence."""
        ending = self.ending(now)
        state = ending or (f"at work: {self.holder}" if self.holder else "at work")
        if self.heartbeat and self.heartbeat.why and not ending:
            state += f" ({printable(self.heartbeat.why)})"
        lines = [f"{printable(str(self.run))}: {state}"]
        progress = self.progress()
        bar = "".join("█" if progress * 20 > i else "░" for i in range(20)) + "  " if math.isfinite(progress) else ""
        lines.append(f"{bar}{self._where()}  {self._time()}")
        for name, told, key in (("train", self._training(), ""), ("val", self._validation(), "val_")):
            if told and (curve := self._curve(key)):
                lines.append(f"{name:<6}{sparkline(curve, WIDE):<{WIDE}}  {told.removeprefix('val ')}")
        silent = now - self.written if math.isfinite(self.written) else 0.0
        if not ending and silent > QUIET:
            lines.append(f"no news for {duration(silent)}")
        return lines

    def _curve(self, prefix: str) -> list[float]:
        key = self._metric(prefix)
        return self.journal.curve(prefix + key).y if key else []

    def _metric(self, prefix: str) -> str | None:
        names = self.journal.metrics(bool(prefix))
        return cost_key(names) or next((name for name in names if name not in ("grad_norm", "learning_rate", "chars_per_second")), None)

    def _training(self) -> str:
        key = self._metric("")
        last = self.journal.last(key) if key else None
        if key is None or last is None:
            return ""
        parts = [f"{last[key]:.3f} {unit_of(key)}"]
        parts += [f"grad {last['grad_norm']:.2f}"] if math.isfinite(last.get("grad_norm", math.nan)) else []
        parts += [f"lr {last['learning_rate']:.1e}"] if math.isfinite(last.get("learning_rate", math.nan)) else []
        parts += [f"{last['chars_per_second']:,.0f} chars/s"] if math.isfinite(last.get("chars_per_second", math.nan)) else []
        return "  ".join(parts)

    def _validation(self) -> str:
        key = self._metric("val_")
        last, best = (self.journal.last(f"val_{key}"), self.journal.best(key)) if key else (None, None)
        if key is None or last is None or best is None:
            return ""
        which = "lowest" if less_is_better(key) else "highest"
        return f"val {last[f'val_{key}']:.3f} {unit_of(key)}, {which} {best[f'val_{key}']:.3f} at step {best['step']:,.0f}"


def _limits(run: Path) -> Limits:
    """As config.yaml sets them; none where it cannot be read, or not yet."""
    try:
        found = parse_yaml(_beginning(run / "config.yaml") or "")
    except UserError:
        return Limits()
    train = found.get("train") if isinstance(found, dict) else None
    values = [figure(train.get(name)) if isinstance(train, dict) else math.nan for name in Limits._fields]
    steps, epochs, minutes = (value if value > 0 else None for value in values)
    return Limits(int(steps) if steps else None, epochs, minutes)


def _holder(run: Path) -> str:
    """Who is at work there, as its lock says; empty where nobody is, or nobody any more."""
    text = _beginning(run / LOCK)
    if text is None:
        return ""
    named = _HOLDER.fullmatch(text)
    # A job that was killed leaves its file behind, and no lock on it; what another machine has locked cannot be asked of everywhere.
    if named and named[2] == platform.node() and not is_held(run / LOCK):
        return ""
    return printable(text) or "a job"


def _beginning(path: Path) -> str | None:
    """The text of a small file; None where it is not there or cannot be read, as of one that is being replaced."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read(SMALL)
    except OSError:
        return None


def _instant(value: Any) -> float:
    """Seconds since 1970, of a number or of ISO 8601."""
    if isinstance(value, str):
        try:
            return datetime.fromisoformat(value.replace("Z", "+00:00")).timestamp()
        except (ValueError, OverflowError, OSError):
            return math.nan
    return figure(value)
