"""How well a model predicts.

`measure` is what training asks every so often: a split in the task's batches, of lm a few columns side by side, for speed.
`evaluate_stream` and `per_char` read a split, or a text of the user's, as one column: the state is carried from the first
character to the last.

Axes: T time, V vocabulary.
"""

from __future__ import annotations

import functools
import math
import operator
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from charrnn.data.batch import IGNORED, Batch
from charrnn.data.corpus import Corpus, Ids
from charrnn.data.streams import split_ids
from charrnn.data.vocabulary import Vocabulary
from charrnn.distributed import ALONE, Ranks
from charrnn.errors import UserError
from charrnn.metrics import Tally
from charrnn.sampling import evaluating
from charrnn.tasks.task import Scores, State, Task, carry

WINDOW = 512  # characters of a stream read at once; a figure does not depend on it


@dataclass(frozen=True)
class Evaluated:
    """What a pass found. The end of a document is a character here: it is read, and predicted, like one.

    `tally` counts what was scored: all that was read but the unknown, and but the first of a stream, before which nothing stood.
    """

    tally: Tally
    seconds: float
    chars: int  # read, each once
    unknown: int  # of them outside the vocabulary

    def as_metrics(self) -> dict[str, float]:
        """The tally's figures and those of the pass, under the keys of `eval --json`."""
        read = {"chars": self.chars, "scored": int(self.tally.count), "unknown": self.unknown, "unknown_share": self.unknown / self.chars}
        return self.tally.as_metrics() | read | {"seconds": self.seconds, "chars_per_second": self.chars / max(self.seconds, 1e-9)}


@torch.inference_mode()
def measure(
    task: Task, model: nn.Module, split: str, progress: Callable[[int], None] | None = None, place: str = "", ranks: Ranks = ALONE
) -> Scores:
    """One pass over a split with all that the task counts, in eval mode; the model is then again as it was.

    `progress` is told of each batch how many characters were read. Of several `ranks` each reads its part, and all get the sum.
    Raises UserError where nothing can be scored, naming `place`, which is a file where the split is all of it.
    """
    scores: Scores | None = None
    state = None
    with evaluating(model):
        for batch in _part_of(task, split, ranks):
            found, state = task.measure(model, batch, carry(state, batch))
            scores = found if scores is None else scores + found
            if progress:
                progress(batch.chars)
    if ranks.several:
        parts = [part for part in ranks.gather(scores) if part is not None]
        scores = functools.reduce(operator.add, parts) if parts else None
    if scores is None or int(scores.count) == 0:
        named, another = (place, "text") if place else (f"split {split!r}", "split")
        raise UserError(f"{named}: it holds nothing that the model could be asked for; choose another {another}")
    return scores


def _part_of(task: Task, split: str, ranks: Ranks) -> Iterator[Batch]:
    """A process's batches of a split: some columns of each where one goes on in the next, else some of them whole."""
    for number, batch in enumerate(task.batches(split)):
        if not ranks.several:
            yield batch
        elif task.config.is_windowed:
            part = batch.part(ranks.part(batch.columns))
            if part.columns:
                yield part
        elif number % ranks.size == ranks.rank:
            yield batch


@torch.inference_mode()
def metrics_of(task: Task, model: nn.Module, split: str) -> list[str]:
    """What a split that asks for something is measured by."""
    asking = next(batch for batch in task.batches(split) if bool((batch.targets != IGNORED).any()))
    with evaluating(model):
        return list(task.measure(model, asking, None)[0].as_metrics())


def evaluate(task: Task, model: nn.Module, split: str) -> Tally:
    """`measure` of a task that predicts characters and counts nothing else: lm.

    The columns of a batch are stretches of the split that lie far apart. Each but the first begins with a state that has read
    some of what stands before it, not all: quick, and on the long way as good as one column, but not the same figure.
    Raises UserError where nothing can be scored.
    """
    tally = measure(task, model, split)
    assert isinstance(tally, Tally)
    return tally


class Window(NamedTuple):
    """The next characters of a stream, "" for the end of a document."""

    characters: list[str]
    ids: list[int]


def documents_stream(vocabulary: Vocabulary, pieces: Iterable[tuple[str, list[int]]]) -> Iterator[Window]:
    """Pieces of text, each with the places in it behind which a document closes, as one stream."""
    characters = _characters(pieces)
    while window := list(islice(characters, WINDOW)):
        # "" is the end of a document, which only a vocabulary that has one meets.
        yield Window(window, [vocabulary.id(c) if c else vocabulary.end or 0 for c in window])


def split_stream(corpus: Corpus, split: str) -> Iterator[Window]:
    """A split as one stream, U+FFFD standing for what is unknown. Raises UserError where there is nothing to predict."""
    return _split_windows(corpus, split_ids(corpus, split))


def evaluate_stream(model: nn.Module, vocabulary: Vocabulary, stream: Iterable[Window]) -> Evaluated:
    """Score every character once, in one column. Raises UserError where the stream holds nothing that the model could be asked for."""
    started = time.perf_counter()
    nats, count, correct, chars, unknown = 0.0, 0, 0, 0, 0
    for read in _read(model, vocabulary, stream):
        nats += float(read.nats[read.scored].sum())
        count += int(read.scored.sum())
        correct += int(read.correct[read.scored].sum())
        chars += len(read.characters)
        unknown += read.unknown
    if count == 0:
        known = f"{chars} characters, {unknown} of them unknown to the model"
        raise UserError(f"the text has {known}, and none to predict; expected text like its training text")
    tally = Tally(torch.tensor(nats, dtype=torch.float64), torch.tensor(count), torch.tensor(correct))
    return Evaluated(tally, time.perf_counter() - started, chars, unknown)


def per_char(model: nn.Module, vocabulary: Vocabulary, stream: Iterable[Window]) -> Iterator[tuple[str, float | None]]:
    """Each character with its surprisal in bits, as evaluate_stream scores it; the end of a document is the character "".

    None where nothing is scored: outside the vocabulary, and at the first character of a stream, before which nothing stood.
    """
    for read in _read(model, vocabulary, stream):
        for character, nats, scored in zip(read.characters, read.nats.tolist(), read.scored.tolist()):
            yield character, nats / math.log(2) if scored else None


class _Read(NamedTuple):
    characters: list[str]  # T of them
    nats: Tensor  # (T,) float64
    correct: Tensor  # (T,) bool
    scored: Tensor  # (T,) bool
    unknown: int


@torch.inference_mode()
def _read(model: nn.Module, vocabulary: Vocabulary, stream: Iterable[Window]) -> Iterator[_Read]:
    device = next(model.parameters()).device
    last = vocabulary.end  # the character before this window; a document begins after the end of another
    state: State | None = None
    with evaluating(model):
        for characters, ids in stream:
            unasked = last is None  # of the first character of a stream
            context = ([] if last is None else [last]) + ids[:-1]
            last = ids[-1]
            targets = torch.tensor(ids)  # (T,)
            scored = targets != vocabulary.unknown
            unknown = int((~scored).sum())
            nats, correct = torch.zeros(len(ids), dtype=torch.float64), torch.zeros(len(ids), dtype=torch.bool)
            if context:
                logits, state = model(torch.tensor(context, device=device).unsqueeze(-1), state)  # (T, 1, V)
                logits, asked = logits.squeeze(1), targets[int(unasked) :]
                nats[int(unasked) :], correct[int(unasked) :] = surprisal(logits, asked)
            if unasked:
                scored[0] = False
            yield _Read(characters, nats, correct, scored, unknown)


def surprisal(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """What each target cost, in nats, and whether it was the most probable: (…, V), (…) -> float64 (…), bool (…), on the CPU.

    A target that is IGNORED costs nothing and is never hit.
    """
    logits = logits.float().cpu()
    nats = F.cross_entropy(logits.flatten(0, -2), targets.flatten(), ignore_index=IGNORED, reduction="none")
    return nats.double().view_as(targets), logits.argmax(-1) == targets


def _split_windows(corpus: Corpus, ids: Ids) -> Iterator[Window]:
    symbols = ["\ufffd" if symbol == "unknown" else "" for symbol in corpus.vocabulary.symbols]
    shown = symbols + list(corpus.vocabulary.characters)
    for start in corpus.forgetting(range(0, len(ids), WINDOW)):
        window = ids[start : start + WINDOW].tolist()
        yield Window([shown[i] for i in window], window)


def _characters(pieces: Iterable[tuple[str, list[int]]]) -> Iterator[str]:
    """The text without what stands between documents, and "" where one ends."""
    for text, closes in pieces:
        start = 0
        for close in closes:
            yield from text[start:close]
            yield ""
            start = close
        yield from text[start:]
