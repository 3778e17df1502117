"""Pairs of neighbouring characters, looked up in a table of those that are frequent.

Axes: T time, B batch, N pairs of the table, P size of a pair's vector.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ID_BITS = 21  # of a character's id; Unicode has fewer than 2²¹ characters
NO_PAIR = torch.iinfo(torch.int64).max  # behind all keys


class Bigrams(nn.Module):
    """What stands at t together with the character before it and, where the future may be read, with the one behind it.

    A character alone is a poor feature where many characters are half of a word. Row 0 of the table is that of all pairs that
    are not in it, and of the edges of a text. Hashed into a table without keys, as is usual, a pair that was never seen would
    be taken for one that was: of a new book that is every third.
    """

    def __init__(self, max_size: int, size: int, *, following: bool) -> None:
        super().__init__()
        self.following = following
        self.output_size = size * (2 if following else 1)
        self.keys = nn.Parameter(torch.full((max_size,), NO_PAIR), requires_grad=False)  # (N,) int64, ascending
        self.table = nn.Embedding(max_size + 1, size, sparse=True, _weight=torch.empty(max_size + 1, size))

    @torch.no_grad()
    def keep(self, pairs: Tensor) -> None:
        """Have these pairs of ids in the table, (n, 2) with n at most N. Raises ValueError for more."""
        if len(pairs) > len(self.keys):
            raise ValueError(f"{len(pairs)} pairs; the table has room for {len(self.keys)}")
        self.keys.fill_(NO_PAIR)
        self.keys[: len(pairs)] = _key(pairs[:, 0], pairs[:, 1]).sort().values

    def forward(self, inputs: Tensor, lengths: Tensor | None, *, dropped: float = 0.0, generator: torch.Generator | None = None) -> Tensor:
        """inputs (T, B) int64, lengths (B,) or None where all are T -> (T, B, P), or (T, B, 2P) with the pair that begins at t.

        `dropped` is the share of pairs that are read as row 0 in training: another text has many that are not in the table.
        """
        keys = _key(inputs[:-1], inputs[1:])  # (T - 1, B)
        at = torch.searchsorted(self.keys, keys).clamp_(max=len(self.keys) - 1)
        there = self.keys[at] == keys
        if lengths is not None:  # a pair with padding is none
            there = there & (torch.arange(1, inputs.size(0), device=inputs.device).unsqueeze(-1) < lengths)
        if self.training and dropped:
            there = there & (torch.rand(keys.shape, device=keys.device, generator=generator) >= dropped)
        rows = torch.where(there, at + 1, 0)
        edge = rows.new_zeros(1, inputs.size(1))
        # Sparse gradients: a step touches a few thousand rows of the table.
        before = F.embedding(torch.cat([edge, rows]), self.table.weight, sparse=True)  # (T, B, P)
        if not self.following:
            return before
        return torch.cat([before, F.embedding(torch.cat([rows, edge]), self.table.weight, sparse=True)], -1)


def _key(first: Tensor, second: Tensor) -> Tensor:
    return first << ID_BITS | second
