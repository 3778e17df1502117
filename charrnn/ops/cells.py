"""The mathematics of a cell, once: its gate order, one step of it, and the derivative of that step.

Every backend that computes a recurrence itself takes the step and the derivative from here. Gate order and equations
are torch.nn's, so weights are interchangeable with `nn.RNN`, `nn.LSTM` and `nn.GRU`.

Axes: B batch, H hidden_size, G gates of the cell (rows of a weight matrix per hidden unit).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

State = tuple[Tensor, ...]  # (h,) or (h, c), each (B, H)
Kept = tuple[Tensor, ...]  # what a step must remember for its derivative, each (B, H)

# Both come from the value, not from the argument: y (1 - y) for the sigmoid, 1 - y² for the tanh. One fused pass each.
_through_sigmoid = torch.ops.aten.sigmoid_backward
_through_tanh = torch.ops.aten.tanh_backward


@dataclass(frozen=True)
class Cell:
    """A recurrent cell s_t = step(U x_t + b_ih, W s_{t-1} + b_hh, s_{t-1}).

    `step(from_x, from_h, state) -> (state, kept)`: from_x and from_h are (B, G·H).
    `derivative(kept, state, d_state) -> (d_from_x, d_from_h, d_state)`: given the state *before* the step and the
    gradient of the state after it, returns the blocks of both preactivations' gradients, each (B, H) in gate order, and
    the gradient of the state before, *without* the path through W, which is the caller's product to make.

    An `additive` cell sees from_x and from_h only as their sum. Its caller may add them in the product that makes from_h
    and pass None for it; the derivative then returns the same blocks twice.
    """

    name: str
    gates: int
    gate_names: tuple[str, ...]  # of the first of what a step keeps
    state_names: tuple[str, ...]
    additive: bool
    step: Callable[[Tensor, Tensor | None, State], tuple[State, Kept]]
    derivative: Callable[[Kept, State, State], tuple[tuple[Tensor, ...], tuple[Tensor, ...], State]]


def _sum(from_x: Tensor, from_h: Tensor | None) -> Tensor:
    return from_x if from_h is None else from_x + from_h


def rnn_tanh_step(from_x: Tensor, from_h: Tensor | None, state: State) -> tuple[State, Kept]:
    """s_t = tanh(U x_t + W s_{t-1} + b) (Elman 1990)."""
    h = _sum(from_x, from_h).tanh()
    return (h,), (h,)


def rnn_tanh_derivative(kept: Kept, state: State, d_state: State) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...], State]:
    da = (_through_tanh(d_state[0], kept[0]),)
    return da, da, ()


def rnn_relu_step(from_x: Tensor, from_h: Tensor | None, state: State) -> tuple[State, Kept]:
    """s_t = max(0, U x_t + W s_{t-1} + b)."""
    h = _sum(from_x, from_h).relu()
    return (h,), (h,)


def rnn_relu_derivative(kept: Kept, state: State, d_state: State) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...], State]:
    da = (d_state[0] * (kept[0] > 0),)
    return da, da, ()


def lstm_step(from_x: Tensor, from_h: Tensor | None, state: State) -> tuple[State, Kept]:
    """Input, forget, candidate and output gates i f g o; c_t = f c + i g, h_t = o tanh(c_t) (Gers et al. 2000)."""
    a_i, a_f, a_g, a_o = _sum(from_x, from_h).chunk(4, -1)
    i, f, g, o = a_i.sigmoid(), a_f.sigmoid(), a_g.tanh(), a_o.sigmoid()
    c = torch.addcmul(f * state[1], i, g)
    tanh_c = c.tanh()
    return (o * tanh_c, c), (i, f, g, o, tanh_c)


def lstm_derivative(kept: Kept, state: State, d_state: State) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...], State]:
    (i, f, g, o, tanh_c), (_, c_before), (dh, dc) = kept, state, d_state
    dc = dc + _through_tanh(dh * o, tanh_c)
    da = (
        _through_sigmoid(dc * g, i),
        _through_sigmoid(dc * c_before, f),
        _through_tanh(dc * i, g),
        _through_sigmoid(dh * tanh_c, o),
    )
    return da, da, (dc * f,)


def gru_step(from_x: Tensor, from_h: Tensor | None, state: State) -> tuple[State, Kept]:
    """Reset, update and new gates r z n, with the reset after the product: cuDNN's variant (Cho et al. 2014, version 1)."""
    assert from_h is not None  # r multiplies only what comes from h, so the two preactivations stay apart
    (x_r, x_z, x_n), (h_r, h_z, h_n) = from_x.chunk(3, -1), from_h.chunk(3, -1)
    r, z = (x_r + h_r).sigmoid(), (x_z + h_z).sigmoid()
    n = torch.addcmul(x_n, r, h_n).tanh()
    return (torch.lerp(n, state[0], z),), (r, z, n, h_n)  # (1 - z) n + z h


def gru_derivative(kept: Kept, state: State, d_state: State) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...], State]:
    (r, z, n, h_n), (h_before,), (dh,) = kept, state, d_state
    d_direct = dh * z
    da_n = _through_tanh(dh - d_direct, n)
    da_z = _through_sigmoid(dh * (h_before - n), z)
    da_r = _through_sigmoid(da_n * h_n, r)
    return (da_r, da_z, da_n), (da_r, da_z, da_n * r), (d_direct,)


CELLS = {
    cell.name: cell
    for cell in (
        Cell("rnn_tanh", 1, (), ("h",), True, rnn_tanh_step, rnn_tanh_derivative),
        Cell("rnn_relu", 1, (), ("h",), True, rnn_relu_step, rnn_relu_derivative),
        Cell("lstm", 4, ("input", "forget", "candidate", "output"), ("h", "c"), True, lstm_step, lstm_derivative),
        Cell("gru", 3, ("reset", "update", "candidate"), ("h",), False, gru_step, gru_derivative),
    )
}
