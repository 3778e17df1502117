"""Task `lm`: the next character from the ones before.

Axes: T time, B batch, V vocabulary size.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor, nn

from charrnn.config import Config
from charrnn.data.batch import Batch
from charrnn.data.corpus import Corpus, Progress, load_corpus, load_file
from charrnn.data.streams import EvaluationStreams, Streams, fit, held_dtype, hold, split_ids
from charrnn.data.vocabulary import Vocabulary, opening
from charrnn.metrics import Tally
from charrnn.models.char_rnn import CharRNN
from charrnn.options import SamplingOptions
from charrnn.ranking import BEST_BY
from charrnn.sampling import filter_logits, run_on, sample
from charrnn.tasks.task import Batches, State, cross_entropy_of, fresh_model, shortcomings

EVALUATION_COLUMNS = 8
EVALUATION_COLUMN = 2000  # characters that a column should have before another one is opened
PREVIEW_TEMPERATURE = 0.8


@dataclass(frozen=True)
class LanguageModel:
    config: Config
    corpus: Corpus
    labels = ()
    unit = "char"
    best_by = BEST_BY["lm"]

    @classmethod
    def load(cls, config: Config, progress: Progress | None = None) -> LanguageModel:
        return cls(config, load_corpus(config.data, config.seed, progress))

    @classmethod
    def of_file(cls, config: Config, vocabulary: Vocabulary, labels: tuple[str, ...], path: Path) -> LanguageModel:
        return cls(config, load_file(config.data, vocabulary, path))

    @property
    def vocabulary(self) -> Vocabulary:
        return self.corpus.vocabulary

    def model(self) -> CharRNN:
        return fresh_model(self, self.corpus.split("train"))

    def batches(self, split: str, *, epoch: int = 0, first: int = 0) -> Iterator[Batch]:
        if split == "train":
            return self._train_streams().batches(first)
        ids = split_ids(self.corpus, split)
        columns = max(1, min(EVALUATION_COLUMNS, (len(ids) - 1) // EVALUATION_COLUMN))
        return self.corpus.forgetting(EvaluationStreams(ids, self.vocabulary.unknown, columns).batches(first=first))

    def held_bytes(self) -> int:
        return len(self.corpus.split("train")) * held_dtype(self.corpus).itemsize

    def hold(self, device: torch.device) -> Batches:
        streams, ids = self._train_streams(), hold(self.corpus, "train", device)

        def batches(*, epoch: int = 0, first: int = 0) -> Iterator[Batch]:
            return streams.batches(first, ids)

        return batches

    def steps_per_epoch(self) -> int:
        return self._train_streams().windows

    def loss(
        self, model: nn.Module, batch: Batch, state: State | None, *, generator: torch.Generator | None = None, label_smoothing: float = 0.0
    ) -> tuple[Tensor, Tally, State]:
        batch = batch.to(next(model.parameters()).device)
        assert isinstance(model, CharRNN)
        x, state = model.features(batch.inputs, state, generator=generator)  # (T, B, W)
        found = cross_entropy_of(model.head, x.flatten(0, 1), batch.targets.flatten(), label_smoothing)
        return found.loss, Tally.of_sums(found), state

    def measure(self, model: nn.Module, batch: Batch, state: State | None) -> tuple[Tally, State]:
        _, tally, state = self.loss(model, batch, state)
        return tally, state

    def preview(self, model: nn.Module, generator: torch.Generator, length: int = 200) -> str:
        """Begins as a document begins; where the corpus has documents, one that ends is followed by the next."""
        vocabulary, options = self.vocabulary, SamplingOptions(PREVIEW_TEMPERATURE)

        def choose(logits: Tensor) -> Tensor:  # (1, V) -> (1,)
            return sample(filter_logits(logits, options, [], vocabulary.unwritten), options, [generator])

        with closing(run_on(model, opening(vocabulary, []), 1, choose)) as draws:
            ids = [int(drawn) for drawn in islice(draws, length)]
        return "".join(self.config.data.separator if i == vocabulary.end else vocabulary.decode([i]) for i in ids)

    def notes(self) -> list[str]:
        wanted, streams = self.config.train, self._train_streams()
        train = len(self.corpus.split("train"))
        notes = list(self.corpus.notes)
        notes += [
            f"{name} {before} shrunk to {after}: the text has only {train:,} characters to train on"
            for name, before, after in (
                ("batch_size", wanted.batch_size, streams.batch_size),
                ("tbptt_window", wanted.tbptt_window, streams.window),
            )
            if after < before
        ]
        return notes + shortcomings(self.corpus)

    def _train_streams(self) -> Streams:
        return fit(self.corpus, "train", self.config.train.batch_size, self.config.train.tbptt_window)
