"""Sums and counts that travel, and the one division at the edge: partial batches and padding cannot bias a mean."""

from __future__ import annotations

import math
from collections.abc import Collection, Hashable, Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from charrnn.errors import UserError
from charrnn.ops.linear_cross_entropy import CrossEntropy


@dataclass(frozen=True)
class Tally:
    """What was predicted, summed. All three are scalars on one device."""

    nats: Tensor  # summed cross-entropy, float64 (float32 on MPS, which has no other)
    count: Tensor  # characters, blanks or examples it was summed over, int64
    correct: Tensor  # of those, how many were the most probable one, int64

    @classmethod
    def zero(cls, device: torch.device | str = "cpu") -> Tally:
        device = torch.device(device)
        none = torch.zeros((), dtype=torch.int64, device=device)
        return cls(torch.zeros((), dtype=sum_dtype(device), device=device), none, none)

    @classmethod
    def of(cls, parts: Sequence[Tensor], device: torch.device) -> Tally:
        """From its three tensors, of any device. Raises RuntimeError where they are no scalars."""
        zero = cls.zero(device)
        nats, count, correct = (p.reshape(()).to(own.dtype).to(device) for p, own in zip(parts, (zero.nats, zero.count, zero.correct)))
        return cls(nats, count, correct)

    @classmethod
    def of_answers(cls, nats: Tensor, answers: Tensor, targets: Tensor) -> Tally:
        """`nats`, a sum, and answers beside their targets, of which those below 0 were not asked."""
        asked = targets >= 0
        return cls(nats.detach().to(sum_dtype(nats.device)), asked.sum(), ((answers == targets) & asked).sum())

    @classmethod
    def of_sums(cls, found: CrossEntropy) -> Tally:
        return cls(found.nats.to(sum_dtype(found.nats.device)), found.asked, found.correct)

    def __add__(self, other: Tally) -> Tally:
        return Tally(self.nats + other.nats, self.count + other.count, self.correct + other.correct)

    def nats_per_char(self) -> float:
        return float(self.nats.item()) / self._counted()

    def bits_per_char(self) -> float:
        return self.nats_per_char() / math.log(2)

    def perplexity(self) -> float:
        """e to the nats per character; infinite, not an error, for a model that has gone astray."""
        return float(torch.tensor(self.nats_per_char(), dtype=torch.float64).exp().item())

    def accuracy(self) -> float:
        return float(self.correct.item()) / self._counted()

    def as_metrics(self, prefix: str = "", unit: str = "char") -> dict[str, float]:
        """The keys of metrics.jsonl and of `--json`, each after `prefix`. `unit`: what was counted."""
        costs = dict(zip(self.costs(unit), (self.nats_per_char(), self.bits_per_char())))
        values = costs | {"perplexity": self.perplexity(), "accuracy": self.accuracy()}
        return {f"{prefix}{name}": value for name, value in values.items()}

    @staticmethod
    def costs(unit: str) -> list[str]:
        """The first keys of as_metrics. An answer about a whole example is no code, so its bits are not told."""
        return [f"nats_per_{unit}"] if unit == "example" else [f"nats_per_{unit}", f"bits_per_{unit}"]

    def _counted(self) -> int:
        count = int(self.count.item())
        if count == 0:
            raise ValueError("no characters were counted, so there is no mean over them")
        return count


@dataclass(frozen=True)
class Spans:
    """What was found of what there is, by label: spans of a text, or texts as a whole. Each (L,) int64, on one device."""

    predicted: Tensor  # of each label, how many were answered
    true: Tensor  # how many there are
    hit: Tensor  # how many of the answered are there

    @classmethod
    def of(cls, truth: Collection[tuple[int, int, int]], answer: Collection[tuple[int, int, int]], labels: int) -> Spans:
        """Of two sets of (start, stop, label): a span is hit where all three agree."""

        def count(spans: Iterable[tuple[int, int, int]]) -> Tensor:
            return torch.bincount(torch.tensor([label for _, _, label in spans], dtype=torch.int64), minlength=labels)

        return cls(count(set(answer)), count(set(truth)), count(set(truth) & set(answer)))

    def __add__(self, other: Spans) -> Spans:
        return Spans(self.predicted + other.predicted, self.true + other.true, self.hit + other.hit)

    def precision(self) -> Tensor:
        """(L,) float64, as recall and f1; 0 where nothing was answered."""
        return _share(self.hit, self.predicted)

    def recall(self) -> Tensor:
        return _share(self.hit, self.true)

    def f1(self) -> Tensor:
        """The harmonic mean of precision and recall."""
        return _share(2 * self.hit, self.predicted + self.true)

    def together(self) -> Spans:
        """All labels as one, (1,): what is called micro."""
        return Spans(self.predicted.sum().view(1), self.true.sum().view(1), self.hit.sum().view(1))

    def macro(self, figures: Tensor) -> float:
        """The mean of precision, recall or f1 over the labels, (L,), without those that were neither there nor answered; 0 without any."""
        met = (self.predicted + self.true) > 0
        return float(figures[met].mean()) if bool(met.any()) else 0.0

    def as_metrics(self, prefix: str = "") -> dict[str, float]:
        """Of all labels together."""
        micro = self.together()
        return _figures(prefix, float(micro.precision()), float(micro.recall()), float(micro.f1()))

    def as_means(self, prefix: str = "") -> dict[str, float]:
        """The same keys, of the means over the labels."""
        return _figures(prefix, self.macro(self.precision()), self.macro(self.recall()), self.macro(self.f1()))


@dataclass(frozen=True)
class Confusion:
    """What was answered for what: rows are the truth, columns the answers."""

    counts: Tensor  # (K, K) int64

    @classmethod
    def of(cls, truth: Tensor, answers: Tensor, labels: int) -> Confusion:
        """From indices of labels, both (N,)."""
        return cls(torch.bincount(truth * labels + answers, minlength=labels * labels).view(labels, labels))

    def __add__(self, other: Confusion) -> Confusion:
        return Confusion(self.counts + other.counts)

    def accuracy(self) -> float:
        count = int(self.counts.sum())
        if count == 0:
            raise ValueError("nothing was answered, so there is no accuracy")
        return int(self.counts.diagonal().sum()) / count

    def by_label(self) -> Spans:
        """Each label's own precision, recall and F1."""
        return Spans(self.counts.sum(0), self.counts.sum(1), self.counts.diagonal())

    def macro_f1(self) -> float:
        labels = self.by_label()
        return labels.macro(labels.f1())

    def as_metrics(self, prefix: str = "") -> dict[str, float]:
        return {f"{prefix}accuracy": self.accuracy(), f"{prefix}macro_f1": self.macro_f1()}


@dataclass(frozen=True)
class Edits:
    """How far what was written is from what was said: edits are the fewest insertions, deletions and substitutions. Scalars, int64."""

    char_edits: Tensor
    chars: Tensor  # that were said
    word_edits: Tensor
    words: Tensor  # between white space
    right: Tensor  # texts without an edit
    count: Tensor  # texts

    @classmethod
    def of(cls, truth: str, answer: str) -> Edits:
        words, found = truth.split(), answer.split()
        numbers = edit_distance(truth, answer), len(truth), edit_distance(words, found), len(words), int(truth == answer), 1
        return cls(*(torch.tensor(number) for number in numbers))

    def __add__(self, other: Edits) -> Edits:
        return Edits(*(getattr(self, part.name) + getattr(other, part.name) for part in fields(self)))

    def char_error_rate(self) -> float:
        """Edits for each character that was said; above 1 where far more was written than said."""
        return int(self.char_edits) / max(1, int(self.chars))

    def word_error_rate(self) -> float:
        return int(self.word_edits) / max(1, int(self.words))

    def sentence_accuracy(self) -> float:
        """The share of texts that are right to the character."""
        if int(self.count) == 0:
            raise ValueError("no texts were counted, so there is no share of them")
        return int(self.right) / int(self.count)

    def as_metrics(self, prefix: str = "") -> dict[str, float]:
        rates = self.char_error_rate(), self.word_error_rate(), self.sentence_accuracy()
        return {f"{prefix}{name}": rate for name, rate in zip(("char_error_rate", "word_error_rate", "sentence_accuracy"), rates)}


def edit_distance(first: Sequence[Hashable], second: Sequence[Hashable]) -> int:
    """The fewest insertions, deletions and substitutions that make one of the other (Levenshtein 1966)."""
    row = list(range(len(second) + 1))  # from nothing of `first` to each beginning of `second`
    for i, mine in enumerate(first, start=1):
        corner, row[0] = row[0], i
        for j, other in enumerate(second, start=1):
            corner, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, corner + (mine != other))
    return row[-1]


@dataclass(frozen=True)
class Bleu:
    """How many short sequences of words what was written shares with what others have written of the same (Papineni et al. 2002)."""

    scores: tuple[float, ...]  # BLEU-1, -2, …, each 0..100
    signature: str  # how it was counted, as sacreBLEU says it


def bleu(answers: Sequence[str], references: Sequence[Sequence[str]], most: int = 4) -> Bleu:
    """BLEU-1 to -`most` of a corpus by sacreBLEU, each answer against all its references, upper and lower case alike.

    Words are those of mteval-v13a; where most of the references' letters are Chinese, each character is one. Raises UserError where
    sacreBLEU is not installed.
    """
    try:
        from sacrebleu.metrics.bleu import BLEU
    except ImportError:
        raise UserError("BLEU is left out, for it needs sacrebleu, which is not installed; pip install 'charrnn[bleu]'") from None
    letters = [character for texts in references for text in texts for character in text if character.isalpha()]
    by_character = 2 * sum(map(_is_han, letters)) > len(letters)
    width = max(map(len, references))
    # One caption of each, or none, which sacreBLEU takes and its types do not know.
    streams: Any = [[texts[k] if k < len(texts) else None for texts in references] for k in range(width)]
    scores: list[float] = []
    # force: some corpora are written with a space before each full stop, which is no mistake of whoever measures on them.
    for n in range(1, most + 1):
        metric = BLEU(tokenize="char" if by_character else "13a", lowercase=True, force=True, max_ngram_order=n)
        scores.append(float(metric.corpus_score(list(answers), streams).score))
    return Bleu(tuple(scores), str(metric.get_signature().format(short=False)))


def _is_han(character: str) -> bool:
    return "\u3400" <= character <= "\u9fff" or "\U00020000" <= character <= "\U000323af"


def _figures(prefix: str, precision: float, recall: float, f1: float) -> dict[str, float]:
    return {f"{prefix}precision": precision, f"{prefix}recall": recall, f"{prefix}f1": f1}


def _share(part: Tensor, whole: Tensor) -> Tensor:
    """part / whole in float64, 0 where there is none."""
    return part.cpu().double() / whole.cpu().clamp(min=1)


def sum_dtype(device: torch.device) -> torch.dtype:
    """In which a long sum is kept: float32 would lose its last digits over a split of millions of characters."""
    return torch.float32 if device.type == "mps" else torch.float64
