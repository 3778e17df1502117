"""How well a model predicts: one pass over a split, or over a text of the user's, with the state carried all the way.

Axes: T time, V vocabulary.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from charrnn.data.vocabulary import Vocabulary
from charrnn.errors import UserError
from charrnn.metrics import Tally
from charrnn.tasks.task import State, Task, carry

WINDOW = 512  # characters of a user's text read at once; a figure does not depend on it
SEPARATORS = {"lines": r"\n+", "blank_lines": r"\n(?:[ \t]*\n)+"}  # what stands between documents, as in data.documents


@dataclass(frozen=True)
class Evaluated:
    """What a pass found: the sums, the characters it read, and the time it took."""

    tally: Tally
    seconds: float
    chars: int  # read, whether scored or not
    unknown: int = 0  # of them outside the vocabulary, and so not scored

    @property
    def unknown_share(self) -> float:
        return self.unknown / max(1, self.chars)

    def as_metrics(self, prefix: str = "") -> dict[str, float]:
        """The tally's figures with `chars`, `seconds` and `chars_per_second`, under the keys of metrics.jsonl."""
        pace = self.chars / max(self.seconds, 1e-9)
        mine = {"chars": self.chars, "seconds": self.seconds, "chars_per_second": pace}
        return self.tally.as_metrics(prefix) | {prefix + key: value for key, value in mine.items()}


@torch.inference_mode()
def evaluate(task: Task, model: nn.Module, split: str) -> Evaluated:
    """One pass over a split, in eval mode; the model is then again as it was. Raises UserError where nothing can be scored."""
    training = model.training
    model.eval()
    started = time.perf_counter()
    tally, state = Tally.zero(next(model.parameters()).device), None
    try:
        for batch in task.batches(split):
            _, found, state = task.loss(model, batch, carry(state, batch))
            tally = tally + found
    finally:
        model.train(training)
    chars = int(tally.count)
    if chars == 0:
        raise UserError(f"split {split!r}: the model knows none of its characters; expected some to predict; choose another split")
    return Evaluated(tally, time.perf_counter() - started, chars)


def evaluate_text(model: nn.Module, vocabulary: Vocabulary, text: str | Iterable[str], documents: str = "none") -> Evaluated:
    """Score a text, or its pieces one after the other, as one stream. `documents` is data.documents of the model's config.

    Raises UserError where the text holds nothing that the model could be asked for.
    """
    started = time.perf_counter()
    nats, count, correct, chars, unknown = 0.0, 0, 0, 0, 0
    for read in _read(model, vocabulary, [text] if isinstance(text, str) else text, documents):
        nats += float(read.nats[read.scored].sum())
        count += int(read.scored.sum())
        correct += int(read.correct[read.scored].sum())
        chars += len(read.characters) - read.characters.count("")
        unknown += read.unknown
    if count == 0:
        known = f"{chars} characters, {unknown} of them unknown to the model"
        raise UserError(f"the text has {known}, and none to predict; expected text like its training text")
    tally = Tally(torch.tensor(nats, dtype=torch.float64), torch.tensor(count), torch.tensor(correct))
    return Evaluated(tally, time.perf_counter() - started, chars, unknown)


def per_char(
    model: nn.Module, vocabulary: Vocabulary, text: str | Iterable[str], documents: str = "none"
) -> Iterator[tuple[str, float | None]]:
    """Each character with its surprisal in bits, as evaluate_text scores it; the end of a document is the character "".

    None where nothing is scored: outside the vocabulary, and at the first character of a stream, before which nothing stood.
    """
    for read in _read(model, vocabulary, [text] if isinstance(text, str) else text, documents):
        for character, nats, scored in zip(read.characters, read.nats.tolist(), read.scored.tolist()):
            yield character, nats / math.log(2) if scored else None


class _Read(NamedTuple):
    characters: list[str]  # T of them
    nats: Tensor  # (T,) float64
    correct: Tensor  # (T,) bool
    scored: Tensor  # (T,) bool
    unknown: int


@torch.inference_mode()
def _read(model: nn.Module, vocabulary: Vocabulary, pieces: Iterable[str], documents: str) -> Iterator[_Read]:
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    last = vocabulary.end  # the character before this window; a document begins after the end of another
    state: State | None = None
    try:
        for characters in _windows(pieces, documents if vocabulary.end is not None else "none"):
            # "" is the end of a document, which only a vocabulary that has one meets.
            ids = [vocabulary.id(c) if c else vocabulary.end or 0 for c in characters]
            unasked = last is None  # of the first character of a stream
            context = ([] if last is None else [last]) + ids[:-1]
            last = ids[-1]
            targets = torch.tensor(ids)  # (T,)
            scored = targets != vocabulary.unknown
            unknown = int((~scored).sum())
            nats, correct = torch.zeros(len(ids), dtype=torch.float64), torch.zeros(len(ids), dtype=torch.bool)
            if context:
                logits, state = model(torch.tensor(context, device=device).unsqueeze(-1), state)  # (T, 1, V)
                logits, asked = logits.squeeze(1).float().cpu(), targets[int(unasked) :]
                nats[int(unasked) :] = F.cross_entropy(logits, asked, reduction="none").double()
                correct[int(unasked) :] = logits.argmax(-1) == asked
            if unasked:
                scored[0] = False
            yield _Read(characters, nats, correct, scored, unknown)
    finally:
        model.train(training)


def _windows(pieces: Iterable[str], documents: str) -> Iterator[list[str]]:
    window: list[str] = []
    for part in _close_documents(pieces, documents):
        for start in range(0, len(part) or 1, WINDOW):
            window.extend(part[start : start + WINDOW] or [""])
            if len(window) >= WINDOW:
                yield window[:WINDOW]
                del window[:WINDOW]
    if window:
        yield window


def _close_documents(pieces: Iterable[str], documents: str) -> Iterator[str]:
    """The text without what stands between documents, and "" where one ends: what data.documents makes of a file."""
    if documents in ("none", "files"):
        written = False
        for piece in pieces:
            if piece:
                yield piece
                written = True
        if written and documents == "files":
            yield ""
        return
    separator = re.compile(SEPARATORS[documents])
    held, opened = "", False
    for piece in pieces:
        held += piece
        # White space at the very end may be the beginning of a separator: it waits for what follows.
        settled = held.rstrip(" \t\n")
        held = held[len(settled) :]
        if not settled:
            continue
        for i, part in enumerate(separator.split(settled)):
            if i and opened:
                yield ""
                opened = False
            part = part if opened else part.lstrip("\n")
            if part and (opened or part.strip()):
                yield part
                opened = True
    if opened:
        trailing = separator.split(held)[0].rstrip("\n")  # spaces before the last line end belong to the last document
        if trailing:
            yield trailing
        yield ""
