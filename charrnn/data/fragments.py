"""Fragments: the commonest short strings of a corpus of captions. Characters and not words, so that Chinese has them too.

Axes: L characters, B captions side by side, n characters of a fragment, K fragments, V vocabulary size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from charrnn.data.corpus import Ids

SEEN_IN = 5  # captions: of rarer ones nothing can be learned
COMMON = 0.5  # share of the captions: what is in more of them tells little of a picture


@dataclass(frozen=True, eq=False)
class Fragments:
    """K strings of n ids, each as the number whose digits they are, to the base V."""

    numbers: Tensor  # (K,) int64, rising
    shares: Tensor  # (K,) float32: of the captions that have it
    length: int
    base: int

    def texts(self) -> list[list[int]]:
        """The ids of each."""
        return [[number // self.base**place % self.base for place in reversed(range(self.length))] for number in self.numbers.tolist()]

    def of(self, targets: Tensor) -> Tensor:
        """Which of them stand in each caption: ids (L, B), negative where there is none -> (B, K) float32 of 0 and 1."""
        there = torch.zeros(targets.size(1), len(self.numbers), device=targets.device)
        if not len(self.numbers) or targets.size(0) < self.length:
            return there
        windows = targets.unfold(0, self.length, 1)  # (L - n + 1, B, n)
        digits = torch.tensor([self.base**place for place in reversed(range(self.length))], device=targets.device)
        numbers = (windows * digits).sum(-1)  # (L - n + 1, B)
        known = self.numbers.to(targets.device)
        places = torch.searchsorted(known, numbers).clamp(max=len(known) - 1)
        step, caption = ((known[places] == numbers) & (windows >= 0).all(-1)).nonzero(as_tuple=True)
        there[caption, places[step, caption]] = 1
        return there


def find_fragments(captions: Sequence[Ids], length: int, most: int, base: int) -> Fragments:
    """The at most `most` strings of `length` ids that stand in most of the captions, but neither in more than COMMON of them nor in
    fewer than SEEN_IN; of equally frequent ones those of the lower ids. `base`: the vocabulary's size.
    """
    digits = base ** np.arange(length - 1, -1, -1, dtype=np.int64)
    windows = np.lib.stride_tricks.sliding_window_view
    each = [np.unique(windows(np.asarray(ids, np.int64), length) @ digits) for ids in captions if len(ids) >= length]
    numbers, counts = np.unique(np.concatenate([np.zeros(0, np.int64), *each]), return_counts=True)
    usable = np.flatnonzero((counts >= SEEN_IN) & (counts <= COMMON * len(captions)))
    chosen = np.sort(usable[np.argsort(-counts[usable], kind="stable")][:most])
    shares = torch.from_numpy(counts[chosen] / max(1, len(captions))).float()
    return Fragments(torch.from_numpy(numbers[chosen]), shares, length, base)
