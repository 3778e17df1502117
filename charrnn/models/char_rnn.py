"""The character RNN: embedding, recurrent stack, head.

Axes: T time, B batch, E embedding_size, H hidden_size, V vocabulary size.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from charrnn.config import ModelConfig
from charrnn.layers.dropout import drop_rows, dropout
from charrnn.layers.recurrent import RecurrentStack
from charrnn.ops.cells import State

BY_ID = ("embedding.weight", "head.weight", "head.bias")  # parameters with a row for each id; tied, the first two are one
HEAD_GAIN = 2.3  # standard deviation of a logit at the beginning, for outputs of unit variance


class CharRNN(nn.Module):
    """Ids in, logits of the next id out; o_t = softmax(logits_t) is the caller's to take.

    The recurrent weights begin as PyTorch's. The others begin so that what the cells read from a character has unit
    variance (LeCun et al. 1998), where PyTorch's begin with a tenth of it: rows of N(0, 1) in the embedding, input weights in
    ±√(3 / fan_in). A head of more than unit variance learnt faster still. Tied, the rows are N(0, 1/E), so that the first
    guess is near the uniform one, and are multiplied by √E where they are read (Vaswani et al. 2017, 3.4). All measured:
    docs/performance.md.
    """

    def __init__(self, config: ModelConfig, vocabulary_size: int, labels: int | None = None) -> None:
        super().__init__()
        self.dropout = config.dropout
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
        self.head = nn.Linear(config.hidden_size, labels or vocabulary_size)
        if config.tied_embeddings:
            self.embedding.weight = self.head.weight
        self.read_scale = config.embedding_size**0.5 if config.tied_embeddings else 1.0
        if not self.head.weight.is_meta:  # on `meta`, where only shapes are asked for, a draw would import torch's compiler: 2 s
            self._initialise()

    def _initialise(self) -> None:
        for layer in range(self.recurrent.num_layers):
            weight = self.recurrent.weights(layer).weight_ih  # (G·H, fan_in)
            nn.init.uniform_(weight, -((3 / weight.size(1)) ** 0.5), (3 / weight.size(1)) ** 0.5)
        bound = HEAD_GAIN * (3 / self.head.in_features) ** 0.5
        nn.init.uniform_(self.head.weight, -bound, bound)
        nn.init.normal_(self.embedding.weight, std=1 / self.read_scale)

    def forward(
        self, inputs: Tensor, state: tuple[State, ...] | None, *, generator: torch.Generator | None = None
    ) -> tuple[Tensor, tuple[State, ...]]:
        """inputs (T, B) int64 and a state a layer (None: zeros) -> logits (T, B, V) and the states after the last step.

        `generator` draws the dropout masks of training, on the model's device.
        """
        rows = drop_rows(self.embedding.weight, self.dropout.embedding, training=self.training, generator=generator)  # (V, E)
        x = self._drop(F.embedding(inputs, rows) * self.read_scale, "input", generator)  # (T, B, E)
        x, state = self.recurrent(x, state, generator=generator)  # (T, B, H)
        logits: Tensor = self.head(self._drop(x, "output", generator))  # (T, B, V)
        return logits, state

    def _drop(self, x: Tensor, place: Literal["input", "output"], generator: torch.Generator | None) -> Tensor:
        p = self.dropout.input if place == "input" else self.dropout.output
        return dropout(x, p, locked=self.dropout.is_locked(place), training=self.training, generator=generator)


def count_parameters(model: nn.Module) -> int:
    """Numbers that are learned; a shared tensor counts once."""
    return sum(parameter.numel() for parameter in model.parameters())
