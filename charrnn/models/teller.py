"""A decoder that is told of something once, at its first step, and never again.

Axes: T time, B batch, E embedding_size, J size of the vector, H hidden_size, G gates of the cell, V vocabulary size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from charrnn.config import ModelConfig
from charrnn.layers.attention import exact
from charrnn.layers.dropout import drop_rows, dropout
from charrnn.layers.recurrent import Injection, RecurrentStack
from charrnn.models.beginning import begin_head, begin_inputs, begin_memory
from charrnn.ops.cells import State

MEMORY = 64  # characters: about as long as a caption


class Told(NamedTuple):
    """What a decoder is told of: of each column one vector."""

    vector: Tensor  # (B, J)

    @property
    def columns(self) -> int:
        return self.vector.size(0)

    @property
    def device(self) -> torch.device:
        return self.vector.device

    def steps(self) -> list[int]:
        return [0] * self.columns

    def column(self, b: int, copies: int = 1) -> Told:
        """One of the columns, so many times."""
        return Told(self.vector[b : b + 1].expand(copies, -1))

    def rows(self, rows: Tensor) -> Told:
        """Some of the columns, in another order, one several times: (n,)."""
        return Told(self.vector[rows])

    def beside(self, others: Sequence[Told]) -> Told:
        """Its columns, and theirs behind them."""
        return Told(torch.cat([self.vector, *(other.vector for other in others)]))


class Telling(NamedTuple):
    """Where the decoder stands between two characters."""

    recurrent: tuple[State, ...]  # a layer: (h,) or (h, c), each (B, H)
    begun: bool  # it has been told
    alignment: Tensor  # (0, B): it looks nowhere

    def rows(self, rows: Tensor) -> Telling:
        """Some of the columns, in another order, one several times: (n,)."""
        recurrent = tuple(tuple(part[rows] for part in layer) for layer in self.recurrent)
        return Telling(recurrent, self.begun, self.alignment[:, rows])


class Teller(nn.Module):
    """s_0 = f(U x_0 + W s_{-1} + V X), s_t = f(U x_t + W s_{t-1}) for t > 0 (Karpathy & Fei-Fei 2015, equation 15): X enters the
    preactivation of the first layer at the first step only, of an LSTM or GRU that of all gates.

    `image_as: first_input` puts a step before the first character instead, that reads V X (Vinyals et al. 2015, equations 10 and 11).
    What stands before the first character is the end of another text. `size`: of the vector.
    """

    def __init__(self, config: ModelConfig, size: int, vocabulary_size: int) -> None:
        super().__init__()
        assert config.image_as != "attention"
        self.dropout = config.dropout
        self.image_as: Literal["first_step", "first_input"] = config.image_as
        self.embedding = nn.Embedding(vocabulary_size, config.embedding_size, _weight=torch.empty(vocabulary_size, config.embedding_size))
        self.recurrent = RecurrentStack(
            config.cell,
            config.embedding_size,
            config.hidden_size,
            config.num_layers,
            layer_norm=config.layer_norm,
            between_layers=config.dropout.between_layers,
            locked=config.dropout.is_locked("between_layers"),
            weight_hh=config.dropout.weight_hh,
            backend=config.backend,
        )
        rows = self.recurrent.weights(0).weight_ih.size(0) if self.image_as == "first_step" else config.embedding_size
        self.image = nn.Linear(size, rows, bias=False)  # V: (G·H, J), or (E, J)
        self.head = nn.Linear(config.hidden_size, vocabulary_size)
        if not self.head.weight.is_meta:
            nn.init.normal_(self.embedding.weight)
            begin_inputs(self.recurrent)
            begin_memory(self.recurrent, MEMORY)
            begin_head(self.image, gain=1.0)
            begin_head(self.head, gain=1.0)

    def described(self) -> str:
        """What it is made of, for a person."""
        stack = self.recurrent
        told = "told of the picture at its first step" if self.image_as == "first_step" else "reading the picture before any character"
        return f"{stack.cell}, {stack.num_layers} × {stack.hidden_size}, embedding {self.embedding.embedding_dim}, {told}"

    def numbers_kept(self, batch: int, characters: int) -> int:
        """About how many numbers backward needs of so many characters of a batch."""
        stack = self.recurrent
        return characters * batch * (2 * stack.input_size + stack.num_layers * stack.numbers_kept() + 4 * self.head.out_features)

    def start(self, told: Told) -> Telling:
        """Before the first character."""
        zeros = told.vector.new_zeros((), dtype=exact(told.vector.dtype))
        return Telling(self.recurrent.initial_state(told.columns, zeros), False, told.vector.new_zeros(0, told.columns))

    def next(self, ids: Tensor, telling: Telling, told: Told) -> tuple[Tensor, Telling]:
        """The characters before (B,) -> logits of the next (B, V), and where the decoder then stands."""
        x = self.embedding(ids).unsqueeze(0)  # (1, B, E)
        outputs, state = self._run(x, telling.recurrent, None if telling.begun else told)
        logits: Tensor = self.head(outputs[-1])
        return logits, Telling(state, True, telling.alignment)

    def forward(self, told: Told, previous: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """The characters before each, the true ones, (T, B) -> logits (T, B, V)."""
        weight = drop_rows(self.embedding.weight, self.dropout.embedding, training=self.training, generator=generator)  # (V, E)
        x = self._drop(F.embedding(previous, weight), "input", generator)  # (T, B, E)
        x, _ = self._run(x, self.start(told).recurrent, told, final_state=False, generator=generator)
        logits: Tensor = self.head(self._drop(x, "output", generator))
        return logits

    def _run(
        self,
        x: Tensor,
        state: tuple[State, ...],
        told: Told | None,
        *,
        final_state: bool = True,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, tuple[State, ...]]:
        """x (T, B, E) -> outputs (T, B, H) and the states after them; `told` where this is where it is told."""
        steps, injection = x.size(0), None
        if told is not None and self.image_as == "first_step":
            injection = Injection(told.vector, self.image.weight)
        if told is not None and self.image_as == "first_input":
            x = torch.cat([self.image(told.vector).unsqueeze(0).to(x.dtype), x])  # (1 + T, B, E)
        outputs, state = self.recurrent(x, state, injection=injection, final_state=final_state, generator=generator)
        return outputs[-steps:], state

    def _drop(self, x: Tensor, place: Literal["input", "output"], generator: torch.Generator | None) -> Tensor:
        p = self.dropout.input if place == "input" else self.dropout.output
        return dropout(x, p, locked=self.dropout.is_locked(place), training=self.training, generator=generator)
