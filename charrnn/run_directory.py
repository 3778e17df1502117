"""The directory of a run: what it may be started in, what is written there, and what is taken away again."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from charrnn import __version__
from charrnn.atomic import WriteError, write_atomically
from charrnn.config import Config, load_config
from charrnn.errors import UserError, short
from charrnn.journal import METRICS, SAMPLES, sayable
from charrnn.lock import locked

JOURNALS = (METRICS, SAMPLES)
CURVES = "curves.png"  # drawn at the end, where matplotlib is
FILES = ("config.yaml", "best.safetensors", "last.safetensors", "last.state.pt", *JOURNALS)
TEXTS = TEXT, TEXT_INDEX = "text.safetensors", "text.index.safetensors"  # there only with train.keep_text
OWN = (*FILES, *TEXTS, CURVES)
MODELS = ("best.safetensors", "last.safetensors")  # of a run, beside which lies all that is its own
LOCK = ".lock"  # there while a job is at work

# What a resumed run may not have changed: another text or model is another run, and the optimizer's state and the place
# in the text mean nothing under another optimizer or other windows.
FIXED = ("task", "seed", "data", "model", "train.optimizer", "train.batch_size", "train.tbptt_window", "train.best_by")
# The text itself is compared by its contents, wherever it lies now.
FREE = ("data.path", "data.val_path", "data.test_path", "data.cache", "model.backend")


class RunDirectory:
    """The files of one run, by name."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config, self.state = path / "config.yaml", path / "last.state.pt"
        self.best, self.last = path / "best.safetensors", path / "last.safetensors"
        self.text = path / TEXT

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
        foreign = [p.name for p in self.path.iterdir() if not _is_partial(p) and p.name != LOCK] if self.path.exists() else []
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
        if model and not self.state.exists():
            raise UserError(
                f"{self.path}: cannot resume: it holds models and no {self.state.name}; "
                f"begin another run with --init-from {model}, or delete this one with --overwrite"
            )

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
            for file in list(self.path.iterdir()):
                unwanted = file.name in TEXTS and not config.train.keep_text
                if _is_partial(file) or unwanted or (file.name in OWN and not resume):
                    file.unlink()
        except OSError as error:
            raise self._unwritable(error) from None
        command = f"charrnn train --config {self.config} --resume"
        write_atomically(self.config, f"# Written by charrnn {__version__}. To go on with this run: {command}\n{config.to_yaml()}".encode())

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


def refuse_changes(before: Config, now: Config, place: str) -> None:
    """Raises UserError naming the first setting that a resumed run may not change."""
    old, new = _flat(before.model_dump(mode="json")), _flat(now.model_dump(mode="json"))
    for key in sorted(old.keys() | new.keys()):
        fixed = any(key == name or key.startswith(name + ".") for name in FIXED)
        if fixed and key not in FREE and old.get(key) != new.get(key):
            raise UserError(
                f"{place}: cannot resume: {key} was {short(old.get(key))} and is now {short(new.get(key))}; "
                f"set it back, or start another run with --init-from {place}"
            )


def _flat(values: dict[str, Any], before: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{before}{key}.") if isinstance(value, dict) else {before + key: value}
    return flat


def _remove_empty(paths: list[Path]) -> None:
    for path in paths:
        with contextlib.suppress(OSError):
            path.rmdir()


def _is_partial(path: Path) -> bool:
    """What write_atomically leaves behind when it is killed."""
    return path.name.endswith(".partial") and any(path.name.startswith(f".{name}.") for name in OWN)
