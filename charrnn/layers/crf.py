"""A linear-chain conditional random field: labels of a sequence are judged together (Lafferty, McCallum & Pereira 2001).

Axes: T time, B batch, K labels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

NONE = -1  # no label: not known where labels are given, nothing where the text is over; the same number as data.batch.IGNORED


class CRF(nn.Module):
    """p(y | x) = exp(s(y)) / Σ_y' exp(s(y')) with s(y) = start[y_0] + Σ_t emissions[t, y_t] + Σ_t transitions[y_{t-1}, y_t] + end[y_last].

    At the beginning no label follows another more willingly: the model is a softmax at each step, and learns from there.
    """

    def __init__(self, labels: int) -> None:
        super().__init__()
        self.transitions = nn.Parameter(torch.zeros(labels, labels))  # (K, K) from, to
        self.start = nn.Parameter(torch.zeros(labels))  # (K,)
        self.end = nn.Parameter(torch.zeros(labels))  # (K,)

    def nats(self, emissions: Tensor, targets: Tensor, lengths: Tensor | None) -> Tensor:
        """emissions (T, B, K), targets (T, B), lengths (B,) or None where all are T -> (B,): -log p of each sequence's labels.

        A target of -1 is a label that nobody knows: the probability is that of all sequences with the labels that are known.
        A sequence of length 0 has 0 nats.
        """
        labels = torch.arange(emissions.size(-1), device=emissions.device)
        possible = (targets.unsqueeze(-1) == labels) | (targets.unsqueeze(-1) < 0)  # (T, B, K)
        with torch.autocast(emissions.device.type, enabled=False):
            emissions = emissions.float()
            # The score of the given labels is the sum over all sequences that they leave possible, so one walk finds both sums.
            given = emissions.masked_fill(~possible, -torch.inf)
            both = None if lengths is None else torch.cat([lengths, lengths])
            of_given, of_all = self._log_sum(torch.cat([given, emissions], 1), both).chunk(2)  # (B,), (B,)
            nats = of_all - of_given
            return nats if lengths is None else torch.where(lengths > 0, nats, 0)

    def _log_sum(self, emissions: Tensor, lengths: Tensor | None) -> Tensor:
        """(T, B, K) -> (B,): log Σ_y exp(s(y)), by the forward algorithm: what leads to label k at t, for all k at once."""
        transitions = self.transitions.float()
        scores = self.start.float() + emissions[0]  # (B, K)
        if emissions.size(0) == 1:  # a chain of one label has no transition, whose gradient is then 0 and not missing
            scores = scores + 0 * transitions.sum(0)
        for t in range(1, emissions.size(0)):
            after = torch.logsumexp(scores.unsqueeze(-1) + transitions, 1) + emissions[t]  # (B, K)
            scores = after if lengths is None else torch.where((t < lengths).unsqueeze(-1), after, scores)
        return torch.logsumexp(scores + self.end.float(), -1)

    @torch.no_grad()
    def decode(self, emissions: Tensor, lengths: Tensor | None) -> Tensor:
        """(T, B, K) -> (T, B): the likeliest labels of each sequence (Viterbi 1967), -1 beyond its length.

        Of equally likely ones, that with the lowest label at the end, then at the step before, and so on.
        """
        steps, batch, _ = emissions.shape
        lengths = torch.full((batch,), steps, device=emissions.device) if lengths is None else lengths
        with torch.autocast(emissions.device.type, enabled=False):
            emissions, transitions = emissions.float(), self.transitions.float()
            scores = self.start.float() + emissions[0]  # (B, K)
            came_from: list[Tensor] = []  # (B, K) each: the best label before, for each label at t
            for t in range(1, steps):
                best, before = (scores.unsqueeze(-1) + transitions).max(1)  # of equals the first
                scores = torch.where((t < lengths).unsqueeze(-1), best + emissions[t], scores)
                came_from.append(before)
            label = (scores + self.end.float()).argmax(-1)  # (B,)
        labels = torch.full((steps, batch), NONE, device=emissions.device)  # (T, B)
        for t in range(steps - 1, -1, -1):
            runs = t < lengths  # (B,)
            labels[t] = torch.where(runs, label, NONE)
            if t > 0:
                label = torch.where(runs, came_from[t - 1].gather(1, label.unsqueeze(1)).squeeze(1), label)
        return labels
