"""The passes over memory of a training step in C++ (csrc/step.h), for the CPU: softmax with its gradient, and clipping with Adam.

What is no product costs what it reads and writes. PyTorch's operations each read and write all of it again; here a number is read
once, while it is in the cache. Both serve where the library was compiled and the tensors are of the CPU; who asks has other ways.

Axes: R rows, K classes.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from charrnn.ops.native import INSTRUCTIONS, _library, instructions

BLOCK = 32  # rows and columns of a product that stay in tiles
_PRECISIONS = (torch.float32, torch.bfloat16)  # as csrc/native.h counts them


class _Softmax(ctypes.Structure):
    """csrc/step_calls.h has the meaning, as of the others."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("precision", "rows", "classes", "stride", "ignored", "gradient", "threads", "instructions")),
        ("smoothing", ctypes.c_double),
        *((name, ctypes.c_void_p) for name in ("logits", "bias", "targets", "d_bias")),
        *((name, ctypes.c_double) for name in ("nats", "others")),
        *((name, ctypes.c_int64) for name in ("correct", "count")),
    ]


class _Head(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("rows", "features", "classes", "chunk", "ignored", "threads", "instructions")),
        ("smoothing", ctypes.c_double),
        *((name, ctypes.c_void_p) for name in ("x", "weight", "bias", "targets", "d_x", "d_weight", "d_bias")),
        *((name, ctypes.c_double) for name in ("nats", "others")),
        *((name, ctypes.c_int64) for name in ("correct", "count")),
    ]


class _AdamTensor(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("weights", "gradients", "means", "squares", "averages", "step")),
        ("size", ctypes.c_int64),
        ("weight_decay", ctypes.c_double),
    ]


class _Adam(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("count", "decoupled", "threads", "instructions")),
        *((name, ctypes.c_double) for name in ("rate", "beta1", "beta2", "epsilon", "max_norm", "follow", "scale", "norm")),
        ("tensors", ctypes.POINTER(_AdamTensor)),
    ]


def has_softmax(logits: torch.dtype, device: torch.device) -> bool:
    """Whether softmax_ can take such logits."""
    return device.type == "cpu" and logits in _PRECISIONS and bool(instructions())


class SoftmaxSums(NamedTuple):
    nats: float  # cross-entropy
    others: float  # what it is of a target that is spread over all classes, less that
    correct: int  # rows whose target is the first most probable class
    asked: int  # rows with a target

    def __add__(self, other: SoftmaxSums) -> SoftmaxSums:  # type: ignore[override]
        (nats, others, correct, asked), more = self, other
        return SoftmaxSums(nats + more.nats, others + more.others, correct + more.correct, asked + more.asked)


def softmax_(
    logits: Tensor, bias: Tensor | None, targets: Tensor, *, ignored: int, smoothing: float, d_bias: Tensor | None, gradient: bool
) -> SoftmaxSums:
    """The cross-entropy of rows of logits, summed, and in place of the logits its gradient by them.

    logits    (R, K) contiguous, float32 or bfloat16; overwritten. Arithmetic and sums of a row are float32, sums of rows float64
    bias      (K,) float32, added to each row first; None where there is none
    targets   (R,) int64 classes, or `ignored`: such a row counts nowhere and has a gradient of 0
    smoothing the share of each target that is spread over all classes
    d_bias    (K,) float32, to which the gradients of the rows are added
    gradient  False where nobody needs it

    Raises IndexError for a target that is no class.
    """
    library, openmp = _library()
    assert logits.is_contiguous() and targets.is_contiguous() and targets.dtype == torch.int64
    call = _Softmax(
        precision=_PRECISIONS.index(logits.dtype),
        rows=logits.size(0),
        classes=logits.size(1),
        stride=logits.size(1),
        ignored=ignored,
        gradient=gradient,
        threads=torch.get_num_threads(),
        instructions=INSTRUCTIONS.index(instructions()[-1]),
        smoothing=smoothing,
        logits=logits.data_ptr(),
        bias=None if bias is None else bias.data_ptr(),
        targets=targets.data_ptr(),
        d_bias=None if d_bias is None else d_bias.data_ptr(),
    )
    if library.charrnn_softmax(ctypes.byref(call), *openmp):
        raise IndexError(f"a target lies outside 0..{logits.size(1) - 1}")
    return SoftmaxSums(call.nats, call.others, call.correct, call.count)


def has_head(x: Tensor, weight: Tensor, product: torch.dtype) -> bool:
    """Whether `head` can take these: on a processor with AMX, and a number of features that fills its tiles."""
    single = x.dtype == weight.dtype == torch.float32 and x.device.type == "cpu"
    if not single or product != torch.bfloat16 or x.size(0) == 0 or x.size(1) % BLOCK or not instructions():
        return False
    return bool(_library()[0].charrnn_has_head(INSTRUCTIONS.index(instructions()[-1])))


class Head(NamedTuple):
    sums: SoftmaxSums
    d_x: Tensor | None
    d_weight: Tensor | None
    d_bias: Tensor | None


def head(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    *,
    chunk: int,
    ignored: int,
    smoothing: float,
    wants: tuple[bool, bool, bool],
) -> Head:
    """The cross-entropy of x (R, W) through a head of K classes, summed, and its gradients, products in bfloat16 and sums in float32.

    `chunk`: rows whose logits are there at once, rounded up to a multiple of 32. `wants`: which gradients, of x, weight and bias; the
    others are None. The rest is that of softmax_. Raises IndexError for a target that is no class, and MemoryError.
    """
    library, openmp = _library()
    (rows, features), classes = x.shape, weight.size(0)
    d_x = x.new_empty(_whole_blocks(rows), features) if wants[0] else None
    d_weight = x.new_empty(_whole_blocks(classes), features) if wants[1] else None
    d_bias = x.new_zeros(classes) if wants[2] else None
    held = [None if tensor is None else tensor.contiguous() for tensor in (x, weight, bias, targets, d_x, d_weight, d_bias)]
    numbers = (rows, features, classes, _whole_blocks(chunk), ignored, torch.get_num_threads(), INSTRUCTIONS.index(instructions()[-1]))
    call = _Head(*numbers, smoothing, *(None if tensor is None else tensor.data_ptr() for tensor in held))
    failed = library.charrnn_head(ctypes.byref(call), *openmp)
    if failed == 1:
        raise IndexError(f"a target lies outside 0..{classes - 1}")
    if failed:
        raise MemoryError(f"no memory for a head of {classes} classes over {features} features")
    sums = SoftmaxSums(call.nats, call.others, call.correct, call.count)
    return Head(sums, None if d_x is None else d_x[:rows], None if d_weight is None else d_weight[:classes], d_bias)


def _whole_blocks(count: int) -> int:
    return -(-count // BLOCK) * BLOCK


class AdamTensor(NamedTuple):
    """All of one size and lie in memory alike, without gaps, in float32 on the CPU."""

    weights: Tensor
    gradients: Tensor
    means: Tensor
    squares: Tensor
    averages: Tensor | None
    step: Tensor  # scalar
    weight_decay: float


def has_adam(tensors: Sequence[AdamTensor]) -> bool:
    """Whether adam_ can take these."""
    return bool(instructions()) and all(_fits(tensor) for tensor in tensors)


def _fits(of: AdamTensor) -> bool:
    weights, strides = of.weights, of.weights.stride()
    if not (weights.is_contiguous() or weights.is_contiguous(memory_format=torch.channels_last)) or weights.device.type != "cpu":
        return False
    others = (of.gradients, of.means, of.squares, *(() if of.averages is None else (of.averages,)))
    return weights.dtype == of.step.dtype == torch.float32 and all(
        other.layout == torch.strided and other.dtype == torch.float32 and other.stride() == strides for other in others
    )


def adam_(
    tensors: Sequence[AdamTensor],
    *,
    rate: float,
    betas: tuple[float, float],
    epsilon: float,
    decoupled: bool,
    scale: float,
    max_norm: float,
    follow: float,
) -> float:
    """One step of Adam in place: gradients are read twice, for the norm of all together and for the step, all else once.

    The gradients count `scale` times, and then as much less as it takes for a norm of at most `max_norm`; they are left as they are.
    The averages go the share `follow` of the way to the new weights. Returns the norm before it was cut, NaN where a gradient is.
    """
    library, openmp = _library()
    described = (_AdamTensor * len(tensors))(*(_described(tensor) for tensor in tensors))
    call = _Adam(
        count=len(tensors),
        decoupled=decoupled,
        threads=torch.get_num_threads(),
        instructions=INSTRUCTIONS.index(instructions()[-1]),
        rate=rate,
        beta1=betas[0],
        beta2=betas[1],
        epsilon=epsilon,
        max_norm=max_norm,
        follow=follow,
        scale=scale,
        tensors=described,
    )
    library.charrnn_adam(ctypes.byref(call), *openmp)
    return float(call.norm)


def _described(of: AdamTensor) -> _AdamTensor:
    averages = None if of.averages is None else of.averages.data_ptr()
    pointers = (of.weights.data_ptr(), of.gradients.data_ptr(), of.means.data_ptr(), of.squares.data_ptr(), averages, of.step.data_ptr())
    return _AdamTensor(*pointers, of.weights.numel(), of.weight_decay)
