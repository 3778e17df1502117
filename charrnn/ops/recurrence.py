"""The one public operation: a recurrence over time, one layer, one direction."""

from __future__ import annotations

import torch
from torch import Tensor

from charrnn.ops.backends import Request, Weights, choose, require
from charrnn.ops.cells import CELLS, State


def recurrence(
    cell: str,
    x: Tensor,
    state: State,
    weights: Weights,
    *,
    lengths: Tensor | None = None,
    reverse: bool = False,
    final_state: bool = True,
    backend: str = "auto",
) -> tuple[Tensor, State]:
    """Run a recurrent cell over time.

    With T time, B batch, I input_size, H hidden_size and G the cell's gates (1 for rnn_*, 4 for lstm, 3 for gru):

        cell      rnn_tanh | rnn_relu | lstm | gru; equations and gate order are torch.nn's (see ops/cells.py)
        x         (T, B, I)
        state     (h,), or (h, c) for lstm, each (B, H): the state before the first step
        weights   weight_ih (G·H, I), weight_hh (G·H, H), bias_ih and bias_hh (G·H,) or both None
        lengths   (B,) integers in 0..T or None. Where t >= length the state is held and the output is 0: outputs and
                  final states are those of torch.nn on packed sequences, in both directions, without gathering
        reverse   walk t = T-1..0; outputs stay at their own t
        final_state  False where nobody asks for the final state, which is then (): ragged batches run faster without it
        backend   auto | reference | explicit | fused | native; a named backend runs or raises, `auto` takes the fastest that can

    Returns outputs (T, B, H) and the final state in the form of `state`.

    Gradients flow to x, to each state and to each weight, from outputs and from the final state. Under autocast the
    products run in its dtype, while gates and state stay in the dtype of `state`.

    Raises ValueError for shapes that do not fit and UnsupportedBackend when the named backend refuses.
    """
    _check(cell, x, state, weights, lengths)
    device = x.device.type
    request = Request(
        cell=cell,
        device=device,
        dtype=x.dtype,
        autocast=torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None,
        ragged=lengths is not None,
        reverse=reverse,
        final_state=final_state,
    )
    chosen = choose(request) if backend == "auto" else require(backend, request)
    outputs, after = chosen.run(request, x, state, weights, lengths)
    outputs = outputs.to(state[0].dtype)
    return outputs, tuple(s.to(before.dtype) for s, before in zip(after, state)) if final_state else ()


def _check(cell: str, x: Tensor, state: State, weights: Weights, lengths: Tensor | None) -> None:
    if cell not in CELLS:
        raise ValueError(f"unknown cell {cell!r}; expected one of {', '.join(CELLS)}")
    if x.dim() != 3 or x.size(0) == 0:
        raise ValueError(f"x has shape {tuple(x.shape)}; expected (T, B, input_size) with at least one step")
    if weights.weight_hh.dim() != 2:
        raise ValueError(f"weight_hh has shape {tuple(weights.weight_hh.shape)}; expected (gates * hidden_size, hidden_size)")
    (_, batch, inputs), hidden, rows = x.shape, weights.weight_hh.size(1), CELLS[cell].gates * weights.weight_hh.size(1)
    expected = {"weight_ih": (rows, inputs), "weight_hh": (rows, hidden), "bias_ih": (rows,), "bias_hh": (rows,)}
    for name, weight in weights._asdict().items():
        if weight is not None and tuple(weight.shape) != expected[name]:
            raise ValueError(f"{name} has shape {tuple(weight.shape)}; expected {expected[name]} for {cell} on x {tuple(x.shape)}")
    if (weights.bias_ih is None) != (weights.bias_hh is None):
        raise ValueError("bias_ih and bias_hh come together or not at all")
    names = CELLS[cell].state_names
    if len(state) != len(names) or any(s.shape != (batch, hidden) for s in state):
        raise ValueError(f"state has shapes {[tuple(s.shape) for s in state]}; expected ({', '.join(names)}), each {(batch, hidden)}")
    if lengths is not None:
        if lengths.shape != (batch,):
            raise ValueError(f"lengths has shape {tuple(lengths.shape)}; expected {(batch,)}")
        if lengths.is_floating_point():
            raise ValueError(f"lengths is {lengths.dtype}; expected integers")
        if lengths.device.type == "cpu" and (int(lengths.min()) < 0 or int(lengths.max()) > x.size(0)):
            raise ValueError(f"lengths lie in {int(lengths.min())}..{int(lengths.max())}; expected 0..{x.size(0)}")
