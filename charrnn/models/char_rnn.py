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


class CharRNN(nn.Module):
    """Ids in, logits of the next id out; o_t = softmax(logits_t) is the caller's to take.

    Initialisation is PyTorch's: N(0, 1) for the embedding, which measured better than anything smaller. A tied matrix is
    initialised as a head, since logits from N(0, 1) rows would start nats above the uniform guess.
    """

    def __init__(self, config: ModelConfig, vocabulary_size: int) -> None:
        super().__init__()
        self.dropout = config.dropout
        self.embedding = nn.Embedding(vocabulary_size, config.embedding_size, _weight=torch.empty(vocabulary_size, config.embedding_size))
        if not self.embedding.weight.is_meta:  # on `meta`, where only shapes are asked for, a draw would import torch's compiler: 2 s
            nn.init.normal_(self.embedding.weight)
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
        self.head = nn.Linear(config.hidden_size, vocabulary_size)
        if config.tied_embeddings:
            self.embedding.weight = self.head.weight

    def forward(
        self, inputs: Tensor, state: tuple[State, ...] | None, *, generator: torch.Generator | None = None
    ) -> tuple[Tensor, tuple[State, ...]]:
        """inputs (T, B) int64 and a state a layer (None: zeros) -> logits (T, B, V) and the states after the last step.

        `generator` draws the dropout masks of training, on the model's device.
        """
        rows = drop_rows(self.embedding.weight, self.dropout.embedding, training=self.training, generator=generator)  # (V, E)
        x = self._drop(F.embedding(inputs, rows), "input", generator)  # (T, B, E)
        x, state = self.recurrent(x, state, generator=generator)  # (T, B, H)
        logits: Tensor = self.head(self._drop(x, "output", generator))  # (T, B, V)
        return logits, state

    def _drop(self, x: Tensor, place: Literal["input", "output"], generator: torch.Generator | None) -> Tensor:
        p = self.dropout.input if place == "input" else self.dropout.output
        return dropout(x, p, locked=self.dropout.is_locked(place), training=self.training, generator=generator)


def count_parameters(model: nn.Module) -> int:
    """Numbers that are learned; a shared tensor counts once."""
    return sum(parameter.numel() for parameter in model.parameters())
