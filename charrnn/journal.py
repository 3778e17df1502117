"""What a run has written of itself as it went: the keys of metrics.jsonl, and its lines read again. Without torch.

A file that was cut off, mended by hand or written by something else is read as far as it goes: a line that is no report is left out and
counted, a figure that is null or no number is a gap.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from charrnn.errors import UserError, counted, did_you_mean, printable
from charrnn.model_file import RUNS, elsewhere
from charrnn.paths import user_path
from charrnn.ranking import less_is_better
from charrnn.run_files import METRICS, SAMPLES

MAX_JOURNAL = 1 << 30  # bytes; far more than any run writes
MAX_SAMPLES = 32 << 20  # bytes; of more the middle is left out
AXES = {"steps": "step", "chars": "chars", "minutes": "seconds"}  # what a curve can run along, and its key
PLACES = ("step", "epoch", "seconds", "chars")  # where in a run a line was written
_HEADING = re.compile(r"=== (step [0-9]+.*) ===")


def cost_key(names: Iterable[str], prefix: str = "") -> str | None:
    """Of the keys of a Tally that of a counted cost: in bits where it is there, else in nats; None where none is."""
    return min((key for key in names if key.startswith((f"{prefix}bits_per_", f"{prefix}nats_per_"))), default=None)


def cost(metrics: Mapping[str, float], prefix: str = "") -> tuple[float, str]:
    """What one of the counted costs, of the keys of a Tally: in bits where they are there, else in nats. And in what: `bits/char`."""
    key = cost_key(metrics, prefix)
    assert key is not None
    return metrics[key], unit_of(key.removeprefix(prefix))


def unit_of(metric: str) -> str:
    """`bits_per_char` as a person reads it, `bits/char`; of another metric its name in words."""
    return metric.replace("_per_", "/").replace("_", " ")


def sayable(values: dict[str, Any]) -> dict[str, Any]:
    """With null for what is not finite, which JSON cannot say."""
    return {key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in values.items()}


class Limits(NamedTuple):
    """Where a run ends: at the first of those that are set."""

    max_steps: int | None = None
    max_epochs: float | None = None
    max_minutes: float | None = None

    def progress(self, step: float, epochs: float, seconds: float) -> float:
        """The largest share used up of the limits that are set; 1 and more is the end."""
        used = [
            step / self.max_steps if self.max_steps else 0.0,
            epochs / self.max_epochs if self.max_epochs else 0.0,
            seconds / (60 * self.max_minutes) if self.max_minutes else 0.0,
        ]
        return max(used)


def seconds_to_go(progress: float, seconds: float, begun_at: float = 0.0) -> float | None:
    """What is left at the pace of so many seconds, in which the progress has come from `begun_at` to where it is; None: not to be known."""
    made = progress - begun_at
    return seconds * max(0.0, 1 - progress) / made if made > 0 and seconds > 0 else None


@dataclass(frozen=True)
class Journal:
    """The lines of metrics.jsonl that are reports, in their order, with numbers only: null and what is no number is NaN."""

    path: Path
    lines: list[dict[str, float]]
    foreign: int  # lines that are no reports

    @classmethod
    def of(cls, run: Path) -> Journal:
        """Of a run directory; one without such a file has no lines. Raises UserError where it cannot be read."""
        path = run / METRICS
        try:
            if path.exists() and path.stat().st_size > MAX_JOURNAL:
                fact = f"{counted(path.stat().st_size, 'byte')} long; expected at most {MAX_JOURNAL:,}"
                raise UserError(f"{printable(str(path))}: {fact}; name a run of charrnn train")
            content = path.read_bytes() if path.exists() else b""
        except OSError as error:
            raise UserError(f"{printable(str(path))}: cannot be read: {error.strerror or error}; name a run that you may read") from None
        return cls(path, *parse(content))

    @property
    def run(self) -> Path:
        return self.path.parent

    def metrics(self, validation: bool) -> list[str]:
        """The names, without `val_`, of what some line has a number for, those of the validation split or those of training."""
        found: dict[str, None] = {}
        for line in self.lines:
            for key, value in line.items():
                if key.startswith("val_") == validation and key not in PLACES and math.isfinite(value):
                    found[key.removeprefix("val_")] = None
        return list(found)

    def default_metric(self) -> str | None:
        """What a curve of this run shows where nobody says: the cost, or else the first thing it was measured by."""
        names = [*self.metrics(True), *(name for name in self.metrics(False) if name not in ("grad_norm", "learning_rate"))]
        return cost_key(names) or next(iter(names), None)

    def curve(self, key: str, along: str = "step") -> Curve:
        """The values of one key (`bits_per_char`, `val_bits_per_char`) along another, in their order; NaN where there is no number."""
        points = [(line[along], line[key]) for line in self.lines if key in line and math.isfinite(line.get(along, math.nan))]
        return Curve([x for x, _ in points], [y for _, y in points])

    def best(self, metric: str) -> dict[str, float] | None:
        """The line with the best validation value of a metric, the first of several; None where there is none."""
        key = f"val_{metric}"
        measured = [line for line in self.lines if math.isfinite(line.get(key, math.nan))]
        return min(measured, key=lambda line: line[key] if less_is_better(metric) else -line[key], default=None)

    def last(self, key: str) -> dict[str, float] | None:
        """The last line that has a number for a key."""
        return next((line for line in reversed(self.lines) if math.isfinite(line.get(key, math.nan))), None)

    def at_end(self) -> dict[str, float]:
        """How far the run has come: the last number of each of PLACES."""
        return {key: line[key] for key in PLACES if (line := self.last(key)) is not None}


class Curve(NamedTuple):
    """Values along something. Both as long; a value that is NaN is a gap."""

    x: list[float]
    y: list[float]

    def finite(self) -> Curve:
        points = [(x, y) for x, y in zip(self.x, self.y) if math.isfinite(y)]
        return Curve([x for x, _ in points], [y for _, y in points])

    def thinned(self, columns: int) -> Curve:
        """The same to the eye at a width of so many columns: of the points of each its first, lowest, highest and last, and one gap.

        So no peak is lost, and what is drawn are points that are there.
        """
        if len(self.x) <= 4 * columns:
            return self
        low, high = min(self.x), max(self.x)
        width = (high - low) / columns or 1.0
        kept: list[int] = []
        column: list[int] = []
        for i in [*range(len(self.x)), -1]:
            if column and (i < 0 or int((self.x[i] - low) / width) != int((self.x[column[0]] - low) / width)):
                kept += self._extremes(column)
                column = []
            column.append(i)
        return Curve([self.x[i] for i in kept], [self.y[i] for i in kept])

    def _extremes(self, column: list[int]) -> list[int]:
        there = [i for i in column if math.isfinite(self.y[i])]
        gap = next((i for i in column if not math.isfinite(self.y[i])), None)
        wanted = {column[0], column[-1]} | ({gap} if gap is not None else set())
        if there:
            wanted |= {min(there, key=self.y.__getitem__), max(there, key=self.y.__getitem__)}
        return sorted(wanted)


def parse(content: bytes) -> tuple[list[dict[str, float]], int]:
    """The reports in the bytes of a metrics.jsonl, and how many lines are none.

    A run that went back writes its steps again: of two lines of one kind the later one counts, and what stood after it before is gone.
    """
    lines: list[dict[str, float]] = []  # their steps never fall
    foreign = 0
    for raw in content.split(b"\n"):
        if not raw.strip():
            continue
        line = _report(raw)
        if line is None:
            foreign += 1
            continue
        while lines and lines[-1]["step"] > line["step"]:
            lines.pop()
        for i in (-1, -2):  # at one step there is a line of training, and one of validation
            if len(lines) >= -i and lines[i]["step"] == line["step"] and _validates(lines[i]) == _validates(line):
                del lines[i]
                break
        lines.append(line)
    return lines, foreign


def _validates(line: dict[str, float]) -> bool:
    return any(key.startswith("val_") for key in line)


def _report(raw: bytes) -> dict[str, float] | None:
    """A line as numbers, or None where it is none of a run's: no JSON object, or without a step."""
    try:
        found = json.loads(raw.decode("utf-8", errors="replace"))
    except (ValueError, RecursionError):  # half a line, a number of thousands of digits, brackets without end
        return None
    if not isinstance(found, dict):
        return None
    line = {key: figure(value) for key, value in found.items() if value is None or isinstance(value, (int, float))}
    return line if math.isfinite(line.get("step", math.nan)) and line["step"] >= 0 else None


def figure(value: object) -> float:
    """A finite number as it is; NaN for anything else that JSON or YAML can hold."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return math.nan
    try:
        return float(value) if math.isfinite(value) else math.nan
    except OverflowError:
        return math.nan


class Written(NamedTuple):
    """What a model wrote while it learned."""

    heading: str  # `step 1500, 1.5600 nats per character`
    text: str


def samples_of(run: Path, most: int = MAX_SAMPLES) -> list[Written]:
    """What samples.txt of a run holds, in its order; of a file longer than `most` bytes the beginning and the end.

    A sample may hold a line that looks like a heading: it is then taken for one. Raises UserError where the file cannot be read.
    """
    path = run / SAMPLES
    try:
        if not path.exists():
            return []
        size = path.stat().st_size
        with open(path, "rb") as file:
            content = file.read(most if size <= most else most // 2)
            if size > most:
                file.seek(size - most // 2)
                content += b"\n" + file.read(most // 2).partition(b"\n")[2]
    except OSError as error:
        raise UserError(f"{printable(str(path))}: cannot be read: {error.strerror or error}; name a run that you may read") from None
    found: list[tuple[str, list[str]]] = []
    for line in content.decode("utf-8", errors="replace").split("\n"):
        if heading := _HEADING.fullmatch(line):
            found.append((heading[1], []))
        elif found:
            found[-1][1].append(line)
    return [Written(heading, "\n".join(lines).strip("\n")) for heading, lines in found]


def find_run(name: str | None) -> Path:
    """The run directory that a person named: it, its metrics.jsonl or a model file in it; None: the newest run under ./runs.

    Raises UserError where there is none, or where it has reported nothing of itself.
    """
    path = _newest() if name is None else user_path(name, "run")
    run = path.parent if path.is_file() else path
    if not run.exists():
        raise UserError(f"{printable(str(path))}: no such run{elsewhere(path, '.jsonl') or '; name a run directory'}")
    if not (run / METRICS).is_file():
        fact = f"{printable(str(run))}: the directory holds no {METRICS}"
        raise UserError(f"{fact}; expected a run directory; name a run that charrnn train has reported of")
    return run


def _newest() -> Path:
    try:
        found = [journal for run in RUNS.glob("*") if (journal := run / METRICS).is_file()]
        if found:
            return max(found, key=lambda journal: journal.stat().st_mtime).parent
    except OSError as error:
        raise UserError(f"{RUNS}: cannot be read: {error.strerror or error}; name a run that you may read") from None
    raise UserError(f"no run is named, and none under {RUNS.resolve()} has a {METRICS}; name a run directory or train one first")


def names_of(runs: Sequence[Path]) -> list[str]:
    """What to call each run beside the others: its directory's name, or with as many of those above as tell them apart."""
    resolved = [run.resolve() for run in runs]

    def named(depth: int) -> list[str]:
        return ["/".join(path.parts[-depth:]).lstrip("/") or str(path) for path in resolved]

    deepest = max((len(path.parts) for path in resolved), default=1)
    fitting: Callable[[int], bool] = lambda depth: len(set(named(depth))) == len(set(resolved))  # noqa: E731
    return [printable(name) for name in named(next(filter(fitting, range(1, deepest)), deepest))]


def common_metric(journals: Sequence[Journal], wanted: str | None) -> str:
    """The metric to compare runs by: the one that is wanted, with or without `val_`, or the cost that all of them have.

    Raises UserError where a run has none, or where they share none.
    """
    for journal in journals:
        if not journal.metrics(True) and not journal.metrics(False):
            fact = f"{printable(str(journal.path))}: holds no figures yet"
            also = f" ({counted(journal.foreign, 'line')} cannot be read)" if journal.foreign else ""
            raise UserError(f"{fact}{also}; expected the lines of a run; wait for its first report")
    known = [{*journal.metrics(True), *journal.metrics(False)} for journal in journals]
    if wanted is not None:
        wanted = wanted.removeprefix("val_")
        for journal, names in zip(journals, known):
            if wanted not in names:
                fact = f"--metric {printable(wanted)}: {printable(str(journal.run))} is not measured by that"
                raise UserError(f"{fact}; expected one of {', '.join(map(printable, sorted(names)))}{did_you_mean(wanted, names)}")
        return wanted
    first = journals[0].default_metric()
    shared = set.intersection(*known)
    if first in shared:
        return str(first)
    if chosen := cost_key(shared):
        return chosen
    lacks = next(journal for journal, names in zip(journals, known) if first not in names)
    fact = f"{printable(str(journals[0].run))} is measured by {first}, and {printable(str(lacks.run))} is not"
    others = sorted(shared - {"grad_norm", "learning_rate", "chars_per_second"})
    raise UserError(f"{fact}; name what both have with --metric: {', '.join(map(printable, others)) or 'there is nothing'}")
