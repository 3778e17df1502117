"""All that crosses from data into training."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

IGNORED = -1  # a target that nobody is asked for: characters outside the vocabulary, what is read along with others, padding


@dataclass(frozen=True)
class Batch:
    """Time is axis 0. T time, B batch."""

    inputs: Tensor  # (T, B) ids, 0 beyond a column's length
    targets: Tensor  # (T, B) ids or labels, IGNORED where nothing is asked; (B,) where a whole text has one answer
    lengths: Tensor | None  # (B,) or None where all are T
    continues: bool  # the text goes on where the last batch stopped, so the state may too

    def to(self, device: torch.device) -> Batch:
        lengths = None if self.lengths is None else self.lengths.to(device)
        return Batch(self.inputs.to(device), self.targets.to(device), lengths, self.continues)

    @property
    def chars(self) -> int:
        """Those that were read, without padding."""
        return self.inputs.numel() if self.lengths is None else int(self.lengths.sum())
