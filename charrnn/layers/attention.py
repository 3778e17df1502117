"""Attention: where in a long input a decoder looks before it writes.

Axes: S encoder steps, B batch, W width of the encoder's outputs, Q width of the query, A attention_size, K location filters.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Attention(nn.Module):
    """e_s = v · tanh(M q + N h_s + b), α = softmax over s, context = Σ_s α_s h_s (Bahdanau et al. 2015, A.1.2).

    With `filters` it also knows where it looked before: U f_s is added within the tanh, f = F * α_previous, a convolution over s
    (Chorowski et al. 2015, equations 8 and 9). What lies beyond a sequence's length gets no weight.
    """

    def __init__(self, query_size: int, width: int, size: int, *, filters: int = 0, reach: int = 15) -> None:
        super().__init__()
        self.query = nn.Linear(query_size, size, bias=False)
        self.key = nn.Linear(width, size)
        self.energy = nn.Linear(size, 1, bias=False)  # the same added to all energies would change nothing
        self.filters = nn.Conv1d(1, filters, 2 * reach + 1, padding=reach, bias=False) if filters else None
        self.location = nn.Linear(filters, size, bias=False) if filters else None
        self.locations = filters

    def keys(self, outputs: Tensor) -> Tensor:
        """What is asked of each step whatever the query: (S, B, W) -> (S, B, A)."""
        keys: Tensor = self.key(outputs)
        return keys

    def forward(self, query: Tensor, outputs: Tensor, keys: Tensor, mask: Tensor | None, previous: Tensor) -> tuple[Tensor, Tensor]:
        """query (B, Q), outputs (S, B, W), keys (S, B, A), mask (S, B) or None where all count, previous alignment (S, B)
        -> context (B, W), alignment (S, B), which sums to 1 over the steps of each sequence, in float32 at least."""
        asked = keys + self.query(query)  # (S, B, A)
        if self.filters is not None and self.location is not None:
            seen = self.filters(previous.t().unsqueeze(1).to(self.filters.weight.dtype))  # (B, K, S)
            asked = asked + self.location(seen.permute(2, 0, 1))
        energies = self.energy(torch.tanh(asked)).squeeze(-1)  # (S, B)
        energies = energies.to(exact(energies.dtype))
        if mask is not None:
            energies = energies.masked_fill(~mask, -torch.inf)
        alignment = energies.softmax(0)
        return torch.einsum("sb,sbw->bw", alignment.to(outputs.dtype), outputs), alignment


def uniform(mask: Tensor | None, like: Tensor) -> Tensor:
    """The alignment of who has not looked yet: of outputs (S, B, W), (S, B), the same at each step that counts, in float32 at least."""
    dtype = exact(like.dtype)
    weights = like.new_ones(like.shape[:2], dtype=dtype) if mask is None else mask.to(dtype)
    return F.normalize(weights, p=1.0, dim=0)


def exact(dtype: torch.dtype) -> torch.dtype:
    """In which odds over many steps are kept: bf16 would lose the small ones."""
    return torch.promote_types(dtype, torch.float32)
