"""How weights begin, where it is not as PyTorch's do.

Axes: G gates of the cell, H hidden_size.
"""

from __future__ import annotations

import torch
from torch import nn

from charrnn.layers.recurrent import RecurrentStack


def begin_inputs(stack: RecurrentStack) -> None:
    """Input weights in ±√(3 / fan_in): what the cells read of inputs of unit variance has unit variance (LeCun et al. 1998)."""
    for layer in range(stack.num_layers):
        for direction in range(stack.directions):
            weight = stack.weights(layer, direction).weight_ih  # (G·H, fan_in)
            nn.init.uniform_(weight, -((3 / weight.size(1)) ** 0.5), (3 / weight.size(1)) ** 0.5)


def begin_head(head: nn.Linear, *, gain: float) -> None:
    """Logits of outputs of unit variance begin with a standard deviation of `gain`."""
    bound = gain * (3 / head.in_features) ** 0.5
    nn.init.uniform_(head.weight, -bound, bound)


def begin_memory(stack: RecurrentStack, steps: int) -> None:
    """Units of an LSTM or GRU forget over spans of 1 to so many steps, as if each were as likely (Tallec & Ollivier 2018).

    By their bias a forget gate, or an update gate, begins at 1 - 1 / span. With PyTorch's, at a half, nothing that is told
    at the first step is left after ten. Other cells have no such gate.
    """
    gate = {"lstm": 1, "gru": 1}.get(stack.cell)  # of i f g o, or of r z n
    if gate is None:
        return
    for layer in range(stack.num_layers):
        for direction in range(stack.directions):
            weights, hidden = stack.weights(layer, direction), stack.hidden_size
            assert weights.bias_ih is not None and weights.bias_hh is not None
            with torch.no_grad():
                span = torch.empty(hidden, device=weights.bias_ih.device).uniform_(1, steps - 1)
                weights.bias_ih[gate * hidden : (gate + 1) * hidden] = span.log()
                weights.bias_hh[gate * hidden : (gate + 1) * hidden] = 0
