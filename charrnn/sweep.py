"""A sweep: a YAML file that names settings and their values, and the trials that it comes to. Without torch.

A grid has a trial for each combination of values; a random search draws each setting of each trial by itself from the seed, so that a
setting that is added changes nothing of the others.
"""

from __future__ import annotations

import itertools
import json
import math
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from charrnn import __version__
from charrnn.atomic import WriteError
from charrnn.claims import create
from charrnn.config import Config, Given, as_yaml, build_config, flat, key_of, keys_of, read_settings, setting_of
from charrnn.errors import ConfigError, UserError, did_you_mean, short
from charrnn.paths import user_path
from charrnn.plain_yaml import parse_yaml
from charrnn.runs import RECORDS

PLAN = "sweep.yaml"  # in the folder of a sweep
KEYS = ("run", "grid", "random")
DISTRIBUTIONS = ("choice", "uniform", "log_uniform", "int_uniform")
MOST_TRIALS = 10_000
LONGEST_NAME, MOST_BYTES = 120, 200  # characters, and what they are on the disk; a file system takes 255 bytes, and claims add some
DIGITS = 4  # of a number that is drawn: more would mean nothing and make the names long
DEEPEST = 6  # lists in lists
DRAWS = 1000  # for a trial that is not one of those before it
# What may differ between the machines that share a sweep.
FREE = ("run", "device", "data.path", "data.val_path", "data.test_path", "data.cache", "model.backend", "train.threads")


@dataclass(frozen=True)
class Trial:
    name: str  # of its directory in the folder
    settings: dict[str, Any]  # by key, those that the sweep sets
    config: Config

    @property
    def path(self) -> Path:
        return Path(self.config.run)


@dataclass(frozen=True)
class Sweep:
    folder: Path
    trials: tuple[Trial, ...]

    @property
    def records(self) -> Path:
        return self.folder / RECORDS

    def plan(self) -> str:
        """What is written once into the folder: the trials, and the whole configuration of the first."""
        head = f"# Written by charrnn {__version__}: the trials of this sweep, and the configuration that they change.\n"
        values = {"trials": {trial.name: trial.settings for trial in self.trials}, "config": self.trials[0].config.model_dump(mode="json")}
        return head + as_yaml(values)


def load_sweep(path: Path, base: Path, overrides: Sequence[str] = ()) -> Sweep:
    """The trials of a sweep over the configuration `base` with its `--set`, every one of them validated.

    Raises ConfigError, one line, naming file and key of the first mistake.
    """
    said = _read_sweep(path)
    folder = said.get("run")
    if not isinstance(folder, str) or not folder.strip() or "\0" in folder:
        fact = "is missing" if "run" not in said else f"{short(folder)} is not valid"
        raise ConfigError(f"{path}: run: {fact}; expected the folder that the trials share, such as run: runs/{path.stem}")
    there = [key for key in ("grid", "random") if key in said]
    if len(there) != 1:
        fact = "has both grid and random" if there else "has neither grid nor random"
        raise ConfigError(f"{path}: {fact}; expected one of them, with the settings that are tried")
    place = f"{path}: {there[0]}"
    points, swept = (_grid if there == ["grid"] else _random)(said[there[0]], place)
    settings = read_settings(base)
    for override in overrides:
        setting = setting_of(override)
        if setting.key == "run":
            raise ConfigError(f"{setting.place}: names the directory of one run; the folder of a sweep is `run` in {path}")
        if setting.key in swept:
            raise ConfigError(f"{setting.place}: {path} tries values of {setting.key}; take it out of one of them")
    labels = _labels(swept)
    width = max(3, len(str(len(points))))
    trials = []
    for number, point in enumerate(points, start=1):
        said_of = "-".join([f"{number:0{width}d}", *(f"{labels[key]}={_shown(value)}" for key, value in point.items())])
        name = said_of[:LONGEST_NAME].encode()[:MOST_BYTES].decode(errors="ignore")
        run = str(Path(folder) / name)
        given = [Given(key, value, place) for key, value in point.items()]
        config = build_config(settings, str(base), [*overrides, *given, Given("run", run, f"{path}: run")])
        trials.append(Trial(name, point, config))
    return Sweep(user_path(folder, f"{path}: run"), tuple(trials))


def _read_sweep(path: Path) -> dict[str, Any]:
    said = read_settings(path)
    for key in said:
        if key not in KEYS:
            hint = did_you_mean(str(key), KEYS) or f"; known are {', '.join(KEYS)}"
            if key in ("data", "model", "train", "task"):
                hint = "; settings that all trials share belong in the file of --config"
            raise ConfigError(f"{path}: unknown key {short(key)}{hint}")
    return said


Points = tuple[list[dict[str, Any]], list[str]]  # of each trial what it sets; the keys of all


def _grid(grid: object, place: str) -> Points:
    values = _settings(grid, place)
    for key, (one, where) in values.items():
        if not isinstance(one, list) or not one:
            raise ConfigError(f"{where}: {short(one)} is not valid; expected a list of the values to try, such as [{_example(key)}]")
        if copies := [value for i, value in enumerate(one) if value in one[:i]]:
            raise ConfigError(f"{where}: {short(copies[0])} stands there twice; keep one of them")
    count = math.prod(len(one) for one, _ in values.values())
    if count > MOST_TRIALS:
        raise ConfigError(f"{place}: comes to {count:,} trials; expected at most {MOST_TRIALS:,}, so try fewer values or use `random`")
    points = [dict(zip(values, point)) for point in itertools.product(*(one for one, _ in values.values()))]
    return points, list(values)


def _random(search: object, place: str) -> Points:
    if not isinstance(search, dict):
        raise ConfigError(f"{place}: {short(search)} is not valid; expected a section with trials, seed and space")
    known = ("trials", "seed", "space")
    for key in search:
        if key not in known:
            raise ConfigError(f"{place}: unknown key {short(key)}{did_you_mean(str(key), known) or '; known are ' + ', '.join(known)}")
    trials = _whole(search.get("trials"), f"{place}: trials", 1, MOST_TRIALS)
    seed = _whole(search.get("seed", 1), f"{place}: seed", 0, 1 << 63)
    values = _settings(search.get("space"), f"{place}: space")
    draws = {key: _distribution(one, where) for key, (one, where) in values.items()}
    points: list[dict[str, Any]] = []
    seen: set[str] = set()
    for number in range(trials):
        for attempt in range(DRAWS):
            point = {key: draw(random.Random(f"{seed} {number} {attempt} {key}").random()) for key, draw in draws.items()}
            if (said := json.dumps(point, sort_keys=True)) not in seen:
                break
        else:
            raise ConfigError(
                f"{place}: trials: {trials} are wanted, and the space seems to have only {len(points)} different ones; "
                "lower trials, widen the space, or try all of them with `grid`"
            )
        seen.add(said)
        points.append(point)
    return points, list(values)


def _settings(section: object, place: str) -> dict[str, tuple[Any, str]]:
    """By key of the configuration, what is said of it, and where."""
    if not isinstance(section, dict) or not section:
        raise ConfigError(f"{place}: {short(section)} is not valid; expected settings such as train.learning_rate, each with what to try")
    found: dict[str, tuple[Any, str]] = {}
    for name, value in section.items():
        where = f"{place}: {name}"
        key = key_of(name, where) if isinstance(name, str) else ""
        if not key:
            raise ConfigError(f"{place}: {short(name)} is no setting; expected one such as train.learning_rate")
        if inner := keys_of(key):
            raise ConfigError(f"{where}: is a section; expected its keys by their whole names, such as {inner[0]}")
        if key == "run":
            raise ConfigError(f"{where}: each trial has a directory of its own already; take it out")
        if key in found:
            raise ConfigError(f"{where}: {key} stands there twice; keep one of them")
        if not _is_plain(value):
            raise ConfigError(f"{where}: {short(value)} is not valid; expected numbers, text, true, false, null, or lists of them")
        found[key] = value, where
    return found


def _is_plain(value: object, depth: int = 0) -> bool:
    """Whether JSON can say it; YAML also has dates, and lists that hold themselves."""
    if isinstance(value, list):
        return depth < DEEPEST and all(_is_plain(inner, depth + 1) for inner in value)
    if isinstance(value, dict):
        return depth < DEEPEST and all(isinstance(key, str) and _is_plain(inner, depth + 1) for key, inner in value.items())
    return value is None or isinstance(value, str | int | float)


def _distribution(said: object, place: str) -> Callable[[float], Any]:
    """From a number of [0, 1) to a value."""
    kinds = ", ".join(DISTRIBUTIONS)
    if not isinstance(said, dict) or len(said) != 1:
        raise ConfigError(f"{place}: {short(said)} is not valid; expected one of {kinds} with its values, such as {{choice: [1, 2]}}")
    kind, values = next(iter(said.items()))
    if kind not in DISTRIBUTIONS:
        raise ConfigError(f"{place}: unknown distribution {short(kind)}{did_you_mean(str(kind), DISTRIBUTIONS) or f'; known are {kinds}'}")
    place = f"{place}: {kind}"
    if kind == "choice":
        if not isinstance(values, list) or not values:
            raise ConfigError(f"{place}: {short(values)} is not valid; expected a list of the values to try")
        return lambda share: values[int(share * len(values))]
    whole = kind == "int_uniform"
    numbers = int if whole else (int, float)
    right = isinstance(values, list) and len(values) == 2 and all(isinstance(v, numbers) and not isinstance(v, bool) for v in values)
    if not right or not all(abs(v) < 1e18 for v in values) or not values[0] < values[1]:
        what = "whole numbers" if whole else "numbers"
        raise ConfigError(f"{place}: {short(values)} is not valid; expected two {what}, the lower one first")
    low, high = values
    if whole:
        return lambda share: low + int(share * (high - low + 1))
    if kind == "log_uniform" and low <= 0:
        raise ConfigError(f"{place}: {short(values)} is not valid; expected two numbers above 0, the lower one first")

    def draw(share: float) -> float:
        drawn = math.exp(math.log(low) + share * math.log(high / low)) if kind == "log_uniform" else low + share * (high - low)
        return float(min(max(float(f"{drawn:.{DIGITS}g}"), low), high))

    return draw


def _whole(value: object, place: str, least: int, most: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise ConfigError(f"{place}: {short(value)} is not valid; expected a whole number from {least:,} to {most:,}")
    return value


def _example(key: str) -> str:
    return "3e-3, 1e-3" if key.endswith("rate") else "128, 256"


def _labels(keys: list[str]) -> dict[str, str]:
    """Each key by its last part, or by more where two end alike."""
    labels = {}
    for key in keys:
        parts = key.split(".")
        others = [other.split(".") for other in keys if other != key]
        length = next(n for n in range(1, len(parts) + 1) if n == len(parts) or not any(other[-n:] == parts[-n:] for other in others))
        labels[key] = ".".join(parts[-length:])
    return labels


def _shown(value: object) -> str:
    """A value in the name of a directory."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return re.sub(r"[^\w.+-]+", "_", text).strip("_") or "_"


def settle(sweep: Sweep, place: Path) -> None:
    """Write the plan of a sweep into its folder, once. Raises UserError where the folder holds something else, and WriteError."""
    folder, file = sweep.folder, sweep.folder / PLAN
    try:
        if not file.exists():
            foreign = [p.name for p in folder.iterdir() if not p.name.endswith(".partial")] if folder.exists() else []
            if foreign and not file.exists():  # the plan may have come meanwhile
                raise UserError(f"{folder}: is no sweep and not empty (it holds {foreign[0]!r}); name another folder in `run` of {place}")
            folder.mkdir(parents=True, exist_ok=True)
            create(file, sweep.plan().encode())
        _compare(sweep, place, file.read_bytes().decode(errors="replace"))
        sweep.records.mkdir(exist_ok=True)
    except OSError as error:
        raise WriteError(f"{folder}: cannot be written: {error.strerror or error}; name another folder in `run` of {place}") from None


def _compare(sweep: Sweep, place: Path, written: str) -> None:
    """Raises UserError where the plan in the folder is not that of this sweep."""
    file, remedy = sweep.folder / PLAN, f"set it back, or name another folder in `run` of {place}"
    try:
        plan = parse_yaml(written)
        trials, config = dict(plan["trials"]), build_config(plan["config"], str(file))
    except (ConfigError, LookupError, TypeError, ValueError):
        raise UserError(f"{file}: is not the plan of a sweep, or damaged; name another folder in `run` of {place}") from None
    ours = {trial.name: trial.settings for trial in sweep.trials}
    if trials != ours:
        name = next((name for name in ours if trials.get(name) != ours[name]), None)
        fact = f"without {name}, which this one has" if name else f"of {len(trials):,} trials, and this one has {len(ours):,}"
        raise UserError(f"{sweep.folder}: holds another sweep, {fact}; {remedy}")
    before, now = flat(config.model_dump(mode="json")), flat(sweep.trials[0].config.model_dump(mode="json"))
    for key in sorted(before.keys() | now.keys()):
        if key not in FREE and before.get(key) != now.get(key):
            fact = f"{key} was {short(before.get(key))} and is now {short(now.get(key))}"
            raise UserError(f"{sweep.folder}: holds another sweep: {fact}; {remedy}")
