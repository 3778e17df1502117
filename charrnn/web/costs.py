"""What each character of a text cost a language model that reads it piece by piece, in bits: its surprisal.

Read by the native engine or with PyTorch, which both have what they read last in them. Axes: T time, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from charrnn.data.vocabulary import Vocabulary, framed
from charrnn.engine import NativeEngine

if TYPE_CHECKING:
    from torch import nn

NUMBERS = 1 << 20  # log-probabilities that are held at once,
TOGETHER = 256  # and ids that are read at once: a moment of the largest models

Shares = npt.NDArray[np.float32]


class Reader(Protocol):
    """A model, and what it has read."""

    def begin(self) -> None: ...

    def read_on(self, ids: Sequence[int]) -> Shares:
        """Natural logarithms of the shares of all characters after each of the ids, (T, V)."""
        ...


class NativeReader:
    def __init__(self, engine: NativeEngine) -> None:
        self._engine, self._size = engine, len(engine.vocabulary)

    def begin(self) -> None:
        self._engine.begin()

    def read_on(self, ids: Sequence[int]) -> Shares:
        return np.frombuffer(self._engine.read_on(ids), dtype=np.float32).reshape(len(ids), self._size)


class TorchReader:
    """In eval mode already, as `checkpoint.build_model` leaves a model."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._state: Any = None

    def begin(self) -> None:
        self._state = None

    def read_on(self, ids: Sequence[int]) -> Shares:
        import torch

        device = next(self._model.parameters()).device
        with torch.inference_mode():
            logits, self._state = self._model(torch.tensor(ids, device=device).unsqueeze(-1), self._state)  # (T, 1, V)
            shares: Shares = logits.squeeze(1).float().log_softmax(-1).cpu().numpy()
        return shares


class Costs:
    """Of the characters of a text, as it grows."""

    def __init__(self, reader: Reader, vocabulary: Vocabulary) -> None:
        self._reader, self._vocabulary = reader, vocabulary
        self._step = max(1, min(TOGETHER, NUMBERS // len(vocabulary)))
        self._next: Shares = np.zeros(0, dtype=np.float32)  # (V,) of what comes next

    def begin(self, before: Sequence[int]) -> Iterator[None]:
        """Read what stands before the text, at least one id, and is not asked for; a moment of it at a time."""
        self._reader.begin()
        for at in range(0, len(before), self._step):
            self._next = self._reader.read_on(before[at : at + self._step])[-1]
            yield

    def of(self, ids: Sequence[int]) -> tuple[list[float | None], int]:
        """Bits of each of the next ids, None of what is unknown, and how many of the others were the most probable."""
        bits: list[float | None] = []
        hits = 0
        for at in range(0, len(ids), self._step):
            some = ids[at : at + self._step]
            after = self._reader.read_on(some)  # (T, V)
            asked = np.vstack([self._next[None], after[:-1]])  # (T, V): each row is of the id in its place
            self._next = after[-1]
            known = np.array(some) != self._vocabulary.unknown
            found = -asked[np.arange(len(some)), some].astype(np.float64) / math.log(2)
            hits += int((asked.argmax(1) == some)[known].sum())
            bits += [float(cost) if is_known else None for cost, is_known in zip(found, known)]
        return bits, hits


def score(reader: Reader, vocabulary: Vocabulary, text: str) -> dict[str, object]:
    """The figures of `charrnn score --json` for one document, and the bits of each character; null for what is unknown to the model."""
    ids = framed(vocabulary, text)
    costs = Costs(reader, vocabulary)
    for _ in costs.begin(ids[:1]):
        pass
    bits, hits = costs.of(ids[1:])
    told = [bit for bit in bits if bit is not None]
    # What stands before the text is read unasked; where nothing does, its first character is.
    each = bits[: len(text)] if len(ids) > len(text) else [None, *bits]
    figures: dict[str, object] = dict.fromkeys(("nats_per_char", "bits_per_char", "perplexity", "accuracy"))
    if told:
        mean = math.fsum(told) / len(told)
        figures = {"nats_per_char": mean * math.log(2), "bits_per_char": mean, "perplexity": 2**mean, "accuracy": hits / len(told)}
    unknown = sum(character not in vocabulary for character in text)
    counts = {"chars": len(text), "scored": len(told), "unknown": unknown, "unknown_share": unknown / len(text)}
    return figures | counts | {"bits": each}
