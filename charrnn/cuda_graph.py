"""One optimizer step: as Python asks for it operation by operation, or as a CUDA graph that was recorded once and is asked for by one call.

A step of a small model is hundreds of kernels of a few microseconds, and to ask for one takes Python and the driver longer than it
takes the GPU. A recorded step reads and writes always the same memory: windows, state, learning rate, weights and moments are put there.
What is no tensor is recorded as it was then, so nothing that differs from step to step may be anything else.

Whether a recorded step is the step is not taken on trust: before it is used, two of it are held against two of the other kind.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor, nn

from charrnn.config import Config
from charrnn.data.batch import Batch
from charrnn.device import resolve_precision
from charrnn.errors import UserError, first_line
from charrnn.gradients import Shards
from charrnn.metrics import Tally
from charrnn.optimization import Adam, Average, advance
from charrnn.tasks.task import State, Task, each

# How far two ways to the same numbers may be apart. The kernels are the same, so mostly nothing is; some add in an order of their own. A
# step that forgets its state, its masks, its moments or its learning rate is off by all of what they do.
APART = {"loss": 1e-3, "gradient norm": 1e-2, "state": 1e-2, "step": 5e-2}


class Teller(Protocol):
    def note(self, text: str) -> None: ...
    def warn(self, text: str) -> None: ...


class Stepper(Protocol):
    def step(self, windows: Sequence[Batch], rate: float, number: int) -> tuple[Tally, Tensor]:
        """The run's `number`th step, on windows that follow one another, at a learning rate.

        What was asked in it, and the norm of its gradient before it was clipped; to be read before the next step.
        """


@dataclass(frozen=True)
class Eager:
    """Asks for one operation after the other."""

    shards: Shards
    optimizer: torch.optim.Optimizer
    parameters: Sequence[nn.Parameter]
    scaler: torch.amp.GradScaler
    average: Average | None
    max_norm: float

    @property
    def device(self) -> torch.device:
        return self.parameters[0].device

    def step(self, windows: Sequence[Batch], rate: float, number: int) -> tuple[Tally, Tensor]:
        if self.device.type == "cuda":
            rate = ctypes.c_float(rate).value  # as a graph, which reads it from a tensor, has it
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        gradients, tally, scale = self.shards.gradients(windows)
        norm = advance(
            self.optimizer, self.parameters, gradients, scale,
            max_norm=self.max_norm, scaler=self.scaler, average=self.average, step=number,
        )  # fmt: skip
        return tally, norm


def choose_stepper(task: Task, eager: Eager, teller: Teller, *, alone: bool = True) -> Stepper:
    """What `train.cuda_graph` comes to. `alone`: no other process shares the step. Raises UserError where it has to be and cannot."""
    if not records(task.config, eager.device, alone=alone):
        return eager
    return Graphed(eager, tuple(next(task.batches("train")).inputs.shape), teller, CudaRecorder(eager.device))


def records(config: Config, device: torch.device, *, alone: bool = True) -> bool:
    """Whether steps are to be CUDA graphs. Raises UserError where `train.cuda_graph` says that they have to be and they cannot."""
    wanted, reason = config.train.cuda_graph, _refusal(config, device, alone)
    if wanted is True and reason:
        raise UserError(f"train.cuda_graph true: {reason}; set cuda_graph: auto or false")
    return wanted is not False and not reason


def _refusal(config: Config, device: torch.device, alone: bool) -> str:
    if not config.is_windowed:
        return f"the batches of task {config.task} differ in shape, and a recorded step has one"
    if device.type != "cuda":
        return f"it needs a CUDA GPU and the device is {device.type}"
    if resolve_precision(config.train.precision, device) == torch.float16:
        return "train.precision fp16 looks at each gradient before it decides on the step"
    if config.train.optimizer not in ("adamw", "adam"):
        return f"train.optimizer {config.train.optimizer} has no form that can be recorded; adamw and adam have"
    return "" if alone else "other processes take part in the step"


class Recorder(Protocol):
    def aside(self) -> AbstractContextManager[None]:
        """Where a step is run before it is recorded, so that the libraries have made ready what they may not make while it is."""

    def record(self, body: Callable[[], None], generator: torch.Generator) -> Callable[[], None]:
        """Run Python's part of `body`, and the device's whenever what is returned is called, which draws anew from the generator.

        Raises RuntimeError where something in it cannot be recorded.
        """


class CudaRecorder:
    """PyTorch's whole-network capture (CUDA semantics, "CUDA Graphs"), warm-up and capture on one stream beside the usual one."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._stream = device, torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        usual = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(usual)
        with torch.cuda.stream(self._stream):
            yield
        usual.wait_stream(self._stream)

    def record(self, body: Callable[[], None], generator: torch.Generator) -> Callable[[], None]:
        graph = torch.cuda.CUDAGraph()
        graph.register_generator_state(generator)
        with torch.cuda.device(self._device), torch.cuda.graph(graph, stream=self._stream):
            body()
        return graph.replay


@dataclass(frozen=True)
class _Memory:
    """All that a step changes, copied."""

    weights: list[Tensor]
    moments: list[dict[str, Tensor]]  # of each parameter; {} before its first step
    state: State | None
    drawn: Tensor  # the generator's state


@dataclass(frozen=True)
class _Trial:
    """Where two steps have led."""

    losses: list[Tensor]
    norms: list[Tensor]
    state: list[Tensor]
    weights: list[Tensor]


class Graphed:
    """Steps on full windows are recorded ones, others as `eager` takes them, and so are all where the recorded one fails its test."""

    def __init__(self, eager: Eager, shape: tuple[int, ...], teller: Teller, recorder: Recorder) -> None:
        assert isinstance(eager.optimizer, Adam)
        self._eager, self._shape, self._teller, self._recorder = eager, shape, teller, recorder
        self._shards, self._optimizer, self._parameters = eager.shards, eager.optimizer, list(eager.parameters)
        self._gave_up = False
        self._replay: Callable[[], None] | None = None
        self._generator = eager.shards.generator
        # The memory that a recorded step reads and writes.
        self._windows: list[Batch] = []
        self._rate = torch.zeros((), device=eager.device)
        self._state: State = ()
        self._moments: list[dict[str, Tensor]] = []
        self._found = (Tally.zero(eager.device), torch.zeros((), device=eager.device))

    @property
    def recorded(self) -> bool:
        """Whether there is a recorded step that has passed its test."""
        return self._replay is not None

    def step(self, windows: Sequence[Batch], rate: float, number: int) -> tuple[Tally, Tensor]:
        if not self._gave_up and self._fits(windows) and (self._replay is None or self._generator is not self._shards.generator):
            self._begin(windows, rate)
        if self._replay is None or not self._fits(windows):
            return self._eager.step(windows, rate, number)
        found = self._again(windows, rate)
        if self._eager.average:  # by how much it follows is a number of each step's own
            self._eager.average.update(number)
        return found

    def _fits(self, windows: Sequence[Batch]) -> bool:
        """The state goes on through the windows of a step without a look at them."""
        return all(w.lengths is None and tuple(w.inputs.shape) == self._shape for w in windows) and all(w.continues for w in windows[1:])

    def _again(self, windows: Sequence[Batch], rate: float) -> tuple[Tally, Tensor]:
        assert self._replay is not None
        self._put(windows, rate)
        self._replay()
        self._shards.state = self._state
        return self._found

    @torch.no_grad()
    def _put(self, windows: Sequence[Batch], rate: float) -> None:
        """Have what the step reads in the memory where it reads it."""
        self._rate.fill_(rate)
        for group in self._optimizer.param_groups:  # what is saved with the moments
            group["lr"] = ctypes.c_float(rate).value
        for held, window in zip(self._windows, windows):
            held.inputs.copy_(window.inputs, non_blocking=True)
            held.targets.copy_(window.targets, non_blocking=True)
        carried = self._shards.state if windows[0].continues else None
        if carried is not self._state:  # after a step of the other kind, a beginning, a state that was loaded
            _copy_state(self._state, carried)
        for parameter, own in zip(self._parameters, self._moments):
            state = self._optimizer.state[parameter]
            if any(state.get(name) is not tensor for name, tensor in own.items()):  # loaded
                for name, tensor in own.items():
                    _set(tensor, state.get(name))
                state.update(own)

    def _body(self) -> None:
        """What is recorded."""
        self._shards.state = self._state
        gradients, tally, scale = self._shards.gradients(self._windows)
        norm = advance(self._optimizer, self._parameters, gradients, scale, max_norm=self._eager.max_norm, scaler=self._eager.scaler)
        with torch.no_grad():
            _copy_state(self._state, self._shards.state)
        self._found = tally, norm

    def _begin(self, windows: Sequence[Batch], rate: float) -> None:
        """Record a step and test it. Afterwards weights, moments, state and masks to come are as they were."""
        self._replay = None
        alone, before = replace(self._eager, average=None), self._remember()
        reason = ""
        try:
            with self._recorder.aside():
                for _ in range(2):  # once to make ready
                    self._restore(before)
                    expected = self._trial(windows, rate, lambda some, at: alone.step(some, at, 0))
                self._lay(windows)
                self._restore(before)
            try:
                with _reading_rate(self._optimizer, self._rate):
                    self._replay = self._recorder.record(self._body, self._generator)
                self._restore(before)
                found = self._trial(windows, rate, self._again)
            except RuntimeError as error:
                reason = f"the step cannot be recorded as a CUDA graph ({first_line(error)})"
            else:
                reason = _difference(expected, found, before.weights)
        finally:
            if reason:
                # A recording that broke off may have left its generator in the middle of it.
                self._shards.generator = torch.Generator(self._eager.device)
            self._restore(before)
        if reason:
            self._replay, self._gave_up = None, True
            self._teller.warn(f"train.cuda_graph: {reason}; training goes on without, which changes nothing but its speed")

    def _trial(self, windows: Sequence[Batch], rate: float, step: Callable[[Sequence[Batch], float], tuple[Tally, Tensor]]) -> _Trial:
        """Two steps, the second with what the first has carried to it, other masks and another rate."""
        losses, norms = [], []
        for some, at in ((windows, rate), ([replace(window, continues=True) for window in windows], rate / 2)):
            tally, norm = step(some, at)
            losses.append(tally.nats.clone())
            norms.append(norm.clone())
        state = [tensor.detach().clone() for tensor in _flat(self._shards.state)]
        return _Trial(losses, norms, state, [parameter.detach().clone() for parameter in self._parameters])

    def _lay(self, windows: Sequence[Batch]) -> None:
        """Choose the memory, after a step that has shown what there is."""
        device, state = self._eager.device, self._shards.state
        assert state is not None
        self._generator = self._shards.generator
        self._windows = [replace(window, continues=True).moved(lambda tensor: tensor.to(device, copy=True)) for window in windows]
        self._state = each(state, lambda tensor: torch.empty_like(tensor).detach())
        self._moments = [dict(self._optimizer.state[parameter]) for parameter in self._parameters]

    def _remember(self) -> _Memory:
        state = self._shards.state
        return _Memory(
            weights=[parameter.detach().clone() for parameter in self._parameters],
            moments=[{name: tensor.clone() for name, tensor in self._optimizer.state.get(p, {}).items()} for p in self._parameters],
            state=None if state is None else each(state, lambda tensor: tensor.detach().clone()),
            drawn=self._shards.generator.get_state(),
        )

    @torch.no_grad()
    def _restore(self, memory: _Memory) -> None:
        """In the memory where it was: moments that there were not are those of no step."""
        self._optimizer.zero_grad(set_to_none=True)
        for parameter, weight, moments in zip(self._parameters, memory.weights, memory.moments):
            parameter.copy_(weight)
            for name, tensor in self._optimizer.state.get(parameter, {}).items():
                _set(tensor, moments.get(name))
        state = memory.state
        self._shards.state = None if state is None else each(state, torch.clone)
        self._shards.generator.set_state(memory.drawn)


@contextlib.contextmanager
def _reading_rate(optimizer: torch.optim.Optimizer, rate: Tensor) -> Iterator[None]:
    """The optimizer takes its learning rate from a tensor, and says that it may be recorded."""
    before = [(group["lr"], group["capturable"]) for group in optimizer.param_groups]
    try:
        for group in optimizer.param_groups:
            group["lr"], group["capturable"] = rate, True
        yield
    finally:
        for group, (given, capturable) in zip(optimizer.param_groups, before):
            group["lr"], group["capturable"] = given, capturable


def _flat(state: State | None) -> list[Tensor]:
    return [tensor for layer in state or () for tensor in layer]


def _copy_state(own: State, other: State | None) -> None:
    """Into the memory of `own`; None: zeros, from which a text begins."""
    others = _flat(other)
    for k, tensor in enumerate(_flat(own)):
        _set(tensor, others[k] if others else None)


def _set(tensor: Tensor, new: Tensor | None) -> None:
    """None: zeros."""
    if new is None:
        tensor.zero_()
    else:
        tensor.copy_(new.detach())


def _difference(expected: _Trial, found: _Trial, before: Sequence[Tensor]) -> str:
    """What tells two trials apart, or nothing."""
    pairs = {
        "loss": (expected.losses, found.losses, expected.losses),
        "gradient norm": (expected.norms, found.norms, expected.norms),
        "state": (expected.state, found.state, expected.state),
        "step": (expected.weights, found.weights, [new - old for new, old in zip(expected.weights, before)]),
    }
    for name, (one, other, measure) in pairs.items():
        off = _norm([a - b for a, b in zip(one, other)]) / max(_norm(measure), 1e-30)
        if not off <= APART[name]:  # nor where it is no number
            return f"a recorded step gives another {name} than the step itself (off by {off:.1e})"
    return ""


def _norm(tensors: Sequence[Tensor]) -> float:
    return float(torch.stack([tensor.double().norm() for tensor in tensors]).norm())
