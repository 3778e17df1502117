"""A sweep that several processes share: each trial is trained once, whatever becomes of them."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from charrnn import training
from charrnn.atomic import WriteError
from charrnn.checkpoint import load_state
from charrnn.claims import Claim, Claims
from charrnn.errors import UserError
from charrnn.exits import Exit
from charrnn.lock import locked
from charrnn.sweep import Sweep, Trial, load_sweep, settle
from charrnn.training import Outcome, StepReport
from charrnn.trials import LIVES, Worked, table_of, work

ROOT = Path(__file__).parent.parent
BASE = """
device: cpu
data: {path: text.txt, cache: cache}
model: {embedding_size: 4, hidden_size: 8}
train: {max_steps: 6, batch_size: 2, tbptt_window: 8, evaluate_every: 6, save_every: 1, log_every: 1, threads: 1}
"""
GRID = "run: runs/s\ngrid: {train.learning_rate: [1e-3, 3e-3], model.hidden_size: [6, 8]}"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("The quick brown fox jumps over the lazy dog.\n" * 60, encoding="utf-8")
    Path("base.yaml").write_text(BASE, encoding="utf-8")


class Quiet:
    """A Reporter that only counts."""

    def __init__(self) -> None:
        self.stopped_at: int | None = None
        self.steps = 0
        self._at = -2  # the step that was told last; each run begins with the one it starts from

    def note(self, text: str) -> None: ...
    def warn(self, text: str) -> None: ...
    def encoding(self, done: int, total: int) -> None: ...
    def step(self, report: StepReport) -> None: ...
    def evaluated(self, metrics: dict[str, float], sample: str, is_best: bool) -> None: ...
    def done(self, outcome: Outcome) -> None: ...

    def stepped(self, step: int, progress: float) -> None:
        self.steps += step == self._at + 1
        self._at = step
        if step == self.stopped_at:
            raise KeyboardInterrupt


def swept(text: str = GRID, *overrides: str) -> Sweep:
    Path("sweep.yaml").write_text(text, encoding="utf-8")
    sweep = load_sweep(Path("sweep.yaml"), Path("base.yaml"), overrides)
    settle(sweep, Path("sweep.yaml"))
    return sweep


def worked(sweep: Sweep, reporter: Quiet | None = None, **options: Any) -> Worked:
    @contextmanager
    def begin(trial: Trial) -> Iterator[Quiet]:
        yield reporter or Quiet()

    return work(sweep, begin, **options)


def journal(trial: Trial) -> list[int]:
    """The steps that were reported, in the order in which they stand there."""
    lines = [json.loads(line) for line in (trial.path / "metrics.jsonl").read_text().splitlines()]
    return [line["step"] for line in lines if "nats_per_char" in line]


def record(trial: Trial) -> dict[str, Any]:
    return dict(json.loads((trial.path.parent / ".sweep" / f"{trial.name}.json").read_text()))


def test_each_trial_is_trained_once_and_as_it_would_be_alone() -> None:
    sweep = swept()
    first, again = Quiet(), Quiet()
    assert set(worked(sweep, first).trials.values()) == {"finished"} and first.steps == 4 * 6
    assert worked(sweep, again) == Worked() and again.steps == 0
    assert all(journal(trial) == list(range(1, 7)) for trial in sweep.trials)
    one = sweep.trials[2].config
    training.train(one.model_copy(update={"run": "alone"}), reporter=Quiet())
    alone, among = load_file("alone/last.safetensors"), load_file(f"{one.run}/last.safetensors")
    assert all(torch.equal(alone[name], among[name]) for name in alone)
    rows = table_of(sweep)
    values = [found.best for _, found in rows if found and found.best is not None]
    assert len(values) == 4 and values == sorted(values)


def test_a_stopped_trial_goes_on_where_it_was_saved() -> None:
    sweep, stopped, goes_on = swept(), Quiet(), Quiet()
    stopped.stopped_at = 4
    assert worked(sweep, stopped).status == "interrupted"
    assert worked(sweep, goes_on).status == "done" and stopped.steps + goes_on.steps == 4 * 6
    assert all(journal(trial) == list(range(1, 7)) for trial in sweep.trials)


def test_a_failed_trial_is_noted_and_tried_again_only_where_that_is_asked() -> None:
    sweep = swept("run: runs/s\ngrid: {train.best_by: [nonsense, nats_per_char]}")
    bad, good = sweep.trials
    first = worked(sweep)
    assert first.failed == [bad.name] and first.trials[good.name] == "finished"
    assert record(bad)["state"] == "failed" and record(bad)["why"].startswith("train.best_by 'nonsense': the val split is not measured by")
    assert worked(sweep).trials == {}
    assert worked(sweep, retry_failed=True).trials == {bad.name: "failed"}
    shown = {trial.name: found for trial, found in table_of(sweep)}
    assert shown[bad.name] and shown[bad.name].state == "failed" and shown[bad.name].why == record(bad)["why"]  # type: ignore[union-attr]


def test_a_full_disk_is_no_trials_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = swept()

    def full(*_: Any, **__: Any) -> Outcome:
        raise WriteError("no space left")

    with monkeypatch.context() as patched:
        patched.setattr(training, "train", full)
        with pytest.raises(WriteError):
            worked(sweep)
    assert set(worked(sweep).trials.values()) == {"finished"}


@pytest.mark.parametrize("error", [RuntimeError("a mistake of ours"), torch.OutOfMemoryError("no memory"), MemoryError()])
def test_what_else_ends_a_trial(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep, train = swept(), training.train

    def fails_once(config: Any, **options: Any) -> Outcome:
        if config.run == str(sweep.trials[0].path):
            raise error
        return train(config, **options)

    monkeypatch.setattr(training, "train", fails_once)
    if type(error) is RuntimeError:  # the traceback is for who mends it; the other trials are for the next process
        with pytest.raises(RuntimeError, match="a mistake of ours"):
            worked(sweep)
        assert record(sweep.trials[0])["why"] == "RuntimeError: a mistake of ours"
        assert len(worked(sweep).trials) == 3
    else:
        assert Counter(worked(sweep).trials.values()) == {"failed": 1, "finished": 3}
        assert record(sweep.trials[0])["why"].startswith("out of memory: ")


def test_a_trial_that_is_trained_by_hand_is_left_alone() -> None:
    sweep = swept()
    with locked_run(sweep.trials[1]):
        found = worked(sweep).trials
    assert found.pop(sweep.trials[1].name).startswith("left: ") and set(found.values()) == {"finished"} and len(found) == 3
    assert worked(sweep).trials == {sweep.trials[1].name: "finished"}


@contextmanager
def locked_run(trial: Trial) -> Iterator[None]:
    trial.path.mkdir(parents=True)
    with locked(trial.path / ".lock"):
        yield


LOST = """
import os
from pathlib import Path
from charrnn.claims import Claims
Claims(Path({folder!r})).take({name!r}, {number}, step=None)
os._exit(9)
"""


def test_a_trial_that_takes_its_processes_down_is_given_up() -> None:
    sweep = swept()
    name = sweep.trials[0].name
    for number in range(LIVES):
        code = LOST.format(folder=str(sweep.records), name=name, number=number)
        subprocess.run([sys.executable, "-c", code], cwd=Path.cwd(), env=os.environ | {"PYTHONPATH": str(ROOT)}, check=False)
    found = worked(sweep).trials
    assert name not in found and set(found.values()) == {"finished"}
    assert record(sweep.trials[0])["why"].startswith(f"{LIVES} processes were killed over it before they reached another step than 0")
    assert worked(sweep, retry_failed=True).trials == {name: "finished"}


def test_who_was_asleep_while_another_took_over_writes_nothing_more(monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = swept()
    trial = sweep.trials[0]

    held: list[Claim] = []
    take = Claims.take

    class Asleep(Quiet):
        def stepped(self, step: int, progress: float) -> None:
            if step == 3 and len(held) == 1:
                (sweep.records / f"{trial.name}.2.claim").write_text("{}")  # as another process makes it
                held[0].look()

    def remembered(self: Claims, *about: Any, **note: Any) -> Claim | None:
        claim = take(self, *about, **note)
        held.extend([claim] if claim else [])
        return claim

    monkeypatch.setattr(Claims, "take", remembered)
    found = worked(sweep, Asleep()).trials
    assert found.pop(trial.name) == "left: another process has taken it over" and set(found.values()) == {"finished"}
    assert journal(trial) == [1, 2, 3] and load_state(trial.path / "last.state.pt")["counters"]["step"] == 3
    assert not (sweep.records / f"{trial.name}.json").exists()


def test_a_damaged_record_is_a_line() -> None:
    sweep = swept()
    (sweep.records / f"{sweep.trials[0].name}.json").write_bytes(b"\0")
    with pytest.raises(UserError, match=r"json: cannot be read: damaged; take it away, and the trial goes on where it was saved$"):
        worked(sweep)


def test_under_torchrun_a_sweep_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=r"^torchrun: a sweep takes one process for a trial"):
        worked(swept())


COMMAND = [sys.executable, "-m", "charrnn", "train", "--config", "base.yaml", "--sweep", "sweep.yaml"]


def started(log: Path, *more: str) -> subprocess.Popen[bytes]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with open(log, "wb") as out:
        return subprocess.Popen([*COMMAND, *more], stdout=out, stderr=subprocess.STDOUT, env=environment)


def in_the_middle(process: subprocess.Popen[bytes], log: Path, step: int) -> Path:
    """Wait until the trial of a process has been saved and has come so far; its directory."""
    until = time.monotonic() + 100
    while time.monotonic() < until and process.poll() is None:
        told = re.findall(r"trial \d+ of \d+: (.*)$", log.read_text(), flags=re.MULTILINE)
        if told and (Path(told[-1]) / "last.state.pt").exists() and (Path(told[-1]) / "metrics.jsonl").read_bytes().count(b"\n") >= step:
            return Path(told[-1])
        time.sleep(0.02)
    raise AssertionError(log.read_text())


FORTY = ["--set", "train.max_steps=40", "--set", "train.evaluate_every=40", "--set", "train.save_every=5"]


@pytest.mark.timeout(400)
def test_twelve_trials_three_processes_one_of_them_killed() -> None:
    Path("sweep.yaml").write_text("run: runs/s\ngrid: {train.learning_rate: [1e-3, 2e-3, 4e-3], seed: [1, 2, 3, 4]}", encoding="utf-8")
    logs = [Path(f"log{i}") for i in range(3)]
    processes = [started(log, *FORTY) for log in logs]
    try:
        while True:
            killed = in_the_middle(processes[0], logs[0], 15)
            processes[0].send_signal(signal.SIGSTOP)
            if (killed / "metrics.jsonl").read_bytes().count(b"\n") < 35:
                break
            processes[0].send_signal(signal.SIGCONT)  # too late, it is as good as finished; another of its trials will do
        processes[0].kill()
        assert processes[0].wait() == -signal.SIGKILL
        assert [process.wait() for process in processes[1:]] == [0, 0], [log.read_text() for log in logs]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    sweep = load_sweep(Path("sweep.yaml"), Path("base.yaml"), FORTY[1::2])
    assert [record(trial)["state"] for trial in sweep.trials] == ["finished"] * 12
    # Each step of each trial was reported once, in order: the killed one went on from its last save.
    assert [journal(trial) for trial in sweep.trials] == [list(range(1, 41))] * 12
    told = "".join(log.read_text() for log in logs)
    begun = Counter(re.findall(r"trial \d+ of 12: (.*)$", told, flags=re.MULTILINE))
    assert begun == {str(trial.path): 2 if trial.path == killed else 1 for trial in sweep.trials}
    assert told.count("Finished after 40 steps") == 12
    assert not [path for path in Path("runs").rglob("*") if path.name.endswith((".partial", ".lock"))]


def test_sigterm_saves_the_trial_and_the_same_command_goes_on() -> None:
    Path("sweep.yaml").write_text("run: runs/s\ngrid: {seed: [1, 2]}", encoding="utf-8")
    log = Path("log")
    process = started(log, "--set", "train.max_steps=3000", "--set", "train.save_every=10", "--set", "train.evaluate_every=3000")
    trial = in_the_middle(process, log, 15)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == Exit.REQUEUE, log.read_text()
    assert "Terminated and saved; the same command goes on" in log.read_text()
    sweep = load_sweep(Path("sweep.yaml"), Path("base.yaml"), ["train.max_steps=3000"])
    assert trial == sweep.trials[0].path and (trial / "last.state.pt").exists() and not list(sweep.records.glob("*.json"))
    saved = load_state(trial / "last.state.pt")["counters"]["step"]
    assert 10 <= saved < 3000 and journal(sweep.trials[0])[-1] in (saved, saved - 1)
    goes_on = Quiet()
    goes_on.stopped_at = saved + 1
    assert worked(sweep, goes_on).status == "interrupted" and goes_on.steps == 1  # no step was lost


def test_a_sweep_from_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    from charrnn.cli import main

    def said(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as end:
            main(["train", "--config", "base.yaml", *arguments])
        out, err = capsys.readouterr()
        return int(end.value.code or 0), out, err

    Path("sweep.yaml").write_text("run: runs/s\ngrid: {train.best_by: [nonsense, nats_per_char]}", encoding="utf-8")
    code, out, err = said("--sweep", "sweep.yaml", "--dry-run")
    assert (code, out, err) == (0, "runs/s/001-best_by=nonsense\nruns/s/002-best_by=nats_per_char\n2 trials\n", "")
    assert not Path("runs").exists()
    code, out, err = said("--sweep", "sweep.yaml")
    assert code == 1 and re.search(r"^runs/s/001-best_by=nonsense +failed .* train.best_by 'nonsense': the val split", out, re.MULTILINE)
    assert re.search(r"^the best: runs/s/002-best_by=nats_per_char, val nats/char \d\.\d{4} at step 6$", out, re.MULTILINE)
    assert err == "charrnn: warning: 001-best_by=nonsense: failed\n"
    assert said("--sweep", "sweep.yaml")[0] == 0
    mistakes = {
        ("--sweep", "nowhere.yaml"): "charrnn: error: nowhere.yaml: no such config file",
        ("--sweep", "sweep.yaml", "--overwrite"): "charrnn: error: --overwrite: is of one run, and --sweep begins many; ",
        ("--sweep", "sweep.yaml", "--print-config"): "charrnn: error: --print-config: is of one run, and --sweep begins many; --dry-run",
        ("--retry-failed",): "charrnn: error: --retry-failed: is of the trials of a sweep; name its file with --sweep",
        ("--sweep", "sweep.yaml", "--set", "seed=9"): "charrnn: error: runs/s: holds another sweep: seed was 1 and is now 9; set it back",
    }
    for arguments, line in mistakes.items():
        code, out, err = said(*arguments)
        assert code == 2 and out == "" and err.startswith(line) and err.count("\n") == 1, arguments
