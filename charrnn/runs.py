"""Run directories as they are found: what became of each, without torch, whatever lies there; and which of them can go.

What is read of a directory is little and is not believed: a damaged file makes a line of its own, never an exception.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import platform
import re
import stat
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from charrnn.errors import CheckpointError, ConfigError, UserError, counted, listed, printable
from charrnn.journal import figure
from charrnn.lock import Busy, is_held, locked
from charrnn.model_file import read_header
from charrnn.plain_yaml import parse_yaml
from charrnn.ranking import BEST_BY, less_is_better
from charrnn.run_files import (
    BEST,
    CONFIG,
    EVENTS,
    HEARTBEAT,
    LAST,
    LOCK,
    METRICS,
    OWN,
    PREVIOUS_STATE,
    REFUSED,
    STATE,
    WRITTEN_BY,
    is_own,
    is_partial,
)

State = Literal[
    "running",
    "finished",
    "early_stopped",
    "interrupted",
    "terminated",
    "diverged",
    "failed",
    "lost",  # its process is gone and has said nothing
    "unknown",
    "damaged",
]
OVER = ("finished", "early_stopped")
FAILED = ("diverged", "failed")
QUIET = 300.0  # seconds without a heartbeat after which a job on another machine is taken for lost
RECORDS = ".sweep"  # in the folder of a sweep: what became of its trials
LIMITS = ("max_steps", "max_epochs", "max_minutes", "patience", "best_by")  # of section `train`
MOST_CONFIG, MOST_JSON, TAIL = 1 << 20, 1 << 16, 1 << 16  # bytes that are read
DEEPEST = 16  # folders in folders
LONGEST_WHY = 300  # characters
UNITS = {"m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


@dataclass(frozen=True)
class Run:
    """What a directory shows of a run."""

    path: Path
    state: State
    why: str = ""  # of a state that asks for a reason
    task: str | None = None
    step: int | None = None  # the last that was told of
    best: float | None = None
    best_by: str | None = None  # the metric of the val split that `best` is of, without `val_`
    best_step: int | None = None
    touched: float | None = None  # when anything was last written, unix seconds
    bytes: int = 0  # of the files that charrnn has made

    def rank(self) -> tuple[str, float]:
        """Sorts the best first among those of one metric, and those without a value last."""
        if self.best is None or self.best_by is None:
            return "\uffff", math.inf
        return self.best_by, self.best if less_is_better(self.best_by) else -self.best


class _Damaged(Exception):
    """A file that is there and cannot be read as what it should be."""


def find(folders: Sequence[Path]) -> Iterator[Run]:
    """The runs in these folders and in the folders in them, by name. Links are not followed.

    Raises UserError where a folder of `folders` cannot be looked into; what cannot be read below it is a damaged run.
    """
    for folder in folders:
        try:
            with os.scandir(folder) as entries:
                next(entries, None)
        except FileNotFoundError:
            raise UserError(f"{folder}: no such folder; name one that holds runs") from None
        except NotADirectoryError:
            raise UserError(f"{folder}: is a file; name a folder that holds runs") from None
        except OSError as error:
            raise UserError(f"{folder}: cannot be read: {error.strerror or error}; name a folder that you may read") from None
    seen: set[Path] = set()  # a folder named twice, or in another, is listed once
    for folder in folders:
        yield from _below(folder, {}, seen, 0)


def _below(folder: Path, records: dict[str, Run], seen: set[Path], depth: int) -> Iterator[Run]:
    with contextlib.suppress(OSError):
        if (real := folder.resolve()) in seen:
            return
        seen.add(real)
    try:
        with os.scandir(folder) as found:
            entries = sorted(found, key=lambda entry: entry.name)
        folders = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False) and not entry.name.startswith(".")]
    except OSError as error:
        yield Run(folder, "damaged", f"cannot be read: {error.strerror or error}")
        return
    names = {entry.name for entry in entries}
    if names & {*OWN, LOCK} and (names & {*OWN, LOCK} != {CONFIG} or _made_here(folder)):
        yield look(folder, records.get(folder.name))
    if depth == DEEPEST:
        return
    inner = records_of(folder) if RECORDS in names else {}
    for name in folders:
        yield from _below(folder / name, inner, seen, depth + 1)
    # A trial that failed before it could write has no directory.
    yield from (run for name, run in sorted(inner.items()) if name not in folders and run.state in FAILED)


def look(path: Path, record: Run | None = None) -> Run:
    """What one directory shows. `record`: what the sweep that it is a trial of has noted of it."""
    faults: list[str] = []

    def asked(read: Any, name: str, default: Any) -> Any:
        try:
            return read(path / name)
        except _Damaged as fault:
            faults.append(f"{name} {fault}")
            return default

    touched, size = _touched(path)
    settings = asked(_settings, CONFIG, {})
    journal: list[dict[str, Any]] = asked(_journal, METRICS, [])
    beat: dict[str, Any] | None = asked(_heartbeat, HEARTBEAT, None)
    best, last = asked(_metadata, BEST, None), asked(_metadata, LAST, None)
    task = settings.get("task")
    named = settings.get("best_by")
    by = named if isinstance(named, str) else BEST_BY[task][0] if task in BEST_BY else None
    step = max((found for line in (*journal, beat or {}, last or {}) if (found := _count(line.get("step"))) is not None), default=None)
    value, best_step = _best(best, journal, by)
    state, why = _state(path, beat, record, settings, journal, step, best_step)
    if faults and state != "running":
        state, why = "damaged", "; ".join(faults)
    elif faults:
        why = "; ".join([why, *faults] if why else faults)
    return Run(path, state, _line(why), task, step, value, by if value is not None else None, best_step, touched, size)


def _state(
    path: Path,
    beat: dict[str, Any] | None,
    record: Run | None,
    settings: dict[str, Any],
    journal: list[dict[str, Any]],
    step: int | None,
    best_step: int | None,
) -> tuple[State, str]:
    alive = beat is not None and beat["state"] == "running"
    silent = max(0.0, time.time() - beat["time"]) if beat is not None else 0.0
    if is_held(path / LOCK):
        return "running", f"without a sign of life for {duration(silent)}" if alive and silent > QUIET else ""
    if beat is not None and alive and beat["host"] != platform.node() and silent <= QUIET:
        return "running", f"on {beat['host']}"
    if record is not None and (beat is None or alive):
        return record.state, record.why
    if beat is not None and not alive:
        return beat["state"], beat["why"]
    if beat is not None:
        return "lost", f"process {beat['pid']} on {beat['host']} is gone, last heard of {duration(silent)} ago"
    if _came_to_its_end(settings, journal, step):
        return "finished", ""
    patience = _count(settings.get("patience"))
    since_best = [line for line in journal if best_step is not None and _is_evaluation(line) and _count(line.get("step"), 0) > best_step]
    if patience and len(since_best) >= patience:
        return "early_stopped", ""
    if (path / LOCK).exists():
        return "lost", "its process was killed"
    if (path / STATE).exists():
        return "interrupted", ""
    return "unknown", "it holds nothing that a run goes on from"


def _came_to_its_end(settings: dict[str, Any], journal: list[dict[str, Any]], step: int | None) -> bool:
    """Whether what was last told of reached a limit of the configuration."""
    last = journal[-1] if journal else {}
    reached = ("max_steps", step, 1.0), ("max_epochs", last.get("epoch"), 1.0), ("max_minutes", last.get("seconds"), 60.0)
    for key, value, unit in reached:
        limit, found = _number(settings.get(key)), _number(value)
        if limit is not None and found is not None and found >= limit * unit:
            return True
    return False


def _best(best: dict[str, Any] | None, journal: list[dict[str, Any]], by: str | None) -> tuple[float | None, int | None]:
    """The best value by that metric and its step: what the best model says of itself, else what the journal tells."""
    if by is None:
        return None, None
    if best is not None and (value := _number(best["metrics"].get(f"val_{by}"))) is not None:
        return value, _count(best.get("step"))
    told = [(value, _count(line.get("step"))) for line in journal if (value := _number(line.get(f"val_{by}"))) is not None]
    if not told:
        return None, None
    return (min if less_is_better(by) else max)(told, key=lambda found: found[0])


def _is_evaluation(line: dict[str, Any]) -> bool:
    return any(key.startswith("val_") for key in line)


def _read(path: Path, most: int, *, tail: bool = False) -> bytes | None:
    """A file's bytes, or its last; None where there is none. Raises _Damaged. A pipe in its place keeps nobody waiting."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _Damaged(f"cannot be read: {error.strerror or error}") from None
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode):
        os.close(descriptor)
        raise _Damaged("is no file")
    with open(descriptor, "rb") as file:
        if found.st_size > most and not tail:
            raise _Damaged(f"is {found.st_size:,} bytes long")
        try:
            file.seek(max(0, found.st_size - most))
            return file.read(most)
        except OSError as error:
            raise _Damaged(f"cannot be read: {error.strerror or error}") from None


def _settings(path: Path) -> dict[str, Any]:
    """Task and limits from a config.yaml. All of it would take ten times as long, and there are hundreds."""
    raw = _read(path, MOST_CONFIG)
    if raw is None:
        return {}
    try:
        wanted, section = [], ""
        for line in raw.decode().split("\n"):
            if not line.startswith((" ", "#", "-")):
                section = line.partition(":")[0]
            if line.startswith(("task:", "train:")) or (section == "train" and line.strip().startswith(tuple(f"{key}:" for key in LIMITS))):
                wanted.append(line)
        found = parse_yaml("\n".join(wanted))
    except (UnicodeDecodeError, ConfigError):
        raise _Damaged("is no configuration") from None
    if not isinstance(found, dict) or not isinstance(found.get("task"), str) or found["task"] not in BEST_BY:
        raise _Damaged("is no configuration")
    train = found.get("train")
    return {**(train if isinstance(train, dict) else {}), "task": found["task"]}


def _journal(path: Path) -> list[dict[str, Any]]:
    """The last lines of metrics.jsonl, without halves."""
    raw = _read(path, TAIL, tail=True)
    if raw is None:
        return []
    *whole, half = raw.split(b"\n")
    lines = [found for line in whole[len(raw) == TAIL :] if isinstance(found := _json(line), dict)]
    if not lines and (whole or not half.startswith(b"{")) and raw:
        raise _Damaged("holds no line of a run")
    return lines


def _json(raw: bytes) -> Any:
    try:
        return json.loads(raw)
    except (ValueError, RecursionError):
        return None


def _heartbeat(path: Path) -> dict[str, Any] | None:
    raw = _read(path, MOST_JSON)
    if raw is None:
        return None
    beat = _json(raw)
    known = isinstance(beat, dict) and isinstance(beat.get("state"), str) and beat["state"] in get_args(State)
    if not known or _number(beat.get("time")) is None or not isinstance(beat.get("host"), str) or _count(beat.get("pid")) is None:
        raise _Damaged("is no heartbeat of a run")
    return {**beat, "why": beat["why"] if isinstance(beat.get("why"), str) else ""}


def _metadata(path: Path) -> dict[str, Any] | None:
    """Step and metrics of a model file."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise _Damaged("is no file")
        metadata = read_header(path).metadata
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _Damaged(f"cannot be read: {error.strerror or error}") from None
    except CheckpointError as error:
        raise _Damaged(str(error).removeprefix(f"{path}: ").partition(";")[0]) from None
    metrics = _json(metadata.get("metrics", "").encode(errors="replace"))
    step = metadata.get("step", "")
    if not isinstance(metrics, dict) or not (step.isdecimal() and len(step) < 20):
        raise _Damaged("has damaged metadata")
    return {"metrics": metrics, "step": int(step)}


def records_of(folder: Path) -> dict[str, Run]:
    """What a sweep has noted of its trials, by name."""
    records: dict[str, Run] = {}
    try:
        names = sorted(os.listdir(folder / RECORDS))
    except OSError:
        return records
    for name in names:
        if not name.endswith(".json"):
            continue
        try:
            found = _json(_read(folder / RECORDS / name, MOST_JSON) or b"")
        except _Damaged:
            continue
        if isinstance(found, dict) and found.get("state") in get_args(State):
            trial = name.removesuffix(".json")
            why = found["why"] if isinstance(found.get("why"), str) else ""
            records[trial] = Run(folder / trial, found["state"], _line(why), touched=_number(found.get("time")))
    return records


def _touched(path: Path) -> tuple[float | None, int]:
    """When one of charrnn's files was last written, and the bytes of all."""
    times, size = [], 0
    with contextlib.suppress(OSError):
        for name, entry in _entries(path):
            with contextlib.suppress(OSError):
                if _is_own(name) and entry.is_file(follow_symlinks=False):
                    found = entry.stat(follow_symlinks=False)
                    times.append(found.st_mtime)
                    size += found.st_size
    return max(times, default=None), size


def _count(value: object, default: Any = None) -> Any:
    """A whole number that a step can be, or the default."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63 else default


def _number(value: object) -> float | None:
    found = figure(value)
    return None if math.isnan(found) else found


def _line(text: str) -> str:
    line = printable(" ".join(text.split()))
    return line if len(line) <= LONGEST_WHY else line[: LONGEST_WHY - 1] + "…"


def duration(seconds: float) -> str:
    """`40 s`, `3 min`, `5 h`, `12 d`."""
    for unit, name in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * unit:
            return f"{seconds / unit:.0f} {name}"
    return f"{max(0.0, seconds):.0f} s"


def seconds_of(text: str, place: str) -> float:
    """`45m`, `12h`, `30d`, `2w` as seconds. Raises UserError."""
    found = re.fullmatch(r"([0-9]{1,6}(?:\.[0-9]{1,3})?)([mhdw])", text.strip())
    if not found:
        raise UserError(f"{place} {printable(text)!r}: no span of time; expected a number and m, h, d or w, such as 30d")
    return float(found[1]) * UNITS[found[2]]


@dataclass(frozen=True)
class Policy:
    """Which runs go. A run goes where every part that is given says so; never one that is running."""

    keep_best: int | None = None  # of the runs of one folder, task and metric: those that are over and not among so many best
    older_than: float | None = None  # seconds since anything was written
    failed: bool = False  # those that failed or diverged
    states: bool = False  # not runs: only what those that are finished would be resumed from

    @property
    def is_empty(self) -> bool:
        return self == Policy()


@dataclass(frozen=True)
class Removal:
    """What is taken away of one run."""

    run: Run
    files: tuple[str, ...]
    bytes: int
    foreign: tuple[str, ...] = field(default=())  # what charrnn has not made, which stays, and the directory with it


def choose(runs: Sequence[Run], policy: Policy) -> tuple[list[Removal], list[str]]:
    """What a policy takes away, and a line for each run that it would take and that cannot be."""
    chosen: list[Removal] = []
    left: list[str] = []
    best = _best_of(runs, policy.keep_best) if policy.keep_best is not None else set()
    now = time.time()
    for run in runs:
        if not _goes(run, policy, best, now):
            continue
        if not _made_here(run.path):
            if run.path.is_dir():
                left.append(f"{run.path}: left, for its {CONFIG} is not one that charrnn has written")
            continue
        removal = removal_of(run, policy)
        if removal.files:
            chosen.append(removal)
    return chosen, left


def _goes(run: Run, policy: Policy, best: set[Path], now: float) -> bool:
    if run.state == "running":
        return False
    if policy.states and run.state not in OVER:
        return False
    if policy.failed and run.state not in FAILED:
        return False
    if policy.older_than is not None and (run.touched is None or now - run.touched < policy.older_than):
        return False
    # Without a value a run is not known to be worse, and what is not over may still become the best.
    return policy.keep_best is None or (run.path not in best and run.state in (*OVER, *FAILED) and (run.best is not None or policy.failed))


def _best_of(runs: Sequence[Run], most: int) -> set[Path]:
    groups: dict[tuple[Path, str | None, str], list[Run]] = {}
    for run in runs:
        if run.best is not None and run.best_by is not None and run.state != "damaged":
            groups.setdefault((run.path.parent, run.task, run.best_by), []).append(run)
    return {run.path for group in groups.values() for run in sorted(group, key=Run.rank)[:most]}


def removal_of(run: Run, policy: Policy) -> Removal:
    """The files that go, in the order in which they go: config.yaml last, so that what is cut short is still a run."""
    own: dict[str, int] = {}
    foreign: list[str] = []
    try:
        for name, entry in _entries(run.path):
            if _is_own(name) and entry.is_file(follow_symlinks=False):
                own[name] = entry.stat(follow_symlinks=False).st_size
            elif name != LOCK:
                foreign.append(name)
    except OSError:
        return Removal(run, (), 0)
    if policy.states:
        own, foreign = {name: size for name, size in own.items() if name in (STATE, PREVIOUS_STATE, REFUSED)}, []
    return Removal(run, tuple(sorted(own, key=lambda name: (name == CONFIG, name))), sum(own.values()), tuple(sorted(foreign)))


def _entries(path: Path) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """What lies in a run directory, and what TensorBoard's folder in it holds, by name. Raises OSError."""
    with os.scandir(path) as found:
        for entry in found:
            if entry.name == EVENTS and entry.is_dir(follow_symlinks=False):
                with os.scandir(entry.path) as events:
                    yield from ((f"{EVENTS}/{event.name}", event) for event in events)
            else:
                yield entry.name, entry


def remove(removal: Removal, policy: Policy) -> tuple[int, str]:
    """Take it away. Bytes that were freed, and what stood in the way or nothing: a job that has begun meanwhile is left alone."""
    path, freed = removal.run.path, 0
    try:
        with locked(path / LOCK):
            beat = _heartbeat(path / HEARTBEAT)
            if beat and beat["state"] == "running" and beat["host"] != platform.node() and time.time() - beat["time"] <= QUIET:
                return 0, f"{path}: left, for it is running on {printable(beat['host'])}"
            for name in removal_of(removal.run, policy).files:
                size = (path / name).lstat().st_size
                (path / name).unlink()
                freed += size
        if not policy.states:
            for folder in (path / EVENTS, path):
                if folder.is_dir() and not any(folder.iterdir()):
                    folder.rmdir()
    except Busy:
        return freed, f"{path}: left, for a job has begun in it"
    except _Damaged as fault:
        return freed, f"{path}: left, for {HEARTBEAT} {fault}"
    except OSError as error:
        return freed, f"{path}: cannot be taken away: {error.strerror or error}; it is left as it is now"
    return freed, ""


def kept(removal: Removal) -> str:
    """What stays of a run that goes, and why; or nothing."""
    if not removal.foreign:
        return ""
    what = counted(len(removal.foreign), "file")
    return f"{removal.run.path}: keeps {printable(listed(removal.foreign))}, {what} that charrnn has not made"


def _is_own(name: str) -> bool:
    return is_own(name) or is_partial(Path(name)) or name.startswith(f"{EVENTS}/events.out.tfevents.")


def _made_here(path: Path) -> bool:
    """Whether a directory holds the configuration of a run that charrnn has begun."""
    try:
        return (_read(path / CONFIG, MOST_CONFIG) or b"").startswith(WRITTEN_BY.encode())
    except _Damaged:
        return False
