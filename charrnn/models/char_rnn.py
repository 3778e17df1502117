"""The character RNN: embedding, recurrent stack, head; a pooling between the two where a whole text gets one answer.

Axes: T time, B batch, E embedding_size, I what the stack reads (E, and pairs of characters where there are any), W width of
the stack's outputs (hidden_size, twice that in both directions), V vocabulary size, K answers to choose from (labels, or the
vocabulary), N rows that are asked for.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from charrnn.config import ModelConfig
from charrnn.layers.bigrams import Bigrams
from charrnn.layers.crf import CRF
from charrnn.layers.dropout import drop_rows, dropout, dropout_mask
from charrnn.layers.pooling import Pooling
from charrnn.layers.recurrent import RecurrentStack
from charrnn.models.beginning import begin_head, begin_inputs
from charrnn.ops.cells import State
from charrnn.ops.linear_cross_entropy import logits_at_once

# Parameters with a row for each id, those of the head where it answers with ids; tied, the first two are one.
BY_ID = ("embedding.weight", "head.weight", "head.bias")
UNKNOWN = 0  # the id of every vocabulary for what it does not know
LABEL_SCALE = 0.25  # standard deviation of a character's row where steps are labelled: by a larger one a rare character is known by name
BIGRAM_SCALE = 0.1  # standard deviation: a pair says little before it has been seen
HEAD_GAIN = 2.3  # standard deviation of a logit at the beginning, for outputs of unit variance


class CharRNN(nn.Module):
    """Ids in, logits of ids out, or of `labels` where their number is given; o_t = softmax(logits_t) is the caller's to take.

    What is asked for is a logit for each step, for some of the steps, or with `config.pooling` for each text. With `config.crf`
    the logits are the emissions of `crf`, which is the caller's to ask.

    The recurrent weights begin as PyTorch's. The others begin so that what the cells read from a character has unit
    variance (LeCun et al. 1998), where PyTorch's begin with a tenth of it: rows of N(0, 1) in the embedding, input weights in
    ±√(3 / fan_in). A head of more than unit variance learnt faster still. Tied, the rows are N(0, 1/E), so that the first
    guess is near the uniform one, and are multiplied by √E where they are read (Vaswani et al. 2017, 3.4). Where each step gets
    a label they are N(0, 1/16), or the labels of rare characters are learned by heart. All measured: docs/performance.md.
    """

    def __init__(self, config: ModelConfig, vocabulary_size: int, labels: int | None = None) -> None:
        super().__init__()
        if config.tied_embeddings and labels is not None:
            raise ValueError("tied embeddings share their rows with a head of ids; this one answers with labels")
        answers = vocabulary_size if labels is None else labels
        self.dropout = config.dropout
        self.embedding = nn.Embedding(vocabulary_size, config.embedding_size, _weight=torch.empty(vocabulary_size, config.embedding_size))
        # Both pairs that a character stands in, or the one with the character before it where the future may not be read.
        pairs = config.bigrams
        self.bigrams = Bigrams(pairs.max_size, pairs.size, following=config.bidirectional) if pairs.max_size else None
        self.recurrent = RecurrentStack(
            config.cell,
            config.embedding_size + (self.bigrams.output_size if self.bigrams else 0),
            config.hidden_size,
            config.num_layers,
            bidirectional=config.bidirectional,
            layer_norm=config.layer_norm,
            residual=config.residual,
            between_layers=config.dropout.between_layers,
            locked=config.dropout.is_locked("between_layers"),
            weight_hh=config.dropout.weight_hh,
            backend=config.backend,
        )
        width = self.recurrent.output_size
        self.pooling = None if config.pooling is None else Pooling(config.pooling, width, bidirectional=config.bidirectional)
        self.head = nn.Linear(width if self.pooling is None else self.pooling.output_size, answers)
        self.crf = CRF(answers) if config.crf else None
        # What is added to logits where a label is chosen for each step, and not where its probability is told: no loss moves it.
        decides = labels is not None and not (config.crf or config.pooling)
        self.decision = nn.Parameter(torch.zeros(answers), requires_grad=False) if decides else None
        if config.tied_embeddings:
            self.embedding.weight = self.head.weight
        self.read_scale = config.embedding_size**0.5 if config.tied_embeddings else 1.0
        if not self.head.weight.is_meta:  # on `meta`, where only shapes are asked for, a draw would import torch's compiler: 2 s
            self._initialise()

    def _initialise(self) -> None:
        begin_inputs(self.recurrent)
        begin_head(self.head, gain=HEAD_GAIN)
        tells = self.crf is not None or self.decision is not None  # a label at each step
        nn.init.normal_(self.embedding.weight, std=LABEL_SCALE if tells else 1 / self.read_scale)
        if self.bigrams is not None:
            nn.init.normal_(self.bigrams.table.weight, std=BIGRAM_SCALE)

    def described(self) -> dict[str, str]:
        """What it is made of, for a person."""
        stack = self.recurrent
        return {"model": f"{stack.cell}, {stack.num_layers} × {stack.hidden_size}, embedding {self.embedding.embedding_dim}"}

    def numbers_kept(self, inputs: torch.Size, targets: torch.Size, asked: int) -> int:
        """About how many numbers backward needs of inputs (T, B) and of `asked` answers, and the head of logits and their gradients."""
        char = 2 * self.recurrent.input_size + self.recurrent.num_layers * self.recurrent.numbers_kept()
        whole = self.pooling is not None or self.crf is not None or self.decision is not None  # labels: their logits are looked at again
        logits = asked * 4 * self.head.out_features if whole else logits_at_once(asked, self.head.out_features)
        return math.prod(inputs) * char + asked * self.head.in_features + logits

    def forward(
        self,
        inputs: Tensor,
        state: tuple[State, ...] | None,
        *,
        lengths: Tensor | None = None,
        at: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, tuple[State, ...]]:
        """inputs (T, B) int64 and a state a layer and direction (None: zeros) -> logits (T, B, K) and the states after the last step.

        lengths   (B,) or None where all are T. What lies beyond is not read: any id will do, and the logits there mean nothing.
                  Texts of several lengths end where they end, so no state goes on: it is ()
        at        (T, B) bool: only these rows go through the head, in time-major order: logits (N, K). A head of many ids costs
                  more than all the rest
        generator draws the dropout masks of training, on the model's device

        Pooled, the logits are (B, K). Raises ValueError for `at` with a pooling, and for a text of length 0 to pool.
        """
        x, state = self.features(inputs, state, lengths=lengths, at=at, generator=generator)
        logits: Tensor = self.head(x)
        return logits, state

    def features(
        self,
        inputs: Tensor,
        state: tuple[State, ...] | None,
        *,
        lengths: Tensor | None = None,
        at: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, tuple[State, ...]]:
        """What the head reads, (T, B, W), (B, W) or (N, W), where `forward` gives logits; the rest is as there."""
        if self.pooling is not None and at is not None:
            raise ValueError("a pooled model has one answer a text; leave out `at`")
        x = self.read(inputs, lengths=lengths, generator=generator)  # (T, B, I)
        x, state = self.recurrent(x, state, lengths=lengths, final_state=lengths is None, generator=generator)  # (T, B, W)
        if self.pooling is not None:
            x = self.pooling(x, lengths).unsqueeze(0)  # (1, B, W)
        x = self._drop(x, "output", generator)
        return x.squeeze(0) if self.pooling is not None else x if at is None else x[at], state

    def read(self, inputs: Tensor, *, lengths: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        """What the recurrent layers read of inputs (T, B): (T, B, I); the rest is as in `forward`."""
        inputs = self._unknowing(inputs, generator)
        rows = drop_rows(self.embedding.weight, self.dropout.embedding, training=self.training, generator=generator)  # (V, E)
        x = F.embedding(inputs, rows)  # (T, B, E)
        if self.read_scale != 1:
            x = x * self.read_scale
        if self.bigrams is not None:
            x = torch.cat([x, self.bigrams(inputs, lengths, dropped=self.dropout.bigrams, generator=generator)], -1)  # (T, B, I)
        return self._drop(x, "input", generator)

    def _unknowing(self, inputs: Tensor, generator: torch.Generator | None) -> Tensor:
        """(T, B) -> (T, B), some of it unknown."""
        p = self.dropout.unknown
        if not self.training or p == 0:
            return inputs
        kept = dropout_mask(inputs.shape, p, device=inputs.device, dtype=torch.float32, generator=generator) > 0  # (T, B)
        return torch.where(kept, inputs, UNKNOWN)

    def _drop(self, x: Tensor, place: Literal["input", "output"], generator: torch.Generator | None) -> Tensor:
        p = self.dropout.input if place == "input" else self.dropout.output
        return dropout(x, p, locked=self.dropout.is_locked(place), training=self.training, generator=generator)
