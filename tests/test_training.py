"""The loop: it learns, it ends when it should, and whatever stops it, the run goes on to the bit."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import platform
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from charrnn import checkpoint, evaluation, lock, planning, training
from charrnn.atomic import write_atomically
from charrnn.checkpoint import load_model, load_state, save_model, save_state
from charrnn.config import BlanksConfig, Config, build_config
from charrnn.data.corpus import load_corpus
from charrnn.distributed import Ranks
from charrnn.errors import CheckpointError, UserError
from charrnn.gradients import Shards, shard_count
from charrnn.novelty import kept_index
from charrnn.ops.backends import BACKENDS, Request, backend, explain
from charrnn.run_directory import RunDirectory
from charrnn.run_files import FILES, TEXT, TEXT_INDEX
from charrnn.tasks import load_task
from charrnn.tasks.fill import Fill
from charrnn.tasks.lm import LanguageModel
from charrnn.training import Outcome, StepReport, train

ROOT = Path(__file__).parent.parent
DROPOUT = {"embedding": 0.1, "input": 0.1, "between_layers": 0.2, "output": 0.3, "weight_hh": 0.2, "locked": ["output"]}
EVERYTHING = {
    "model": {"num_layers": 2, "dropout": DROPOUT},
    "train": {"ema_decay": 0.9, "accumulate": 2, "label_smoothing": 0.1, "weight_decay": 0.01, "schedule": "plateau"},
}


class Listener:
    """A Reporter that remembers, and does what a test asks at a step."""

    def __init__(self, at_step: Callable[[StepReport], None] | None = None) -> None:
        self.notes: list[str] = []
        self.warnings: list[str] = []
        self.steps: list[StepReport] = []
        self.stepped_to: list[tuple[int, float]] = []
        self.evaluations: list[tuple[dict[str, float], str, bool]] = []
        self.outcomes: list[Outcome] = []
        self._at_step = at_step

    def note(self, text: str) -> None:
        self.notes.append(text)

    def warn(self, text: str) -> None:
        self.warnings.append(text)

    def encoding(self, done: int, total: int) -> None:
        assert 0 <= done <= total

    def stepped(self, step: int, progress: float) -> None:
        self.stepped_to.append((step, progress))

    def step(self, report: StepReport) -> None:
        self.steps.append(report)
        if self._at_step:
            self._at_step(report)

    def evaluated(self, metrics: dict[str, float], sample: str, is_best: bool) -> None:
        self.evaluations.append((metrics, sample, is_best))

    def done(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """3000 characters in which the next one is mostly clear from the last two."""
    rng = np.random.default_rng(0)
    words = ["the ", "cat ", "sat ", "on a ", "mat.\n"]
    path = tmp_path / "text.txt"
    path.write_text("".join(words[i] for i in rng.integers(0, 5, 900))[:3000])
    return path


@pytest.fixture
def settings(text: Path, tmp_path: Path) -> Callable[..., Config]:
    def build(name: str = "run", *, model: dict[str, Any] | None = None, data: dict[str, Any] | None = None, **train_: Any) -> Config:
        defaults = {"max_steps": 20, "batch_size": 8, "tbptt_window": 9, "evaluate_every": 5, "save_every": 5, "log_every": 2, "threads": 1}
        sections = {
            "data": {"path": str(text), "cache": str(tmp_path / "cache"), **(data or {})},
            "model": {"embedding_size": 6, "hidden_size": 10, **(model or {})},
            "train": {**defaults, "precision": "fp32", "warmup_steps": 3, **train_},
        }
        return build_config({"run": str(tmp_path / name), "device": "cpu", **sections}, "test")

    return build


Settings = Callable[..., Config]


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


def metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def assert_same_run(a: Path, b: Path) -> None:
    """Two runs came to the same place: all that the next step depends on, the models, and what was reported."""
    states = [load_state(run / "last.state.pt") for run in (a, b)]
    for state in states:
        for timed in ("pace", "journals"):
            del state[timed]
        state["counters"]["seconds"] = 0
    for key in states[0]:
        assert same(states[0][key], states[1][key]), key
    for name in ("best.safetensors", "last.safetensors"):
        assert same(load_model(a / name).weights, load_model(b / name).weights)
        assert load_model(a / name).metrics == load_model(b / name).metrics
    lines = [[{k: v for k, v in line.items() if k not in ("seconds", "chars_per_second")} for line in metrics(run)] for run in (a, b)]
    assert lines[0] == lines[1]
    assert (a / "samples.txt").read_text() == (b / "samples.txt").read_text()


def interrupt_at(step: int) -> Listener:
    def at(report: StepReport) -> None:
        if report.step == step:
            raise KeyboardInterrupt

    return Listener(at)


def test_a_run_learns_and_leaves_what_the_design_names(settings: Settings, tmp_path: Path, text: Path) -> None:
    listener = Listener()
    config = settings(model={"hidden_size": 16}, max_steps=200, learning_rate=0.02, evaluate_every=100, log_every=50)
    outcome = train(config, reporter=listener)
    characters = np.frombuffer(text.read_bytes(), np.uint8)
    share = np.bincount(characters)[np.unique(characters)] / len(characters)
    unigram = float(-(share * np.log(share)).sum())
    assert outcome.status == "finished" and outcome.steps == 200
    assert outcome.best["val_nats_per_char"] < 0.5 * unigram
    assert {p.name for p in (tmp_path / "run").iterdir()} == set(FILES)
    assert (tmp_path / "run/config.yaml").read_text().startswith("# Written by charrnn ")
    assert [report.step for report in listener.steps] == [50, 100, 150, 200]
    assert listener.steps[-1].progress == 1 and 0.95 * 200 * 72 < listener.steps[-1].chars < 200 * 72
    assert listener.outcomes == [outcome]
    lines = metrics(tmp_path / "run")
    train_lines, val_lines = [x for x in lines if "nats_per_char" in x], [x for x in lines if "val_nats_per_char" in x]
    assert len(train_lines) == 4 and len(val_lines) == 2
    keys = "step epoch seconds chars nats_per_char bits_per_char perplexity accuracy grad_norm learning_rate chars_per_second"
    assert list(train_lines[0]) == keys.split()
    best = load_model(tmp_path / "run/best.safetensors")
    assert best.metrics == outcome.best and best.step == outcome.best_step
    assert listener.evaluations[0][1] in (tmp_path / "run/samples.txt").read_text()
    assert "parameters" in listener.notes[0]


@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize("options", [{}, EVERYTHING], ids=["plain", "everything"])
def test_resume_is_identical_to_the_bit(settings: Settings, tmp_path: Path, options: dict[str, Any], shards: int) -> None:
    model, limits = options.get("model", {}), options.get("train", {}) | {"shards": shards}
    train(settings("whole", model=model, max_steps=60, **limits), reporter=Listener())
    # 60 steps of 37 windows: the text is passed through more than once, and step 27 is neither saved nor evaluated.
    halved = settings("halves", model=model, max_steps=60, log_every=1, **limits)
    assert train(halved, reporter=interrupt_at(27)).status == "interrupted"
    assert train(settings("halves", model=model, max_steps=60, **limits), resume=True, reporter=Listener()).status == "finished"
    whole, halves = (load_state(tmp_path / name / "last.state.pt") for name in ("whole", "halves"))
    for key in ("model", "average", "optimizer", "schedule", "watch", "generators", "carried"):
        assert same(whole[key], halves[key]), key
    assert whole["counters"] | {"seconds": 0} == halves["counters"] | {"seconds": 0}
    assert same(load_model(tmp_path / "whole/best.safetensors").weights, load_model(tmp_path / "halves/best.safetensors").weights)


def test_an_extended_run_is_the_long_run(settings: Settings, tmp_path: Path) -> None:
    train(settings("long", schedule="constant", **{"ema_decay": 0.9}), reporter=Listener())
    train(settings("short", schedule="constant", max_steps=10, **{"ema_decay": 0.9}), reporter=Listener())
    train(settings("short", schedule="constant", **{"ema_decay": 0.9}), resume=True, reporter=Listener())
    assert_same_run(tmp_path / "long", tmp_path / "short")


@pytest.mark.parametrize("step", [3, 10, 11])
def test_ctrl_c_saves_and_the_run_goes_on(settings: Settings, tmp_path: Path, step: int) -> None:
    train(settings("whole", log_every=1), reporter=Listener())
    outcome = train(settings(log_every=1), reporter=interrupt_at(step))
    assert (outcome.status, outcome.steps) == ("interrupted", step)
    assert load_model(tmp_path / "run/last.safetensors").step == step
    assert train(settings(log_every=1), resume=True, reporter=Listener()).steps == 20
    assert_same_run(tmp_path / "whole", tmp_path / "run")


def test_ctrl_c_in_an_evaluation_repeats_that_evaluation(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(settings("whole"), reporter=Listener())

    def interrupted(*_: Any, **__: Any) -> str:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(LanguageModel, "preview", interrupted)
        assert train(settings(), reporter=Listener()).steps == 5
    train(settings(), resume=True, reporter=Listener())
    assert_same_run(tmp_path / "whole", tmp_path / "run")


def test_a_signal_in_the_middle_of_a_step_waits_for_its_end(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(settings("whole"), reporter=Listener())
    plain = LanguageModel.loss
    calls: list[None] = []

    def loss(self: Any, model: Any, *args: Any, **kwargs: Any) -> Any:
        calls.extend([None] * model.training)
        if len(calls) == 7:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)  # who is impatient loses nothing
        return plain(self, model, *args, **kwargs)

    before = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patched:
        patched.setattr(LanguageModel, "loss", loss)
        outcome = train(settings(), reporter=Listener())
    assert signal.getsignal(signal.SIGINT) is before
    assert (outcome.status, outcome.steps) == ("interrupted", 7)
    train(settings(), resume=True, reporter=Listener())
    assert_same_run(tmp_path / "whole", tmp_path / "run")


def test_who_asks_twice_loses_nothing(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second time between the end of the loop and the last save."""
    plain = training.Trainer._keep

    def keep(self: training.Trainer) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        plain(self)

    monkeypatch.setattr(training.Trainer, "_keep", keep)
    outcome = train(settings(log_every=1, save_every=1000), reporter=interrupt_at(7))
    assert (outcome.status, outcome.steps) == ("terminated", 7)
    assert load_state(tmp_path / "run/last.state.pt")["counters"]["step"] == 7
    assert train(settings("short", max_steps=3), reporter=Listener()).status == "finished"
    assert load_state(tmp_path / "short/last.state.pt")["counters"]["step"] == 3


def test_a_signal_while_saving_leaves_whole_files(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = write_atomically

    def write(path: Path, *content: Any, **how: Any) -> None:
        if path.name == "last.state.pt":
            os.kill(os.getpid(), signal.SIGINT)
        plain(path, *content, **how)

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "write_atomically", write)
        outcome = train(settings(), reporter=Listener())
    assert (outcome.status, outcome.steps) == ("interrupted", 5)
    assert load_state(tmp_path / "run/last.state.pt")["counters"]["step"] == 5
    assert load_model(tmp_path / "run/last.safetensors").step == 5


KILLED = """
import sys, torch
torch.set_num_threads(1)
sys.path.insert(0, {root!r}); sys.path.insert(0, {tests!r})
from charrnn.config import load_config
from test_training import Listener
from charrnn.training import train
train(load_config({config!r}), resume=True, reporter=Listener())
"""


def test_kill_9_loses_nothing_but_the_steps_since_the_last_save(settings: Settings, tmp_path: Path) -> None:
    options: dict[str, Any] = {"max_steps": 100, "model": EVERYTHING["model"], **EVERYTHING["train"]}
    train(settings("whole", **options), reporter=Listener())
    config = settings("run", **options)
    path = tmp_path / "config.yaml"
    path.write_text(config.to_yaml())
    script = KILLED.format(root=str(ROOT), tests=str(ROOT / "tests"), config=str(path))
    process = subprocess.Popen([sys.executable, "-c", script])
    state = tmp_path / "run/last.state.pt"
    deadline = time.monotonic() + 60
    while not state.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    process.wait()
    killed_at = load_state(state)["counters"]["step"]
    assert 0 < killed_at <= 100
    train(config, resume=True, reporter=Listener())
    assert_same_run(tmp_path / "whole", tmp_path / "run")


def inject(monkeypatch: pytest.MonkeyPatch, bad: Callable[[int], bool], factor: float = math.nan) -> list[int]:
    """Spoil the task's loss in training at the calls for which `bad` holds."""
    plain, calls = LanguageModel.loss, [0]

    def loss(self: Any, model: Any, *args: Any, **kwargs: Any) -> Any:
        found, tally, state = plain(self, model, *args, **kwargs)
        if model.training:
            calls[0] += 1
            if bad(calls[0]):
                return found * factor, dataclasses.replace(tally, nats=tally.nats * factor), state
        return found, tally, state

    monkeypatch.setattr(LanguageModel, "loss", loss)
    return calls


def test_nan_goes_back_and_halves_the_learning_rate(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inject(monkeypatch, lambda call: call == 8)
    listener = Listener()
    config = settings(schedule="constant", warmup_steps=0, learning_rate=0.01)
    outcome = train(config, reporter=listener)
    assert (outcome.status, outcome.steps) == ("finished", 20)
    (warning,) = listener.warnings
    assert warning == (
        "step 8: the loss is not finite, or three times its running mean and a nat above it; "
        "back to step 6 with the learning rate halved to 0.005 (1 of 3)"
    )
    assert [report.learning_rate for report in listener.steps] == [0.01] * 3 + [0.005] * 7
    steps = [line["step"] for line in metrics(tmp_path / "run") if "nats_per_char" in line]
    assert steps == list(range(2, 21, 2))  # none stands twice
    assert all(weight.isfinite().all() for weight in load_model(tmp_path / "run/last.safetensors").weights.values())
    assert load_state(tmp_path / "run/last.state.pt")["counters"]["learning_rate_scale"] == 0.5


def test_a_loss_three_times_its_mean_goes_back(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    inject(monkeypatch, lambda call: call in (20, 60), factor=4)  # the first comes before the mean is trusted
    listener = Listener()
    train(settings(max_steps=65), reporter=listener)
    assert [warning.split(":")[0] for warning in listener.warnings] == ["step 60"]


def test_going_back_three_times_is_enough(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        calls = inject(patched, lambda call: call >= 8)
        listener = Listener()
        outcome = train(settings(), reporter=listener)
    assert (outcome.status, outcome.steps) == ("diverged", 6)
    assert [w for w in listener.warnings if "halved" in w] == listener.warnings[:3]
    assert "run away again after going back 3 times" in listener.warnings[3]
    assert calls[0] == 11  # each time the first step fails
    state = load_state(tmp_path / "run/last.state.pt")
    assert state["counters"]["learning_rate_scale"] == 0.125
    assert all(weight.isfinite().all() for weight in state["model"].values())
    assert train(settings(), resume=True, reporter=Listener()).status == "finished"


def test_a_snapshot_can_be_gone_back_to_twice(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a retreat restores must not be the tensors that the next steps write into."""
    task = load_task(settings(ema_decay=0.5))
    run = RunDirectory(tmp_path / "run")
    run.make(task.config, resume=False)
    trainer = training.Trainer(task, run, Listener(), torch.device("cpu"))
    with trainer.shards:
        for _ in range(3):
            trainer.step()
        good = trainer.capture()
        ends = []
        for _ in range(2):
            trainer.restore(good)
            for _ in range(4):
                trainer.step()
            ends.append(trainer.capture())
    for key in ("model", "average", "optimizer", "carried", "generators"):
        assert same(ends[0][key], ends[1][key]), key
    assert good["counters"]["step"] == 3


def test_early_stopping(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    listener = Listener()
    values = iter([2.0, 1.5, 1.6, 1.5, 1.4])
    plain = evaluation.evaluate

    def measure(*args: Any, ranks: Ranks) -> Any:
        found = plain(*args[:3])
        return dataclasses.replace(found, nats=found.count * next(values))

    monkeypatch.setattr(training, "measure", measure)
    outcome = train(settings(max_steps=100, patience=2), reporter=listener)
    assert (outcome.status, outcome.steps, outcome.best_step) == ("early_stopped", 20, 10)
    assert [is_best for _, _, is_best in listener.evaluations] == [True, True, False, False]
    assert outcome.best["val_nats_per_char"] == pytest.approx(1.5)
    assert train(settings(max_steps=100, patience=2), resume=True, reporter=Listener()).status == "already_finished"


def test_max_epochs(settings: Settings) -> None:
    listener = Listener()
    outcome = train(settings(max_steps=None, max_epochs=1.5), reporter=listener)
    windows = math.ceil((2700 - 1) // 8 / 9)
    assert outcome.steps == math.ceil(1.5 * windows)
    assert listener.steps[-1].epoch == pytest.approx(1.5, abs=0.05)


def test_max_minutes_counts_all_of_the_run(settings: Settings) -> None:
    config = settings(max_steps=None, max_minutes=0.01, evaluate_every=10000)
    outcome = train(config, reporter=Listener())
    assert outcome.status == "finished" and outcome.steps > 1
    assert 0.6 <= outcome.seconds < 5
    again = train(config, resume=True, reporter=Listener())
    assert (again.status, again.steps) == ("already_finished", outcome.steps)


def test_the_first_limit_ends_the_run(settings: Settings) -> None:
    listener = Listener()
    outcome = train(settings(max_steps=7, max_epochs=50, max_minutes=60), reporter=listener)
    assert outcome.steps == 7
    assert [evaluation[0] != {} for evaluation in listener.evaluations] == [True, True]  # at 5 and at the end
    assert outcome.last == listener.evaluations[-1][0]


def test_without_a_val_split_the_last_is_the_best(settings: Settings, tmp_path: Path) -> None:
    listener = Listener()
    outcome = train(settings(data={"val_fraction": 0.0}), reporter=listener)
    assert outcome.best == {} and outcome.best_step == 20
    assert same(load_model(tmp_path / "run/best.safetensors").weights, load_model(tmp_path / "run/last.safetensors").weights)
    assert all(sample and is_best for _, sample, is_best in listener.evaluations)


def test_averaged_weights_are_what_is_saved(settings: Settings, tmp_path: Path) -> None:
    train(settings(ema_decay=0.9), reporter=Listener())
    state = load_state(tmp_path / "run/last.state.pt")
    saved = load_model(tmp_path / "run/last.safetensors").weights
    assert same(saved, state["average"]) and not same(saved, state["model"])


def test_a_directory_that_is_taken_is_refused(settings: Settings, tmp_path: Path) -> None:
    train(settings(), reporter=Listener())
    before = {p.name: p.read_bytes() for p in (tmp_path / "run").iterdir()}
    with pytest.raises(UserError, match=r"run: holds a run already; continue it with --resume, delete it with --overwrite, or"):
        train(settings(), reporter=Listener())
    with pytest.raises(UserError, match="--resume and --overwrite exclude each other"):
        train(settings(), resume=True, overwrite=True, reporter=Listener())
    again = train(settings(), resume=True, reporter=Listener())
    assert (again.status, again.steps) == ("already_finished", 20) and again.best
    assert before == {p.name: p.read_bytes() for p in (tmp_path / "run").iterdir()}


def test_overwrite_takes_away_what_a_run_makes_and_nothing_else(settings: Settings, tmp_path: Path) -> None:
    train(settings(), reporter=Listener())
    (tmp_path / "run/notes.txt").write_text("mine")
    (tmp_path / "run/.last.state.pt.123.partial").write_text("half")
    for folder in ("tensorboard", "mine"):
        (tmp_path / "run" / folder).mkdir()
        (tmp_path / "run" / folder / "events.out.tfevents.1.host.2").write_text("curves")
    train(settings(max_steps=2, evaluate_every=50), overwrite=True, reporter=Listener())
    assert {p.name for p in (tmp_path / "run").iterdir()} == {*FILES, "notes.txt", "mine"}
    assert len(list((tmp_path / "run/mine").iterdir())) == 1
    assert len((tmp_path / "run/metrics.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize("resume, overwrite", [(False, False), (True, False), (False, True)])
def test_a_directory_that_is_no_run_is_never_touched(settings: Settings, tmp_path: Path, resume: bool, overwrite: bool) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/thesis.tex").write_text("precious")
    with pytest.raises(UserError, match=r"run: is not a run and not empty \(it holds 'thesis.tex'\); name another directory"):
        train(settings(), resume=resume, overwrite=overwrite, reporter=Listener())
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["thesis.tex"]


def test_overwrite_keeps_the_old_run_until_the_new_one_can_start(settings: Settings, tmp_path: Path) -> None:
    train(settings(), reporter=Listener())
    with pytest.raises(UserError, match="no such file"):
        train(settings(data={"path": str(tmp_path / "none.txt")}), overwrite=True, reporter=Listener())
    assert (tmp_path / "run/best.safetensors").exists()


def test_resume_without_a_run_starts_one_and_says_so(settings: Settings, tmp_path: Path) -> None:
    listener = Listener()
    assert train(settings(), resume=True, reporter=listener).status == "finished"
    note = f"{tmp_path / 'run'}: there is nothing to resume yet; the run starts at step 0"
    assert note in listener.notes
    again = Listener()
    assert train(settings(max_steps=30), resume=True, reporter=again).steps == 30
    assert note not in again.notes


@pytest.mark.parametrize("steps, status", [(20, "already_finished"), (30, "finished")])
def test_a_resumed_run_keeps_its_weights_and_says_so(settings: Settings, tmp_path: Path, steps: int, status: str) -> None:
    train(settings(), reporter=Listener())
    train(settings("other"), reporter=Listener())
    listener = Listener()
    config, other = settings(max_steps=steps), str(tmp_path / "other")
    assert train(config, resume=True, init_from=other, reporter=listener).status == status
    note = f"--init-from {other} has no effect: {tmp_path / 'run'} is resumed with the weights it has"
    assert note in listener.notes
    listener = Listener()
    train(config, overwrite=True, init_from=other, reporter=listener)
    assert note not in listener.notes


@pytest.mark.parametrize("left", ["nothing", "an older one", "half of it"])
def test_a_finished_run_that_was_killed_before_its_last_model_gets_it(settings: Settings, tmp_path: Path, left: str) -> None:
    """Between the state of the last step and the model of the same step."""
    train(settings(max_steps=15), reporter=Listener())
    older = (tmp_path / "run/last.safetensors").read_bytes()
    train(settings(), resume=True, reporter=Listener())
    whole = load_model(tmp_path / "run/last.safetensors")
    (tmp_path / "run/last.safetensors").unlink()  # and not written over: the weights of `whole` are mapped from it
    (tmp_path / "run/.heartbeat.json.123.partial").write_text("half")
    beat = json.loads((tmp_path / "run/heartbeat.json").read_text())
    (tmp_path / "run/heartbeat.json").write_text(json.dumps(beat | {"state": "running"}))
    if left != "nothing":
        (tmp_path / "run/last.safetensors").write_bytes(older if left == "an older one" else older[:100])
    assert train(settings(), resume=True, reporter=Listener()).status == "already_finished"
    mended = load_model(tmp_path / "run/last.safetensors")
    assert (mended.step, mended.metrics) == (20, whole.metrics)
    assert json.loads((tmp_path / "run/heartbeat.json").read_text())["state"] == "finished"
    assert {path.name for path in (tmp_path / "run").iterdir()} == set(FILES)
    assert all(torch.equal(weight, whole.weights[name]) for name, weight in mended.weights.items())


@pytest.mark.parametrize(
    "changes, named",
    [
        ({"patience": 3}, "train.patience has"),
        ({"schedule": "plateau"}, "train.schedule: plateau has"),
        ({"patience": 3, "schedule": "plateau"}, "train.patience and train.schedule: plateau have"),
    ],
)
def test_what_needs_a_val_split_says_that_there_is_none(settings: Settings, changes: dict[str, Any], named: str) -> None:
    note = f"{named} no effect: no value is measured without a val split; raise data.val_fraction or add text"
    assert note in training.plan(settings(data={"val_fraction": 0.0}, **changes)).notes
    assert note not in training.plan(settings(**changes)).notes
    assert not any("no effect" in note for note in training.plan(settings(data={"val_fraction": 0.0})).notes)


def test_every_step_is_told_of(settings: Settings) -> None:
    listener = Listener()
    train(settings(log_every=1000, evaluate_every=1000, save_every=1000), reporter=listener)
    assert [step for step, _ in listener.stepped_to] == list(range(21))
    assert [progress for _, progress in listener.stepped_to] == pytest.approx([step / 20 for step in range(21)])


@pytest.mark.parametrize(
    "change, key",
    [
        ({"model": {"hidden_size": 11}}, "model.hidden_size was 10 and is now 11"),
        ({"data": {"val_fraction": 0.2}}, "data.val_fraction was 0.1 and is now 0.2"),
        ({"batch_size": 7}, "train.batch_size was 8 and is now 7"),
        ({"optimizer": "sgd"}, "train.optimizer was 'adamw' and is now 'sgd'"),
    ],
)
def test_resume_refuses_another_run(settings: Settings, change: dict[str, Any], key: str) -> None:
    train(settings(), reporter=Listener())
    with pytest.raises(UserError, match=f"cannot resume: {key}; set it back, or start another run with --init-from"):
        train(settings(**change), resume=True, reporter=Listener())


def test_resume_refuses_another_text(settings: Settings, text: Path) -> None:
    train(settings(), reporter=Listener())
    text.write_text(text.read_text() + "and so on")
    with pytest.raises(UserError, match="cannot resume: the text has changed since"):
        train(settings(max_steps=30), resume=True, reporter=Listener())


def test_resume_from_a_damaged_state_is_refused_by_name(settings: Settings, tmp_path: Path) -> None:
    train(settings(), reporter=Listener())
    state = tmp_path / "run/last.state.pt"
    (tmp_path / "run/previous.state.pt").unlink()
    state.write_bytes(state.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r"last\.state\.pt: damaged.*--init-from .*last\.safetensors"):
        train(settings(), resume=True, reporter=Listener())


FOREIGN: list[tuple[str, Any, str]] = [
    # what in the state is changed, into what (None: taken out), and what is said of it
    ("text", None, "it has no text"),
    ("counters", None, "it has no counters"),
    ("since_report", ("a", "b", "c"), "since_report.0 is wrong: Input should be an instance of Tensor"),
    ("since_report", (torch.ones(2),) * 3, "shape '[]' is invalid for input of size 2"),
    ("counters.step", "many", "counters.step is wrong: Input should be a valid integer"),
    ("counters.window", -1, "counters.window is wrong: Input should be greater than or equal to 0"),
    ("counters.seconds", math.nan, "counters.seconds is wrong: Input should be a finite number"),
    ("counters.best", {"x": 1.0}, "counters.best is wrong: Value error, expected val_bits_per_char and val_nats_per_char"),
    ("watch.steps", -1, "watch.steps is wrong"),
    ("pace.chars", "x", "pace.chars is wrong"),
    ("schedule", [], "schedule is wrong"),
    ("schedule", {"scale": 1.0}, "it has no 'best'"),
    ("journals.metrics.jsonl", "x", "journals.metrics.jsonl is wrong"),
    ("generators", [torch.full((5056,), 255, dtype=torch.uint8)], "Invalid mt19937 state"),
    ("generators", [torch.zeros(5056)], "RNG state must be a torch.ByteTensor"),
    ("carried", ((torch.zeros(8, 10),),), "carried: not of the sizes that this model's state has"),
    ("carried", ((torch.zeros(1, 10), torch.zeros(1, 10)),), "carried: not of the sizes that this model's state has"),
    ("carried", ((torch.zeros(8, 10, dtype=torch.int64),) * 2,), "carried: expected floating point"),
    ("model.head.bias", None, "model: tensor 'head.bias' is missing; expected shape"),
    ("model.head.bias", torch.zeros(1), "model: tensor 'head.bias' has shape (1,)"),
    ("model.head.bias", torch.zeros(3).to_sparse(), "model.head.bias is wrong: Value error, expected a plain tensor"),
    ("optimizer", {}, "it has no optimizer.state"),
    ("optimizer.param_groups", [], "optimizer: 0 groups of parameters; expected 2"),
    ("optimizer.param_groups", [{}, {}], "it has no 'params'"),
    ("optimizer.state.0.exp_avg_sq", None, "optimizer: it remembers ['exp_avg', 'step']; expected step, exp_avg, exp_avg_sq"),
    ("optimizer.state.0", {"exp_avg": None}, "optimizer.state.0.exp_avg is wrong"),
    ("optimizer.state.0.exp_avg", torch.zeros(2), "optimizer: exp_avg has shape (2,) in torch.float32; expected"),
    ("optimizer.state.0.step", "x", "optimizer.state.0.step is wrong"),
]


def changed(state: dict[str, Any], place: str, value: Any) -> dict[str, Any]:
    """The state with another value in a place, whose name is that of keys put together by points, some of them within keys."""
    for key in state:
        if str(key) == place:
            return {k: v for k, v in state.items() if k != key} | ({} if value is None else {key: value})
        if place.startswith(f"{key}."):
            return state | {key: changed(state[key], place.removeprefix(f"{key}."), value)}
    raise KeyError(place)


def test_a_state_that_is_none_of_this_run_gives_one_line(settings: Settings, tmp_path: Path) -> None:
    train(settings(), reporter=Listener())
    path = tmp_path / "run/last.state.pt"
    (tmp_path / "run/previous.state.pt").unlink()
    state = load_state(path)
    for place, value, fact in FOREIGN:
        save_state(path, changed(state, place, value))
        with pytest.raises(CheckpointError) as refused:
            train(settings(max_steps=30), resume=True, reporter=Listener())
        said = str(refused.value)
        assert said.startswith(f"{path}: does not fit this run: ") and fact in said, (place, said)
        remedy = f"; take the weights only with --init-from {tmp_path / 'run/last.safetensors'}, or start again with --overwrite"
        assert said.endswith(remedy) and "\n" not in said
    save_state(path, state)
    assert train(settings(max_steps=30), resume=True, reporter=Listener()).steps == 30


def test_a_state_of_another_kind_of_device_works_and_says_so(settings: Settings, tmp_path: Path) -> None:
    """A GPU's generator has a state of 16 bytes."""
    model = {"dropout": {"output": 0.3}}
    train(settings(model=model), reporter=Listener())
    path = tmp_path / "run/last.state.pt"
    save_state(path, changed(load_state(path), "generators", [torch.zeros(16, dtype=torch.uint8)]))
    listener = Listener()
    assert train(settings(model=model, max_steps=30), resume=True, reporter=listener).steps == 30
    assert "resumed on another kind of device: dropout draws anew, so the run is no longer the same to the bit" in listener.notes


def test_journals_that_cannot_be_cut_back_give_one_line(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(settings(), reporter=Listener())
    journal = tmp_path / "run/metrics.jsonl"
    journal.write_text(journal.read_text() + "{}\n")

    def denied(path: Any, size: int) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "truncate", denied)
    with pytest.raises(UserError) as refused:
        train(settings(max_steps=30), resume=True, reporter=Listener())
    assert str(refused.value) == (
        f"{journal}: cannot be cut back to the step that is gone back to: Permission denied; "
        "make it writable, or start again with --overwrite"
    )


def test_resume_with_another_number_of_shards_works_and_says_so(settings: Settings) -> None:
    model = {"dropout": {"output": 0.3}}
    train(settings(model=model, shards=2), reporter=Listener())
    listener = Listener()
    assert train(settings(model=model, max_steps=30), resume=True, reporter=listener).steps == 30
    assert any("another number of shards" in note for note in listener.notes)


def test_init_from_takes_weights_only(settings: Settings, tmp_path: Path) -> None:
    first = train(settings("first", max_steps=60, learning_rate=0.02), reporter=Listener())
    second = Listener()
    train(settings("second", max_steps=1, learning_rate=1e-6), init_from=str(tmp_path / "first"), reporter=second)
    assert second.evaluations[0][0]["val_nats_per_char"] == pytest.approx(first.best["val_nats_per_char"], abs=0.01)


def test_a_full_disk_is_a_warning_and_at_the_end_an_error(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(settings(max_steps=5), reporter=Listener())
    before = (tmp_path / "run/last.state.pt").read_bytes()
    plain = os.replace

    def replace(source: Any, target: Any) -> None:
        if str(target).endswith((".pt", ".safetensors")):
            raise OSError(28, "No space left on device")
        plain(source, target)

    monkeypatch.setattr(os, "replace", replace)
    listener = Listener()
    with pytest.raises(UserError, match="cannot be written: No space left on device; free some space"):
        train(settings(), resume=True, reporter=listener)
    assert any("training goes on" in warning for warning in listener.warnings)
    assert (tmp_path / "run/last.state.pt").read_bytes() == before


@pytest.mark.parametrize(
    "options",
    [{}, {"tied_embeddings": True, "embedding_size": 10, "layer_norm": True, "num_layers": 2, "cell": "gru"}],
    ids=["plain", "gru"],
)
def test_shards_give_the_gradient_of_the_whole(settings: Settings, options: dict[str, Any]) -> None:
    torch.set_num_threads(2)
    config = settings(model=options)
    task = load_task(config)
    windows = [batch for batch, _ in zip(task.batches("train"), range(4))]
    found, carried = [], []
    for count in (1, 2, 3):
        model = task.model().train()
        scaler = torch.amp.GradScaler("cpu", enabled=False)
        with Shards(task, model, count, precision=torch.float32, label_smoothing=0.1, scaler=scaler, seed=1) as shards:
            assert torch.get_num_threads() == (1 if count > 1 else 2)
            first, _, _ = shards.gradients(windows[:2])
            second, tally, scale = shards.gradients(windows[2:])
            found.append([gradient * scale.float() for gradient in [*first, *second]])
            carried.append(shards.carried().state)
        assert int(tally.count) == 2 * 72
        assert torch.get_num_threads() == 2
    for other in (1, 2):
        torch.testing.assert_close(found[other], found[0], rtol=1e-4, atol=1e-7)
        torch.testing.assert_close(carried[other], carried[0])


def test_the_gradient_is_that_of_the_mean_over_all_windows(settings: Settings) -> None:
    config = settings(data={"vocabulary": {"max_size": 6}})  # some targets are nobody's
    task = load_task(config)
    model = task.model().train()
    windows = [batch for batch, _ in zip(task.batches("train"), range(2))]
    with Shards(
        task, model, 1, precision=torch.float32, label_smoothing=0.0, scaler=torch.amp.GradScaler("cpu", enabled=False), seed=1
    ) as shards:
        gradients, tally, scale = shards.gradients(windows)
    state, total = None, torch.zeros(())
    for window in windows:
        loss, _, state = task.loss(model, window, state and tuple(tuple(s.detach() for s in layer) for layer in state))
        total = total + loss
    assert int(tally.count) < 2 * 72
    expected = torch.autograd.grad(total / tally.count, list(model.parameters()))
    torch.testing.assert_close([gradient * scale.float() for gradient in gradients], list(expected))


def test_no_two_gradients_are_one_tensor(settings: Settings) -> None:
    """The two biases have the same gradient; what is clipped in place would be clipped twice."""
    task = load_task(settings())
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    with Shards(task, task.model(), 1, precision=torch.float32, label_smoothing=0.0, scaler=scaler, seed=1) as shards:
        gradients, *_ = shards.gradients([next(task.batches("train"))])
    assert len({gradient.data_ptr() for gradient in gradients}) == len(gradients)


def test_shards_are_no_more_than_columns_and_one_on_a_gpu() -> None:
    cpu = torch.device("cpu")
    assert [shard_count(cpu, columns, 2) for columns in (1, 2, 64)] == [1, 2, 2]
    assert shard_count(torch.device("meta"), 64, 2) == 1


@pytest.mark.parametrize("device", ["cuda", "cuda:3", "mps"])
def test_a_device_that_is_not_there_is_named(settings: Settings, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    config = settings().model_copy(update={"device": device})
    with pytest.raises(UserError, match=f"device '{device}': PyTorch sees no .*; set device: auto or cpu"):
        train(config, reporter=Listener())


def test_fp16_needs_a_gpu(settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"train\.precision fp16 needs a CUDA GPU and the device is cpu; set precision: auto, bf16 or fp32"):
        train(settings(precision="fp16"), reporter=Listener())
    assert not (tmp_path / "run").exists()


def test_bf16_trains_on_a_cpu(settings: Settings) -> None:
    outcome = train(settings(precision="bf16"), reporter=Listener())
    assert math.isfinite(outcome.best["val_nats_per_char"])


def test_a_run_outside_the_main_thread(settings: Settings) -> None:
    outcomes: list[Outcome] = []
    thread = threading.Thread(target=lambda: outcomes.append(train(settings(), reporter=Listener())))
    thread.start()
    thread.join()
    assert outcomes[0].status == "finished"


def test_plan(settings: Settings) -> None:
    plan = training.plan(settings(model={"hidden_size": 100}))
    assert plan.characters == 2700 and plan.parameters > 40000
    assert plan.characters_per_parameter == pytest.approx(plan.characters / plan.parameters)
    assert plan.memory_bytes > 4 * 4 * plan.parameters
    (warning,) = plan.warnings
    assert "far too large for the text" in warning
    assert training.plan(settings(model={"hidden_size": 4, "embedding_size": 2})).warnings == []
    assert any("shrunk" in note for note in training.plan(settings(batch_size=4000)).notes)


def test_the_plan_names_text_and_backend(tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "1 file), vocabulary" in training.plan(settings()).summary()
    chosen = explain("auto", Request("lstm"))  # the native one, where it was compiled
    assert training.plan(settings()).summary().endswith(f"cpu in float32, backend {chosen}")
    assert training.plan(settings(model={"backend": "explicit", "cell": "gru"})).summary().endswith("backend explicit")
    assert training.plan(settings(model={"backend": "reference"})).summary().endswith("backend reference")
    listener = Listener()
    train(settings(max_steps=1), reporter=listener)
    assert listener.notes[0].endswith(f"backend {chosen}")
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "good.py").write_text("pass\n\nprint()\n" * 200)
    (tmp_path / "lib" / "broken.py").write_bytes(b"\xff\xfe\xff")
    monkeypatch.setattr("sysconfig.get_paths", lambda: {"stdlib": str(tmp_path / "lib")})
    library = settings(data={"source": "python-stdlib", "path": None, "documents": "blank_lines"})
    assert "201 documents in 1 file, 1 left out as no text)" in training.plan(library).summary()


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn_tanh"])
def test_every_backend_learns_the_same(settings: Settings, cell: str) -> None:
    curves: dict[str, list[float]] = {}
    for name in (name for name in BACKENDS if not backend(name).refuses(Request(cell))):
        listener = Listener()
        train(settings(name, model={"cell": cell, "backend": name}), reporter=listener)
        curves[name] = [metrics["val_nats_per_char"] for metrics, _, _ in listener.evaluations]
    expected = curves.pop("reference")
    assert len(curves) >= 2 and len(expected) == 4
    for name, curve in curves.items():
        assert curve == pytest.approx(expected, abs=1e-5), name


def test_resume_without_a_state_never_deletes_a_model(settings: Settings, tmp_path: Path) -> None:
    train(settings(), reporter=Listener())
    for name in ("last.state.pt", "previous.state.pt"):
        (tmp_path / "run" / name).unlink()
    before = {p.name: p.read_bytes() for p in (tmp_path / "run").iterdir()}
    with pytest.raises(UserError) as refused:
        train(settings(), resume=True, reporter=Listener())
    run = tmp_path / "run"
    assert str(refused.value) == (
        f"{run}: cannot resume: it holds models and no last.state.pt; "
        f"begin another run with --init-from {run}/last.safetensors, or delete this one with --overwrite"
    )
    assert before == {p.name: p.read_bytes() for p in run.iterdir()}
    (run / "last.safetensors").unlink()
    with pytest.raises(UserError, match=r"begin another run with --init-from .*/best\.safetensors"):
        train(settings(), resume=True, reporter=Listener())
    assert train(settings(), overwrite=True, reporter=Listener()).status == "finished"


def test_a_run_that_was_lost_before_its_first_model_is_begun_again(settings: Settings, tmp_path: Path) -> None:
    train(settings(max_steps=1), reporter=Listener())
    for path in (tmp_path / "run").glob("*.s*"):
        if path.name != "samples.txt":
            path.unlink()
    assert {p.name for p in (tmp_path / "run").iterdir()} == {"config.yaml", "metrics.jsonl", "samples.txt", "heartbeat.json"}
    assert train(settings(), resume=True, reporter=Listener()).steps == 20
    assert [line["step"] for line in metrics(tmp_path / "run") if "nats_per_char" in line] == list(range(2, 21, 2))


def test_a_model_never_stands_without_its_state(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever kills a run behind its first evaluation can go on, though nothing was due to be saved yet."""
    plain, found = save_model, []

    def save(path: Path, *args: Any) -> None:
        found.append((path.parent / "last.state.pt").exists())
        plain(path, *args)

    monkeypatch.setattr(training, "save_model", save)
    train(settings(save_every=1000), reporter=Listener())
    assert found and all(found)


@pytest.mark.parametrize(
    "optimizer, changes, key, value",
    [
        ("adamw", {"weight_decay": 0.1}, "weight_decay", 0.1),
        ("adamw", {"beta2": 0.9}, "betas", (0.9, 0.9)),
        ("sgd", {"momentum": 0.5}, "momentum", 0.5),
        ("rmsprop", {"beta2": 0.9}, "alpha", 0.9),
    ],
)
def test_resume_takes_the_optimizers_settings_from_the_config(
    settings: Settings, tmp_path: Path, optimizer: str, changes: dict[str, float], key: str, value: Any
) -> None:
    train(settings(optimizer=optimizer), reporter=Listener())
    before = load_state(tmp_path / "run/last.state.pt")["optimizer"]
    assert before["param_groups"][0][key] != value
    train(settings(optimizer=optimizer, max_steps=21, **changes), resume=True, reporter=Listener())
    after = load_state(tmp_path / "run/last.state.pt")["optimizer"]
    assert after["param_groups"][0][key] == value
    assert after["param_groups"][1]["weight_decay"] == 0
    assert after["state"].keys() == before["state"].keys()


def test_resume_refuses_a_text_of_the_same_length_and_characters(settings: Settings, text: Path) -> None:
    train(settings(), reporter=Listener())
    content = text.read_text()
    text.write_text(content[1500:] + content[:1500])
    with pytest.raises(UserError, match="cannot resume: the text has changed since"):
        train(settings(max_steps=30), resume=True, reporter=Listener())


def test_resume_finds_the_same_text_in_another_place(settings: Settings, text: Path, tmp_path: Path) -> None:
    train(settings(), reporter=Listener())
    moved = text.rename(tmp_path / "moved.txt")
    config = settings(max_steps=30, data={"path": [str(moved)], "cache": str(tmp_path / "another")})
    assert train(config, resume=True, reporter=Listener()).steps == 30


@pytest.mark.parametrize("before", ["report", "evaluate", "save", "end", "interrupt"])
def test_no_weights_are_taken_before_their_loss_is_looked_at(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: str
) -> None:
    """On a GPU the loss is not looked at in every step."""
    rare: dict[str, Any] = {"log_every": 1000, "evaluate_every": 1000, "save_every": 1000, "max_steps": 10}
    due = {"report": {"log_every": 5}, "evaluate": {"evaluate_every": 5}, "save": {"save_every": 5}}.get(before, {})
    config = settings(**rare | due, schedule="constant", warmup_steps=0)
    calls = inject(monkeypatch, lambda call: call == 4)
    task = load_task(config)
    run = RunDirectory(tmp_path / "run")
    run.make(config, resume=False)
    listener = Listener()
    trainer = training.Trainer(task, run, listener, torch.device("cpu"))
    assert trainer.looks_always
    trainer.looks_always = False
    if before == "interrupt":
        plain = trainer.step

        def step() -> None:
            plain()
            if calls[0] == 5:
                raise KeyboardInterrupt

        monkeypatch.setattr(trainer, "step", step)
    outcome = trainer.train()
    assert outcome.status == ("interrupted" if before == "interrupt" else "finished")
    at = {"end": 10, "interrupt": 5}.get(before, 5)
    assert [warning.split(":")[0] for warning in listener.warnings] == ([] if before == "interrupt" else [f"step {at}"])
    for name in ("best.safetensors", "last.safetensors"):
        if (run.path / name).exists():
            assert all(weight.isfinite().all() for weight in load_model(run.path / name).weights.values())
    state = load_state(run.state)
    assert all(weight.isfinite().all() for weight in state["model"].values())
    assert all(math.isfinite(report.metrics["nats_per_char"]) for report in listener.steps)
    assert state["counters"]["step"] == (0 if before == "interrupt" else 10)


@pytest.mark.parametrize("where, step", [("step", 3), ("evaluated", 5)])
@pytest.mark.parametrize("error", [BrokenPipeError(32, "Broken pipe"), UnicodeEncodeError("ascii", "é", 0, 1, "not in range")], ids=repr)
def test_a_reporter_that_fails_loses_nothing(settings: Settings, tmp_path: Path, where: str, step: int, error: Exception) -> None:
    train(settings("whole", log_every=3), reporter=Listener())
    listener = Listener()

    def fail(*_: Any) -> None:
        raise error

    setattr(listener, where, fail)
    with pytest.raises(type(error)):
        train(settings(log_every=3, save_every=1000), reporter=listener)
    assert load_state(tmp_path / "run/last.state.pt")["counters"]["step"] == step
    train(settings(log_every=3), resume=True, reporter=Listener())
    assert_same_run(tmp_path / "whole", tmp_path / "run")


def test_a_step_that_fails_is_not_saved(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it leaves is neither the state before it nor the one after it."""
    plain, calls = LanguageModel.loss, [0]

    def loss(self: Any, model: Any, *args: Any, **kwargs: Any) -> Any:
        calls[0] += model.training
        if calls[0] == 8:
            raise RuntimeError("a bug")
        return plain(self, model, *args, **kwargs)

    monkeypatch.setattr(LanguageModel, "loss", loss)
    with pytest.raises(RuntimeError, match="a bug"):
        train(settings(), reporter=Listener())
    assert load_state(tmp_path / "run/last.state.pt")["counters"]["step"] == 5


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_what_a_scheduler_sends_is_taken_as_ctrl_c(settings: Settings, tmp_path: Path, number: signal.Signals) -> None:
    train(settings("whole", log_every=1), reporter=Listener())
    before = signal.getsignal(number)

    def at(report: StepReport) -> None:
        if report.step == 7:
            os.kill(os.getpid(), number)

    outcome = train(settings(log_every=1), reporter=Listener(at))
    assert signal.getsignal(number) is before
    assert (outcome.status, outcome.steps) == ("terminated", 7)
    train(settings(log_every=1), resume=True, reporter=Listener())
    assert_same_run(tmp_path / "whole", tmp_path / "run")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_that_the_parent_had_ignored_stays_ignored(settings: Settings, number: signal.Signals) -> None:
    """As of a job that a shell has put into the background, or nohup."""

    def at(report: StepReport) -> None:
        os.kill(os.getpid(), number)

    before = signal.signal(number, signal.SIG_IGN)
    try:
        outcome = train(settings(), reporter=Listener(at))
        assert signal.getsignal(number) is signal.SIG_IGN
    finally:
        signal.signal(number, before)
    assert (outcome.status, outcome.steps) == ("finished", 20)


def test_values_that_are_not_finite_are_no_best(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = evaluation.evaluate

    def measure(*args: Any, ranks: Ranks) -> Any:
        found = plain(*args[:3])
        return dataclasses.replace(found, nats=found.nats * math.nan)

    monkeypatch.setattr(training, "measure", measure)
    outcome = train(settings(patience=2), reporter=Listener())
    assert (outcome.status, outcome.steps, outcome.best, outcome.best_step) == ("early_stopped", 10, {}, 0)
    assert math.isnan(outcome.last["val_nats_per_char"])
    assert [line["val_nats_per_char"] for line in metrics(tmp_path / "run") if "val_accuracy" in line] == [None, None]


def test_two_jobs_never_share_a_directory(settings: Settings, tmp_path: Path) -> None:
    train(settings("whole", log_every=1), reporter=Listener())
    refused: list[str] = []

    def again(report: StepReport) -> None:
        for resume in (True, False):
            with pytest.raises(UserError) as caught:
                train(settings(log_every=1), resume=resume, overwrite=not resume, reporter=Listener())
            refused.append(str(caught.value))

    train(settings(log_every=1), reporter=Listener(again))
    assert set(refused) == {
        f"{tmp_path / 'run'}: process {os.getpid()} on {platform.node()} is at work in it; "
        "wait for its end or name another directory in `run`"
    }
    assert_same_run(tmp_path / "whole", tmp_path / "run")
    assert {p.name for p in (tmp_path / "run").iterdir()} == set(FILES)


def test_a_job_that_cannot_be_kept_alone_says_so(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "fcntl", None)
    listener = Listener()
    assert train(settings(max_steps=1), reporter=listener).status == "finished"
    assert listener.notes[0] == f"{tmp_path / 'run'}: this system has no file locks; start no second job in it"


def test_a_directory_that_cannot_be_written_is_found_before_the_text_is_read(settings: Settings, text: Path, tmp_path: Path) -> None:
    config = settings("text.txt/run")
    with pytest.raises(UserError, match=r"text\.txt/run: cannot be written: Not a directory; name another directory in `run`"):
        train(config, reporter=Listener())
    assert not (tmp_path / "cache").exists()
    with pytest.raises(UserError, match="no such file"):
        train(settings("new/run", data={"path": "none.txt"}), reporter=Listener())
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("fcntl", ["here", "not here"])
def test_a_directory_that_is_there_and_cannot_be_written(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fcntl: str
) -> None:
    (tmp_path / "run").mkdir()

    def denied(path: Any, *_: Any, **__: Any) -> Any:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(lock, "open", denied, raising=False)
    if fcntl == "not here":
        monkeypatch.setattr(lock, "fcntl", None)
    with pytest.raises(UserError) as refused:
        train(settings(), reporter=Listener())
    assert str(refused.value) == f"{tmp_path / 'run'}: cannot be written: Permission denied; name another directory in `run`"
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("what", ["iterdir", "exists"])
def test_a_directory_that_cannot_be_listed(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    (tmp_path / "run").mkdir()
    plain = getattr(Path, what)

    def denied(path: Path) -> Any:
        if path.is_relative_to(tmp_path / "run"):
            raise PermissionError(13, "Permission denied", str(path))
        return plain(path)

    monkeypatch.setattr(Path, what, denied)
    with pytest.raises(UserError) as refused:
        train(settings(), reporter=Listener())
    assert str(refused.value) == f"{tmp_path / 'run'}: cannot be read: Permission denied; name another directory in `run`"


def test_the_text_is_kept_only_when_asked(settings: Settings, tmp_path: Path) -> None:
    config, run = settings(max_steps=2, keep_text=True, data={"documents": "lines"}), tmp_path / "run"
    train(config, reporter=Listener())
    index, _ = kept_index(run / "best.safetensors", load_model(run / "best.safetensors").vocabulary)
    assert index.ids.tolist() == load_corpus(config.data, config.seed).split("train").tolist()
    assert {p.name for p in run.iterdir()} == {*FILES, TEXT, TEXT_INDEX}
    train(settings(max_steps=4, data={"documents": "lines"}), resume=True, reporter=Listener())
    assert {p.name for p in run.iterdir()} == set(FILES)
    train(settings(max_steps=4, keep_text=True, data={"documents": "lines"}), resume=True, reporter=Listener())  # it is finished already
    assert {p.name for p in run.iterdir()} == {*FILES, TEXT}
    (run / f".{TEXT}.123.partial").write_text("half")
    train(settings(max_steps=2), overwrite=True, reporter=Listener())
    assert {p.name for p in run.iterdir()} == set(FILES)


# Tasks of examples


@pytest.fixture
def fill(tmp_path: Path) -> Settings:
    """37 lines of several lengths, five to a batch: the last batch of an epoch holds two."""
    rng = np.random.default_rng(0)
    lines = [
        "".join("the cat sat on a mat "[i % 21] for i in range(start, start + int(length)))
        for start, length in rng.integers(3, 30, (37, 2))
    ]
    (tmp_path / "lines.txt").write_text("\n".join(lines) + "\n")

    def build(name: str = "run", *, model: dict[str, Any] | None = None, **train_: Any) -> Config:
        defaults = {"max_steps": 20, "batch_size": 5, "evaluate_every": 5, "save_every": 5, "log_every": 2, "threads": 1}
        sections = {
            "data": {"path": str(tmp_path / "lines.txt"), "cache": str(tmp_path / "cache"), "documents": "lines", "val_fraction": 0.13},
            "model": {"embedding_size": 6, "hidden_size": 8, "bidirectional": True, **(model or {})},
            "train": {**defaults, "precision": "fp32", "warmup_steps": 3, **train_},
        }
        return build_config({"task": "fill", "run": str(tmp_path / name), "device": "cpu", **sections}, "test")

    return build


def test_the_plan_counts_pairs_and_only_answers_that_are_asked(fill: Settings) -> None:
    plain, pairs = (training.plan(fill(model={"bigrams": {"max_size": buckets, "size": 1000}})) for buckets in (0, 2))
    weights = pairs.parameters - plain.parameters
    # AdamW's two moments and the weight, each once more in the last good state, and the gradient; then both pairs of each character.
    assert pairs.memory_bytes - plain.memory_bytes > 4 * weights * 7 + 4 * 2 * 2000
    config = fill(batch_size=1)
    few, many = (
        training.plan(config.model_copy(update={"data": config.data.model_copy(update={"blanks": BlanksConfig(per_example=count)})}))
        for count in (1, 3)
    )
    assert few.memory_bytes < many.memory_bytes


def test_a_run_of_examples_tells_in_its_unit(fill: Settings, tmp_path: Path) -> None:
    listener = Listener()
    outcome = train(fill(), reporter=listener)
    assert (outcome.status, outcome.task, outcome.best_by) == ("finished", "fill", ("nats_per_blank", True))
    reports = [line for line in metrics(tmp_path / "run") if "grad_norm" in line]
    keys = "step epoch seconds chars nats_per_blank bits_per_blank perplexity accuracy grad_norm learning_rate chars_per_second"
    assert list(reports[0]) == keys.split()
    assert reports[-1]["epoch"] == pytest.approx(20 / 7, abs=1e-3)  # 32 lines, five to a batch
    best = min(evaluation[0]["val_nats_per_blank"] for evaluation in listener.evaluations)
    assert outcome.best["val_nats_per_blank"] == best == load_model(tmp_path / "run/best.safetensors").metrics["val_nats_per_blank"]
    nats = listener.evaluations[0][0]["val_nats_per_blank"]
    assert (tmp_path / "run/samples.txt").read_text().startswith(f"=== step 5, {nats:.4f} nats per blank ===\n")


@pytest.mark.parametrize("stop", [5, 10, 15])
def test_a_run_of_examples_goes_on_to_the_bit(fill: Settings, tmp_path: Path, stop: int) -> None:
    """Each epoch has an order and blanks of its own, and some batches have fewer columns than there are shards."""
    model = {"dropout": {"output": 0.3, "bigrams": 0.3}, "bigrams": {"max_size": 50, "size": 3}}
    sections: dict[str, Any] = {"model": model, "shards": 3, "accumulate": 2}
    train(fill("whole", **sections), reporter=Listener())

    def at(report: StepReport) -> None:
        if report.step >= stop:
            raise KeyboardInterrupt

    assert train(fill("halves", **sections), reporter=Listener(at)).status == "interrupted"
    train(fill("halves", **sections), resume=True, reporter=Listener())
    assert_same_run(tmp_path / "whole", tmp_path / "halves")


def test_epochs_differ_and_come_again(fill: Settings) -> None:
    trainers = [training.Trainer(load_task(fill()), RunDirectory(Path("unused")), Listener(), torch.device("cpu")) for _ in range(2)]
    batches = [[trainer._next_window() for _ in range(14)] for trainer in trainers]
    read = [[tuple(map(tuple, batch.inputs.tolist())) for batch in some] for some in batches]
    assert read[0] == read[1]
    assert set(read[0][:7]) != set(read[0][7:])


def test_shards_of_batches_of_any_width_give_the_gradient_of_the_whole(fill: Settings) -> None:
    torch.set_num_threads(2)
    task = load_task(fill(model={"bigrams": {"max_size": 50, "size": 3}}))
    batches = sorted(task.batches("train"), key=lambda batch: batch.inputs.size(1))
    assert [batch.inputs.size(1) for batch in batches[:2]] == [2, 5]
    found = []
    for count in (1, 3, 5):
        scaler = torch.amp.GradScaler("cpu", enabled=False)
        with Shards(task, task.model(), count, precision=torch.float32, label_smoothing=0.0, scaler=scaler, seed=1) as shards:
            narrow, first, _ = shards.gradients(batches[:1])
            both, second, scale = shards.gradients(batches[:2])
            found.append([gradient.to_dense() * scale.float() for gradient in [*narrow, *both]])
            assert not shards.carried().state
        assert (int(first.count), int(second.count)) == tuple(
            sum(int((batch.targets >= 0).sum()) for batch in some) for some in (batches[:1], batches[:2])
        )
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-4, atol=1e-7)


# What chooses the best


def test_the_best_is_what_best_by_names(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Accuracy rises and falls while the nats only fall: more of it is better, for the best, for patience and for the plateau."""
    accuracies = iter([0.2, 0.6, 0.5, 0.5, 0.9])
    plain = evaluation.evaluate
    passes = iter(range(9))

    def measure(*args: Any, ranks: Ranks) -> Any:
        found = plain(*args[:3])
        return dataclasses.replace(found, correct=found.count * next(accuracies), nats=found.count * (2.0 - 0.1 * next(passes)))

    monkeypatch.setattr(training, "measure", measure)
    listener = Listener()
    outcome = train(settings(max_steps=100, patience=2, best_by="accuracy"), reporter=listener)
    assert (outcome.status, outcome.steps, outcome.best_step) == ("early_stopped", 20, 10)
    assert outcome.best_by == ("accuracy", False) and outcome.best["val_accuracy"] == pytest.approx(0.6)
    assert [is_best for _, _, is_best in listener.evaluations] == [True, True, False, False]
    assert load_model(tmp_path / "run/best.safetensors").step == 10
    assert "=== step 10, 1.9000 nats per character, accuracy 0.6000 ===" in (tmp_path / "run/samples.txt").read_text()


@pytest.mark.parametrize("way", [train, training.plan])
def test_a_best_by_that_is_not_measured_is_refused_before_the_first_step(settings: Settings, tmp_path: Path, way: Any) -> None:
    with pytest.raises(UserError) as refused:
        way(settings(best_by="acuracy"), reporter=Listener())
    assert str(refused.value) == (
        "train.best_by 'acuracy': the val split is not measured by that; "
        "expected one of nats_per_char, bits_per_char, perplexity, accuracy; did you mean 'accuracy'?"
    )
    assert not (tmp_path / "run").exists()


def test_another_best_by_is_another_run(settings: Settings) -> None:
    train(settings(), reporter=Listener())
    with pytest.raises(UserError, match=r"cannot resume: train\.best_by was None and is now 'accuracy'"):
        train(settings(best_by="accuracy"), resume=True, reporter=Listener())


# Memory


def out_of_memory_above(columns: int, monkeypatch: pytest.MonkeyPatch, task: Any) -> list[int]:
    """Has the loss of more columns than that fail as PyTorch fails on a CPU; the columns of each that has not."""
    true, read = task.loss, list[int]()

    def loss(self: Any, model: Any, batch: Any, *args: Any, **options: Any) -> Any:
        if batch.columns > columns:
            raise RuntimeError(
                "[enforce fail at alloc_cpu.cpp:130] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate"
            )
        read.append(batch.columns)
        return true(self, model, batch, *args, **options)

    monkeypatch.setattr(task, "loss", loss)
    return read


@pytest.mark.parametrize("shards", [1, 2])
def test_a_step_that_does_not_fit_is_read_in_pieces_and_is_the_same(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shards: int
) -> None:
    train(settings("whole", accumulate=2, ema_decay=0.9), reporter=Listener())
    read, listener = out_of_memory_above(2, monkeypatch, LanguageModel), Listener()
    outcome = train(settings("parted", accumulate=2, ema_decay=0.9, shards=shards), reporter=listener)
    assert outcome.steps == 20
    assert max(read) == 2 and read.count(2) >= 20 * 2 * 4
    assert sum("out of memory" in warning for warning in listener.warnings) == 2
    whole, parted = (load_model(tmp_path / name / "last.safetensors").weights for name in ("whole", "parted"))
    torch.testing.assert_close(parted, whole, rtol=0, atol=1e-5)


def test_padded_examples_are_read_in_pieces_too(fill: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(fill("whole"), reporter=Listener())
    read = out_of_memory_above(1, monkeypatch, Fill)
    train(fill("parted"), reporter=Listener())
    assert set(read) == {1}
    whole, parted = (load_model(tmp_path / name / "last.safetensors").weights for name in ("whole", "parted"))
    torch.testing.assert_close(parted, whole, rtol=0, atol=1e-5)


def test_one_column_that_does_not_fit_names_the_longest(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    out_of_memory_above(0, monkeypatch, LanguageModel)
    with pytest.raises(
        UserError, match=r"out of memory with one column alone, of 9 steps: .*can't allocate memory.* lower train\.tbptt_window"
    ):
        train(settings(), reporter=Listener())


def test_a_run_that_needs_more_than_there_is_says_so_before(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "free_memory", lambda device: 1 << 12)
    warnings = training.plan(settings()).warnings
    assert any("MiB are free" in warning for warning in warnings)
    monkeypatch.setattr(planning, "free_memory", lambda device: None)
    assert not any("MiB are free" in warning for warning in training.plan(settings()).warnings)


@pytest.mark.skipif(sys.platform != "linux", reason="the limit on a process's memory is Linux's")
def test_a_true_limit_on_memory_halves_the_step(settings: Settings, tmp_path: Path) -> None:
    """3 GiB of address space, most of which Python and torch take, and a step that asks for more than what is left."""
    text = tmp_path / "long.txt"
    text.write_text("to be or not to be, that is the question.\n" * 20_000)
    config = settings("limited", data={"path": str(text)}, model={"hidden_size": 64}, batch_size=2048, tbptt_window=256, max_steps=2)
    path = tmp_path / "limited.yaml"
    path.write_text(config.to_yaml())
    code = f"""
import resource, sys, torch
from charrnn.cli import main
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 30), used + (1 << 30)))
main(["train", "--config", {str(path)!r}])
"""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=300)
    assert ended.returncode == 0, ended.stderr
    assert "out of memory; from here on the 2048 columns of a step are read in" in ended.stderr
    assert "MiB are free" in ended.stderr
    assert "Finished after 2 steps" in ended.stdout
