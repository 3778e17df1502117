"""Task `classify`: one label for a whole text.

Axes: T time, B batch, K labels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from charrnn.config import Config
from charrnn.data.batch import Batch
from charrnn.data.corpus import SPLITS, Corpus, Ids, Progress, expect_split
from charrnn.data.labelled import Labelled, load_labelled, load_labelled_file
from charrnn.data.padding import buckets, pad
from charrnn.data.vocabulary import Vocabulary
from charrnn.errors import DataError, counted, short
from charrnn.metrics import Confusion, Tally
from charrnn.models.char_rnn import CharRNN
from charrnn.ranking import BEST_BY
from charrnn.sampling import evaluating
from charrnn.tables import confusion_table
from charrnn.tasks.task import State, class_weights, fresh_model, read_alone

PREVIEWED = 5  # texts
BEGINNING = 60  # characters of a text that are shown
NAMED = 20  # labels in a note


@dataclass(frozen=True)
class Scores:
    """What an evaluation counts: how sure the model was, and what it took for what."""

    tally: Tally
    confusion: Confusion
    labels: tuple[str, ...]

    @property
    def count(self) -> Tensor:
        return self.tally.count

    def __add__(self, other: Scores) -> Scores:
        return Scores(self.tally + other.tally, self.confusion + other.confusion, self.labels)

    def as_metrics(self, prefix: str = "") -> dict[str, float]:
        return self.tally.as_metrics(prefix, "example") | self.confusion.as_metrics(prefix)

    def describe(self) -> str:
        return confusion_table(self.confusion, self.labels)


@dataclass(frozen=True, eq=False)
class Classifier:
    config: Config
    labelled: Labelled
    unit = "example"
    best_by = BEST_BY["classify"]

    @classmethod
    def load(cls, config: Config, progress: Progress | None = None) -> Classifier:
        task = cls(config, load_labelled(config.data, config.seed))
        _ = task._weights  # one for no label is told now, and not at the first step
        return task

    @classmethod
    def of_file(cls, config: Config, vocabulary: Vocabulary, labels: tuple[str, ...], path: Path) -> Classifier:
        return cls(config, load_labelled_file(config.data, path, vocabulary, labels))

    @property
    def corpus(self) -> Corpus:
        return self.labelled.corpus

    @property
    def vocabulary(self) -> Vocabulary:
        return self.corpus.vocabulary

    @property
    def labels(self) -> tuple[str, ...]:
        return self.labelled.labels

    def model(self) -> CharRNN:
        return fresh_model(self, self.corpus.split("train"))

    def batches(self, split: str, *, epoch: int = 0, first: int = 0) -> Iterator[Batch]:
        texts, answers = self._examples(split)
        mixed = np.random.default_rng((self.config.seed, epoch)) if split == "train" else None
        for batch in buckets(list(map(len, texts)), self.config.train.batch_size, mixed)[first:]:
            yield pad([texts[i] for i in batch], answers[batch])

    def steps_per_epoch(self) -> int:
        texts, _ = self._examples("train")
        return -(-len(texts) // self.config.train.batch_size)

    def loss(
        self, model: nn.Module, batch: Batch, state: State | None, *, generator: torch.Generator | None = None, label_smoothing: float = 0.0
    ) -> tuple[Tensor, Tally, State]:
        logits, batch = read_alone(model, batch, generator)  # (B, K)
        weights = None if self._weights is None else self._weights.to(logits.device)
        loss = F.cross_entropy(logits, batch.targets, weight=weights, reduction="sum", label_smoothing=label_smoothing)
        return loss, _tally(logits.detach(), batch.targets), ()

    def measure(self, model: nn.Module, batch: Batch, state: State | None) -> tuple[Scores, State]:
        logits, batch = read_alone(model, batch)
        confusion = Confusion.of(batch.targets, logits.argmax(-1), len(self.labels))
        return Scores(_tally(logits, batch.targets), confusion, self.labels), ()

    def preview(self, model: nn.Module, generator: torch.Generator, length: int = 200) -> str:
        """A few texts of the val split, or of train where there is none, with the answer to each, and the truth where that is another."""
        texts, answers = self._splits["val" if len(self._splits["val"][0]) else "train"]
        some = torch.randperm(len(texts), generator=generator)[:PREVIEWED].tolist()
        lines = []
        for i, chances in zip(some, probabilities(model, [texts[i] for i in some])):
            best = int(chances.argmax())
            truth = "" if best == answers[i] else f" (it is {self.labels[answers[i]]})"
            beginning = "".join(self.vocabulary.decode([c]) or "\ufffd" for c in texts[i][: min(BEGINNING, length)].tolist())
            lines.append(f"{self.labels[best]} {float(chances[best]):.1%}{truth}: {' '.join(beginning.split())}")
        return "\n".join(lines)

    def notes(self) -> list[str]:
        notes = list(self.corpus.notes)
        texts, answers = self._splits["train"]
        counts = np.bincount(answers, minlength=len(self.labels))
        named = ", ".join(f"{short(label)} {counts[i]:,}" for i, label in enumerate(self.labels[:NAMED]))
        others = ", …" if len(self.labels) > NAMED else ""
        held = f"{len(self._splits['val'][0]):,} for val, {len(self._splits['test'][0]):,} for test"
        notes.append(f"{counted(len(texts), 'text')} to train on, {held}; {len(self.labels)} labels, in train: {named}{others}")
        if len(self._splits["val"][0]) == 0:
            notes.append("the val split holds no text, so there is nothing to evaluate on; raise data.val_fraction or name data.val_path")
        longest = self.config.data.example_length
        longer = sum(int((np.diff(self.corpus.edges(split)) > longest).sum()) for split in SPLITS)
        if longer:
            notes.append(
                f"{counted(longer, 'text')} of more than {longest:,} characters: of each the first and the last half of so many are read"
            )
        if self.corpus.unknown:
            share = self.corpus.unknown / len(self.corpus.ids)
            notes.append(f"{self.corpus.unknown:,} characters ({share:.2%}) are outside the vocabulary: read as unknown")
        return notes

    def _examples(self, split: str) -> tuple[list[Ids], Ids]:
        expect_split(split)
        if not self._splits[split][0]:
            remedy = f"raise data.{split}_fraction, name data.{split}_path or add texts"
            raise DataError(f"data.{split}_fraction: the {split} split holds no text; expected some to classify, so {remedy}")
        return self._splits[split]

    @cached_property
    def _splits(self) -> dict[str, tuple[list[Ids], Ids]]:
        """The texts of each split as they are read, and their labels, (N,) int32."""
        found = {}
        for split in SPLITS:
            ids, edges = self.corpus.split(split), self.corpus.edges(split)
            texts = [shortened(ids[start:end], self.config.data.example_length) for start, end in edges]
            found[split] = texts, self.labelled.split(split)[edges[:, 1]]
        return found

    @cached_property
    def _weights(self) -> Tensor | None:
        _, answers = self._splits["train"]
        return class_weights(self.config.train.class_weights, self.labels, np.bincount(answers, minlength=len(self.labels)))


def shortened(ids: Ids, length: int) -> Ids:
    """Of a text that is too long, its first and its last half: what a review comes to often stands at the end."""
    if len(ids) <= length:
        return ids
    return np.concatenate([ids[: length - length // 2], ids[len(ids) - length // 2 :]])


@torch.inference_mode()
def probabilities(model: nn.Module, texts: Sequence[Ids]) -> Tensor:
    """Of each label for each of some texts, side by side: (B, K) float32 on the CPU."""
    with evaluating(model):
        return read_alone(model, pad(texts, np.zeros(len(texts), dtype=np.int32)))[0].softmax(-1).cpu()


def _tally(logits: Tensor, targets: Tensor) -> Tally:
    return Tally.of_answers(F.cross_entropy(logits, targets, reduction="sum"), logits.argmax(-1), targets)
