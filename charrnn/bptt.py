"""How far back a gradient reaches: every ∂E_t/∂s_k of a text, by the explicit backend.

With s_t the state that a recurrent layer hands on after it has read character t, and E_t = -log softmax(V h_t)[the next character],

    ∂E_t/∂s_k          for k ≤ t: what the guess at t owes to the state after k. It is ∂E_t/∂s_t · ∏_{j=k+1..t} ∂s_j/∂s_{j-1}
    ∂E_t/∂W_hh = Σ_{k≤t} δ_tk · h_{k-1}ᵀ    where δ_tk is ∂E_t by what step k made of W_hh h_{k-1}: the k-th term of the sum, an outer
                       product, whose norm is ‖δ_tk‖ ‖h_{k-1}‖

s is h for rnn_* and gru, and (h, c) for lstm, one vector of both, h_k and c_k held apart: the two that go on to step k + 1. In a layer
below others, h_k also goes up at k, and what reaches it from there counts.

Axes: T time, N losses that go back together, H hidden_size, G gates of the cell, V vocabulary size.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from charrnn.layers.recurrent import RecurrentStack, Seen
from charrnn.models.char_rnn import CharRNN
from charrnn.ops.cells import CELLS
from charrnn.ops.explicit import walk_back

HALVINGS = 10  # down to a thousandth
TOGETHER = 32  # losses that go back at once: their gradients of a layer's gates are in memory together


@dataclass(frozen=True)
class Triangle:
    """Rows are t, the losses; columns k ≤ t, what they owe to each step. Above the diagonal all is 0."""

    cell: str
    layer: int  # from 0, the one that reads the characters
    state: Tensor  # (T, T) float64: ‖∂E_t/∂s_k‖
    weight: Tensor  # (T, T) float64: ‖the k-th term of ∂E_t/∂W_hh‖
    nats: Tensor  # (T,) float64: E_t

    def decay(self) -> Tensor:
        """‖∂E_t/∂s_{t-d}‖ / ‖∂E_t/∂s_t‖, (T, T) by t and d; nan where t - d is before the text, or where ∂E_t/∂s_t is 0."""
        steps = len(self.state)
        t, d = torch.meshgrid(torch.arange(steps), torch.arange(steps), indexing="ij")
        back = self.state.gather(1, (t - d).clamp(min=0))
        return torch.where(d <= t, back / self.state.diagonal().unsqueeze(-1), math.nan)

    def fallen(self, halvings: int) -> float:
        """The distance, in characters, at which the gradient is down to 2^-halvings: the median over the later half of the losses, t ≥ T/2.

        Of one loss it is the first d at which ‖∂E_t/∂s_{t-d}‖ is at most that part of ‖∂E_t/∂s_t‖, interpolated between d - 1 and d as if
        the logarithm fell evenly. Where it is not that low at the beginning of the text it counts as infinite, and so may the median be.
        """
        distances = sorted(
            _first_below(row[: t + 1], halvings)
            for t, row in enumerate(self.decay().tolist())
            if 2 * t >= len(self.state) and not math.isnan(row[0])
        )
        return distances[(len(distances) - 1) // 2] if distances else math.nan

    def half_life(self) -> float:
        """In how many characters the gradient halves, in the mean of its first HALVINGS: `fallen` of them, by their number.

        The first halving alone says little of what is remembered: that of an lstm is what ∂E_t/∂h_t loses on its way to the gates, and
        only then comes the part that goes on through c.
        """
        return self.fallen(HALVINGS) / HALVINGS

    def reach(self, distance: int) -> float:
        """The median of ‖∂E_t/∂s_{t-d}‖ / ‖∂E_t/∂s_t‖ over the losses that have d characters before them; nan where none has."""
        if distance >= len(self.state):
            return math.nan
        return float(self.decay()[distance:, distance].nanmedian())


def _first_below(decay: Sequence[float], halvings: int) -> float:
    for d in range(1, len(decay)):
        if decay[d] <= 2.0**-halvings:
            if decay[d] == 0:
                return float(d)
            above, below = math.log2(decay[d - 1]), math.log2(decay[d])
            return d - 1 + (above + halvings) / (above - below)
    return math.inf


@torch.no_grad()
def triangle(model: CharRNN, ids: Sequence[int], layer: int = -1) -> Triangle:
    """Of a text of T + 1 ids, of which the model reads T, from a state of zeros, and guesses each but the first.

    `layer` counts from 0, or from the end as -1 does. In float64, whatever the model is in, and without dropout. Raises ValueError for
    a model of two directions or pooled, and for fewer than two ids.
    """
    if model.pooling is not None:
        raise ValueError("a pooled model has one answer a text, and no loss at each step")
    if len(ids) < 2:
        raise ValueError(f"{len(ids)} ids; expected at least two: one to read and one to guess")
    model = copy.deepcopy(model).double().eval()
    stack, head = model.recurrent, model.head
    device = head.weight.device
    steps, layer = len(ids) - 1, layer % stack.num_layers
    inputs, targets = torch.tensor(ids[:-1], device=device), torch.tensor(ids[1:], device=device)  # (T,)
    outputs, seen = stack.walk(model.read(inputs.unsqueeze(-1)), None)  # (T, 1, H)
    logits = head(outputs.squeeze(1))  # (T, V)
    d_logits = logits.softmax(-1) - F.one_hot(targets, logits.size(-1))  # ∂E_t/∂logits_t
    d_top = d_logits @ head.weight  # (T, H): ∂E_t by what the stack handed up at t
    state = d_top.new_zeros(steps, steps)
    deltas = torch.zeros_like(state)
    for first in range(0, steps, TOGETHER):
        losses = torch.arange(first, min(first + TOGETHER, steps), device=device)
        reach = int(losses[-1]) + 1  # nothing later is owed anything
        d_outputs = d_top.new_zeros(reach, len(losses), d_top.size(-1))  # (T', N, H)
        d_outputs[losses, losses - first] = d_top[losses]
        found_state, found_weight = _back(stack, seen, d_outputs, layer)
        state[losses, :reach], deltas[losses, :reach] = found_state.T, found_weight.T
    before = torch.stack([s[0] for s in seen[layer].walked.before]).squeeze(1)  # (T, H): h_{k-1}
    nats = F.cross_entropy(logits, targets, reduction="none")
    return Triangle(stack.cell, layer, state.cpu(), (deltas * before.norm(dim=-1)).cpu(), nats.cpu())


def _back(stack: RecurrentStack, seen: Sequence[Seen], d_outputs: Tensor, layer: int) -> tuple[Tensor, Tensor]:
    """The norms at one layer, each (T', N) by k and loss, of ∂E by the state and by what the step made of W_hh h."""
    times = len(d_outputs)
    state, delta = d_outputs.new_zeros(d_outputs.shape[:2]), d_outputs.new_zeros(d_outputs.shape[:2])
    for above in reversed(range(layer, stack.num_layers)):
        read, walked = seen[above]
        walked = walked._replace(outputs=walked.outputs[:times], before=walked.before[:times], kept=walked.kept[:times])
        weights = stack.weights(above)
        d_written, d_read = _through(stack, above, walked.outputs, read[:times], d_outputs)

        def heard(k: int, d_state: tuple[Tensor, ...], d_from_h: Tensor) -> None:
            state[k], delta[k] = torch.cat(d_state, -1).norm(dim=-1), d_from_h.norm(dim=-1)

        d_from_x = walk_back(stack.cell, walked, weights.weight_hh, d_written, heard)  # (T', N, G·H)
        d_outputs = d_read + d_from_x @ weights.weight_ih
    return state, delta


def _through(stack: RecurrentStack, layer: int, written: Tensor, read: Tensor, d_up: Tensor) -> tuple[Tensor, Tensor]:
    """∂E by what a layer wrote and read, from ∂E by what it handed up: (T', N, H) -> (T', N, H), (T', N, I)."""
    losses = d_up.size(1)
    leaves = [x.expand(-1, losses, -1).clone().requires_grad_() for x in (written, read)]
    with torch.enable_grad():
        up = stack.handed_up(layer, *leaves)
    d_written, d_read = torch.autograd.grad(up, leaves, d_up, allow_unused=True)
    return d_written, torch.zeros_like(leaves[1]) if d_read is None else d_read


def states_named(cell: str) -> str:
    """What s is, of a cell."""
    names = CELLS[cell].state_names
    return names[0] if len(names) == 1 else f"({', '.join(names)})"
