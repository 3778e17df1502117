"""All that crosses from data into training."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

IGNORED = -1  # a target that nobody is asked for: characters outside the vocabulary


@dataclass(frozen=True)
class Batch:
    """Time is axis 0. T time, B batch."""

    inputs: Tensor  # (T, B) ids
    targets: Tensor  # (T, B) ids, IGNORED where nothing is asked
    lengths: Tensor | None  # (B,) or None where all are T
    continues: bool  # the text goes on where the last batch stopped, so the state may too

    @property
    def chars(self) -> int:
        return self.inputs.numel()
