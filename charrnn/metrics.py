"""Sums and counts that travel, and the one division at the edge: partial batches and padding cannot bias a mean."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
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


def less_is_better(metric: str) -> bool:
    """Of a metric's name, with `val_` before it or not."""
    return metric.removeprefix("val_").startswith(("nats_per_", "bits_per_", "perplexity"))


def cost(metrics: Mapping[str, float], prefix: str = "") -> tuple[float, str]:
    """What one of the counted costs, of the keys of a Tally: in bits where they are there, else in nats. And in what: `bits/char`."""
    told = [key for key in metrics if key.startswith((f"{prefix}bits_per_", f"{prefix}nats_per_"))]
    key = min(told)
    return metrics[key], key.removeprefix(prefix).replace("_per_", "/")


def sayable(values: dict[str, Any]) -> dict[str, Any]:
    """With null for what is not finite, which JSON cannot say."""
    return {key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in values.items()}


def sum_dtype(device: torch.device) -> torch.dtype:
    """In which a long sum is kept: float32 would lose its last digits over a split of millions of characters."""
    return torch.float32 if device.type == "mps" else torch.float64
