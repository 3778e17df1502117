"""Backend `native`: the loop over time in C++ (csrc/), one call a layer and direction, for the CPU.

The loop alone is C++. The products that wait for nothing, x with U for all steps and the weights' gradients, are PyTorch's own: see
ops/explicit.py for why they can stand outside of it. With them they make two operators, `torch.ops.charrnn.recurrence` and
`torch.ops.charrnn.recurrence_backward`, which torch.compile and torch.export see as such.

Each thread takes some columns of the batch through all steps, so no thread waits for another within a call. The threads are those of the
OpenMP library that PyTorch has loaded: its entry is looked up in this process and handed over, since a library of our own would bring
a second pool of threads that spins beside the first. Where PyTorch has none of that kind, threads are started for the call.

Axes: T time, B batch, I input_size, H hidden_size, G gates, S blocks kept of a step (4 for lstm and gru, 1 for rnn_*).
"""

from __future__ import annotations

import ctypes
import functools
import importlib.machinery
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from charrnn.ops.backends import Request, Weights
from charrnn.ops.cells import CELLS, State

INSTRUCTIONS = ("plain", "avx2", "avx512", "avx512_bf16", "amx")  # from least to most, as csrc/native.cpp counts them

_CELLS = ("rnn_tanh", "rnn_relu", "lstm", "gru")  # as csrc/native.h counts them
_PRECISIONS = (torch.float32, torch.bfloat16, torch.float64)
_POINTERS = (
    *("lengths", "weight_hh", "bias_ih", "bias_hh", "from_x", "h_0", "c_0", "outputs", "h_n", "c_n", "before", "gates", "cells"),
    *("d_outputs", "d_h_n", "d_c_n", "d_gates", "d_h_0", "d_c_0", "d_bias"),
)
_NUMBERS = ("cell", "precision", "backward", "reverse", "steps", "batch", "hidden", "threads", "instructions")


class _Call(ctypes.Structure):
    """csrc/native.h has the shapes."""

    _fields_ = [*((name, ctypes.c_int64) for name in _NUMBERS), *((name, ctypes.c_void_p) for name in _POINTERS)]


def library_path() -> Path | None:
    """The compiled loop beside this file. None where the package was installed without it."""
    for suffix in importlib.machinery.EXTENSION_SUFFIXES:
        path = Path(__file__).with_name(f"_native{suffix}")
        if path.exists():
            return path
    return None


@functools.cache
def _library() -> tuple[Any, Any]:
    """The library, and the entry of PyTorch's OpenMP or None."""
    path = library_path()
    assert path is not None
    library = ctypes.CDLL(str(path))
    library.charrnn_has.argtypes = [ctypes.c_int64]
    library.charrnn_run.argtypes = [ctypes.POINTER(_Call), ctypes.c_void_p]
    try:
        parallel = ctypes.cast(ctypes.CDLL(None).GOMP_parallel, ctypes.c_void_p)
    except (AttributeError, TypeError):  # another OpenMP than GNU's; a system whose process has no table of symbols
        parallel = None
    return library, parallel


@functools.cache
def instructions() -> tuple[str, ...]:
    """The instruction sets that this processor has kernels for, from least to most. () without the library."""
    if library_path() is None:
        return ()
    return tuple(name for number, name in enumerate(INSTRUCTIONS) if _library()[0].charrnn_has(number))


def refuses(request: Request) -> str | None:
    if request.device != "cpu":
        return "it runs on the CPU only"
    if request.dtype not in (torch.float32, torch.float64):
        return "its states are float32 or float64; use train.precision: bf16 for bfloat16 products"
    if request.autocast not in (None, torch.bfloat16):
        return f"it has no products in {str(request.autocast).removeprefix('torch.')}"
    if library_path() is None:
        return "it was not compiled when charrnn was installed; install a C++ compiler (g++ or clang++), then charrnn again"
    return None


def run(request: Request, x: Tensor, state: State, weights: Weights, lengths: Tensor | None) -> tuple[Tensor, State]:
    keeps = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, *state, *weights))
    bf16 = request.autocast == torch.bfloat16
    with torch.autocast("cpu", enabled=False):
        outputs, h_n, c_n, *_ = torch.ops.charrnn.recurrence(
            request.cell, x, state[0], state[1] if len(state) > 1 else None, *weights, lengths, request.reverse, bf16, keeps
        )
    return outputs, (h_n, c_n) if request.cell == "lstm" else (h_n,)


# The operators

_operators: Any = torch.library.Library("charrnn", "FRAGMENT")  # type: ignore[no-untyped-call]
_operators.define(
    "recurrence(str cell, Tensor x, Tensor h_0, Tensor? c_0, Tensor weight_ih, Tensor weight_hh, Tensor? bias_ih, Tensor? bias_hh, "
    "Tensor? lengths, bool reverse, bool bf16, bool keeps) -> "
    "(Tensor outputs, Tensor h_n, Tensor c_n, Tensor rows, Tensor before, Tensor gates, Tensor cells)"
)
_operators.define(
    "recurrence_backward(str cell, Tensor weight_hh, Tensor h_0, Tensor? c_0, Tensor? lengths, bool reverse, Tensor outputs, Tensor c_n, "
    "Tensor gates, Tensor cells, Tensor d_outputs, Tensor? d_h_n, Tensor? d_c_n) -> "
    "(Tensor d_gates, Tensor d_h_0, Tensor d_c_0, Tensor d_bias)"
)


def _blocks(cell: str) -> int:
    return 1 if CELLS[cell].gates == 1 else 4


def _empty_results(cell: str, x: Tensor, h_0: Tensor, weight_ih: Tensor, bf16: bool, keeps: bool) -> tuple[Tensor, ...]:
    """What `recurrence` returns, yet to be written; of size 0 what the cell has not, or what nobody will need."""
    (steps, batch), hidden = x.shape[:2], h_0.size(1)
    product = torch.bfloat16 if bf16 else x.dtype
    of_lstm, of_gates = cell == "lstm", _blocks(cell) > 1
    return (
        h_0.new_empty(steps, batch, hidden),  # outputs
        h_0.new_empty(batch, hidden),  # h_n
        h_0.new_empty(batch if of_lstm else 0, hidden),  # c_n
        x.new_empty(x.shape if keeps and bf16 else (0,), dtype=product),  # x as the product read it
        x.new_empty((steps if keeps else 0, batch, hidden), dtype=product),  # h before each step, likewise
        x.new_empty((steps if keeps and of_gates else 0, batch, 4 * hidden), dtype=product),  # gates
        h_0.new_empty(steps if keeps and of_lstm else 0, batch, hidden),  # c after each step
    )


@torch.library.impl(_operators, "recurrence", "CPU")
def _forward(
    cell: str,
    x: Tensor,
    h_0: Tensor,
    c_0: Tensor | None,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None,
    bias_hh: Tensor | None,
    lengths: Tensor | None,
    reverse: bool,
    bf16: bool,
    keeps: bool,
) -> tuple[Tensor, ...]:
    results = _empty_results(cell, x, h_0, weight_ih, bf16, keeps)
    outputs, h_n, c_n, rows, before, gates, cells = results
    if bf16:
        x = rows.copy_(x) if keeps else x.to(torch.bfloat16)
    from_x = x.flatten(0, 1) @ weight_ih.to(x.dtype).t()  # (T·B, G·H)
    tensors = {"lengths": lengths, "weight_hh": weight_hh.to(x.dtype), "bias_ih": bias_ih, "bias_hh": bias_hh, "from_x": from_x}
    tensors |= {"h_0": h_0, "c_0": c_0, "outputs": outputs, "h_n": h_n, "c_n": c_n}
    if keeps:
        tensors |= {"before": before, "gates": gates, "cells": cells}
    _call(cell, x.dtype, reverse, False, outputs, tensors)
    return results


@torch.library.impl(_operators, "recurrence_backward", "CPU")
def _backward(
    cell: str,
    weight_hh: Tensor,
    h_0: Tensor,
    c_0: Tensor | None,
    lengths: Tensor | None,
    reverse: bool,
    outputs: Tensor,
    c_n: Tensor,
    gates: Tensor,
    cells: Tensor,
    d_outputs: Tensor,
    d_h_n: Tensor | None,
    d_c_n: Tensor | None,
) -> tuple[Tensor, ...]:
    results = _empty_gradients(cell, weight_hh, h_0, outputs, d_outputs)
    d_gates, d_h_0, d_c_0, d_bias = results
    tensors = {"lengths": lengths, "weight_hh": weight_hh, "h_0": h_0, "c_0": c_0, "outputs": outputs, "c_n": c_n, "gates": gates}
    tensors |= {"cells": cells, "d_outputs": d_outputs, "d_h_n": d_h_n, "d_c_n": d_c_n}
    tensors |= {"d_gates": d_gates, "d_h_0": d_h_0, "d_c_0": d_c_0, "d_bias": d_bias}
    _call(cell, weight_hh.dtype, reverse, True, outputs, tensors)
    return results


def _empty_gradients(cell: str, weight_hh: Tensor, h_0: Tensor, outputs: Tensor, d_outputs: Tensor) -> tuple[Tensor, ...]:
    (steps, batch, hidden), columns = outputs.shape, _blocks(cell) * h_0.size(1)
    return (
        weight_hh.new_empty(steps, batch, columns),  # gradients of the preactivations
        h_0.new_empty(batch, hidden),
        h_0.new_empty(batch if cell == "lstm" else 0, hidden),
        h_0.new_empty(columns),
    )


def _call(cell: str, product: torch.dtype, reverse: bool, backward: bool, outputs: Tensor, tensors: dict[str, Tensor | None]) -> None:
    """Hand the tensors over by their addresses. They are held here until the loop is done; ctypes lets other Python threads run."""
    library, parallel = _library()
    held = {name: tensor.contiguous() for name, tensor in tensors.items() if tensor is not None}
    if "lengths" in held:
        held["lengths"] = held["lengths"].to("cpu", torch.int64)
    call = _Call(
        cell=_CELLS.index(cell),
        precision=_PRECISIONS.index(product),
        backward=backward,
        reverse=reverse,
        steps=outputs.size(0),
        batch=outputs.size(1),
        hidden=outputs.size(2),
        threads=torch.get_num_threads(),
        instructions=INSTRUCTIONS.index(instructions()[-1]),
        **{name: tensor.data_ptr() for name, tensor in held.items()},
    )
    if library.charrnn_run(ctypes.byref(call), parallel):
        raise MemoryError(f"no memory for a {cell} of {outputs.size(2)} units over {outputs.size(1)} columns")


def _fake_forward(
    cell: str, x: Tensor, h_0: Tensor, c_0: Any, weight_ih: Tensor, weight_hh: Any, bias_ih: Any, bias_hh: Any, lengths: Any,
    reverse: bool, bf16: bool, keeps: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    return _empty_results(cell, x, h_0, weight_ih, bf16, keeps)


def _fake_backward(
    cell: str, weight_hh: Tensor, h_0: Tensor, c_0: Any, lengths: Any, reverse: bool, outputs: Tensor, c_n: Any, gates: Any, cells: Any,
    d_outputs: Tensor, d_h_n: Any, d_c_n: Any,
) -> tuple[Tensor, ...]:  # fmt: skip
    return _empty_gradients(cell, weight_hh, h_0, outputs, d_outputs)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    cell, x, h_0, c_0, weight_ih, weight_hh, bias_ih, _, lengths, reverse, bf16, keeps = inputs
    outputs, _, c_n, rows, before, gates, cells = output
    ctx.set_materialize_grads(False)  # or zeros would be made for all that is kept
    ctx.save_for_backward(rows if bf16 else x, h_0, c_0, weight_ih, weight_hh, lengths, outputs, c_n, before, gates, cells)
    ctx.cell, ctx.reverse, ctx.bf16, ctx.keeps, ctx.biased, ctx.x_dtype = cell, reverse, bf16, keeps, bias_ih is not None, x.dtype


def _through_time(ctx: Any, d_outputs: Tensor | None, d_h_n: Tensor | None, d_c_n: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    if torch.is_grad_enabled():  # create_graph: what follows would leave the recurrence out of the second derivative
        raise RuntimeError("the native backend cannot be differentiated twice; use backend='reference'")
    x, h_0, c_0, weight_ih, weight_hh, lengths, outputs, c_n, before, gates, cells = ctx.saved_tensors
    if d_outputs is None:
        d_outputs = torch.zeros_like(outputs)
    product, hidden, wants = x.dtype, h_0.size(1), ctx.needs_input_grad
    d_gates, d_h_0, d_c_0, d_bias = torch.ops.charrnn.recurrence_backward(
        *(ctx.cell, weight_hh.to(product), h_0, c_0, lengths, ctx.reverse, outputs, c_n, gates, cells, d_outputs, d_h_n, d_c_n)
    )
    to_x = to_h = d_gates.flatten(0, 1)  # (T·B, G·H)
    of_x = of_h = d_bias
    first = weight_ih.to(product)
    if ctx.cell == "gru":  # n r z and r·n: what goes to x comes in the order n r z
        to_x, to_h, of_x, of_h = to_x[:, : 3 * hidden], to_h[:, hidden:], d_bias[: 3 * hidden].roll(-hidden), d_bias[hidden:]
        first = first.roll(hidden, 0)
    d_x = (to_x @ first).view_as(x).to(ctx.x_dtype) if wants[1] else None
    d_weight_ih = (to_x.t() @ x.flatten(0, 1)).to(weight_ih.dtype) if wants[4] else None
    if ctx.cell == "gru" and d_weight_ih is not None:
        d_weight_ih = d_weight_ih.roll(-hidden, 0)
    d_weight_hh = (to_h.t() @ before.flatten(0, 1)).to(weight_hh.dtype) if wants[5] else None
    d_bias_ih, d_bias_hh = (of_x, of_h.clone()) if ctx.biased else (None, None)
    d_cell = d_c_0 if ctx.cell == "lstm" else None
    return None, d_x, d_h_0, d_cell, d_weight_ih, d_weight_hh, d_bias_ih, d_bias_hh, None, None, None, None


torch.library.register_fake("charrnn::recurrence", _fake_forward, lib=_operators)
torch.library.register_fake("charrnn::recurrence_backward", _fake_backward, lib=_operators)
torch.library.register_autograd("charrnn::recurrence", _through_time, setup_context=_keep, lib=_operators)
