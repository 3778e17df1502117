"""A decoder that looks at all of its input before it writes each character: Attend and Spell (Chan et al. 2016, 3.2).

Axes: S encoder steps, L characters, B batch, E embedding_size, W width of the encoder's outputs, D decoder's hidden_size,
A attention_size, V vocabulary size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from charrnn.config import DecoderConfig, DropoutConfig
from charrnn.layers.attention import Attention, exact, uniform
from charrnn.layers.dropout import drop_rows, dropout, dropout_mask
from charrnn.layers.recurrent import RecurrentStack
from charrnn.models.beginning import begin_head, begin_inputs
from charrnn.ops.cells import State


class Encoded(NamedTuple):
    """What the encoder made of a batch, which each step of the decoder looks at."""

    outputs: Tensor  # (S, B, W)
    keys: Tensor  # (S, B, A) what attention asks of each step
    lengths: Tensor | None  # (B,) of S; None where all are S
    mask: Tensor | None  # (S, B) bool

    @property
    def columns(self) -> int:
        return self.outputs.size(1)

    @property
    def device(self) -> torch.device:
        return self.outputs.device

    def steps(self) -> list[int]:
        """How many each sequence has."""
        return [self.outputs.size(0)] * self.columns if self.lengths is None else self.lengths.tolist()

    def rows(self, rows: Tensor) -> Encoded:
        """Some of the sequences, in another order, one several times: (n,)."""
        lengths, mask = None if self.lengths is None else self.lengths[rows], None if self.mask is None else self.mask[:, rows]
        return Encoded(self.outputs[:, rows], self.keys[:, rows], lengths, mask)

    def beside(self, others: Sequence[Encoded]) -> Encoded:
        """Its sequences, and theirs behind them, all of the same length."""
        assert self.lengths is None and all(other.lengths is None for other in others)
        outputs, keys = (torch.cat([own, *theirs], 1) for own, *theirs in zip(*((e.outputs, e.keys) for e in (self, *others))))
        return Encoded(outputs, keys, None, None)

    def column(self, b: int, copies: int = 1) -> Encoded:
        """One sequence of the batch without its padding, so many times."""
        steps = self.outputs.size(0) if self.lengths is None else int(self.lengths[b])
        outputs, keys = (x[:steps, b : b + 1].expand(-1, copies, -1) for x in (self.outputs, self.keys))
        return Encoded(outputs, keys, None, None)


class Spelling(NamedTuple):
    """Where the decoder stands between two characters."""

    recurrent: tuple[State, ...]  # a layer: (h,) or (h, c), each (B, D)
    context: Tensor  # (B, W) what it last looked at
    alignment: Tensor  # (S, B) and where that was

    def rows(self, rows: Tensor) -> Spelling:
        """Some of the columns, in another order, one several times: (B,) -> (n,)."""
        recurrent = tuple(tuple(part[rows] for part in layer) for layer in self.recurrent)
        return Spelling(recurrent, self.context[rows], self.alignment[:, rows])


class Speller(nn.Module):
    """s_i = RNN(s_{i-1}, [y_{i-1} ; c_{i-1}]), c_i = attention(s_i, h), P(y_i) = softmax(U [s_i ; c_i] + b).

    What stands before the first character is the end of another text. `width`: of what it looks at.
    """

    def __init__(
        self, cell: str, width: int, vocabulary_size: int, embedding_size: int, decoder: DecoderConfig, dropout: DropoutConfig, backend: str
    ) -> None:
        super().__init__()
        self.dropout = dropout
        filters = decoder.location_filters if decoder.attention == "location" else 0
        self.attention = Attention(decoder.hidden_size, width, decoder.attention_size, filters=filters, reach=decoder.location_width)
        self.embedding = nn.Embedding(vocabulary_size, embedding_size, _weight=torch.empty(vocabulary_size, embedding_size))
        self.recurrent = RecurrentStack(
            cell, embedding_size + width, decoder.hidden_size, decoder.num_layers, between_layers=dropout.between_layers, backend=backend
        )
        self.head = nn.Linear(decoder.hidden_size + width, vocabulary_size)
        if not self.head.weight.is_meta:
            nn.init.normal_(self.embedding.weight)
            begin_inputs(self.recurrent)
            begin_head(self.head, gain=1.0)

    def described(self) -> str:
        """What it is made of, for a person."""
        looks = f"{'location-aware' if self.attention.locations else 'additive'} attention of {self.attention.key.out_features}"
        recurrent = self.recurrent
        return f"{recurrent.cell}, {recurrent.num_layers} × {recurrent.hidden_size}, embedding {self.embedding.embedding_dim}, {looks}"

    def numbers_kept(self, steps: int, batch: int, characters: int) -> int:
        """About how many numbers backward needs of so many characters of a batch, each looking at so many steps."""
        looked = steps * batch * (4 * self.attention.key.out_features + self.attention.locations)  # of one character
        return characters * (looked + batch * (self.recurrent.numbers_kept() + 4 * self.head.out_features))

    def encoded(self, outputs: Tensor, lengths: Tensor | None = None, mask: Tensor | None = None) -> Encoded:
        """What is to be looked at, outputs (S, B, W), made ready; lengths (B,) and mask (S, B), or None where all steps count."""
        return Encoded(outputs, self.attention.keys(outputs), lengths, mask)

    def start(self, encoded: Encoded) -> Spelling:
        """Before the first character."""
        outputs = encoded.outputs
        state = self.recurrent.initial_state(outputs.size(1), outputs.new_zeros((), dtype=exact(outputs.dtype)))
        return Spelling(state, torch.zeros_like(outputs[0]), uniform(encoded.mask, outputs))

    def step(
        self,
        embedded: Tensor,
        spelling: Spelling,
        encoded: Encoded,
        *,
        kept: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Spelling]:
        """The embedded character before (B, E) -> logits of the next (B, V), and where the decoder then stands.

        `kept` (B, D + W) multiplies what the head reads, in the place of dropout: a mask that is locked over the steps.
        """
        x = torch.cat([embedded, spelling.context.to(embedded.dtype)], -1).unsqueeze(0)  # (1, B, E + W)
        s, state = self.recurrent(x, spelling.recurrent, generator=generator)
        s = s.squeeze(0)  # (B, D)
        context, alignment = self.attention(s, encoded.outputs, encoded.keys, encoded.mask, spelling.alignment)
        seen = torch.cat([s, context.to(s.dtype)], -1)  # (B, D + W)
        if kept is None:
            seen = dropout(seen, self.dropout.output, locked=False, training=self.training, generator=generator)
        else:
            seen = seen * kept
        logits: Tensor = self.head(seen)
        return logits, Spelling(state, context, alignment)

    def next(self, ids: Tensor, spelling: Spelling, encoded: Encoded) -> tuple[Tensor, Spelling]:
        """`step` by the id of the character before, (B,)."""
        return self.step(self.embedding(ids), spelling, encoded)

    def forward(
        self,
        encoded: Encoded,
        previous: Tensor,
        *,
        teacher_forcing_rate: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The characters before each, the true ones, (L, B) -> logits (L, B, V).

        With a rate below 1 the decoder is told, of each character with that probability, the true one before it, else the one it
        thought the likeliest (scheduled sampling: Bengio et al. 2015).
        """
        weight = drop_rows(self.embedding.weight, self.dropout.embedding, training=self.training, generator=generator)  # (V, E)
        embedded = F.embedding(previous, weight)  # (L, B, E)
        told = None
        if self.training and teacher_forcing_rate < 1:
            told = torch.rand(previous.shape, device=previous.device, generator=generator) < teacher_forcing_rate  # (L, B)
        kept = None
        if self.training and self.dropout.output and self.dropout.is_locked("output"):
            shape = (previous.size(1), self.head.in_features)
            kept = dropout_mask(shape, self.dropout.output, device=previous.device, dtype=torch.float32, generator=generator)
        spelling = self.start(encoded)
        logits: list[Tensor] = []
        for i in range(previous.size(0)):
            before = embedded[i]  # (B, E)
            if told is not None and i:
                before = torch.where(told[i].unsqueeze(-1), before, F.embedding(logits[-1].argmax(-1), weight))
            found, spelling = self.step(before, spelling, encoded, kept=kept, generator=generator)
            logits.append(found)
        return torch.stack(logits)
