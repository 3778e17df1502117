"""A stack of recurrent layers in one direction, with torch.nn's parameters.

Axes: T time, B batch, I input_size, H hidden_size, G gates of the cell.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from charrnn.layers.dropout import drop_weight, dropout
from charrnn.ops.backends import Weights
from charrnn.ops.cells import CELLS, State
from charrnn.ops.recurrence import recurrence


class RecurrentStack(nn.Module):
    """Layer k reads what layer k - 1 wrote: h_t^(k) = f(W h_t^(k-1) + V h_{t-1}^(k) + b).

    Parameters have the names, shapes, gate order and initialisation of nn.LSTM, nn.GRU and nn.RNN, so a state_dict goes
    either way. `layer_norm` normalises what a layer hands up, not the state it keeps. `between_layers` is dropout on what
    all layers but the last hand up, `locked` over time or not; `weight_hh` is DropConnect on the recurrent weights.
    """

    def __init__(
        self,
        cell: str,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        bias: bool = True,
        layer_norm: bool = False,
        between_layers: float = 0.0,
        locked: bool = False,
        weight_hh: float = 0.0,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        self.cell, self.input_size, self.hidden_size, self.num_layers, self.bias = cell, input_size, hidden_size, num_layers, bias
        self.between_layers, self.locked, self.weight_hh, self.backend = between_layers, locked, weight_hh, backend
        rows = CELLS[cell].gates * hidden_size
        for layer in range(num_layers):
            self._own(f"weight_ih_l{layer}", rows, input_size if layer == 0 else hidden_size)
            self._own(f"weight_hh_l{layer}", rows, hidden_size)
            if bias:
                self._own(f"bias_ih_l{layer}", rows)
                self._own(f"bias_hh_l{layer}", rows)
        if layer_norm:
            self.norms = nn.ModuleList(nn.LayerNorm(hidden_size) for _ in range(num_layers))
        self.layer_norm = layer_norm

    def _own(self, name: str, *shape: int) -> None:
        bound = self.hidden_size**-0.5
        self.register_parameter(name, nn.Parameter(torch.empty(shape).uniform_(-bound, bound)))

    def extra_repr(self) -> str:
        return f"{self.cell}, {self.input_size}, {self.hidden_size}, num_layers={self.num_layers}, backend={self.backend}"

    def weights(self, layer: int) -> Weights:
        """The parameters of one layer themselves, nothing dropped."""
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh") if self.bias else ("weight_ih", "weight_hh")
        return Weights(*(self.get_parameter(f"{name}_l{layer}") for name in names))

    def initial_state(self, batch_size: int, like: Tensor) -> tuple[State, ...]:
        """Zeros, one state a layer, (h,) or (h, c), each (B, H), of the dtype and on the device of `like`."""
        zeros = like.new_zeros(batch_size, self.hidden_size)  # (B, H)
        return ((zeros,) * len(CELLS[self.cell].state_names),) * self.num_layers

    def forward(
        self,
        x: Tensor,
        state: tuple[State, ...] | None,
        *,
        lengths: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, tuple[State, ...]]:
        """x (T, B, I) and a state a layer (None: zeros) -> outputs (T, B, H) and the states after the last step.

        `lengths` is that of ops.recurrence; what the outputs hold beyond a sequence's length means nothing. `generator`
        draws the dropout masks. Raises ValueError for a state that does not fit.
        """
        state = self.initial_state(x.size(1), x) if state is None else state
        if len(state) != self.num_layers:
            raise ValueError(f"state is that of {len(state)} layers; expected {self.num_layers}")
        after: list[State] = []
        for layer, before in enumerate(state):
            if layer > 0:
                x = dropout(x, self.between_layers, locked=self.locked, training=self.training, generator=generator)
            weights = self.weights(layer)
            recurrent = drop_weight(weights.weight_hh, self.weight_hh, training=self.training, generator=generator)
            x, final = recurrence(self.cell, x, before, weights._replace(weight_hh=recurrent), lengths=lengths, backend=self.backend)
            after.append(final)
            if self.layer_norm:
                x = self.norms[layer](x)
        return x, tuple(after)  # (T, B, H)
