"""The directory of a run: what it may be started in, what is written there, and what is taken away again."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from charrnn import __version__
from charrnn.atomic import WriteError, copy_atomically, write_atomically
from charrnn.checkpoint import save_state
from charrnn.config import Config, flat, load_config
from charrnn.errors import UserError, short
from charrnn.journal import sayable
from charrnn.lock import locked
from charrnn.run_files import EVENTS, HEARTBEAT, JOURNALS, LOCK, METRICS, REFUSED, SAMPLES, STEP, TEXT, TEXTS, is_own, is_partial

# What a resumed run may not have changed: another text or model is another run, and the optimizer's state and the place
# in the text mean nothing under another optimizer or other windows.
FIXED = ("task", "seed", "data", "model", "train.optimizer", "train.batch_size", "train.tbptt_window", "train.best_by")
# The text itself is compared by its contents, wherever it lies now.
FREE = ("data.path", "data.val_path", "data.test_path", "data.cache", "model.backend")


class RunDirectory:
    """The files of one run, by name."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config, self.state, self.previous = path / "config.yaml", path / "last.state.pt", path / "previous.state.pt"
        self.best, self.last = path / "best.safetensors", path / "last.safetensors"
        self.text, self.heartbeat = path / TEXT, path / HEARTBEAT

    def refuse(self, config: Config, *, resume: bool, overwrite: bool) -> None:
        """Raises UserError where that run may not be started here. Changes nothing."""
        if resume and overwrite:
            raise UserError("--resume and --overwrite exclude each other; resume continues the run, overwrite deletes it")
        try:
            self._refuse(config, resume, overwrite)
        except OSError as error:
            raise UserError(f"{self.path}: cannot be read: {error.strerror or error}; name another directory in `run`") from None

    def _refuse(self, config: Config, resume: bool, overwrite: bool) -> None:
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"{self.path}: is a file; name a directory in `run`")
        if self.config.exists():
            if not (resume or overwrite):
                remedy = "continue it with --resume, delete it with --overwrite, or name another directory in `run`"
                raise UserError(f"{self.path}: holds a run already; {remedy}")
            if resume:
                refuse_changes(load_config(self.config), config, str(self.path))
                self._refuse_to_lose_models()
            return
        foreign = [p.name for p in self.path.iterdir() if not is_partial(p) and p.name != LOCK] if self.path.exists() else []
        if foreign:
            raise UserError(f"{self.path}: is not a run and not empty (it holds {foreign[0]!r}); name another directory in `run`")

    def settled(self, config: Config) -> Config:
        """With what the run settled at its beginning, where `config` says nothing of it: the characters it began with."""
        wanted = config.data.vocabulary
        if not self.config.exists() or wanted.include or wanted.end:
            return config
        begun = load_config(self.config).data.vocabulary
        vocabulary = wanted.model_copy(update={"include": begun.include, "end": begun.end})
        return config.model_copy(update={"data": config.data.model_copy(update={"vocabulary": vocabulary})})

    def _refuse_to_lose_models(self) -> None:
        # Without models nothing was lost but some steps, and a job that is started again with --resume begins anew.
        model = next((path for path in (self.last, self.best) if path.exists()), None)
        if model and not self.has_state():
            raise UserError(
                f"{self.path}: cannot resume: it holds models and no {self.state.name}; "
                f"begin another run with --init-from {model}, or delete this one with --overwrite"
            )

    def has_state(self) -> bool:
        return self.state.exists() or self.previous.exists()

    def write(self, state: dict[str, Any], write_model: Callable[[Path], None], step: int, keep: int) -> None:
        """Write the state, and have `write_model` make the last model, which is one of the `keep` latest too.

        With 0 of them none is made, nor deleted. A crash at any moment leaves a whole state, and that alone is enough. Raises WriteError.
        """
        kept = self.path / f"step-{step:08}.safetensors"
        if keep:
            write_model(kept)  # before the state: a run that goes on from that does not come by this step again
        self.write_state(state)
        if not keep:
            write_model(self.last)
            return
        copy_atomically(kept, self.last)
        # What was written of steps to come, before the run went back, stays until they have come.
        known = sorted((int(match[1]), file) for file in self.path.iterdir() if (match := STEP.fullmatch(file.name)))
        try:
            for _, file in [pair for pair in known if pair[0] <= step][:-keep]:
                file.unlink()
        except OSError as error:
            raise self._unwritable(error) from None

    def write_state(self, state: dict[str, Any]) -> None:
        """Write the state, and keep the one before it: at any moment one of them is whole. Raises WriteError."""
        save_state(self.state, state, before=self.previous)

    def put_state_aside(self) -> None:
        """The last state, which was refused, is kept under another name: it must never take the place of the one before it.

        Raises WriteError.
        """
        try:
            if self.state.exists():
                os.replace(self.state, self.path / REFUSED)
        except OSError as error:
            raise self._unwritable(error) from None

    @contextlib.contextmanager
    def held(self) -> Iterator[str]:
        """Make the directory, and keep other jobs out of it. A directory that stays empty is taken away again.

        Yields what stands in the way of keeping them out, or nothing. Raises UserError naming a job that is there, and WriteError.
        """
        made: list[Path] = []
        with contextlib.ExitStack() as stack:
            try:
                made += [path for path in (self.path, *self.path.parents) if not path.exists()]
                stack.callback(_remove_empty, made)
                self.path.mkdir(parents=True, exist_ok=True)
                hindrance = stack.enter_context(locked(self.path / LOCK))
            except OSError as error:
                raise self._unwritable(error) from None
            yield hindrance

    def _unwritable(self, error: OSError) -> WriteError:
        return WriteError(f"{self.path}: cannot be written: {error.strerror or error}; name another directory in `run`")

    def make(self, config: Config, *, resume: bool) -> None:
        """Make the directory ready. What a run before this one left is taken away, unless it is resumed. Raises WriteError."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self.sweep()
            for file in list(self.path.iterdir()):
                unwanted = file.name in TEXTS and not config.train.keep_text
                if unwanted or (is_own(file.name) and not resume):
                    file.unlink()
            if not resume:
                for file in (self.path / EVENTS).glob("events.out.tfevents.*"):
                    file.unlink()
                _remove_empty([self.path / EVENTS])
        except OSError as error:
            raise self._unwritable(error) from None
        command = f"charrnn train --config {self.config} --resume"
        write_atomically(self.config, f"# Written by charrnn {__version__}. To go on with this run: {command}\n{config.to_yaml()}".encode())

    def sweep(self) -> None:
        """Take away what a killed job was in the middle of writing. Raises WriteError."""
        try:
            for file in list(self.path.iterdir()):
                if is_partial(file):
                    file.unlink()
        except OSError as error:
            raise self._unwritable(error) from None

    def append_metrics(self, values: dict[str, Any]) -> None:
        """One line of metrics.jsonl."""
        self._append(METRICS, json.dumps(sayable(values)) + "\n")

    def append_sample(self, heading: str, text: str) -> None:
        self._append(SAMPLES, f"=== {heading} ===\n{text}\n\n")

    def _append(self, name: str, text: str) -> None:
        path = self.path / name
        size = path.stat().st_size if path.exists() else 0
        try:
            with open(path, "a", encoding="utf-8", errors="replace", newline="\n") as file:
                file.write(text)
        except OSError as error:
            if path.exists():
                os.truncate(path, size)  # no half line
            raise WriteError(f"{path}: cannot be written: {error.strerror or error}; free some space") from None

    def journal_sizes(self) -> dict[str, int]:
        return {name: (self.path / name).stat().st_size if (self.path / name).exists() else 0 for name in JOURNALS}

    def cut_journals(self, sizes: dict[str, int]) -> None:
        """Take away what was reported after a state that the run goes back to, so that no step stands there twice. Raises WriteError."""
        for name in JOURNALS:
            path = self.path / name
            try:
                if path.exists() and path.stat().st_size > sizes.get(name, 0):
                    os.truncate(path, sizes.get(name, 0))
            except OSError as error:
                fact = f"{path}: cannot be cut back to the step that is gone back to: {error.strerror or error}"
                raise WriteError(f"{fact}; make it writable, or start again with --overwrite") from None


def changes(before: Config, now: Config) -> list[str]:
    """What a resumed run does otherwise than before, of that which may be changed: `train.max_steps was 20 and is now 30`."""
    return [told for key, told in _differing(before, now) if key not in ("run", *FREE)]


def refuse_changes(before: Config, now: Config, place: str) -> None:
    """Raises UserError naming the first setting that a resumed run may not change."""
    for key, told in _differing(before, now):
        if key not in FREE and any(key == name or key.startswith(name + ".") for name in FIXED):
            raise UserError(f"{place}: cannot resume: {told}; set it back, or start another run with --init-from {place}")


def _differing(before: Config, now: Config) -> Iterator[tuple[str, str]]:
    """Each setting that is not as it was, and what there is to say of it."""
    old, new = flat(before.model_dump(mode="json")), flat(now.model_dump(mode="json"))
    for key in sorted(old.keys() | new.keys()):
        if old.get(key) != new.get(key):
            yield key, f"{key} was {short(old.get(key))} and is now {short(new.get(key))}"


def _remove_empty(paths: list[Path]) -> None:
    for path in paths:
        with contextlib.suppress(OSError):
            path.rmdir()
