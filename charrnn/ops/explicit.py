"""Backend `explicit`: back-propagation through time, written out.

With s_t = step(U x_t, W s_{t-1}) and a loss E = Σ_t E_t,

    ∂E/∂W = Σ_t Σ_{k≤t}  ∂E_t/∂s_t · (∏_{j=k+1..t} ∂s_j/∂s_{j-1}) · ∂s_k/∂W .

Nobody multiplies that product out. The loop below walks t = T..1 and carries its running value, d_state = ∂(Σ_{u≥t} E_u)/∂s_t:
each step adds what the output at t contributes and multiplies once by ∂s_t/∂s_{t-1}. What remains of ∂E/∂W is
Σ_k d_preactivation_k · s_{k-1}ᵀ: one matrix product over all T·B rows after the loop instead of T small ones inside it.

Axes: T time, B batch, H hidden_size, G gates.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from charrnn.ops.backends import Request, Weights
from charrnn.ops.cells import CELLS, Cell, Kept, State


def refuses(request: Request) -> str | None:
    return None


class Walked(NamedTuple):
    """What the way forward leaves behind: all that the way back needs, and all that there is to see inside of a layer."""

    outputs: Tensor  # (T, B, H)
    before: list[State]  # at t the state that step t begins with
    kept: list[Kept]  # at t what step t keeps of its gates
    final: State


def run(request: Request, x: Tensor, state: State, weights: Weights, lengths: Tensor | None) -> tuple[Tensor, State]:
    cell = CELLS[request.cell]
    product_dtype = x.dtype if request.autocast is None else request.autocast
    outputs, *after = _Recurrence.apply(  # type: ignore[no-untyped-call]
        cell, request.reverse, product_dtype, lengths, _from_x(cell, x, state, weights), weights.weight_hh, weights.bias_hh, *state
    )
    return outputs, tuple(after)


@torch.no_grad()
def walk(cell: str, x: Tensor, state: State, weights: Weights) -> Walked:
    """Every step of one layer, forward, with what it keeps: x (T, B, I) and (h,) or (h, c), each (B, H), without a gradient."""
    from_x = _from_x(CELLS[cell], x, state, weights)
    return _forward(CELLS[cell], range(x.size(0)), x.dtype, None, from_x, weights.weight_hh, weights.bias_hh, state)


@torch.no_grad()
def walk_back(cell: str, walked: Walked, weight_hh: Tensor, d_outputs: Tensor, heard: Callable[[int, State, Tensor], None]) -> Tensor:
    """Back-propagation of several losses at once through one text: walked with B = 1, one column of d_outputs (T, N, H) a loss.

    At each step t, from the last, `heard` gets t, the gradient of each loss by the state that step t hands on, (h,) or (h, c), each
    (N, H), h and c held apart, and the gradient by what step t made of its W s_{t-1}, (N, G·H). Returns the gradient by from_x = U x_t,
    (T, N, G·H).
    """
    final = tuple(torch.zeros_like(d_outputs[0]) for _ in walked.final)
    times = range(d_outputs.size(0))
    d_from_x, _, _ = _backward(CELLS[cell], times, d_outputs.dtype, None, walked.before, walked.kept, weight_hh, d_outputs, final, heard)
    return d_from_x


def _from_x(cell: Cell, x: Tensor, state: State, weights: Weights) -> Tensor:
    """(T, B, I) -> (T, B, G·H). The products with U wait for nothing: one serves all steps, and autograd differentiates it as one."""
    bias_ih = weights.bias_ih
    if cell.additive and bias_ih is not None and weights.bias_hh is not None:
        bias_ih = bias_ih + weights.bias_hh
    return F.linear(x, weights.weight_ih, bias_ih).to(state[0].dtype)


def _forward(
    cell: Cell,
    order: Sequence[int],
    product_dtype: torch.dtype,
    lengths: Tensor | None,
    from_x: Tensor,
    weight_hh: Tensor,
    bias_hh: Tensor | None,
    state: State,
) -> Walked:
    # (H, G·H), rows contiguous: a product with few rows runs several times faster on this layout than on Wᵀ as a view.
    weight = weight_hh.to(product_dtype).t().contiguous()
    bias = None if cell.additive or bias_hh is None else bias_hh
    outputs = from_x.new_empty(from_x.shape[:2] + weight_hh.shape[1:])  # (T, B, H)
    kept: list[Kept] = [()] * len(order)
    before: list[State] = [()] * len(order)
    xs, ys = from_x.unbind(0), outputs.unbind(0)
    for t in order:
        before[t] = state
        if cell.additive:
            h = state[0].to(product_dtype)
            a = torch.addmm(xs[t], h, weight) if product_dtype == from_x.dtype else xs[t] + h @ weight
            state, kept[t] = cell.step(a, None, state)
        else:
            from_h = state[0].to(product_dtype) @ weight
            state, kept[t] = cell.step(xs[t], from_h.to(from_x.dtype) if bias is None else from_h + bias, state)
        if lengths is None:
            ys[t].copy_(state[0])
        else:
            runs = (t < lengths).unsqueeze(-1)  # (B, 1)
            torch.where(runs, state[0], ys[t].new_zeros(()), out=ys[t])
            state = tuple(torch.where(runs, new, old) for new, old in zip(state, before[t]))
    return Walked(outputs, before, kept, state)


def _backward(
    cell: Cell,
    order: Sequence[int],
    product_dtype: torch.dtype,
    lengths: Tensor | None,
    before: Sequence[State],
    kept: Sequence[Kept],
    weight_hh: Tensor,
    d_outputs: Tensor,
    d_final: State,
    heard: Callable[[int, State, Tensor], None] | None = None,
) -> tuple[Tensor, Tensor, State]:
    """The gradients of from_x and from_h, each (T, B, G·H), the same tensor of an additive cell, and of the state before all steps."""
    weight = weight_hh.to(product_dtype)
    d_from_x = d_outputs.new_empty(d_outputs.shape[:2] + weight_hh.shape[:1])
    d_from_h = d_from_x if cell.additive else torch.empty_like(d_from_x)
    d_xs, d_hs, d_ys = d_from_x.unbind(0), d_from_h.unbind(0), d_outputs.unbind(0)
    d_state = d_final
    for t in reversed(order):
        d_y = d_ys[t]
        d_after = d_state
        if lengths is not None:
            runs = (t < lengths).unsqueeze(-1)  # (B, 1)
            d_y = torch.where(runs, d_y, 0)
            d_after = tuple(torch.where(runs, d, 0) for d in d_state)
        d_after = (d_after[0] + d_y, *d_after[1:])
        from_x_blocks, from_h_blocks, d_direct = cell.derivative(kept[t], before[t], d_after)
        torch.cat(from_x_blocks, -1, out=d_xs[t])
        if not cell.additive:
            torch.cat(from_h_blocks, -1, out=d_hs[t])
        if heard is not None:
            heard(t, d_after, d_hs[t])
        through_weight = d_hs[t].to(product_dtype) @ weight  # (B, H)
        held = d_state
        d_state = _join(cell, through_weight.to(d_y.dtype), d_direct)
        if lengths is not None:
            d_state = tuple(torch.where(runs, new, old) for new, old in zip(d_state, held))
    return d_from_x, d_from_h, d_state


class _Recurrence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        cell: Cell,
        reverse: bool,
        product_dtype: torch.dtype,
        lengths: Tensor | None,
        from_x: Tensor,
        weight_hh: Tensor,
        bias_hh: Tensor | None,
        *state: Tensor,
    ) -> tuple[Tensor, ...]:
        times = range(from_x.size(0))
        order = list(reversed(times)) if reverse else list(times)
        with torch.autocast(from_x.device.type, enabled=False):
            outputs, before, kept, final = _forward(cell, order, product_dtype, lengths, from_x, weight_hh, bias_hh, state)
        ctx.cell, ctx.order, ctx.product_dtype = cell, order, product_dtype
        ctx.sizes = [(len(k), len(s)) for k, s in zip(kept, before)]
        ctx.biased = not cell.additive and bias_hh is not None
        ctx.save_for_backward(lengths, weight_hh, *(tensor for t in times for tensor in kept[t] + before[t]))
        return outputs, *final

    @staticmethod
    def backward(ctx: Any, d_outputs: Tensor, *d_final: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # create_graph: what follows would leave the recurrence out of the second derivative
            raise RuntimeError("the explicit backend cannot be differentiated twice; use backend='reference'")
        lengths, weight_hh, *saved = ctx.saved_tensors
        kept: list[Kept] = []
        before: list[State] = []
        for kept_count, state_count in ctx.sizes:
            kept.append(tuple(saved[:kept_count]))
            before.append(tuple(saved[kept_count : kept_count + state_count]))
            del saved[: kept_count + state_count]
        d_from_x, d_from_h, d_state = _backward(
            ctx.cell, ctx.order, ctx.product_dtype, lengths, before, kept, weight_hh, d_outputs, d_final
        )
        h_before = torch.stack([s[0] for s in before]).flatten(0, 1)  # (T·B, H)
        rows = d_from_h.flatten(0, 1)  # (T·B, G·H)
        d_weight = (h_before.to(ctx.product_dtype).t() @ rows.to(ctx.product_dtype)).t().to(weight_hh.dtype)
        d_bias = rows.sum(0) if ctx.biased else None
        return None, None, None, None, d_from_x, d_weight, d_bias, *d_state


def _join(cell: Cell, through_weight: Tensor, direct: State) -> State:
    """The gradient of the state before a step: h through W, plus whatever the cell passes on directly."""
    if cell.state_names == ("h", "c"):
        return through_weight, direct[0]
    return (through_weight + direct[0] if direct else through_weight,)
