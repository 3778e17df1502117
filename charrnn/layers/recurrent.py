"""A stack of recurrent layers in one direction or in both, with torch.nn's parameters.

Axes: T time, B batch, I input_size, H hidden_size, D directions (1 or 2), G gates of the cell.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from charrnn.layers.dropout import drop_weight, dropout
from charrnn.ops.backends import Weights
from charrnn.ops.cells import CELLS, State
from charrnn.ops.explicit import Walked, walk
from charrnn.ops.recurrence import recurrence


class Injection(NamedTuple):
    """V X, which enters the preactivation of the first layer at the first step that is run, and at no other.

    A vector has no time, so nothing of it can change at a later step.
    """

    vector: Tensor  # X: (B, J)
    weight: Tensor  # V: (G·H, J), of all gates


class Seen(NamedTuple):
    """What there is to see of a layer that was walked."""

    read: Tensor  # (T, B, I) or (T, B, H)
    walked: Walked


class RecurrentStack(nn.Module):
    """Layer k reads what layer k - 1 wrote: h_t^(k) = f(W h_t^(k-1) + V h_{t-1}^(k) + b).

    `bidirectional` layers read the same once more from the end, with weights of their own and t + 1 for t - 1, and write
    [forward's h_t ; backward's h_t] (Schuster & Paliwal 1997): layer k of both directions reads both of layer k - 1.

    Parameters have the names, shapes, gate order and initialisation of nn.LSTM, nn.GRU and nn.RNN, so a state_dict goes
    either way, and states their order: layer 0 forward, layer 0 reverse, layer 1 forward, … `layer_norm` normalises what a
    layer hands up, not the state it keeps. `residual` adds what a layer read, before any dropout, to what it hands up, where
    the widths agree. `between_layers` is dropout on what all layers but the last hand up, `locked` over time or not;
    `weight_hh` is DropConnect on the recurrent weights.
    """

    def __init__(
        self,
        cell: str,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        bidirectional: bool = False,
        bias: bool = True,
        layer_norm: bool = False,
        residual: bool = False,
        between_layers: float = 0.0,
        locked: bool = False,
        weight_hh: float = 0.0,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        self.cell, self.input_size, self.hidden_size, self.num_layers, self.bias = cell, input_size, hidden_size, num_layers, bias
        self.directions = 2 if bidirectional else 1
        self.output_size = self.directions * hidden_size
        self.residual = residual
        self.between_layers, self.locked, self.weight_hh, self.backend = between_layers, locked, weight_hh, backend
        rows = CELLS[cell].gates * hidden_size
        for layer in range(num_layers):
            for direction in range(self.directions):
                suffix = _suffix(layer, direction)
                self._own(f"weight_ih_{suffix}", rows, input_size if layer == 0 else self.output_size)
                self._own(f"weight_hh_{suffix}", rows, hidden_size)
                if bias:
                    self._own(f"bias_ih_{suffix}", rows)
                    self._own(f"bias_hh_{suffix}", rows)
        if layer_norm:
            self.norms = nn.ModuleList(nn.LayerNorm(self.output_size) for _ in range(num_layers))
        self.layer_norm = layer_norm

    def _own(self, name: str, *shape: int) -> None:
        bound = self.hidden_size**-0.5
        self.register_parameter(name, nn.Parameter(torch.empty(shape).uniform_(-bound, bound)))

    def extra_repr(self) -> str:
        both = ", bidirectional" if self.directions == 2 else ""
        return f"{self.cell}, {self.input_size}, {self.hidden_size}, num_layers={self.num_layers}{both}, backend={self.backend}"

    def weights(self, layer: int, direction: int = 0) -> Weights:
        """The parameters of one layer in one direction (1: reverse) themselves, nothing dropped."""
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh") if self.bias else ("weight_ih", "weight_hh")
        return Weights(*(self.get_parameter(f"{name}_{_suffix(layer, direction)}") for name in names))

    def numbers_kept(self) -> int:
        """About how many numbers backward needs of a layer's step: its input's product, its gates, their derivatives, states, outputs."""
        return 2 * CELLS[self.cell].gates * self.output_size + 4 * self.output_size

    def initial_state(self, batch_size: int, like: Tensor) -> tuple[State, ...]:
        """Zeros, one state a layer and direction, (h,) or (h, c), each (B, H), of the dtype and on the device of `like`."""
        zeros = like.new_zeros(batch_size, self.hidden_size)  # (B, H)
        return ((zeros,) * len(CELLS[self.cell].state_names),) * (self.num_layers * self.directions)

    def forward(
        self,
        x: Tensor,
        state: tuple[State, ...] | None,
        *,
        lengths: Tensor | None = None,
        injection: Injection | None = None,
        final_state: bool = True,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, tuple[State, ...]]:
        """x (T, B, I) and a state a layer and direction (None: zeros) -> outputs (T, B, D·H) and the states after the last step.

        `lengths` and `final_state` are those of ops.recurrence: without a final state the states are (). What the outputs hold
        beyond a sequence's length means nothing. `injection`: s_0 = f(W x_0 + V s_{-1} + b + V' X) in the first layer, of an LSTM or GRU
        in all gates of it; of one direction and without lengths. `generator` draws the dropout masks. Raises ValueError for a state, or
        an injection, that does not fit.
        """
        if injection is not None and (lengths is not None or self.directions == 2):
            raise ValueError("what is injected at the first step needs one direction and no lengths")
        state = self.initial_state(x.size(1), x) if state is None else state
        if len(state) != self.num_layers * self.directions:
            raise ValueError(
                f"state is that of {len(state)} layers; expected {self.num_layers * self.directions}"
                + (", each direction counted" if self.directions == 2 else "")
            )
        after: list[State] = []
        for layer in range(self.num_layers):
            read = x  # (T, B, I) or (T, B, D·H)
            if layer > 0:
                x = dropout(x, self.between_layers, locked=self.locked, training=self.training, generator=generator)
            written: list[Tensor] = []
            for direction in range(self.directions):
                weights = self.weights(layer, direction)
                recurrent = drop_weight(weights.weight_hh, self.weight_hh, training=self.training, generator=generator)
                weights, before = weights._replace(weight_hh=recurrent), state[layer * self.directions + direction]
                if injection is not None and layer == 0:
                    outputs, final = self._injected(x, before, weights, injection, final_state)
                else:
                    outputs, final = recurrence(
                        self.cell,
                        x,
                        before,
                        weights,
                        lengths=lengths,
                        reverse=direction == 1,
                        final_state=final_state,
                        backend=self.backend,
                    )
                written.append(outputs)
                after.append(final)
            x = torch.cat(written, -1) if self.directions == 2 else written[0]  # (T, B, D·H)
            x = self.handed_up(layer, x, read)
        return x, tuple(after) if final_state else ()

    def handed_up(self, layer: int, written: Tensor, read: Tensor) -> Tensor:
        """What a layer hands up of what it wrote, (T, B, D·H), and read, (T, B, I) or (T, B, D·H)."""
        if self.layer_norm:
            written = self.norms[layer](written)
        return written + read if self.residual and read.size(-1) == self.output_size else written

    @torch.no_grad()
    def walk(self, x: Tensor, state: tuple[State, ...] | None) -> tuple[Tensor, list[Seen]]:
        """What `forward` gives in eval mode, and of each layer what it read and all that its steps keep.

        x (T, B, I) and a state a layer (None: zeros) -> outputs (T, B, H) and a Seen a layer. Raises ValueError for two directions.
        """
        if self.directions == 2:
            raise ValueError("a stack of two directions has no order of steps to walk")
        state = self.initial_state(x.size(1), x) if state is None else state
        seen: list[Seen] = []
        for layer, before in enumerate(state):
            seen.append(Seen(x, walk(self.cell, x, before, self.weights(layer))))
            x = self.handed_up(layer, seen[-1].walked.outputs, x)
        return x, seen

    def _injected(self, x: Tensor, before: State, weights: Weights, injection: Injection, final_state: bool) -> tuple[Tensor, State]:
        """[W V'] [x_0 ; X] = W x_0 + V' X takes the place of W x_0, in a step by itself, whatever the cell and the backend."""
        widened = weights._replace(weight_ih=torch.cat([weights.weight_ih, injection.weight.to(weights.weight_ih.dtype)], 1))
        seen = torch.cat([x[:1], injection.vector.unsqueeze(0).to(x.dtype)], -1)  # (1, B, I + J)
        first, after = recurrence(self.cell, seen, before, widened, backend=self.backend)  # (1, B, H)
        if x.size(0) == 1:
            return first, after
        others, after = recurrence(self.cell, x[1:], after, weights, final_state=final_state, backend=self.backend)
        return torch.cat([first, others]), after


def _suffix(layer: int, direction: int) -> str:
    return f"l{layer}_reverse" if direction else f"l{layer}"
