"""Backend `native`: the loop over time in C++ (csrc/), one call a layer and direction, for the CPU.

A step multiplies x and h in one product, and on the way back the gradients of x and h are one: what a step wrote is still in the cache
where a product over all steps at once would fetch it from memory. Only where the two matrices together would not stay in the cache is x
multiplied beforehand, by PyTorch. The weights' gradients are one product over all steps at the end: see ops/explicit.py. Forward and
backward are two operators, `torch.ops.charrnn.recurrence` and `torch.ops.charrnn.recurrence_backward`, which torch.compile and
torch.export see as such.

Each thread takes some columns of the batch through all steps, so no thread waits for another within a call. The threads are those of the
OpenMP library that PyTorch has loaded: its entry is looked up in this process and handed over, since a library of our own would bring
a second pool of threads that spins beside the first. Where PyTorch has none of that kind, threads are started for the call.

Axes: T time, B batch, I input_size, H hidden_size, G gates, S blocks kept of a step (4 for lstm and gru, 1 for rnn_*).
"""

from __future__ import annotations

import ctypes
import functools
from typing import Any

import torch
from torch import Tensor

from charrnn.ops.backends import Request, Weights
from charrnn.ops.cells import CELLS, State
from charrnn.ops.library import library_path

TOGETHER = 3 << 19  # bytes of both matrices of a layer that are still multiplied in one product, of the 2 MB that a core has
INSTRUCTIONS = ("plain", "avx2", "avx512", "avx512_bf16", "amx")  # from least to most, as csrc/native.cpp counts them

_CELLS = ("rnn_tanh", "rnn_relu", "lstm", "gru")  # as csrc/native.h counts them
_PRECISIONS = (torch.float32, torch.bfloat16, torch.float64)
_POINTERS = (
    *("lengths", "weight_ih", "weight_hh", "bias_ih", "bias_hh", "x", "from_x", "h_0", "c_0", "outputs", "h_n", "c_n", "gates", "cells"),
    *("d_outputs", "d_h_n", "d_c_n", "d_gates", "d_x", "d_h_0", "d_c_0", "d_bias", "d_weight_ih", "d_weight_hh"),
)
_NUMBERS = ("cell", "precision", "backward", "reverse", "steps", "batch", "inputs", "hidden", "threads", "instructions")


class _Call(ctypes.Structure):
    """csrc/native.h has the shapes."""

    _fields_ = [*((name, ctypes.c_int64) for name in _NUMBERS), *((name, ctypes.c_void_p) for name in _POINTERS)]


@functools.cache
def _library() -> tuple[Any, Any]:
    """The library, and the entries of PyTorch's OpenMP or None."""
    path = library_path()
    assert path is not None
    library = ctypes.CDLL(str(path))
    library.charrnn_has.argtypes = [ctypes.c_int64]
    library.charrnn_run.argtypes = [ctypes.POINTER(_Call), ctypes.c_void_p, ctypes.c_void_p]
    try:
        process = ctypes.CDLL(None)
        openmp = [ctypes.cast(entry, ctypes.c_void_p) for entry in (process.GOMP_parallel, process.omp_get_num_threads)]
    except (AttributeError, TypeError):  # another OpenMP than GNU's; a system whose process has no table of symbols
        openmp = []
    return library, openmp or [None, None]


@functools.cache
def _current() -> bool:
    """Whether the library takes calls as they are made here: sources that were pulled and not installed have another one beside them."""
    library = _library()[0]
    known = all(hasattr(library, name) for name in ("charrnn_call_bytes", "charrnn_softmax", "charrnn_head", "charrnn_adam"))
    return known and library.charrnn_call_bytes() == ctypes.sizeof(_Call)


@functools.cache
def instructions() -> tuple[str, ...]:
    """The instruction sets that this processor has kernels for, from least to most. () without the library."""
    if library_path() is None or not _current():
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
    if not _current():
        return "it was compiled from other sources than these; install charrnn again"
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
    "Tensor? lengths, bool reverse, bool bf16, bool keeps) -> (Tensor outputs, Tensor h_n, Tensor c_n, Tensor gates, Tensor cells)"
)
_operators.define(
    "recurrence_backward(str cell, Tensor x, Tensor h_0, Tensor? c_0, Tensor weight_ih, Tensor weight_hh, Tensor? lengths, bool reverse, "
    "bool bf16, Tensor outputs, Tensor gates, Tensor cells, Tensor d_outputs, Tensor? d_h_n, Tensor? d_c_n, bool for_x, "
    "bool for_weights) -> "
    "(Tensor d_x, Tensor d_h_0, Tensor d_c_0, Tensor d_weight_ih, Tensor d_weight_hh, Tensor d_bias)"
)


def _blocks(cell: str) -> int:
    return 1 if CELLS[cell].gates == 1 else 4


def _product(x: Tensor, bf16: bool) -> torch.dtype:
    return torch.bfloat16 if bf16 else x.dtype


def _empty_results(cell: str, x: Tensor, h_0: Tensor, bf16: bool, keeps: bool) -> tuple[Tensor, ...]:
    """What `recurrence` returns, yet to be written; of size 0 what the cell has not, or what nobody will need."""
    (steps, batch), hidden, product = x.shape[:2], h_0.size(1), _product(x, bf16)
    of_lstm, of_gates = cell == "lstm", _blocks(cell) > 1
    return (
        h_0.new_empty(steps, batch, hidden),  # outputs
        h_0.new_empty(batch, hidden),  # h_n
        h_0.new_empty(batch if of_lstm else 0, hidden),  # c_n
        x.new_empty((steps if keeps and of_gates else 0, batch, 4 * hidden), dtype=product),  # gates
        x.new_empty((steps if keeps and of_lstm else 0, batch, hidden), dtype=product),  # c after each step
    )


def _empty_gradients(
    cell: str, x: Tensor, h_0: Tensor, weight_ih: Tensor, weight_hh: Tensor, for_x: bool, for_weights: bool
) -> tuple[Tensor, ...]:
    (batch, hidden), of_lstm = h_0.shape, cell == "lstm"
    return (
        x.new_empty(x.shape if for_x else (0,)),
        h_0.new_empty(batch, hidden),
        h_0.new_empty(batch if of_lstm else 0, hidden),
        weight_ih.new_empty(weight_ih.shape if for_weights else (0,)),
        weight_hh.new_empty(weight_hh.shape if for_weights else (0,)),
        h_0.new_empty(_blocks(cell) * hidden),  # of the gates' blocks, in the order of csrc/native.h
    )


def _together(weight_ih: Tensor, weight_hh: Tensor, product: torch.dtype) -> bool:
    """Whether x is multiplied step by step, with h: where both matrices stay in the cache. Float32 gains nothing by it, measured."""
    return product == torch.bfloat16 and (weight_ih.numel() + weight_hh.numel()) * product.itemsize <= TOGETHER


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
    results = _empty_results(cell, x, h_0, bf16, keeps)
    product = _product(x, bf16)
    names = ("outputs", "h_n", "c_n", "gates", "cells") if keeps else ("outputs", "h_n", "c_n")
    tensors: dict[str, Tensor | None] = dict(zip(names, results))
    tensors |= {"lengths": lengths, "weight_ih": weight_ih, "weight_hh": weight_hh, "bias_ih": bias_ih, "bias_hh": bias_hh}
    tensors |= {"h_0": h_0, "c_0": c_0}
    if _together(weight_ih, weight_hh, product):
        tensors["x"] = x
    else:
        tensors["from_x"] = x.to(product).flatten(0, 1) @ weight_ih.to(product).t()  # (T·B, G·H)
    _call(cell, product, reverse, False, x, h_0, tensors)
    return results


@torch.library.impl(_operators, "recurrence_backward", "CPU")
def _backward(
    cell: str,
    x: Tensor,
    h_0: Tensor,
    c_0: Tensor | None,
    weight_ih: Tensor,
    weight_hh: Tensor,
    lengths: Tensor | None,
    reverse: bool,
    bf16: bool,
    outputs: Tensor,
    gates: Tensor,
    cells: Tensor,
    d_outputs: Tensor,
    d_h_n: Tensor | None,
    d_c_n: Tensor | None,
    for_x: bool,
    for_weights: bool,
) -> tuple[Tensor, ...]:
    results = _empty_gradients(cell, x, h_0, weight_ih, weight_hh, for_x, for_weights)
    d_x, d_h_0, d_c_0, d_weight_ih, d_weight_hh, d_bias = results
    product = _product(x, bf16)
    together = _together(weight_ih, weight_hh, product)
    d_gates = x.new_empty((*x.shape[:2], _blocks(cell) * h_0.size(1)), dtype=product)
    tensors: dict[str, Tensor | None] = {"lengths": lengths, "x": x}
    tensors |= {"weight_ih": weight_ih, "weight_hh": weight_hh, "h_0": h_0, "c_0": c_0, "outputs": outputs}
    tensors |= {"gates": gates, "cells": cells, "d_outputs": d_outputs, "d_h_n": d_h_n, "d_c_n": d_c_n}
    tensors |= {"d_gates": d_gates, "d_h_0": d_h_0, "d_c_0": d_c_0, "d_bias": d_bias}
    if for_x and together:
        tensors["d_x"] = d_x
    if for_weights:
        tensors |= {"d_weight_ih": d_weight_ih, "d_weight_hh": d_weight_hh}
    _call(cell, product, reverse, True, x, h_0, tensors)
    if for_x and not together:
        rows, weight = d_gates.flatten(0, 1), weight_ih.to(product)
        if cell == "gru":
            rows, weight = rows[:, : 3 * h_0.size(1)], weight.roll(h_0.size(1), 0)
        d_x.copy_((rows @ weight).view_as(x))
    return results


def _call(
    cell: str, product: torch.dtype, reverse: bool, backward: bool, x: Tensor, h_0: Tensor, tensors: dict[str, Tensor | None]
) -> None:
    """Hand the tensors over by their addresses. They are held here until the loop is done; ctypes lets other Python threads run."""
    library, openmp = _library()
    held = {name: tensor.contiguous() for name, tensor in tensors.items() if tensor is not None}
    if "lengths" in held:
        held["lengths"] = held["lengths"].to("cpu", torch.int64)
    call = _Call(
        cell=_CELLS.index(cell),
        precision=_PRECISIONS.index(product),
        backward=backward,
        reverse=reverse,
        steps=x.size(0),
        batch=x.size(1),
        inputs=x.size(2),
        hidden=h_0.size(1),
        threads=torch.get_num_threads(),
        instructions=INSTRUCTIONS.index(instructions()[-1]),
        **{name: tensor.data_ptr() for name, tensor in held.items()},
    )
    if library.charrnn_run(ctypes.byref(call), *openmp):
        raise MemoryError(f"no memory for a {cell} of {h_0.size(1)} units over {x.size(1)} columns")


def _fake_forward(
    cell: str, x: Tensor, h_0: Tensor, c_0: Any, weight_ih: Any, weight_hh: Any, bias_ih: Any, bias_hh: Any, lengths: Any,
    reverse: bool, bf16: bool, keeps: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    return _empty_results(cell, x, h_0, bf16, keeps)


def _fake_backward(
    cell: str, x: Tensor, h_0: Tensor, c_0: Any, weight_ih: Tensor, weight_hh: Tensor, lengths: Any, reverse: bool, bf16: bool,
    outputs: Any, gates: Any, cells: Any, d_outputs: Any, d_h_n: Any, d_c_n: Any, for_x: bool, for_weights: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    return _empty_gradients(cell, x, h_0, weight_ih, weight_hh, for_x, for_weights)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    cell, x, h_0, c_0, weight_ih, weight_hh, bias_ih, _, lengths, reverse, bf16, _ = inputs
    outputs, _, _, gates, cells = output
    ctx.set_materialize_grads(False)  # or zeros would be made for all that is kept
    ctx.save_for_backward(x, h_0, c_0, weight_ih, weight_hh, lengths, outputs, gates, cells)
    ctx.cell, ctx.reverse, ctx.bf16, ctx.biased = cell, reverse, bf16, bias_ih is not None


def _through_time(ctx: Any, d_outputs: Tensor | None, d_h_n: Tensor | None, d_c_n: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    if torch.is_grad_enabled():  # create_graph: what follows would leave the recurrence out of the second derivative
        raise RuntimeError("the native backend cannot be differentiated twice; use backend='reference'")
    x, h_0, c_0, weight_ih, weight_hh, lengths, outputs, gates, cells = ctx.saved_tensors
    if d_outputs is None:
        d_outputs = torch.zeros_like(outputs)
    for_x, for_weights = ctx.needs_input_grad[1], ctx.needs_input_grad[4] or ctx.needs_input_grad[5]
    d_x, d_h_0, d_c_0, d_weight_ih, d_weight_hh, d_bias = torch.ops.charrnn.recurrence_backward(
        *(ctx.cell, x, h_0, c_0, weight_ih, weight_hh, lengths, ctx.reverse, ctx.bf16, outputs, gates, cells, d_outputs, d_h_n, d_c_n),
        *(for_x, for_weights),
    )
    of_x, of_h = d_bias, d_bias.clone()
    if ctx.cell == "gru":  # n r z and r·n: what goes to x comes in the order n r z
        hidden = h_0.size(1)
        of_x, of_h = d_bias[: 3 * hidden].roll(-hidden), d_bias[hidden:]
    d_weights = (d_weight_ih, d_weight_hh) if for_weights else (None, None)
    d_biases = (of_x, of_h) if ctx.biased else (None, None)
    return None, d_x if for_x else None, d_h_0, d_c_0 if ctx.cell == "lstm" else None, *d_weights, *d_biases, None, None, None, None


torch.library.register_fake("charrnn::recurrence", _fake_forward, lib=_operators)
torch.library.register_fake("charrnn::recurrence_backward", _fake_backward, lib=_operators)
torch.library.register_autograd("charrnn::recurrence", _through_time, setup_context=_keep, lib=_operators)
