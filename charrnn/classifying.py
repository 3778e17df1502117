"""What a model takes many texts for: those of like length side by side, the answers in the order of the texts.

A block of texts is in memory, never all of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from torch import nn

from charrnn.data.labelled import Example, unknown_label
from charrnn.data.padding import buckets
from charrnn.data.vocabulary import Vocabulary
from charrnn.errors import DataError
from charrnn.metrics import Confusion
from charrnn.tasks.classify import probabilities, shortened

BLOCK = 4096  # texts that are sorted by length and answered together
BLOCK_CHARS = 1 << 22  # or, where they are long, as many as come to this
BATCH = 64  # texts side by side


@dataclass(frozen=True)
class Answer:
    """A text, and what the model takes it for: each label with its probability, the most probable first."""

    example: Example
    chances: list[tuple[str, float]]

    @property
    def label(self) -> str:
        return self.chances[0][0]


def classify(
    model: nn.Module, vocabulary: Vocabulary, labels: tuple[str, ...], examples: Iterable[Example | DataError], length: int
) -> Iterator[Answer | DataError]:
    """An answer for each text, and what was wrong with one in its place, in their order. `length`: data.example_length of the model."""
    coming = iter(examples)
    while block := _block(coming, labels):
        whole = [(at, example) for at, example in enumerate(block) if isinstance(example, Example)]
        texts = [shortened(np.array(vocabulary.encode(example.text)), length) for _, example in whole]
        answers: list[Answer | DataError | None] = [example if isinstance(example, DataError) else None for example in block]
        for batch in buckets(list(map(len, texts)), BATCH, None):
            for i, chances in zip(batch, probabilities(model, [texts[i] for i in batch]).tolist()):
                at, example = whole[i]
                answers[at] = Answer(example, sorted(zip(labels, chances), key=lambda chance: -chance[1]))
        yield from (answer for answer in answers if answer is not None)


def confusion_of(pairs: Mapping[tuple[str, str], int], labels: tuple[str, ...]) -> Confusion:
    """From how often each label (the first of a pair) was answered with each (the second)."""
    counts = torch.zeros(len(labels), len(labels), dtype=torch.int64)
    for (truth, answer), count in pairs.items():
        counts[labels.index(truth), labels.index(answer)] = count
    return Confusion(counts)


def _block(coming: Iterator[Example | DataError], labels: tuple[str, ...]) -> list[Example | DataError]:
    block: list[Example | DataError] = []
    chars = 0
    for example in islice(coming, BLOCK):
        if isinstance(example, Example):
            chars += len(example.text)
            if isinstance(example.labels, str) and example.labels not in labels:
                example = unknown_label(example, example.labels, labels)
        block.append(example)
        if chars >= BLOCK_CHARS:
            break
    return block
