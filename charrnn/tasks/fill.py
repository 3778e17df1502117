"""Task `fill`: hidden characters from both sides of them.

An example is a document without its `end`, or a window of one that is longer than data.example_length, or of a stream. Some of
its characters are read as `blank`, and those are asked for, as characters: a symbol is nobody's answer.

Axes: T time, B batch, N blanks of a batch, V vocabulary, C its characters.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from charrnn.config import Config
from charrnn.data.batch import IGNORED, Batch
from charrnn.data.blanks import draw_blanks, hide
from charrnn.data.corpus import SPLITS, Corpus, Ids, Progress, load_corpus, load_file
from charrnn.data.padding import buckets, pad
from charrnn.data.streams import split_ids
from charrnn.data.vocabulary import Vocabulary, opening
from charrnn.errors import UserError
from charrnn.metrics import Tally
from charrnn.models.char_rnn import CharRNN
from charrnn.ranking import BEST_BY
from charrnn.sampling import evaluating
from charrnn.tasks.task import State, cross_entropy_of, fresh_model, shortcomings

BEST = 5  # of so many guesses, accuracy_at_5 asks whether one is right
SHOWN = "□"  # a blank, where a person reads it
STRANGE = "\ufffd"  # and a character outside the vocabulary


@dataclass(frozen=True)
class FillScores:
    """What was filled in, summed. `tally` counts blanks."""

    tally: Tally
    hits: Tensor  # blanks whose character was among the BEST most probable, int64

    @property
    def count(self) -> Tensor:
        return self.tally.count

    def __add__(self, other: FillScores) -> FillScores:
        return FillScores(self.tally + other.tally, self.hits + other.hits)

    def as_metrics(self, prefix: str = "") -> dict[str, float]:
        metrics = self.tally.as_metrics(prefix, Fill.unit)
        return metrics | {f"{prefix}accuracy_at_{BEST}": float(self.hits.item()) / int(self.tally.count)}


@dataclass(frozen=True)
class Fill:
    config: Config
    corpus: Corpus
    labels = ()
    unit = "blank"
    best_by = BEST_BY["fill"]

    @classmethod
    def load(cls, config: Config, progress: Progress | None = None) -> Fill:
        return cls(config, load_corpus(config.data, config.seed, progress, blank=True))

    @classmethod
    def of_file(cls, config: Config, vocabulary: Vocabulary, labels: tuple[str, ...], path: Path) -> Fill:
        return cls(config, load_file(config.data, vocabulary, path))

    @property
    def vocabulary(self) -> Vocabulary:
        return self.corpus.vocabulary

    def model(self) -> CharRNN:
        return fresh_model(self, self.corpus.split("train"))

    def batches(self, split: str, *, epoch: int = 0, first: int = 0) -> Iterator[Batch]:
        """Each character of the split stands in one example. Blanks, and in train windows and order, are drawn from (seed, epoch) alone."""
        ids = split_ids(self.corpus, split)
        training = split == "train"
        order = np.random.default_rng((self.config.seed, SPLITS.index(split), epoch)) if training else None
        edges = self._windows(split, float(order.random()) if order else 0.0)  # (examples, 2)
        chosen = buckets(edges[:, 1] - edges[:, 0], self.config.train.batch_size, order)
        for batch in self.corpus.forgetting(chosen[first:]):
            examples = [self._example(ids[edges[i, 0] : edges[i, 1]], split, epoch if training else 0, i) for i in batch]
            inputs, targets = zip(*examples)
            yield pad(inputs, targets)

    def steps_per_epoch(self) -> int:
        return -(-len(self._windows("train", 0.5)) // self.config.train.batch_size)

    def loss(
        self, model: nn.Module, batch: Batch, state: State | None, *, generator: torch.Generator | None = None, label_smoothing: float = 0.0
    ) -> tuple[Tensor, Tally, State]:
        assert isinstance(model, CharRNN)
        batch, symbols = batch.to(next(model.parameters()).device), len(self.vocabulary.symbols)
        asked = batch.targets != IGNORED  # (T, B)
        x, _ = model.features(batch.inputs, None, lengths=batch.lengths, at=asked, generator=generator)  # (N, W)
        found = cross_entropy_of(model.head, x, batch.targets[asked] - symbols, label_smoothing, first=symbols)
        return found.loss, Tally.of_sums(found), ()

    def measure(self, model: nn.Module, batch: Batch, state: State | None) -> tuple[FillScores, State]:
        return _scores(*self._answers(model, batch)), ()

    def preview(self, model: nn.Module, generator: torch.Generator, length: int = 200) -> str:
        """An example of the val split with its blanks, and below it as the model fills them in by one read."""
        split = next(name for name in ("val", "train") if len(self._windows(name)))
        edges = self._windows(split)
        chosen = int(torch.randint(len(edges), (1,), generator=generator))
        ids = self.corpus.split(split)[edges[chosen, 0] : edges[chosen, 1]][:length]
        inputs, targets = self._example(ids, split, 0, chosen)
        with torch.inference_mode(), evaluating(model):
            logits, truth = self._answers(model, pad([inputs], [targets]))
        guesses = logits.argmax(-1).cpu()
        filled = inputs.copy()
        filled[targets != IGNORED] = guesses.numpy() + len(self.vocabulary.symbols)
        right = int((guesses == truth.cpu()).sum())
        return f"{self._shown(inputs)}\n{self._shown(filled)}\n{right} of {len(guesses)} as they were"

    def notes(self) -> list[str]:
        return [*self.corpus.notes, *shortcomings(self.corpus)]

    def _answers(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Logits over the characters at the blanks (N, C), and which character each was (N,)."""
        return blank_answers(model, batch, len(self.vocabulary.symbols))

    def _example(self, ids: Ids, split: str, epoch: int, index: int) -> tuple[Ids, Ids]:
        """What is read of an example and what is asked, both (T,)."""
        generator = np.random.default_rng((self.config.seed, SPLITS.index(split), epoch, index))
        hidden = draw_blanks(ids, self.vocabulary, self.config.data.blanks, generator)
        assert self.vocabulary.blank is not None, "the corpus of a fill task has a blank"
        return hide(ids, hidden, self.vocabulary.blank, IGNORED)

    def _windows(self, split: str, shift: float = 0.0) -> Ids:
        """Where the examples of a split begin and end, (examples, 2); a shift in (0, 1) moves the places where long documents are cut."""
        longest = self.config.data.example_length
        documents = self._documents[split]
        lengths = documents[:, 1] - documents[:, 0]
        if not (lengths > longest).any():
            return documents
        return np.concatenate([_cut(start, stop, longest, shift) for start, stop in documents.tolist()])

    @cached_property
    def _documents(self) -> dict[str, Ids]:
        return {split: self.corpus.edges(split) for split in SPLITS}

    def _shown(self, ids: Ids) -> str:
        symbols = {self.vocabulary.unknown: STRANGE, self.vocabulary.blank: SHOWN}
        return "".join(symbols[i] if i in symbols else self.vocabulary.decode([i]) for i in ids.tolist())


@dataclass(frozen=True)
class Beside:
    """Two models on the same blanks."""

    own: FillScores
    other: FillScores
    left_out: int  # blanks whose character the other model does not know: neither was asked

    @property
    def accuracy_ratio(self) -> float:
        """How many times as often the first is right; infinite where the other never is."""
        own, other = int(self.own.tally.correct), int(self.other.tally.correct)
        return own / other if other else float("inf")


@torch.inference_mode()
def measure_beside(task: Fill, model: nn.Module, other: nn.Module, other_task: str, other_vocabulary: Vocabulary, split: str) -> Beside:
    """One pass over a split with both models, on one device.

    The other is of task fill, and reads what this one reads; or of task lm, and gives the next character after what truly stands
    before a blank in its example: it is told what earlier blanks hid, and reads nothing behind one. Both choose among characters.
    Raises UserError where it is of another task, or nothing could be asked.
    """
    if other_task not in ("fill", "lm"):
        raise UserError(f"--beside: a model of task {other_task}, which fills no blanks; expected one of task fill or lm, so name another")
    device = next(model.parameters()).device
    there = torch.tensor(_translation(task.vocabulary, other_vocabulary))  # (V,)
    own = others = FillScores(Tally.zero(device), Tally.zero(device).count)
    left_out = 0
    with evaluating(model), evaluating(other):
        for batch in task.batches(split):
            asked = batch.targets != IGNORED  # (T, B)
            inputs, truth = there[batch.inputs], there[batch.targets.clamp(min=0)]
            known = asked & (truth != other_vocabulary.unknown)
            left_out += int((asked & ~known).sum())
            if other_task == "lm":
                text = torch.where(asked, truth, inputs)
                before = torch.full_like(text[:1], opening(other_vocabulary, [])[-1])
                inputs = torch.cat([before, text[:-1]])
            found, _ = task.measure(model, replace(batch, targets=batch.targets.masked_fill(~known, IGNORED)), None)
            translated = replace(batch, inputs=inputs, targets=truth.masked_fill(~known, IGNORED))
            own, others = own + found, others + _scores(*blank_answers(other, translated, len(other_vocabulary.symbols)))
    if int(own.tally.count) == 0:
        raise UserError(f"split {split!r}: the model of --beside knows none of the hidden characters; expected one of the same text")
    return Beside(own, others, left_out)


def blank_answers(model: nn.Module, batch: Batch, symbols: int) -> tuple[Tensor, Tensor]:
    """Logits over the characters where something is asked, (N, C), and what was, (N,). The first `symbols` ids are none."""
    batch = batch.to(next(model.parameters()).device)
    asked = batch.targets != IGNORED  # (T, B)
    logits, _ = model(batch.inputs, None, lengths=batch.lengths, at=asked, generator=None)  # (N, V)
    return logits[:, symbols:].float(), batch.targets[asked] - symbols


def _scores(logits: Tensor, targets: Tensor) -> FillScores:
    """(N, C), (N,) -> their sums."""
    best = logits.topk(min(BEST, logits.size(-1)), -1).indices == targets.unsqueeze(-1)  # (N, BEST)
    nats = F.cross_entropy(logits, targets, reduction="sum")
    return FillScores(Tally.of_answers(nats, logits.argmax(-1), targets), best.sum())


def _translation(one: Vocabulary, other: Vocabulary) -> list[int]:
    """The id in another vocabulary of each id: (V,). What it lacks is unknown to it."""
    symbols = [getattr(other, symbol) for symbol in one.symbols]
    return [other.unknown if symbol is None else symbol for symbol in symbols] + other.encode(one.characters)


def _cut(start: int, stop: int, longest: int, shift: float) -> Ids:
    """A document in as few windows of like length as it takes, or in one more with all cuts moved by a share of a window."""
    length = stop - start
    count = -(-length // longest)
    steps = start + np.arange(count) * length // count
    most = -(-length // count) - 1  # what the cuts can be moved by
    if count > 1 and shift and most:
        steps = np.concatenate([[start], steps + 1 + int(shift * most)])
    return np.stack([steps, np.append(steps[1:], stop)], axis=1)
