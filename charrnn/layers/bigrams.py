"""Pairs of neighbouring characters, looked up in one table.

Axes: T time, B batch, N buckets of the table, P size of a pair's vector.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Odd multipliers of 64-bit mixing (Steele et al. 2014, the generator SplitMix): neighbouring ids land far apart.
_FIRST, _SECOND = -0x61C8864680B583EB, -0x4B47D0C5DF8A7E55  # 2's complement of 0x9E3779B97F4A7C15 and 0xB4B82F3A207581AB


class Bigrams(nn.Module):
    """What stands at t together with the character before it and, where the future may be read, with the one behind it.

    A character alone is a poor feature where many characters are half of a word. Pairs are hashed into a table of fixed size
    (the hashing trick, Weinberger et al. 2009). The edge of a text counts as a neighbour. Row 0 is that of no pair in particular.
    """

    def __init__(self, buckets: int, size: int, *, following: bool) -> None:
        super().__init__()
        self.following = following
        self.output_size = size * (2 if following else 1)
        self.table = nn.Embedding(buckets, size, _weight=torch.empty(buckets, size))

    def forward(
        self, inputs: Tensor, lengths: Tensor | None, *, dropped: float = 0.0, generator: torch.Generator | None = None
    ) -> Tensor:
        """inputs (T, B) int64, lengths (B,) or None where all are T -> (T, B, P), or (T, B, 2P) with the pair that begins at t.

        `dropped` is the share of pairs that are read as row 0 in training: another text has many that were never seen.
        """
        edge = inputs.new_full((1, inputs.size(1)), -1)  # (1, B): no id
        if lengths is not None:  # the padding is the edge
            inputs = torch.where(torch.arange(inputs.size(0), device=inputs.device).unsqueeze(-1) < lengths, inputs, -1)
        first, second = torch.cat([edge, inputs]), torch.cat([inputs, edge])  # (T + 1, B)
        mixed = first * _FIRST + second * _SECOND
        rows = 1 + (mixed ^ (mixed >> 29)).remainder(self.table.num_embeddings - 1)  # (T + 1, B): pair t ends at t
        if self.training and dropped:
            draws = torch.rand(rows.shape, device=rows.device, generator=generator)
            rows = torch.where(draws < dropped, 0, rows)
        pairs = F.embedding(rows, self.table.weight)  # (T + 1, B, P)
        return torch.cat([pairs[:-1], pairs[1:]], -1) if self.following else pairs[:-1]
