"""How weights begin, where it is not as PyTorch's do.

Axes: G gates of the cell, H hidden_size.
"""

from __future__ import annotations

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
