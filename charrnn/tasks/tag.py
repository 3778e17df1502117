"""Task `tag`: a label for each character, read from CoNLL columns or made of the marks of the text itself.

Axes: T time, B batch, K labels, N characters, L what is counted apart: marks, or kinds of spans.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from charrnn.config import Config, DataConfig
from charrnn.data.batch import IGNORED, Batch
from charrnn.data.corpus import SPLITS, Corpus, Progress, corpus_of_file, expect_split, load_corpus
from charrnn.data.formats import read_file
from charrnn.data.labelled import Labelled, load_labelled, load_labelled_file, sentences
from charrnn.data.marks import Read, expect_marks, labels_of, read_ids, unmark, written_of
from charrnn.data.padding import buckets
from charrnn.data.vocabulary import Vocabulary
from charrnn.data.windows import Windows, count, cut, margin_of, overlapping
from charrnn.errors import DataError, counted
from charrnn.metrics import Confusion, Spans, Tally
from charrnn.models.char_rnn import CharRNN
from charrnn.ranking import BEST_BY
from charrnn.tables import aligned, named
from charrnn.tagging import CHARS, Scheme, choose, crf_of, decision_of, read, tag
from charrnn.tasks.task import Scores, State, class_weights, fresh_model, read_alone

COMMONEST = 8  # labels in a note
STEPS = (-1.0, -0.5, -0.25, 0.25, 0.5, 1.0)  # that are tried of a mark's part in the decision, in nats
ROUNDS = 3


@dataclass(frozen=True)
class TagScores:
    """What was answered. Where labels are of single characters, `confusion` knows which for which; spans are counted whole."""

    tally: Tally
    spans: Spans  # (L,)
    names: tuple[str, ...]  # of the L
    confusion: Confusion | None = None  # of marks and pauses
    asked: tuple[tuple[Tensor, Tensor], ...] = ()  # of marks that are chosen one by one: emissions (N, K) and truth (N,) of each batch

    @classmethod
    def of_marks(cls, tally: Tally, confusion: Confusion, labels: tuple[str, ...], asked: tuple[tuple[Tensor, Tensor], ...]) -> TagScores:
        one = confusion.by_label()
        return cls(tally, Spans(one.predicted[1:], one.true[1:], one.hit[1:]), labels[1:], confusion, asked)

    def __add__(self, other: TagScores) -> TagScores:
        both = None if self.confusion is None or other.confusion is None else self.confusion + other.confusion
        return TagScores(self.tally + other.tally, self.spans + other.spans, self.names, both, self.asked + other.asked)

    def as_metrics(self, prefix: str = "") -> dict[str, float]:
        """precision, recall and f1 of all spans together; of marks the means over them, and `segmentation_`: any mark or none."""
        figures = self.tally.as_metrics(prefix)
        if self.confusion is None or len(self.names) == 1:
            return figures | self.spans.as_metrics(prefix)
        means = self.spans.as_means(prefix)
        figures |= means | {f"{prefix}mean_f1": means[f"{prefix}f1"]}
        return figures | self._pauses(self.confusion).as_metrics(f"{prefix}segmentation_")

    @property
    def count(self) -> Tensor:
        return self.tally.count

    def describe(self) -> str:
        """A table of what is counted apart."""
        rows = [(name, *row) for name, row in zip(self.names, _rows(self.spans))]
        if self.confusion is not None and len(self.names) > 1:
            rows.append(("any", *next(_rows(self._pauses(self.confusion)))))
        elif len(self.names) > 1:
            rows.append(("all", *next(_rows(self.spans.together()))))
        head = ["label", "precision", "recall", "F1", "there", "answered"]
        cells = (
            [named(name), f"{p:.1%}", f"{r:.1%}", f"{f:.1%}", f"{true:,}", f"{predicted:,}"] for name, p, r, f, true, predicted in rows
        )
        return "\n".join(aligned([head, *cells]))

    @staticmethod
    def _pauses(confusion: Confusion) -> Spans:
        """Any mark as one label; label 0 is none."""
        counts = confusion.counts
        return Spans(counts[:, 1:].sum().view(1), counts[1:].sum().view(1), counts[1:, 1:].sum().view(1))


def _rows(spans: Spans) -> Iterator[tuple[float, float, float, int, int]]:
    figures = (spans.precision(), spans.recall(), spans.f1(), spans.true, spans.predicted)
    yield from zip(*(column.tolist() for column in figures))


@dataclass(frozen=True, eq=False)
class Tagging:
    config: Config
    corpus: Corpus
    labels: tuple[str, ...]
    splits: dict[str, Read]
    unit = "char"
    best_by = BEST_BY["tag"]
    scheme: Scheme = field(init=False)
    weights: Tensor | None = field(init=False)  # (K,) what a label counts in the loss

    def __post_init__(self) -> None:
        object.__setattr__(self, "scheme", Scheme.of(self.labels))
        counts = np.bincount(self.splits["train"].labels, minlength=len(self.labels))  # none of a file that a trained model reads
        wanted = self.config.train.class_weights if counts.any() else None
        object.__setattr__(self, "weights", class_weights(wanted, self.labels, counts))

    @classmethod
    def load(cls, config: Config, progress: Progress | None = None) -> Tagging:
        data = config.data
        if data.labels == "column":
            return cls._of_columns(config, load_labelled(data, config.seed, sentences))
        expect_marks(data.marks)
        corpus = load_corpus(_with_marks(data), config.seed, progress)
        splits = {split: read_ids(corpus.split(split), corpus.vocabulary, data.labels, data.marks) for split in SPLITS}
        if len(splits["train"].labels) and not splits["train"].labels.any():
            raise DataError(f"data.marks {data.marks!r}: none of them stands in what is trained on; name marks that the text has")
        return cls(config, corpus, labels_of(data.labels, data.marks), splits)

    @classmethod
    def of_file(cls, config: Config, vocabulary: Vocabulary, labels: tuple[str, ...], path: Path) -> Tagging:
        data = config.data
        if data.labels == "column":
            return cls._of_columns(config, load_labelled_file(data, path, vocabulary, labels, sentences))
        reading = read_file(data, path, None if vocabulary.end is not None else "none")
        texts, closes = [], []
        length = 0
        for text, ends in reading.pieces():
            texts.append(text)
            closes += [length + end for end in ends]
            length += len(text)
        found = unmark("".join(texts), closes, vocabulary, data.labels, data.marks).read
        if not len(found.ids):
            raise DataError(f"{path}: holds no characters to label; expected some to measure on, so name another text")
        nothing = Read(found.ids[:0], found.labels[:0], np.zeros(1, dtype=np.int64))
        corpus = corpus_of_file(path, vocabulary, found.ids, len(closes), reading.notes())
        return cls(config, corpus, labels, {"train": nothing, "test": found, "val": nothing})

    @classmethod
    def _of_columns(cls, config: Config, labelled: Labelled) -> Tagging:
        splits = {}
        for split in SPLITS:
            ids = labelled.corpus.split(split)
            characters = ids != labelled.corpus.vocabulary.end
            edges = np.concatenate([[0], np.diff(labelled.corpus.edges(split)).cumsum()]).astype(np.int64)
            splits[split] = Read(ids[characters], labelled.split(split)[characters].astype(np.int64), edges)
        return cls(config, labelled.corpus, labelled.labels, splits)

    @property
    def vocabulary(self) -> Vocabulary:
        return self.corpus.vocabulary

    def model(self) -> CharRNN:
        return fresh_model(self, self.splits["train"].ids)

    def batches(self, split: str, *, epoch: int = 0, first: int = 0) -> Iterator[Batch]:
        """Of train, windows cut at other places in each epoch; of the others, windows with margins that are read and not asked for."""
        text, length = self._split(split), self.config.data.example_length
        if split == "train":
            generator = np.random.default_rng([self.config.seed, epoch])
            windows = cut(text.edges, length, generator)
            order = buckets(windows.lengths, self.config.train.batch_size, generator)
        else:
            windows = overlapping(text.edges, length, margin_of(length))
            order = buckets(windows.lengths, max(1, CHARS // length), None)
        return self._batches(text, windows, order[first:])

    def _batches(self, text: Read, windows: Windows, order: list[list[int]]) -> Iterator[Batch]:
        for some in order:
            yield read(text.ids, text.labels, windows, some)[0]

    def steps_per_epoch(self) -> int:
        return -(-count(self._split("train").edges, self.config.data.example_length) // self.config.train.batch_size)

    def loss(
        self, model: nn.Module, batch: Batch, state: State | None, *, generator: torch.Generator | None = None, label_smoothing: float = 0.0
    ) -> tuple[Tensor, Tally, State]:
        logits, batch = read_alone(model, batch, generator)  # (T, B, K)
        crf = crf_of(model)
        flat, asked = logits.flatten(0, 1), batch.targets.flatten()  # (T·B, K), (T·B,)
        if crf is not None:
            loss = crf.nats(logits, batch.targets, batch.lengths).sum()
        else:
            weights = None if self.weights is None else self.weights.to(flat.device)
            loss = F.cross_entropy(flat, asked, weights, ignore_index=IGNORED, reduction="sum", label_smoothing=label_smoothing)
        with torch.no_grad():
            plain = loss
            if crf is None and (label_smoothing or self.weights is not None):
                plain = F.cross_entropy(flat, asked, ignore_index=IGNORED, reduction="sum")
            # Of a CRF its emissions' own answer: a walk for each step would cost too much.
            tally = Tally.of_answers(plain, flat.argmax(-1), asked)
        return loss, tally, ()

    def measure(self, model: nn.Module, batch: Batch, state: State | None) -> tuple[TagScores, State]:
        """Each character once, in the window where it has its margins. A CRF is asked for the best sequence of each window.

        A span that reaches beyond what a window answers is counted there as far as it goes.
        """
        logits, batch = read_alone(model, batch)  # (T, B, K)
        targets, lengths = batch.targets, batch.lengths
        crf, marks = crf_of(model), self.config.data.labels != "column"
        if crf is None:
            answers = choose(logits.flatten(0, 1), decision_of(model), marks).view_as(targets)  # (T, B)
        else:
            answers = crf.decode(logits, lengths)
        nats = (
            crf.nats(logits, targets, lengths).sum()
            if crf is not None
            else F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="sum")
        )
        asked = targets != IGNORED  # (T, B)
        tally = Tally.of_answers(nats, answers, targets)
        if marks:
            confusion = Confusion.of(targets[asked], answers[asked], len(self.labels))
            kept = () if crf is not None else ((logits[asked].half().cpu(), targets[asked].cpu()),)
            return TagScores.of_marks(tally, confusion, self.labels, kept), ()
        truth, answered = targets.t().flatten(), answers.masked_fill(~asked, IGNORED).t().flatten()  # a column behind the other
        edges = range(0, truth.numel() + 1, len(targets))
        spans = Spans.of(
            list(self.scheme.spans(truth.tolist(), edges)), list(self.scheme.spans(answered.tolist(), edges)), len(self.scheme.kinds)
        )
        return TagScores(tally, spans, self.scheme.kinds), ()

    @torch.no_grad()
    def settle(self, models: Sequence[nn.Module], scores: Scores) -> Scores:
        """Marks that are chosen one by one: when to put one, and which, so that F1 on this split is best."""
        assert isinstance(scores, TagScores)
        if not scores.asked or decision_of(models[0]) is None:
            return scores
        emissions = torch.cat([part for part, _ in scores.asked]).float()  # (N, K)
        truth = torch.cat([part for _, part in scores.asked])  # (N,)
        decision = best_decision(emissions, truth)
        for model in models:
            own = decision_of(model)
            assert own is not None
            own.copy_(decision)
        answers = choose(emissions, decision, True)
        correct = (answers == truth).sum().to(scores.tally.correct)
        confusion = Confusion.of(truth, answers, len(self.labels))
        return TagScores.of_marks(Tally(scores.tally.nats, scores.tally.count, correct), confusion, self.labels, scores.asked)

    def preview(self, model: nn.Module, generator: torch.Generator, length: int = 200) -> str:
        """The beginning of the val split, or of what it learns from, as it would be labelled."""
        text = self.splits["val"] if len(self.splits["val"].ids) else self.splits["train"]
        ids = text.ids[:length]
        edges = np.append(text.edges[text.edges < len(ids)], len(ids))
        labels = tag(model, ids, edges, self.config.data).labels
        characters = [self.vocabulary.decode([i]) or "\ufffd" for i in ids.tolist()]
        if self.config.data.labels != "column":
            shown = self._put(characters, [written_of(self.labels)[k] for k in labels])
        else:
            opens, closes = [""] * len(characters), [""] * len(characters)
            for start, stop, kind in self.scheme.spans(labels.tolist(), edges.tolist()):
                opens[start], closes[stop - 1] = "[", f" {self.scheme.kinds[kind]}]"
            shown = self._put([o + c for o, c in zip(opens, characters)], closes)
        return "\n".join("".join(shown[begin:end]) for begin, end in zip(edges, islice(edges, 1, None)) if end > begin)

    @staticmethod
    def _put(characters: list[str], behind: list[str]) -> list[str]:
        return [character + more for character, more in zip(characters, behind)]

    def notes(self) -> list[str]:
        text = self.splits["train"]
        notes = list(self.corpus.notes)
        counts = np.bincount(text.labels, minlength=len(self.labels))
        order = np.argsort(-counts, kind="stable")
        shares = ", ".join(f"{self.labels[k]} {counts[k] / max(1, counts.sum()):.1%}" for k in order[:COMMONEST])
        notes.append(f"{counted(len(text.labels), 'character')} to label, {len(self.labels)} labels: {shares}")
        if absent := [label for label, seen in zip(self.labels, counts) if not seen]:
            notes.append(f"{', '.join(absent)}: not in what is trained on, so never answered")
        if not len(self.splits["val"].labels):
            notes.append("the val split holds no characters, so there is nothing to evaluate on; raise data.val_fraction or add text")
        if self.corpus.unknown:
            share = self.corpus.unknown / len(self.corpus.ids)
            notes.append(f"{self.corpus.unknown:,} characters ({share:.2%}) are outside the vocabulary: read as unknown, and labelled")
        return notes

    def _split(self, split: str) -> Read:
        expect_split(split)
        if not len(self.splits[split].ids):
            remedy = "add text" if split == "train" else f"raise data.{split}_fraction, name data.{split}_path or add text"
            raise DataError(f"split {split!r}: holds no characters to label; expected some, so {remedy}")
        return self.splits[split]


def best_decision(emissions: Tensor, truth: Tensor) -> Tensor:
    """What to add to emissions (N, K), so that the answers are best for F1: of any mark or none, then of the marks in the mean. (K,)"""
    decision = torch.zeros(emissions.size(1))
    margin, order = (emissions[:, 1:].logsumexp(-1) - emissions[:, 0]).sort(descending=True)  # (N,)
    marked = truth[order] > 0
    if not marked.any():
        return decision
    f1 = 2 * marked.cumsum(0) / (torch.arange(1, len(marked) + 1) + marked.sum())  # where the first so many are answered
    last = int(f1.argmax())
    decision[0] = (margin[last] + margin[min(last + 1, len(margin) - 1)]) / 2 if last + 1 < len(margin) else margin[last] - 1
    likely = order[margin > decision[0]]
    there = torch.bincount(truth, minlength=len(decision))
    emissions, truth = emissions[likely], truth[likely]
    best = _mean_f1(emissions, truth, there, decision)
    for k in [*range(1, len(decision))] * ROUNDS:
        for step in STEPS:
            tried = decision.clone()
            tried[k] += step
            if (found := _mean_f1(emissions, truth, there, tried)) > best:
                best, decision = found, tried
    return decision


def _mean_f1(emissions: Tensor, truth: Tensor, there: Tensor, decision: Tensor) -> float:
    """Over the marks, where each of these rows is answered with one; `there` (K,): how many there are in all."""
    answers = (emissions + decision)[:, 1:].argmax(-1) + 1
    hit, answered = (torch.bincount(labels, minlength=len(there)) for labels in (answers[answers == truth], answers))
    spans = Spans(answered[1:], there[1:], hit[1:])
    return spans.macro(spans.f1())


def _with_marks(data: DataConfig) -> DataConfig:
    """With a vocabulary that has the marks, rare or not: one that is unknown would be read, and never be a label."""
    missing = "".join(mark for mark in data.marks if mark not in data.vocabulary.include)
    vocabulary = data.vocabulary.model_copy(update={"include": data.vocabulary.include + missing})
    return data.model_copy(update={"vocabulary": vocabulary})
