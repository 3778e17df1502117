"""One vector for a whole sequence, of what was written at each of its steps.

Axes: T time, B batch, W width of the outputs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

KINDS = ("last", "max", "mean", "max_mean", "attention")


class Pooling(nn.Module):
    """(T, B, W) -> (B, W), or (B, 2W) for max_mean, nothing of what lies beyond a sequence's length in it.

    last       what was written where all has been read: the last step; of `bidirectional` outputs, whose second half was written
               from the end, [forward's at the last step ; backward's at the first]
    max, mean  feature by feature, over time
    max_mean   both, one after the other
    attention  Σ_t α_t y_t with α = softmax_t(v · tanh(A y_t + b)): the network says where to look (Yang et al. 2016)
    """

    def __init__(self, kind: str, width: int, *, bidirectional: bool = False) -> None:
        super().__init__()
        if kind not in KINDS:
            raise ValueError(f"unknown pooling {kind!r}; expected one of {', '.join(KINDS)}")
        self.kind, self.bidirectional = kind, bidirectional
        self.output_size = 2 * width if kind == "max_mean" else width
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
        over_time: list[Tensor] = []
        if self.kind in ("max", "max_mean"):
            over_time.append(torch.where(runs, x, -torch.inf).amax(0))
        x = torch.where(runs, x, 0)
        if self.kind in ("mean", "max_mean"):
            over_time.append(x.sum(0) / lengths.unsqueeze(-1).to(x.dtype))
        if over_time:
            return torch.cat(over_time, -1)
        scores = self.query(self.key(x).tanh()).float()  # (T, B, 1)
        shares = torch.where(runs, scores, -torch.inf).softmax(0).to(x.dtype)
        return (shares * x).sum(0)
