"""One vector for a whole sequence, of what was written at each of its steps.

Axes: T time, B batch, W width of the outputs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

KINDS = ("last", "max", "mean", "attention")


class Pooling(nn.Module):
    """(T, B, W) -> (B, W), nothing of what lies beyond a sequence's length in it.

    last       what was written where all has been read: the last step; of `bidirectional` outputs, whose second half was written
               from the end, [forward's at the last step ; backward's at the first]
    max, mean  feature by feature, over time
    attention  Σ_t α_t y_t with α = softmax_t(v · tanh(A y_t + b)): the network says where to look (Yang et al. 2016)
    """

    def __init__(self, kind: str, width: int, *, bidirectional: bool = False) -> None:
        super().__init__()
        if kind not in KINDS:
            raise ValueError(f"unknown pooling {kind!r}; expected one of {', '.join(KINDS)}")
        self.kind, self.bidirectional = kind, bidirectional
        if kind == "attention":
            self.key = nn.Linear(width, width)
            self.query = nn.Linear(width, 1, bias=False)  # v

    def extra_repr(self) -> str:
        return self.kind

    def forward(self, x: Tensor, lengths: Tensor | None) -> Tensor:
        """`lengths` (B,) or None where all are T. Raises ValueError for a sequence of length 0, of which there is nothing to say."""
        steps, batch = x.size(0), x.size(1)
        lengths = torch.full((batch,), steps, device=x.device) if lengths is None else lengths
        if bool((lengths < 1).any()):
            empty = int((lengths < 1).nonzero()[0])
            raise ValueError(f"sequence {empty} has length {int(lengths[empty])}; expected at least 1 to pool it")
        if self.kind == "last":
            last = x[lengths - 1, torch.arange(batch, device=x.device)]  # (B, W)
            half = x.size(-1) // 2
            return torch.cat([last[:, :half], x[0, :, half:]], -1) if self.bidirectional else last
        runs = (torch.arange(steps, device=x.device).unsqueeze(-1) < lengths).unsqueeze(-1)  # (T, B, 1)
        if self.kind == "max":
            return torch.where(runs, x, -torch.inf).amax(0)
        if self.kind == "mean":
            return torch.where(runs, x, 0).sum(0) / lengths.unsqueeze(-1).to(x.dtype)
        scores = self.query(self.key(x).tanh()).float()  # (T, B, 1)
        shares = torch.where(runs, scores, -torch.inf).softmax(0).to(x.dtype)
        return (shares * torch.where(runs, x, 0)).sum(0)
