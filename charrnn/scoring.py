"""How much a model likes each of many documents.

Each is read from a fresh start: after the `end` of another where the model knows documents, and its own `end` is predicted as a
character is; after a line end in a stream that has any; else its first character is read unasked. What is unknown to the model is
read as such and not scored. That is what evaluation.evaluate_stream does with one document, here with many side by side.

Axes: T time, B batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from torch import nn

from charrnn.data.batch import IGNORED
from charrnn.data.documents import assembled, split_documents
from charrnn.data.formats import Reading
from charrnn.data.vocabulary import Vocabulary, framed
from charrnn.evaluation import WINDOW, surprisal
from charrnn.metrics import Tally
from charrnn.sampling import evaluating
from charrnn.tasks.task import State

BLOCK = 4096  # documents that are sorted by length and scored together
BLOCK_CHARS = 1 << 22  # or, where they are long, as many as come to this
BATCH = 64  # documents side by side
LOGITS = 1 << 22  # numbers in the logits of one window
BEGINNING = 40  # characters that name a document


@dataclass(frozen=True)
class Document:
    source: str  # the file it comes from
    number: int  # in that file, from 1
    text: str


@dataclass(frozen=True)
class Score:
    """What a model makes of one document. `tally` counts what was scored: not what is unknown to the model."""

    source: str
    number: int
    beginning: str
    tally: Tally
    chars: int  # of the text; the end of the document is none
    unknown: int  # of them

    @property
    def bits_per_char(self) -> float | None:
        """None where nothing could be scored."""
        return self.tally.bits_per_char() if int(self.tally.count) else None

    def as_metrics(self) -> dict[str, float | None]:
        """The keys of `eval --json`, but those of time; null where nothing could be scored."""
        figures: dict[str, float | None] = dict.fromkeys(("nats_per_char", "bits_per_char", "perplexity", "accuracy"))
        if int(self.tally.count):
            figures |= self.tally.as_metrics()
        read = {"chars": self.chars, "scored": int(self.tally.count), "unknown": self.unknown, "unknown_share": self.unknown / self.chars}
        return figures | read


def documents_of(source: str, reading: Reading) -> Iterator[Document]:
    """The documents of one text; a stream is one as a whole. What is blank is none."""
    texts = assembled(split_documents(reading, "files"), source) if reading.is_stream else iter(reading)
    return (Document(source, number, text) for number, text in enumerate(texts, start=1))


def score(model: nn.Module, vocabulary: Vocabulary, documents: Iterable[Document]) -> Iterator[Score]:
    """A score for each document, in their order. Memory does not grow with their number."""
    coming = iter(documents)
    while block := _block(coming):
        order = sorted(range(len(block)), key=lambda i: len(block[i].text))
        scores: dict[int, Score] = {}
        for at in range(0, len(order), BATCH):
            together = order[at : at + BATCH]
            scores |= zip(together, _score([block[i] for i in together], model, vocabulary))
        yield from (scores[i] for i in range(len(block)))


def _block(coming: Iterator[Document]) -> list[Document]:
    block: list[Document] = []
    chars = 0
    for document in islice(coming, BLOCK):
        block.append(document)
        chars += len(document.text)
        if chars >= BLOCK_CHARS:
            break
    return block


@torch.inference_mode()
def _score(documents: list[Document], model: nn.Module, vocabulary: Vocabulary) -> list[Score]:
    """Documents of like length, padded on the right: what a column reads after its end is not asked for, and changes nothing before."""
    device = next(model.parameters()).device
    texts = [framed(vocabulary, document.text) for document in documents]
    length = max(map(len, texts)) - 1
    text = np.full((length + 1, len(texts)), vocabulary.unknown, dtype=np.int64)  # (T + 1, B): unknown, the padding is not scored
    for column, ids in enumerate(texts):
        text[: len(ids), column] = ids
    read = torch.from_numpy(text)
    targets = read[1:].masked_fill(read[1:] == vocabulary.unknown, IGNORED)  # (T, B)
    nats, correct = (torch.zeros(len(texts), dtype=dtype) for dtype in (torch.float64, torch.int64))
    with evaluating(model):
        state: State | None = None
        window = max(1, min(WINDOW, LOGITS // (len(texts) * len(vocabulary))))
        for at in range(0, length, window):
            asked = targets[at : at + window]
            logits, state = model(read[at : at + len(asked)].to(device), state)  # (T, B, V)
            found, hits = surprisal(logits, asked)  # (T, B)
            nats += found.sum(0)
            correct += hits.sum(0)
    counts = (targets != IGNORED).sum(0)
    return [
        Score(
            document.source,
            document.number,
            document.text[:BEGINNING],
            Tally(*(part[column] for part in (nats, counts, correct))),
            len(document.text),
            sum(character not in vocabulary for character in document.text),
        )
        for column, document in enumerate(documents)
    ]
