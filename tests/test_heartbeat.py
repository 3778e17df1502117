"""Whoever looks on from elsewhere learns how a run is, and how it ended."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from charrnn import evaluation, heartbeat, training
from charrnn.errors import UserError
from charrnn.heartbeat import Heartbeat
from charrnn.training import StepReport, train
from tests import test_training
from tests.test_training import Listener, Settings, inject

settings, text = test_training.settings, test_training.text  # a small run, and what it reads

KEYS = {"time", "host", "pid", "step", "progress", "state", "why"}


def read(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "heartbeat.json").read_text())
    assert found.keys() == KEYS
    assert (found["host"], found["pid"]) == (platform.node(), os.getpid()) and abs(time.time() - found["time"]) < 60
    return found


def ended(run: Path) -> tuple[str, int, float, str]:
    found = read(run)
    return found["state"], found["step"], found["progress"], found["why"]


def test_it_beats_seldom_however_the_clock_is_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = {"monotonic": 100.0, "time": 1_000_000.0}
    monkeypatch.setattr("charrnn.heartbeat.time.monotonic", lambda: clock["monotonic"])
    monkeypatch.setattr("charrnn.heartbeat.time.time", lambda: clock["time"])
    heart, path = Heartbeat(tmp_path / "heartbeat.json"), tmp_path / "heartbeat.json"

    def beats(step: int) -> bool:
        heart.beat(step, step / 10)
        return bool(json.loads(path.read_text())["step"] == step)

    assert beats(1) and not beats(2)
    clock["time"] -= 3600
    assert not beats(3)
    clock["monotonic"] += heartbeat.SECONDS
    assert beats(4) and json.loads(path.read_text())["time"] == 1_000_000 - 3600
    heart.end(5, 1.5, "finished")
    assert json.loads(path.read_text())["progress"] == 1.0


def test_it_tells_how_a_run_ended(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"

    def at_10(action: Callable[[], None]) -> Listener:
        def at(report: StepReport) -> None:
            if report.step == 10:
                assert ended(run)[0] == "running"
                action()

        return Listener(at)

    def interrupt() -> None:
        raise KeyboardInterrupt

    def fail() -> None:
        raise BrokenPipeError(32, "Broken pipe")

    train(settings(), reporter=at_10(interrupt))
    assert ended(run) == ("interrupted", 10, 0.5, "")
    with pytest.raises(BrokenPipeError):
        train(settings(), overwrite=True, reporter=at_10(fail))
    assert ended(run) == ("failed", 10, 0.5, "BrokenPipeError: [Errno 32] Broken pipe")
    train(settings(), resume=True, reporter=Listener())
    assert ended(run) == ("finished", 20, 1.0, "")
    before = (run / "heartbeat.json").read_bytes()
    assert train(settings(), resume=True, reporter=Listener()).status == "already_finished"
    assert (run / "heartbeat.json").read_bytes() == before
    train(settings(patience=1, learning_rate=1e-9, min_learning_rate=0.0), overwrite=True, reporter=Listener())
    assert ended(run)[0] in ("early_stopped", "finished")
    with monkeypatch.context() as patched:
        inject(patched, lambda call: call >= 8)
        train(settings(), overwrite=True, reporter=Listener())
    assert ended(run)[0::3] == ("diverged", "the loss kept running away")


def test_an_error_of_the_users_is_told_as_the_command_line_tells_it(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise UserError("a.txt: gone; put it back")

    monkeypatch.setattr(training, "measure", refuse)
    with pytest.raises(UserError):
        train(settings(), reporter=Listener())
    assert ended(tmp_path / "run") == ("failed", 5, 0.25, "a.txt: gone; put it back")


def test_it_beats_in_a_long_evaluation(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Heartbeat, "__init__", lambda self, path: self.__dict__.update(path=path, _every=0.0, _last=0.0))
    beats: list[str] = []
    plain = Heartbeat.beat

    def beat(self: Heartbeat, step: int, progress: float) -> None:
        plain(self, step, progress)
        beats.append(read(tmp_path / "run")["state"])

    monkeypatch.setattr(Heartbeat, "beat", beat)
    counts: list[int] = []
    measure = evaluation.measure

    def measured(*args: Any, **options: Any) -> Any:
        before = len(beats)
        found = measure(*args, **options)
        counts.append(len(beats) - before)
        return found

    monkeypatch.setattr(training, "measure", measured)
    train(settings(max_steps=5), reporter=Listener())
    assert counts and min(counts) >= 1 and set(beats) == {"running"}


def test_one_that_cannot_be_written_is_a_warning(settings: Settings, tmp_path: Path) -> None:
    def block(report: StepReport) -> None:
        if report.step == 2:
            (tmp_path / "run/heartbeat.json").unlink()
            (tmp_path / "run/heartbeat.json").mkdir()

    listener = Listener(block)
    assert train(settings(), reporter=listener).status == "finished"
    (warning,) = listener.warnings
    assert warning.startswith(f"{tmp_path / 'run/heartbeat.json'}: cannot be written: Is a directory; ")
