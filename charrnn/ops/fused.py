"""Backend `fused`: PyTorch's own recurrences, which run cuDNN on a GPU and oneDNN for the LSTM on a CPU.

Axes: T time, B batch, H hidden_size.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from charrnn.ops.backends import Request, Weights
from charrnn.ops.cells import State

# oneDNN keeps the last 1,024 kernels that it has built, one or more for each shape, and some megabytes of memory with each:
# batches of examples have a hundred lengths, and a run of them grew to 8 GB. It has no other switch, and reads it at its first kernel.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")

_DEVICES = ("cpu", "cuda", "mps")


def refuses(request: Request) -> str | None:
    if request.device not in _DEVICES:
        return f"PyTorch has no fused recurrence for device {request.device!r}"
    if request.device == "cpu" and torch.float16 in (request.dtype, request.autocast):
        return "oneDNN has no float16 recurrence"
    if request.device == "mps" and request.ragged:
        return "PyTorch has no packed sequences on MPS"
    return None


def run(request: Request, x: Tensor, state: State, weights: Weights, lengths: Tensor | None) -> tuple[Tensor, State]:
    if lengths is None:
        outputs, after = _stock(request, x, None, state, weights)
        return (outputs.flip(0), after) if request.reverse else (outputs, after)
    if _runs_dense(request):
        return _dense(request, x, state, weights, lengths)
    # Packing has no empty sequences: run them one step long, then put back the state they came with.
    runs, lengths = (lengths > 0).unsqueeze(-1), lengths.clamp(min=1)
    packed = pack_padded_sequence(flip_time(x, lengths) if request.reverse else x, lengths.cpu(), enforce_sorted=False)
    order, back = packed.sorted_indices, packed.unsorted_indices
    assert order is not None and back is not None  # enforce_sorted=False always sorts
    data, after = _stock(request, packed.data, packed.batch_sizes, tuple(s.index_select(0, order) for s in state), weights)
    outputs = pad_packed_sequence(PackedSequence(data, packed.batch_sizes, order, back), total_length=x.size(0))[0]  # (T, B, H)
    if request.reverse:
        outputs = flip_time(outputs, lengths)
    after = tuple(torch.where(runs, new.index_select(0, back), old) for new, old in zip(after, state))
    return torch.where(runs, outputs, 0), after


def _runs_dense(request: Request) -> bool:
    """Whether ragged sequences are run to T: on a CPU packed ones are several times slower, and miss oneDNN's kernels.

    Not where the c of an LSTM is asked for, which is not among the outputs; nor for a ReLU, whose state may grow beyond all
    numbers in the padding, and 0 · ∞ is no gradient.
    """
    return request.device == "cpu" and request.cell != "rnn_relu" and not (request.cell == "lstm" and request.final_state)


def _dense(request: Request, x: Tensor, state: State, weights: Weights, lengths: Tensor) -> tuple[Tensor, State]:
    """Run every sequence to T, strike out what was written beyond the lengths; the final h is the output at the last step.

    What the padding does to a state comes after all that counts, in the reverse direction too, where each sequence is flipped
    within its own length: no output before the length depends on it. In backward the gradients beyond are 0 from T down.
    """
    runs = torch.arange(x.size(0), device=x.device).unsqueeze(-1) < lengths  # (T, B)
    x = torch.where(runs.unsqueeze(-1), x, 0)  # or NaN in the padding would reach the weights: 0 · NaN is NaN
    if request.reverse:
        x = flip_time(x, lengths)
    outputs, _ = _stock(replace(request, reverse=False), x, None, state, weights)
    after: State = ()
    if request.final_state:
        last = outputs[lengths.clamp(min=1) - 1, torch.arange(x.size(1), device=x.device)]  # (B, H)
        after = (torch.where((lengths > 0).unsqueeze(-1), last, state[0]),)
    outputs = torch.where(runs.unsqueeze(-1), outputs, 0)
    return flip_time(outputs, lengths) if request.reverse else outputs, after


def flip_time(x: Tensor, lengths: Tensor) -> Tensor:
    """Reverse each sequence within its own length; what lies beyond stays where it is. (T, B, ·) -> (T, B, ·)."""
    t = torch.arange(x.size(0), device=x.device).unsqueeze(-1)  # (T, 1)
    source = torch.where(t < lengths, lengths - 1 - t, t) * x.size(1) + torch.arange(x.size(1), device=x.device)  # (T, B)
    flipped: Tensor = _Exchange.apply(x.flatten(0, 1), source.flatten())  # type: ignore[no-untyped-call]
    return flipped.view_as(x)


class _Exchange(torch.autograd.Function):
    """Rows in an order that is its own inverse: the derivative is the same copy again, where autograd would add row by row."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor) -> Tensor:
        ctx.save_for_backward(order)
        return x.index_select(0, order)

    @staticmethod
    def backward(ctx: Any, d_x: Tensor) -> tuple[Tensor, None]:
        return _Exchange.apply(d_x, *ctx.saved_tensors), None  # type: ignore[no-untyped-call]


def _stock(request: Request, x: Tensor, batch_sizes: Tensor | None, state: State, weights: Weights) -> tuple[Tensor, State]:
    """One of torch's own loops over x (T, B, I), or over packed rows (Σ lengths, I) with their batch sizes."""
    if request.reverse and batch_sizes is None:
        x = x.flip(0)
    function: Any = getattr(torch._VF, request.cell)
    flat = [weight for weight in weights if weight is not None]
    before = [s.unsqueeze(0) for s in state]  # (1, B, H): torch counts layers
    hx = before if request.cell == "lstm" else before[0]
    options = (flat, weights.bias_ih is not None, 1, 0.0, torch.is_grad_enabled(), False)  # layers, dropout, training, bidirectional
    with contextlib.ExitStack() as stack:
        if request.device == "cuda":  # filters are the whole process's, so no thread may touch them without need
            # cuDNN wants the weights side by side in memory and copies them there when they are not; for one layer that is cheap.
            stack.enter_context(warnings.catch_warnings())
            warnings.filterwarnings("ignore", message="RNN module weights are not part of single contiguous chunk")
        outputs, *after = function(x, hx, *options, False) if batch_sizes is None else function(x, batch_sizes, hx, *options)
    return outputs, tuple(s.squeeze(0) for s in after)
