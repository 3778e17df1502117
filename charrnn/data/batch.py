"""All that crosses from data into training."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

IGNORED = -1  # a target that nobody is asked for: characters outside the vocabulary, what is read along with others, padding


@dataclass(frozen=True)
class Batch:
    """Time is axis 0. T time, B batch."""

    inputs: Tensor  # (T, B) ids, 0 beyond a column's length; or (T, B, F) frames of features, float32
    # (T, B) ids or labels, IGNORED where nothing is asked; (B,) where a whole text has one answer. (L, B) ids of what was said in
    # frames, `end` last and IGNORED behind it: there 0, `unknown`, stands for a character outside the vocabulary
    targets: Tensor
    lengths: Tensor | None  # (B,) or None where all are T
    continues: bool  # the text goes on where the last batch stopped, so the state may too
    names: tuple[str, ...] = ()  # what a person calls each example, where a task tells of single ones

    def to(self, device: torch.device) -> Batch:
        lengths = None if self.lengths is None else self.lengths.to(device)
        return Batch(self.inputs.to(device), self.targets.to(device), lengths, self.continues, self.names)

    @property
    def chars(self) -> int:
        """Those that were read, without padding; of frames, which are none, those that were said."""
        if self.inputs.is_floating_point():
            return int((self.targets != IGNORED).sum())
        return self.inputs.numel() if self.lengths is None else int(self.lengths.sum())
