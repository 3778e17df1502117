"""Sums and counts that travel, and the one division at the edge: partial batches and padding cannot bias a mean."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


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
        bits = {} if unit == "example" else {f"{prefix}bits_per_{unit}": self.bits_per_char()}  # an answer is not a code
        return {
            f"{prefix}nats_per_{unit}": self.nats_per_char(),
            **bits,
            f"{prefix}perplexity": self.perplexity(),
            f"{prefix}accuracy": self.accuracy(),
        }

    def _counted(self) -> int:
        count = int(self.count.item())
        if count == 0:
            raise ValueError("no characters were counted, so there is no mean over them")
        return count


def less_is_better(metric: str) -> bool:
    """Of a metric's name, with `val_` before it or not."""
    return metric.removeprefix("val_").startswith(("nats_per_", "bits_per_", "perplexity"))


def sayable(values: dict[str, Any]) -> dict[str, Any]:
    """With null for what is not finite, which JSON cannot say."""
    return {key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in values.items()}


def sum_dtype(device: torch.device) -> torch.dtype:
    """In which a long sum is kept: float32 would lose its last digits over a split of millions of characters."""
    return torch.float32 if device.type == "mps" else torch.float64
