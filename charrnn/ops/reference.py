"""Backend `reference`: a Python loop over the cell's step, differentiated by autograd. It is the definition.

Axes: T time, B batch, I input_size, H hidden_size, G gates.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from charrnn.ops.backends import Request, Weights
from charrnn.ops.cells import CELLS, State


def refuses(request: Request) -> str | None:
    return None


def run(request: Request, x: Tensor, state: State, weights: Weights, lengths: Tensor | None) -> tuple[Tensor, State]:
    cell = CELLS[request.cell]
    outputs: list[Tensor] = [x] * x.size(0)
    for t in reversed(range(x.size(0))) if request.reverse else range(x.size(0)):
        from_x = F.linear(x[t], weights.weight_ih, weights.bias_ih)  # (B, G·H)
        from_h = F.linear(state[0].to(x.dtype), weights.weight_hh, weights.bias_hh)  # (B, G·H)
        after, _ = cell.step(from_x.to(state[0].dtype), from_h.to(state[0].dtype), state)
        if lengths is None:
            outputs[t], state = after[0], after
        else:  # a sequence that is over holds its state, and what it would say is nothing
            runs = (t < lengths).unsqueeze(-1)  # (B, 1)
            outputs[t] = torch.where(runs, after[0], 0)
            state = tuple(torch.where(runs, new, old) for new, old in zip(after, state))
    return torch.stack(outputs), state  # (T, B, H)
