"""All that crosses from data into training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

IGNORED = -1  # a target that nobody is asked for: characters outside the vocabulary, what is read along with others, padding


@dataclass(frozen=True)
class Batch:
    """Time is axis 0. T time, B batch."""

    # (T, B) ids, 0 beyond a column's length; or (T, B, F) frames of features, float32; or P pictures, (P, 3, H, W) in 0..1 or (P, F)
    inputs: Tensor
    # (T, B) ids or labels, IGNORED where nothing is asked; (B,) where a whole text has one answer. (L, B) ids of what was said in
    # frames, or of pictures, `end` last and IGNORED behind it: there 0, `unknown`, stands for a character outside the vocabulary
    targets: Tensor
    lengths: Tensor | None  # (B,) or None where all are T
    continues: bool  # the text goes on where the last batch stopped, so the state may too
    names: tuple[str, ...] = ()  # what a person calls each example, or picture, where a task tells of single ones
    pictures: Tensor | None = None  # (B,) which of P pictures is each column's; they need not be in order, and each may have several
    counted: int | None = None  # `chars`, of a batch that has been moved: to count again on a GPU would be to wait for it

    def to(self, device: torch.device) -> Batch:
        return self if self.inputs.device == device else self.moved(lambda tensor: tensor.to(device))

    def moved(self, move: Callable[[Tensor], Tensor]) -> Batch:
        """The same with each of its tensors moved."""
        lengths, pictures = (None if part is None else move(part) for part in (self.lengths, self.pictures))
        return replace(self, inputs=move(self.inputs), targets=move(self.targets), lengths=lengths, pictures=pictures, counted=self.chars)

    @property
    def tensors(self) -> list[Tensor]:
        return [part for part in (self.inputs, self.targets, self.lengths, self.pictures) if part is not None]

    @property
    def columns(self) -> int:
        """Texts side by side: the last axis of targets, which may have no other."""
        return self.targets.size(-1)

    def part(self, columns: slice) -> Batch:
        """Some of the columns, with those pictures that they are of, without names."""
        targets, lengths = self.targets[..., columns].contiguous(), None if self.lengths is None else self.lengths[columns]
        if self.pictures is None:
            return Batch(self.inputs[:, columns].contiguous(), targets, lengths, self.continues)
        needed, pictures = torch.unique(self.pictures[columns], return_inverse=True)
        return Batch(self.inputs[needed], targets, lengths, self.continues, pictures=pictures)

    @property
    def chars(self) -> int:
        """Those that were read, without padding; of frames and pictures, which are none, those that were said."""
        if self.counted is not None:
            return self.counted
        if self.inputs.is_floating_point():
            return int((self.targets != IGNORED).sum())
        return self.inputs.numel() if self.lengths is None else int(self.lengths.sum())
