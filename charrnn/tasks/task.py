"""The protocol between a task and the loops that train and evaluate it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from charrnn.config import Config
from charrnn.data.batch import IGNORED, Batch
from charrnn.data.corpus import Corpus, Ids, Progress
from charrnn.data.labelled import listed
from charrnn.data.pairs import frequent_pairs
from charrnn.data.vocabulary import Vocabulary
from charrnn.errors import DataError, did_you_mean, short
from charrnn.metrics import Tally
from charrnn.models import Architecture, build_architecture
from charrnn.models.char_rnn import CharRNN
from charrnn.ops.linear_cross_entropy import CrossEntropy, linear_cross_entropy
from charrnn.ranking import less_is_better

if TYPE_CHECKING:
    from typing_extensions import Self

State = tuple[tuple[Tensor, ...], ...]  # a layer: (h,) or (h, c), each (B, H); () of a task that carries none


class Scores(Protocol):
    """What an evaluation counts: sums, which add up over batches, and one division at the edge."""

    @property
    def count(self) -> Tensor:
        """How many of the task's units were counted, a scalar."""

    def __add__(self, other: Self) -> Self: ...

    def as_metrics(self, prefix: str = "") -> dict[str, float]:
        """The keys of metrics.jsonl and of `--json`, each after `prefix`. Raises ValueError where nothing was counted."""


@runtime_checkable
class Described(Protocol):
    """Scores with more to show than figures."""

    def describe(self) -> str:
        """Tables for a person, below the figures: what each label reached, what was taken for what."""


class Findings(Described, Protocol):
    """What a closer look at a model has shown."""

    @property
    def notes(self) -> Sequence[str]:
        """What could not be found out, and why, a line each."""

    def as_metrics(self) -> Mapping[str, float | str]:
        """Further keys of `eval --json`."""


@runtime_checkable
class Examining(Protocol):
    """A task of which `charrnn eval` measures more than training does every so often, for it takes longer."""

    def examine(self, model: nn.Module, split: str, scores: Any, progress: Callable[[int], None] | None = None) -> Findings:
        """Of a model in any mode, on a split that gave these scores. `progress` is told how many more examples were read."""


@runtime_checkable
class Pretrained(Protocol):
    """A task whose model may begin with weights that others have trained."""

    def begin(self, model: nn.Module) -> None:
        """Put them in, where the configuration asks for them. Raises UserError where they cannot be had."""


Batches = Callable[..., Iterator[Batch]]  # (*, epoch=0, first=0), as Task.batches of one split


@runtime_checkable
class Holding(Protocol):
    """A task whose train split can lie on a device whole, so that no batch has to be copied there."""

    def held_bytes(self) -> int:
        """What it would take there."""

    def hold(self, device: torch.device) -> Batches:
        """Take it there. The same batches as those of `batches("train")`, gathered there."""


@runtime_checkable
class Settling(Protocol):
    """A task that chooses by what a split showed how its model decides."""

    def settle(self, models: Sequence[nn.Module], scores: Scores) -> Scores:
        """Set it in models that share their answers' meaning; the scores of the same pass with it."""


class Task(Protocol):
    @property
    def config(self) -> Config: ...

    @property
    def corpus(self) -> Corpus: ...

    @property
    def vocabulary(self) -> Vocabulary: ...

    @property
    def labels(self) -> tuple[str, ...]:
        """What the model answers with, in the order of its outputs; () where it answers with characters."""

    @property
    def unit(self) -> str:
        """What a Tally of this task counts: char, blank or example."""

    @property
    def best_by(self) -> tuple[str, bool]:
        """The metric that chooses the best model where train.best_by names none, without `val_`; whether less of it is better."""

    def model(self) -> Architecture:
        """A fresh model on the CPU, its weights drawn from config.seed alone."""

    def batches(self, split: str, *, epoch: int = 0, first: int = 0) -> Iterator[Batch]:
        """One pass over a split, from batch `first` on. Raises UserError where the split has nothing to predict.

        Of train, each epoch may have an order of its own, the same whenever it is asked for; other splits are the same in each.
        """

    def steps_per_epoch(self) -> int:
        """Batches in one pass over the train split."""

    def loss(
        self, model: nn.Module, batch: Batch, state: State | None, *, generator: torch.Generator | None = None, label_smoothing: float = 0.0
    ) -> tuple[Tensor, Tally, State]:
        """The loss to differentiate, summed in nats; the plain cross-entropy, detached; the new state, in the graph."""

    def measure(self, model: nn.Module, batch: Batch, state: State | None) -> tuple[Scores, State]:
        """What the model, in eval mode and without gradients, reaches on a batch; the new state."""

    def preview(self, model: nn.Module, generator: torch.Generator, length: int = 200) -> str:
        """What a person reads while it trains."""

    def notes(self) -> list[str]:
        """What a person should know before the first step, a line each."""


class TaskKind(Protocol):
    """How a task comes to its text: what a class in TASKS is asked."""

    def load(self, config: Config, progress: Progress | None = None) -> Task:
        """With the text that the configuration names."""

    def of_file(self, config: Config, vocabulary: Vocabulary, labels: tuple[str, ...], path: Path) -> Task:
        """With another file, all of it in split `test`, as a model of that vocabulary and those labels reads it."""


def chosen_by(task: Task) -> tuple[str, bool]:
    """The metric that chooses the best model, without `val_`, and whether less of it is better: what train.best_by names, or the task."""
    named = task.config.train.best_by
    return task.best_by if named is None else (named, less_is_better(named))


def fresh(task: Task) -> Architecture:
    """What a task trains, its weights drawn from the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(task.config.seed)
        return build_architecture(task.config, len(task.vocabulary), len(task.labels) or None)


def fresh_model(task: Task, text: Ids) -> CharRNN:
    """What Task.model promises. `text`: what it will learn from, (N,) ids, of which the pairs that it reads are the frequent ones."""
    wanted = task.config.model.bigrams
    model = fresh(task)
    assert isinstance(model, CharRNN)
    if model.bigrams is not None:
        pairs = frequent_pairs(text, len(task.vocabulary.symbols), wanted.max_size, wanted.min_count)
        model.bigrams.keep(torch.from_numpy(pairs))
    return model


def read_alone(model: nn.Module, batch: Batch, generator: torch.Generator | None = None) -> tuple[Tensor, Batch]:
    """The logits of examples in float32, (T, B, K), or pooled (B, K), and the batch beside them on the model's device."""
    batch = batch.to(next(model.parameters()).device)
    logits, _ = model(batch.inputs, None, lengths=batch.lengths, generator=generator)
    return torch.as_tensor(logits).float(), batch


def cross_entropy_of(head: nn.Linear, x: Tensor, targets: Tensor, label_smoothing: float = 0.0, *, first: int = 0) -> CrossEntropy:
    """Of what a head answers to rows (N, W), with targets (N,) or IGNORED; its answers before the `first` are none, and not counted."""
    weight, bias = (head.weight, head.bias) if first == 0 else (head.weight[first:], head.bias[first:])
    return linear_cross_entropy(x, weight, bias, targets, ignore_index=IGNORED, label_smoothing=label_smoothing)


def carry(state: State | None, batch: Batch) -> State | None:
    """Keep the values and cut the graph at a TBPTT window's edge; forget where the text does not continue."""
    if state is None or not batch.continues:
        return None
    return each(state, Tensor.detach)


def each(state: State, change: Callable[[Tensor], Tensor]) -> State:
    """A state of changed tensors."""
    return tuple(tuple(change(tensor) for tensor in layer) for layer in state)


def shortcomings(corpus: Corpus) -> list[str]:
    """What is not evaluated or not scored of a text, a line each."""
    notes, val = [], len(corpus.split("val"))
    if val < 2:
        notes.append(f"the val split holds {val} characters, so there is nothing to evaluate on; raise data.val_fraction or add text")
    if corpus.unknown:
        share = corpus.unknown / len(corpus.ids)
        notes.append(f"{corpus.unknown:,} characters ({share:.2%}) are outside the vocabulary: read as unknown, and not scored")
    return notes


def class_weights(wanted: Literal["balanced"] | Mapping[str, float] | None, labels: Sequence[str], counts: Ids) -> Tensor | None:
    """What each label counts in the loss, (K,); None where all count the same. `counts`: how often each stands in train, (K,).

    Balanced, a label weighs n / (K n_k), so that all labels come to the same and their mean over the texts is 1; one that train
    lacks weighs as if it stood there once. Raises DataError where a weight is given for no label.
    """
    if wanted is None:
        return None
    if wanted == "balanced":
        return torch.from_numpy(counts.sum() / (len(labels) * np.maximum(counts, 1))).float()
    assert not isinstance(wanted, str)
    for label in wanted:
        if label not in labels:
            raise DataError(f"train.class_weights: no label {short(label)}; expected some of {listed(labels)}{did_you_mean(label, labels)}")
    return torch.tensor([wanted.get(label, 1.0) for label in labels])
