"""A vector for each pair of neighbours: two characters together say more of a word than each of them alone.

Axes: T time, B batch, P width of a pair's vector.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ROWS = 1 << 17  # that all pairs share by a hash: there are too many for a row each, and most never come
SPREAD = (0x9E3779B1, 0x85EBCA77)  # odd numbers whose products scatter ids over the rows
BEGIN = 0.1  # standard deviation: a pair says little before it has been seen


class Pairs(nn.Module):
    """What stands at t is read with the pair it ends and the pair it begins. Row 0 is where there is no pair, or it is dropped."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(ROWS, width))

    def initialise(self) -> None:
        nn.init.normal_(self.weight, std=BEGIN)

    def forward(
        self, inputs: Tensor, lengths: Tensor | None = None, *, drop: float = 0.0, generator: torch.Generator | None = None
    ) -> Tensor:
        """inputs (T, B) ids, lengths (B,) or None where all are T -> (T, B, 2P). `drop`: the share of pairs that are not told."""
        pairs = 1 + (inputs[:-1] * SPREAD[0] ^ inputs[1:] * SPREAD[1]).remainder(ROWS - 1)  # (T - 1, B)
        if lengths is not None:  # a pair with padding is none
            pairs = pairs.masked_fill(torch.arange(1, len(inputs), device=inputs.device).unsqueeze(1) >= lengths, 0)
        if drop:
            dropped = torch.rand(pairs.shape, device=pairs.device, generator=generator) < drop
            pairs = pairs.masked_fill(dropped, 0)
        edge = pairs.new_zeros(1, inputs.size(1))
        return torch.cat([F.embedding(torch.cat([edge, pairs]), self.weight), F.embedding(torch.cat([pairs, edge]), self.weight)], -1)
