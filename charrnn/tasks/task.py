"""The protocol between a task and the loops that train and evaluate it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor, nn

from charrnn.config import Config
from charrnn.data.batch import Batch
from charrnn.data.corpus import Corpus
from charrnn.data.vocabulary import Vocabulary
from charrnn.metrics import Tally

State = tuple[tuple[Tensor, ...], ...]  # a layer: (h,) or (h, c), each (B, H)


class Task(Protocol):
    @property
    def config(self) -> Config: ...

    @property
    def corpus(self) -> Corpus: ...

    @property
    def vocabulary(self) -> Vocabulary: ...

    def model(self) -> nn.Module:
        """A fresh model on the CPU, its weights drawn from config.seed alone."""

    def batches(self, split: str, *, first: int = 0) -> Iterator[Batch]:
        """One pass over a split, from batch `first` on. Raises UserError where the split has nothing to predict."""

    def steps_per_epoch(self) -> int:
        """Batches in one pass over the train split."""

    def loss(
        self, model: nn.Module, batch: Batch, state: State | None, *, generator: torch.Generator | None = None, label_smoothing: float = 0.0
    ) -> tuple[Tensor, Tally, State]:
        """The loss to differentiate, summed in nats; the plain cross-entropy, detached; the new state, in the graph."""

    def preview(self, model: nn.Module, generator: torch.Generator, length: int = 200) -> str:
        """What a person reads while it trains."""

    def notes(self) -> list[str]:
        """What a person should know before the first step, a line each."""


def carry(state: State | None, batch: Batch) -> State | None:
    """Keep the values and cut the graph at a TBPTT window's edge; forget where the text does not continue."""
    if state is None or not batch.continues:
        return None
    return tuple(tuple(tensor.detach() for tensor in layer) for layer in state)
