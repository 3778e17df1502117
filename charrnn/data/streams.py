"""A split as parallel streams, cut into windows for truncated BPTT.

Column b of every batch is one uninterrupted stretch of the text. The window after this one begins with this one's last
target, so the state at the end of a window is the right state for the next. Axes: T time, B batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.lib.stride_tricks import as_strided
from torch import Tensor

from charrnn.data.batch import IGNORED, Batch
from charrnn.data.corpus import Corpus, Ids
from charrnn.errors import DataError

PIECE = 1 << 22  # characters that are copied to a device at once


def split_ids(corpus: Corpus, split: str) -> Ids:
    """The ids of a split that has something to predict. Raises UserError where there is no such split, DataError where it is empty."""
    ids = corpus.split(split)
    if len(ids) < 2:
        raise DataError(
            f"data.{split}_fraction: the {split} split holds {len(ids)} characters; expected at least 2, so raise the fraction or add text"
        )
    return ids


@dataclass(frozen=True)
class Streams:
    """A split cut into `batch_size` columns of equal length, each read `window` characters at a time."""

    corpus: Corpus
    split: str
    batch_size: int
    window: int

    @property
    def length(self) -> int:
        """Targets in a column: every character of the split but the first, less what does not fill a row."""
        return (len(self.corpus.split(self.split)) - 1) // self.batch_size

    @property
    def windows(self) -> int:
        """Batches in one pass."""
        return -(-self.length // self.window)

    def batches(self, first: int = 0, held: Tensor | None = None) -> Iterator[Batch]:
        """One pass, from window `first` on. The last window is as short as what is left; no character is passed over.

        `held`: what `hold` gave; the batches then lie on its device, where they are gathered too.
        """
        unknown = self.corpus.vocabulary.unknown
        for window in range(first, self.windows):
            at, steps = window * self.window, min(self.window, self.length - window * self.window)
            # The character after the window is the last one's target: columns overlap by one.
            text = self._text(at, steps + 1) if held is None else self._text_held(held, at, steps + 1)  # (T + 1, B)
            targets = text[1:]
            yield Batch(text[:-1], targets.masked_fill(targets == unknown, IGNORED), None, continues=window > 0)
            if held is None and window % 256 == 255:
                self.corpus.forget_pages()

    def _text(self, at: int, rows: int) -> Tensor:
        ids = self.corpus.split(self.split)
        stride = ids.strides[0]
        text = as_strided(ids[at:], (rows, self.batch_size), (stride, self.length * stride), writeable=False)
        return torch.from_numpy(text.astype(np.int64, order="C"))

    def _text_held(self, held: Tensor, at: int, rows: int) -> Tensor:
        return held.as_strided((rows, self.batch_size), (1, self.length), at).to(torch.int64, memory_format=torch.contiguous_format)


def fit(corpus: Corpus, split: str, batch_size: int, window: int) -> Streams:
    """Streams of that shape, or of a smaller one where the text is too short to fill it."""
    targets = max(1, len(corpus.split(split)) - 1)
    batch_size = max(1, min(batch_size, targets // min(window, 16) or 1))
    return Streams(corpus, split, batch_size, max(1, min(window, targets // batch_size)))


def held_dtype(corpus: Corpus) -> torch.dtype:
    """The smallest one of PyTorch's common integers that holds every id."""
    size = len(corpus.vocabulary)
    return torch.uint8 if size <= 1 << 8 else torch.int16 if size <= 1 << 15 else torch.int32


def hold(corpus: Corpus, split: str, device: torch.device) -> Tensor:
    """A split's ids, (N,), on a device, copied there piece by piece."""
    ids = corpus.split(split)
    held = torch.empty(len(ids), dtype=held_dtype(corpus), device=device)
    for at in range(0, len(ids), PIECE):
        held[at : at + PIECE].copy_(torch.from_numpy(ids[at : at + PIECE].astype(np.int32)))
    corpus.forget_pages()
    return held


@dataclass(frozen=True)
class EvaluationStreams:
    """A text cut into columns that are read side by side, in which every character but the first is a target exactly once.

    A column begins `lead` characters before its own first target, with nothing asked of it there: its state then is, but
    for what lies further back, the one that a single column would have carried to that place. Columns differ in length by
    that lead and by one character; a column that is over is padded with id 0, of which nothing is asked either.
    """

    ids: Ids  # (N,)
    unknown: int
    columns: int
    lead: int = 256

    def spans(self) -> list[tuple[int, int, int]]:
        """A column: its first input, its first target and the end of its targets, as places in `ids`."""
        targets = max(0, len(self.ids) - 1)
        columns = max(1, min(self.columns, targets))
        edges = [1 + column * targets // columns for column in range(columns + 1)]
        return [(max(0, first - 1 - self.lead), first, stop) for first, stop in pairwise(edges)]

    def batches(self, window: int = 256, first: int = 0) -> Iterator[Batch]:
        """One pass, from window `first` on; the state is carried from each batch to the next."""
        spans = self.spans()
        length = max(stop - 1 - start for start, _, stop in spans)
        for at in range(first * window, length, window):
            steps = min(window, length - at)
            inputs = np.zeros((steps, len(spans)), dtype=np.int64)  # (T, B)
            targets = np.full((steps, len(spans)), IGNORED, dtype=np.int64)  # (T, B)
            for column, (start, first_target, stop) in enumerate(spans):
                text = self.ids[start + at : min(start + at + steps + 1, stop)]
                if len(text) < 2:
                    continue
                inputs[: len(text) - 1, column] = text[:-1]
                led_in = max(0, first_target - (start + at + 1))  # targets that belong to the column before
                targets[led_in : len(text) - 1, column] = text[led_in + 1 :]
            targets[targets == self.unknown] = IGNORED
            yield Batch(torch.from_numpy(inputs), torch.from_numpy(targets), None, continues=at > 0)
