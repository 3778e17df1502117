"""A recorded step is the step: what it reads, what it leaves, and that one which is wrong is noticed and not used.

There are two stand-ins for a GPU. A Tape records the operations of a step on a CPU, with the memory they read and write, as a CUDA graph
does: what Python knew when it was recorded it knows for ever. And a pretended GPU runs the same Python as a real one, without numbers.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from charrnn import feeding, gradients, optimization, training
from charrnn.checkpoint import load_state
from charrnn.config import Config, build_config
from charrnn.cuda_graph import Eager, Graphed, choose_stepper, records
from charrnn.data.batch import Batch
from charrnn.device import float32_products
from charrnn.errors import UserError
from charrnn.gradients import Shards
from charrnn.ops import linear_cross_entropy
from charrnn.optimization import MOMENTS, Adam, build_optimizer
from charrnn.run_directory import RunDirectory
from charrnn.tasks import load_task
from charrnn.tasks.lm import LanguageModel
from charrnn.training import StepReport, Trainer, train
from tests.test_training import same

ROOT = Path(__file__).parent.parent
CPU = torch.device("cpu")
CUDA = torch.device("cuda")
DROPOUT = {"embedding": 0.1, "input": 0.1, "between_layers": 0.2, "output": 0.3, "weight_hh": 0.2}
RATES = [2.0**-k for k in (5, 6, 7, 6, 5, 8)]  # float32 has them exactly


class Listener:
    """A Reporter that remembers what it was told."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.warnings: list[str] = []
        self.nats: list[float] = []
        self._stop_at = stop_at

    def note(self, text: str) -> None: ...
    def encoding(self, done: int, total: int) -> None: ...
    def stepped(self, step: int, progress: float) -> None: ...
    def evaluated(self, metrics: dict[str, float], sample: str, is_best: bool) -> None: ...
    def done(self, outcome: Any) -> None: ...

    def warn(self, text: str) -> None:
        if not text.startswith("the model is far too large"):
            self.warnings.append(text)

    def step(self, report: StepReport) -> None:
        self.nats.append(report.metrics["nats_per_char"])
        if report.step == self._stop_at:
            raise KeyboardInterrupt


@pytest.fixture
def settings(tmp_path: Path) -> Callable[..., Config]:
    text = tmp_path / "text.txt"
    text.write_text("".join("the cat sat on a mat.\n"[i * i % 22 :] for i in range(200))[:1500])

    def build(name: str = "run", device: str = "cpu", *, model: dict[str, Any] | None = None, **train_: Any) -> Config:
        train_ = {"max_steps": 20, "batch_size": 4, "tbptt_window": 7, "precision": "fp32", "log_every": 1, "threads": 1, **train_}
        return build_config(
            {
                "run": str(tmp_path / name),
                "device": device,
                "data": {"path": str(text), "cache": str(tmp_path / "cache")},
                "model": {"embedding_size": 6, "hidden_size": 10, "num_layers": 2, "backend": "auto", **(model or {})},
                "train": train_,
            },
            "test",
        )

    return build


Settings = Callable[..., Config]


@pytest.fixture
def in_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU too, a step is all PyTorch's operations, as on a GPU, and no calls into C++ that a recording would not see."""
    monkeypatch.setattr(optimization, "has_adam", lambda tensors: False)
    monkeypatch.setattr(linear_cross_entropy, "has_softmax", lambda *_: False)
    monkeypatch.setattr(linear_cross_entropy, "has_head", lambda *_: False)


class Taping(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Runs operations and remembers them, with the tensors they took and gave."""

    def __init__(self, tape: list[tuple[Any, Any, Any, Any]]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._tape = tape

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = function(*args, **(kwargs or {}))
        if not function.is_view:
            self._tape.append((function, args, kwargs or {}, given))
        return given


class Tape:
    """A Recorder on a CPU. What a replay gives is written where the recording had it."""

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        yield

    def record(self, body: Callable[[], None], generator: torch.Generator) -> Callable[[], None]:
        tape: list[tuple[Any, Any, Any, Any]] = []
        with Taping(tape):
            body()

        @torch.no_grad()
        def replay() -> None:
            for function, args, kwargs, before in tape:
                now = function(*args, **kwargs)
                for own, new in zip(tree_flatten(before)[0], tree_flatten(now)[0]):
                    if isinstance(own, Tensor) and own.data_ptr() != new.data_ptr():
                        own.copy_(new)

        return replay


class Pieces:
    """A run's weights and what moves them, on the CPU, one by one where a Trainer has them together."""

    def __init__(self, config: Config) -> None:
        self.task, train_ = load_task(config), config.train
        self.model = self.task.model().train()
        self.optimizer = build_optimizer(train_, self.model)
        scaler = torch.amp.GradScaler("cpu", enabled=False)
        self.average = optimization.Average(self.model, train_.ema_decay) if train_.ema_decay else None
        self.shards = Shards(
            self.task, self.model, 1, precision=torch.float32, label_smoothing=train_.label_smoothing, scaler=scaler, seed=config.seed
        )
        parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.eager = Eager(self.shards, self.optimizer, parameters, scaler, self.average, train_.max_grad_norm)
        self.listener = Listener()

    def graphed(self, recorder: Any = None) -> Graphed:
        return Graphed(self.eager, tuple(next(self.task.batches("train")).inputs.shape), self.listener, recorder or Tape())

    def steps(self, accumulate: int = 1) -> Iterator[list[Batch]]:
        """Over and over through the text, short last windows and beginnings included."""
        while True:
            passed = list(self.task.batches("train"))
            yield from (passed[k : k + accumulate] for k in range(0, len(passed), accumulate))

    def weights(self) -> list[Tensor]:
        averaged = list(self.average.model.parameters()) if self.average else []
        return [parameter.detach().clone() for parameter in (*self.model.parameters(), *averaged)]

    def everything(self) -> list[Tensor]:
        moments = [self.optimizer.state[p][name].clone() for p in self.eager.parameters for name in MOMENTS[Adam]]
        state = [tensor.detach().clone() for layer in self.shards.state or () for tensor in layer]
        return [*self.weights(), *moments, *state, self.shards.generator.get_state()]


def equal(some: list[Tensor], others: list[Tensor]) -> bool:
    return len(some) == len(others) and all(map(torch.equal, some, others))


EVERYTHING: dict[str, Any] = {"model": {"dropout": DROPOUT}, "ema_decay": 0.9, "label_smoothing": 0.1, "weight_decay": 0.01}
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "gru": {"model": {"cell": "gru", "backend": "explicit"}},
    "everything": EVERYTHING,
    "accumulated": {**EVERYTHING, "accumulate": 3},
    "tied, adam": {
        "model": {"tied_embeddings": True, "embedding_size": 10, "dropout": {"output": 0.5, "locked": True}},
        "optimizer": "adam",
    },
}


@pytest.mark.usefixtures("in_operations")
@pytest.mark.parametrize("kind", KINDS)
def test_recorded_steps_lead_where_steps_lead(settings: Settings, kind: str) -> None:
    config = settings(**KINDS[kind], cuda_graph="auto")
    accumulate = config.train.accumulate
    one, other = Pieces(config), Pieces(config)
    graphed = other.graphed()
    passed = -(-len(list(one.task.batches("train"))) // accumulate)
    for number, windows, others, rate in zip(range(1, 2 * passed + 3), one.steps(accumulate), other.steps(accumulate), RATES * passed):
        tally, norm = one.eager.step(windows, rate, number)
        found, norm_found = graphed.step(others, rate, number)
        assert equal([tally.nats, tally.count, tally.correct, norm], [found.nats, found.count, found.correct, norm_found]), number
        assert equal(one.everything(), other.everything()), number
    assert not other.listener.warnings
    assert graphed.recorded


@pytest.mark.usefixtures("in_operations")
def test_a_loaded_state_is_taken_up_by_the_recorded_step(settings: Settings) -> None:
    config = settings(**EVERYTHING)
    one, other = Pieces(config), Pieces(config)
    graphed, at = other.graphed(), next(one.steps())
    others = next(other.steps())
    for pieces, step, windows in ((one, one.eager.step, at), (other, graphed.step, others)):
        go_on = [dataclasses.replace(windows[0], continues=True)]
        step(windows, 2**-6, 1)
        kept = copy.deepcopy((pieces.weights(), pieces.shards.carried(), pieces.optimizer.state_dict()))
        step(go_on, 2**-6, 2)
        with torch.no_grad():
            for parameter, weight in zip(pieces.model.parameters(), kept[0]):
                parameter.copy_(weight)
        optimization.load_optimizer(pieces.optimizer, kept[2])
        pieces.shards.load(kept[1])
        step(go_on, 2**-7, 2)
        step(go_on, 2**-6, 3)
    assert equal(one.everything(), other.everything())
    assert not other.listener.warnings


@pytest.mark.usefixtures("in_operations")
def test_a_run_of_recorded_steps_is_the_run(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """… evaluated, saved, interrupted and resumed, to the bit."""
    # One rate, of which a tensor of float32 holds all.
    changed: dict[str, Any] = {**EVERYTHING, "learning_rate": 2**-7, "schedule": "constant", "warmup_steps": 0, "evaluate_every": 7}
    runs = ["plain", "whole", "parts"]
    train(settings("plain", **changed), reporter=Listener())

    def recorded(task: LanguageModel, eager: Eager, teller: Listener, *, alone: bool) -> Graphed:
        assert alone
        return Graphed(eager, tuple(next(task.batches("train")).inputs.shape), teller, Tape())

    monkeypatch.setattr(training, "choose_stepper", recorded)
    told = Listener(), Listener(8), Listener()
    train(settings("whole", **changed), reporter=told[0])
    assert train(settings("parts", **changed), reporter=told[1]).status == "interrupted"
    train(settings("parts", **changed), resume=True, reporter=told[2])
    assert not [warning for listener in told for warning in listener.warnings]
    assert [*told[1].nats, *told[2].nats] == told[0].nats
    assert_same_state(settings, *runs)


def assert_same_state(settings: Settings, *runs: str) -> None:
    """All that the next step would read, to the bit."""
    states = [load_state(Path(settings(name).run) / "last.state.pt") for name in runs]
    for key in ("model", "average", "optimizer", "generators", "carried"):
        for other in states[1:]:
            assert same(states[0][key], other[key]), key


class Broken(Tape):
    """A Recorder that raises, as one does of what cannot be recorded."""

    def record(self, body: Callable[[], None], generator: torch.Generator) -> Callable[[], None]:
        body()
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nmore lines")


class Wrong(Tape):
    """A Recorder whose replays forget something."""

    def __init__(self, spoil: Callable[[Pieces], None], pieces: Pieces) -> None:
        self._spoil, self._pieces = spoil, pieces

    def record(self, body: Callable[[], None], generator: torch.Generator) -> Callable[[], None]:
        replay = super().record(body, generator)

        def spoiled() -> None:
            replay()
            self._spoil(self._pieces)

        return spoiled


class Baked(Tape):
    """A Recorder of the first replay's numbers: every one gives what the first gave."""

    def record(self, body: Callable[[], None], generator: torch.Generator) -> Callable[[], None]:
        replay, drawn = super().record(body, generator), generator.get_state()

        def same() -> None:
            generator.set_state(drawn)
            replay()

        return same


class OneRate(Tape):
    """A Recorder of a step that has its learning rate as a number."""

    def __init__(self, pieces: Pieces) -> None:
        self._pieces = pieces

    def record(self, body: Callable[[], None], generator: torch.Generator) -> Callable[[], None]:
        for group in self._pieces.optimizer.param_groups:
            group["lr"] = RATES[1]
        return super().record(body, generator)


@torch.no_grad()
def _nudge(pieces: Pieces) -> None:
    for parameter in pieces.model.parameters():
        parameter.mul_(1.1)


@torch.no_grad()
def _forget_state(pieces: Pieces) -> None:
    for tensor in pieces.graph._state[0]:  # type: ignore[attr-defined]
        tensor.zero_()


def _forget_moments(pieces: Pieces) -> None:
    for state in pieces.optimizer.state.values():
        for tensor in state.values():
            tensor.zero_()


WRONG: dict[str, tuple[Callable[[Pieces], Any], str]] = {
    "raises": (
        lambda pieces: Broken(),
        r"the step cannot be recorded as a CUDA graph \(CUDA error: operation not permitted .* capturing\)",
    ),
    "weights": (lambda pieces: Wrong(_nudge, pieces), "a recorded step gives another (loss|gradient norm|state|step)"),
    "state": (lambda pieces: Wrong(_forget_state, pieces), "a recorded step gives another (loss|state)"),
    "moments": (lambda pieces: Wrong(_forget_moments, pieces), "a recorded step gives another (state|step)"),
    "masks": (lambda pieces: Baked(), "a recorded step gives another loss"),
    "rate": (lambda pieces: OneRate(pieces), "a recorded step gives another (state|step)"),
}


@pytest.mark.usefixtures("in_operations")
@pytest.mark.parametrize("kind", WRONG)
def test_a_recorded_step_that_is_none_is_not_used(settings: Settings, kind: str) -> None:
    """… and what it has spoilt is as it was, so that the run is the one that it would have been."""
    config = settings(model={"dropout": DROPOUT}, ema_decay=0.9)
    one, other = Pieces(config), Pieces(config)
    recorder, expected = WRONG[kind]
    other.graph = graphed = other.graphed(recorder(other))  # type: ignore[attr-defined]
    for number, windows, others in zip(range(1, 6), one.steps(), other.steps()):
        one.eager.step(windows, RATES[number], number)
        graphed.step(others, RATES[number], number)
        assert equal(one.everything(), other.everything()), number
    assert not graphed.recorded
    (warning,) = other.listener.warnings
    assert re.fullmatch(f"train.cuda_graph: {expected}.*; training goes on without, which changes nothing but its speed", warning), warning


@pytest.mark.usefixtures("in_operations")
def test_a_bug_in_a_step_keeps_its_traceback(settings: Settings) -> None:
    class Buggy(Tape):
        def record(self, body: Callable[[], None], generator: torch.Generator) -> Callable[[], None]:
            raise TypeError("a bug")

    pieces = Pieces(settings())
    before = pieces.weights()
    with pytest.raises(TypeError, match="a bug"):
        pieces.graphed(Buggy()).step(next(pieces.steps()), 0.1, 1)
    assert equal(before, pieces.weights())


def test_which_runs_are_recorded(settings: Settings, tmp_path: Path) -> None:
    assert records(settings(), CUDA)
    assert records(settings(cuda_graph=True, precision="bf16"), CUDA)
    assert not records(settings(cuda_graph=False), CUDA)
    for device, alone, changed, reason in (
        (CPU, True, {}, "it needs a CUDA GPU and the device is cpu"),
        (CUDA, True, {"precision": "fp16"}, "train.precision fp16 looks at each gradient"),
        (CUDA, True, {"optimizer": "sgd"}, "train.optimizer sgd has no form that can be recorded"),
        (CUDA, False, {}, "other processes take part in the step"),
    ):
        assert not records(settings(**changed), device, alone=alone)
        with pytest.raises(UserError, match=f"^train.cuda_graph true: {reason}.*; set cuda_graph: auto or false$"):
            records(settings(cuda_graph=True, **changed), device, alone=alone)
    fill = build_config({"task": "fill", "data": {"path": str(tmp_path / "text.txt")}, "train": {"max_steps": 1}}, "test")
    assert not records(fill, CUDA)


def test_on_a_cpu_steps_are_asked_for_one_by_one(settings: Settings) -> None:
    pieces = Pieces(settings())
    assert choose_stepper(pieces.task, pieces.eager, pieces.listener) is pieces.eager
    with pytest.raises(UserError, match="the device is cpu"):
        train(settings(cuda_graph=True), reporter=Listener())


@pytest.fixture
def pretended_gpu(monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """A device that is none of a CPU and whose tensors hold no numbers: what asks for one raises, as it would have to wait on a GPU."""
    monkeypatch.setattr(gradients, "seeded", lambda device, *entropy: torch.Generator())
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())  # it knows no such device
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda kind: False)
    return torch.device("meta")


@pytest.mark.parametrize("kind", KINDS)
def test_nobody_waits_for_the_gpu_within_a_step(settings: Settings, pretended_gpu: torch.device, kind: str) -> None:
    config = settings(**KINDS[kind])
    trainer = Trainer(load_task(config), RunDirectory(Path(config.run)), Listener(), pretended_gpu)
    for group in trainer.optimizer.param_groups:
        group.update(fused=False, foreach=True)  # the fused form asks for devices by name
    with trainer.shards:
        for _ in range(3):
            trainer.step()
    assert trainer.counters.step == 3 and trainer.counters.chars == 3 * 28 * config.train.accumulate
    assert {tensor.device.type for tensor in (trainer.grad_norm, trainer.since_look.nats, *trainer.model.parameters())} == {"meta"}
    assert not trainer.looks_always
    with pytest.raises(RuntimeError, match="cannot be called on meta tensors"):  # a look is a wait, so a wait is noticed
        trainer.look()


def test_the_check_of_a_gpu_says_where_there_is_none(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": ""}
    command = ["bash", str(ROOT / "scripts/gpu_check.sh"), str(tmp_path / "table.md")]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert ended.returncode == 1 and not (tmp_path / "table.md").exists()
    assert ended.stderr == f"charrnn: error: torch {torch.__version__} sees no CUDA GPU here\n"


def on_gpu(settings: Settings, steps: int, **changed: Any) -> tuple[Trainer, Listener]:
    """A Trainer on the GPU after so many steps that nobody looked at."""
    config, listener = settings(device="cuda", **changed), Listener()
    trainer = Trainer(load_task(config), RunDirectory(Path(config.run)), listener, CUDA)
    with trainer.shards:
        for _ in range(steps):
            trainer.step()
    return trainer, listener


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", KINDS)
def test_on_a_gpu_recorded_steps_lead_where_steps_lead(settings: Settings, kind: str, precision: str) -> None:
    """20 steps, through short windows and beginnings, with dropout and without."""
    changed = {**KINDS[kind], "precision": precision}
    one, _ = on_gpu(settings, 20, **changed, cuda_graph=False)
    other, told = on_gpu(settings, 20, **changed, cuda_graph=True)
    assert isinstance(other.stepper, Graphed) and other.stepper.recorded and not told.warnings
    # Sums of a GPU may come in another order each time, and Adam makes a step of a gradient that is nothing else.
    close = 1e-3 if precision == "fp32" else 2e-2
    assert float(other.since_report.nats) == pytest.approx(float(one.since_report.nats), rel=close)
    assert torch.equal(other.since_report.count, one.since_report.count)
    for (name, weight), expected in zip(other.model.named_parameters(), one.model.parameters()):
        torch.testing.assert_close(weight, expected, rtol=10 * close, atol=10 * close, msg=f"{name}: {{}}".format)
    assert torch.equal(other.shards.generator.get_state(), one.shards.generator.get_state())  # as many masks were drawn


@pytest.mark.gpu
@pytest.mark.parametrize("stop_at", [1, 8])
def test_on_a_gpu_a_resumed_run_is_the_same_to_the_bit(settings: Settings, stop_at: int) -> None:
    changed: dict[str, Any] = {**EVERYTHING, "device": "cuda", "cuda_graph": True, "max_steps": 20, "evaluate_every": 7}
    whole, before, after = Listener(), Listener(stop_at), Listener()
    train(settings("whole", **changed), reporter=whole)
    outcome = train(settings("parts", **changed), reporter=before)
    assert (outcome.status, outcome.steps) == ("interrupted", stop_at)
    assert train(settings("parts", **changed), resume=True, reporter=after).status == "finished"
    assert [*before.nats, *after.nats] == whole.nats and not [*whole.warnings, *before.warnings, *after.warnings]
    assert_same_state(settings, "whole", "parts")


@pytest.mark.gpu
@pytest.mark.parametrize("cuda_graph", [True, False])
@pytest.mark.parametrize("held", [True, False])
def test_on_a_gpu_nobody_waits_within_a_step(settings: Settings, monkeypatch: pytest.MonkeyPatch, held: bool, cuda_graph: bool) -> None:
    if not held:
        monkeypatch.setattr(feeding, "SHARE", 0.0)
    trainer, _ = on_gpu(settings, 3, **EVERYTHING, cuda_graph=cuda_graph)
    torch.cuda.set_sync_debug_mode("error")
    try:
        with trainer.shards:
            for _ in range(2 * trainer.steps_per_epoch):
                trainer.step()
        with pytest.raises(RuntimeError, match="synchronizing"):
            trainer.look()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
def test_on_a_gpu_fp16_learns_with_a_scaled_loss(settings: Settings) -> None:
    listener = Listener()
    config = settings(device="cuda", precision="fp16", max_steps=60, warmup_steps=1)
    assert train(config, reporter=listener).status == "finished"
    assert listener.nats[-1] < 0.8 * listener.nats[0]
    assert load_state(Path(config.run) / "last.state.pt")["scaler"]["scale"] > 1


@pytest.mark.gpu
def test_what_a_gpu_saved_goes_on_on_a_cpu(settings: Settings) -> None:
    listener, further = Listener(10), Listener()
    train(settings(**EVERYTHING, device="cuda"), reporter=listener)
    outcome = train(settings(**EVERYTHING), resume=True, reporter=further)
    assert (outcome.status, outcome.steps) == ("finished", 20)
    assert further.nats[0] == pytest.approx(listener.nats[-1], rel=0.2)


@pytest.mark.gpu
@pytest.mark.parametrize("tf32", [False, True])
def test_on_a_gpu_tf32_is_what_was_chosen(settings: Settings, tf32: bool) -> None:
    """A product of numbers that TF32 cannot tell from 1."""
    with float32_products(CUDA, tf32=tf32):
        x = torch.full((256, 256), 1 + 2.0**-13, device="cuda")
        assert bool((x @ x == 256).all()) is (tf32 and torch.cuda.get_device_capability() >= (8, 0))
