"""Backend `fused`: PyTorch's own recurrences, which run cuDNN on a GPU and oneDNN for the LSTM on a CPU.

Axes: T time, B batch, H hidden_size.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from charrnn.ops.backends import Request, Weights
from charrnn.ops.cells import State

_DEVICES = ("cpu", "cuda", "mps")


def refuses(request: Request) -> str | None:
    if request.device not in _DEVICES:
        return f"PyTorch has no fused recurrence for device {request.device!r}"
    if request.device == "mps" and request.ragged:
        return "PyTorch has no packed sequences on MPS"
    return None


def run(request: Request, x: Tensor, state: State, weights: Weights, lengths: Tensor | None) -> tuple[Tensor, State]:
    steps = x.size(0)
    if lengths is not None and not bool((lengths > 0).all()):
        # Packing has no empty sequences: run them one step long, then put back the state they came with.
        outputs, after = run(request, x, state, weights, lengths.clamp(min=1))
        runs = (lengths > 0).unsqueeze(-1)
        return outputs * runs, tuple(torch.where(runs, new, old) for new, old in zip(after, state))
    if request.reverse:
        x = flip_time(x, lengths)
    packed: PackedSequence | Tensor = x
    if lengths is not None:
        packed = pack_padded_sequence(x, lengths.cpu(), enforce_sorted=False)
    outputs, after = _stock(request.cell, packed, state, weights)
    if isinstance(outputs, PackedSequence):
        outputs = pad_packed_sequence(outputs, total_length=steps)[0]
    return (flip_time(outputs, lengths) if request.reverse else outputs), after


def flip_time(x: Tensor, lengths: Tensor | None) -> Tensor:
    """Reverse each sequence within its own length; what lies beyond stays where it is. (T, B, ·) -> (T, B, ·)."""
    if lengths is None:
        return x.flip(0)
    t = torch.arange(x.size(0), device=x.device).unsqueeze(-1)  # (T, 1)
    source = torch.where(t < lengths, lengths - 1 - t, t)  # (T, B)
    return x.gather(0, source.unsqueeze(-1).expand_as(x))


def _stock(
    cell: str, x: PackedSequence | Tensor, state: State, weights: Weights
) -> tuple[PackedSequence | Tensor, State]:
    flat = [w for w in weights if w is not None]
    biased = weights.bias_ih is not None
    function = {"rnn_tanh": torch._VF.rnn_tanh, "rnn_relu": torch._VF.rnn_relu, "lstm": torch._VF.lstm, "gru": torch._VF.gru}[cell]  # type: ignore[attr-defined]
    before = [s.unsqueeze(0) for s in state]  # (1, B, H): torch counts layers
    hx = before if cell == "lstm" else before[0]
    training = torch.is_grad_enabled()
    with warnings.catch_warnings():
        # cuDNN wants the weights side by side in memory and copies them there when they are not; for one layer that is cheap.
        warnings.filterwarnings("ignore", message="RNN module weights are not part of single contiguous chunk")
        if isinstance(x, PackedSequence):
            if x.sorted_indices is not None:
                hx = [s.index_select(1, x.sorted_indices) for s in before] if cell == "lstm" else before[0].index_select(1, x.sorted_indices)
            data, *after = function(x.data, x.batch_sizes, hx, flat, biased, 1, 0.0, training, False)
            if x.unsorted_indices is not None:
                after = [s.index_select(1, x.unsorted_indices) for s in after]
            return PackedSequence(data, x.batch_sizes, x.sorted_indices, x.unsorted_indices), tuple(s.squeeze(0) for s in after)
        outputs, *after = function(x, hx, flat, biased, 1, 0.0, training, False, False)
    return outputs, tuple(s.squeeze(0) for s in after)
