"""What a backend takes for a recurrence on this machine, forward and backward, once its results are those of the reference.

Axes: T time, B batch, H hidden_size.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from charrnn.ops.backends import Weights
from charrnn.ops.cells import CELLS
from charrnn.ops.recurrence import recurrence

ALLOWED = {torch.float32: 4e-5, torch.bfloat16: 0.05}  # relative error, in the norm


@dataclass(frozen=True)
class Work:
    """One layer in one direction over H inputs, its weights and its input the same for every backend."""

    cell: str
    hidden: int
    batch: int = 32
    steps: int = 64
    precision: torch.dtype = torch.float32  # of the products

    def tensors(self) -> tuple[Tensor, tuple[Tensor, ...], Weights, Tensor]:
        """x (T, B, H), the state before, the weights, and the gradient of the outputs."""
        draw = torch.Generator().manual_seed(0)
        rows, bound = CELLS[self.cell].gates * self.hidden, self.hidden**-0.5

        def uniform(*shape: int) -> Tensor:
            return torch.empty(shape).uniform_(-bound, bound, generator=draw).requires_grad_()

        x = torch.randn(self.steps, self.batch, self.hidden, generator=draw).requires_grad_()
        state = tuple(torch.zeros(self.batch, self.hidden) for _ in CELLS[self.cell].state_names)
        weights = Weights(uniform(rows, self.hidden), uniform(rows, self.hidden), uniform(rows), uniform(rows))
        return x, state, weights, torch.randn(x.shape, generator=draw)

    def run(self, backend: str, tensors: tuple[Tensor, tuple[Tensor, ...], Weights, Tensor]) -> list[Tensor]:
        """Outputs and the gradients of x and of the weights."""
        x, state, weights, d_outputs = tensors
        with torch.autocast("cpu", torch.bfloat16, enabled=self.precision == torch.bfloat16):
            outputs, _ = recurrence(self.cell, x, state, weights, final_state=False, backend=backend)
        wanted = [x, *(weight for weight in weights if weight is not None)]
        return [outputs, *torch.autograd.grad(outputs, wanted, d_outputs)]


def right(work: Work, backend: str) -> bool:
    """Whether its results are those of the reference in float32, up to the rounding of its products."""
    tensors = work.tensors()
    expected = Work(work.cell, work.hidden, work.batch, work.steps).run("reference", tensors)
    pairs = zip(work.run(backend, tensors), expected, strict=True)
    # Rounding sends some preactivations of a ReLU over the kink, and with each a whole gradient.
    allowed = ALLOWED[work.precision] * (4 if work.cell == "rnn_relu" else 1)
    return all(bool((got - of).norm() <= allowed * of.norm()) for got, of in pairs)


def milliseconds(work: Work, backends: Sequence[str], seconds: float = 1.0, rounds: int = 3) -> dict[str, float]:
    """Of each backend, the median over rounds in which they take turns: a machine's speed drifts. `seconds`: of all rounds together."""
    tensors = work.tensors()
    found = in_turn({name: partial(work.run, name, tensors) for name in backends}, seconds / rounds, rounds)
    return {name: statistics.median(times) for name, times in found.items()}


def in_turn(
    runs: Mapping[str, Callable[[], object]], seconds: float, rounds: int, before: Callable[[], object] = lambda: None
) -> dict[str, list[float]]:
    """Milliseconds of each in each round; a round lasts about `seconds`, an equal part for each, and its figure is the round's median.

    `before` is called before each run, off the clock.
    """
    found: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        before()
        run()
    for _ in range(rounds):
        for name, run in runs.items():
            taken: list[float] = []
            began = time.perf_counter()
            while not taken or time.perf_counter() - began < seconds / len(runs):
                before()
                started = time.perf_counter()
                run()
                taken.append(1e3 * (time.perf_counter() - started))
            found[name].append(statistics.median(taken))
    return found
