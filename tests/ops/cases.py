"""Random recurrences, and everything a backend says about one: outputs, final states and every gradient, by name.

Axes: T time, B batch, I input_size, H hidden_size, G gates of the cell.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from charrnn.ops.backends import Request, Weights, backend
from charrnn.ops.cells import CELLS, State
from charrnn.ops.recurrence import recurrence

FAST_BACKENDS = ("explicit", "fused", "native")
ALL_BACKENDS = ("reference", *FAST_BACKENDS)
DEVICES = ["cpu"] + ["cuda"] * torch.cuda.is_available() + ["mps"] * torch.backends.mps.is_available()


class Sizes(NamedTuple):
    steps: int
    batch: int
    inputs: int
    hidden: int


ODD = Sizes(7, 3, 5, 9)
ONE = Sizes(1, 1, 1, 1)
SMALL = Sizes(3, 2, 2, 2)


@dataclass(frozen=True)
class Problem:
    """The inputs of one call of `recurrence`, and the cotangents that make a scalar of what it returns."""

    cell: str
    x: Tensor  # (T, B, I)
    state: State  # each (B, H)
    weights: Weights
    d_outputs: Tensor  # (T, B, H)
    d_final: State  # each (B, H)

    def leaves(self) -> dict[str, Tensor]:
        """All that a gradient flows to, by name."""
        states = {f"{name}_0": s for name, s in zip(CELLS[self.cell].state_names, self.state, strict=True)}
        return {"x": self.x, **states, **{name: w for name, w in self.weights._asdict().items() if w is not None}}


def problem(
    cell: str, sizes: Sizes = ODD, *, biased: bool = True, dtype: torch.dtype = torch.float64, device: str = "cpu", seed: int = 0
) -> Problem:
    """The same numbers for every dtype and device: drawn in float32 on the CPU, so that float64 holds them exactly."""
    generator = torch.Generator().manual_seed(seed)
    steps, batch, inputs, hidden = sizes
    rows, states = CELLS[cell].gates * hidden, len(CELLS[cell].state_names)

    def draw(*shape: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(shape, generator=generator) * scale).to(device, dtype).requires_grad_()

    return Problem(
        cell,
        x=draw(steps, batch, inputs),
        state=tuple(draw(batch, hidden) for _ in range(states)),
        weights=Weights(
            draw(rows, inputs, scale=inputs**-0.5),
            draw(rows, hidden, scale=hidden**-0.5),
            draw(rows) if biased else None,
            draw(rows) if biased else None,
        ),
        d_outputs=draw(steps, batch, hidden).detach(),
        d_final=tuple(draw(batch, hidden).detach() for _ in range(states)),
    )


def results(given: Problem, backend: str, *, lengths: Tensor | None = None, reverse: bool = False) -> dict[str, Tensor]:
    """Outputs, final states and the gradient of every leaf, by name."""
    outputs, final = recurrence(given.cell, given.x, given.state, given.weights, lengths=lengths, reverse=reverse, backend=backend)
    named = {"outputs": outputs, **{f"{name}_n": s for name, s in zip(CELLS[given.cell].state_names, final, strict=True)}}
    return {name: t.detach() for name, t in named.items()} | gradients(given, outputs, final)


def gradients(given: Problem, outputs: Tensor, final: State) -> dict[str, Tensor]:
    """The gradient of every leaf of `given` for its cotangents on outputs and on the final state."""
    leaves = given.leaves()
    cotangents = [d.to(y.dtype) for d, y in zip((given.d_outputs, *given.d_final), (outputs, *final), strict=True)]
    grads = torch.autograd.grad((outputs, *final), list(leaves.values()), cotangents)
    return {f"d_{name}": grad for name, grad in zip(leaves, grads, strict=True)}


def assert_exact(got: Tensor, expected: Tensor, name: str) -> None:
    """Equal in float64 but for the order of sums; a failure says of what."""
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12, msg=lambda text: f"{name}: {text}")


def error(got: Tensor, exact: Tensor) -> float:
    return (got.detach().cpu().double() - exact.detach().cpu().double()).abs().max().item()


def runs_on(device: str, name: str, cell: str, ragged: bool) -> bool:
    """Whether the backend accepts the case; on the CPU and on CUDA each accepts all of them."""
    return device in ("cpu", "cuda") or backend(name).refuses(Request(cell, device, ragged=ragged)) is None
