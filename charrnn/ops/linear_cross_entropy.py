"""A linear head and its cross-entropy in one, over chunks of rows: the logits of many classes are never whole in memory.

A row of logits is needed for its softmax and its gradient, and then no more. So the gradients are taken in the forward pass, chunk by
chunk, in the memory that held the logits, and wait for backward to scale them: Hsu et al. 2024, Liger Kernel, §3.2; Wijmans et al. 2024,
Cut Your Losses in Large-Vocabulary Language Models, who keep the logits out of memory altogether and multiply once more for it.

Axes: N rows, W features of a row, K classes, R rows of a chunk.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from charrnn.ops.step import SoftmaxSums, has_head, has_softmax, head, softmax_

# Rows of a chunk: each chunk reads and writes the weight's gradient once more, which costs as much whatever its rows. Measured, with what
# others cost: docs/performance.md, "A training step by part".
CHUNK_ROWS = 512
CHUNK_LOGITS = 1 << 20  # with few classes a chunk has more rows


class CrossEntropy(NamedTuple):
    """Sums over the rows that have a target."""

    loss: Tensor  # scalar, to differentiate: of smoothed targets where that was asked for
    nats: Tensor  # scalar, detached: of the targets as they are
    correct: Tensor  # scalar int64: rows whose target is the most probable class
    asked: Tensor  # scalar int64: rows with a target


def linear_cross_entropy(
    x: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, *, ignore_index: int = -1, label_smoothing: float = 0.0
) -> CrossEntropy:
    """F.cross_entropy(F.linear(x, weight, bias), targets, reduction="sum"), and how many rows are right.

    x (N, W), weight (K, W), bias (K,) or None, targets (N,) int64 in 0..K-1 or `ignore_index`.

    Under autocast the products, the logits and their gradients are of its dtype, softmax and sums are not. The loss is float32, of
    float64 rows float64; on the CPU `nats` is float64, elsewhere float32. Gradients flow from `loss` to x, weight and bias; where none
    is needed none is computed.

    Raises IndexError (on a GPU what PyTorch does) for a target that is no class, ValueError for shapes that do not fit, and RuntimeError
    where the gradient is to be differentiated again.
    """
    if x.dim() != 2 or weight.dim() != 2 or x.size(1) != weight.size(1) or targets.shape != x.shape[:1]:
        shapes = f"x {tuple(x.shape)}, weight {tuple(weight.shape)}, targets {tuple(targets.shape)}"
        raise ValueError(f"{shapes}; expected (N, W), (K, W) and (N,)")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias has shape {tuple(bias.shape)}; expected {tuple(weight.shape[:1])}")
    if targets.dtype != torch.int64:
        raise ValueError(f"targets are {targets.dtype}; expected torch.int64")
    if bias is not None and bias.dtype != weight.dtype:
        raise ValueError(f"bias is {bias.dtype}; expected the weight's {weight.dtype}")
    kind = x.device.type
    product = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) and x.dtype != torch.float64 else x.dtype
    if product == torch.float16:  # gradients that no scale has lifted yet would fall below its smallest numbers
        return _whole(x, weight, bias, targets, ignore_index, label_smoothing)
    wanted = torch.is_grad_enabled()  # inside of the function it never is
    return CrossEntropy(*_Chunked.apply(x, weight, bias, targets, ignore_index, label_smoothing, product, wanted))  # type: ignore[no-untyped-call]


def _whole(x: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, ignore_index: int, label_smoothing: float) -> CrossEntropy:
    logits = F.linear(x, weight, bias).float()  # (N, K)
    loss = F.cross_entropy(logits, targets, ignore_index=ignore_index, reduction="sum", label_smoothing=label_smoothing)
    with torch.no_grad():
        nats = F.cross_entropy(logits, targets, ignore_index=ignore_index, reduction="sum") if label_smoothing else loss.detach()
        asked = targets != ignore_index
        return CrossEntropy(loss, nats, ((logits.argmax(-1) == targets) & asked).sum(), asked.sum())


def chunks(rows: int, classes: int) -> list[slice]:
    """Of like size, none of more rows than fit."""
    most = max(CHUNK_ROWS, CHUNK_LOGITS // classes)
    count = -(-rows // most)
    return [slice(rows * k // count, rows * (k + 1) // count) for k in range(count)]


def logits_at_once(rows: int, classes: int) -> int:
    """How many logits are in memory at most."""
    return max((classes * (some.stop - some.start) for some in chunks(rows, classes)), default=0)


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        ignore_index: int,
        smoothing: float,
        product: torch.dtype,
        wanted: bool,
    ) -> tuple[Tensor, ...]:
        wants: tuple[bool, bool, bool] = tuple(wanted and needs for needs in ctx.needs_input_grad[:3])  # type: ignore[assignment]
        with torch.autocast(x.device.type, enabled=False):
            compute = _in_tiles if has_head(x, weight, product) else _by_torch
            sums, *gradients = compute(x, weight, bias, targets, ignore_index, smoothing, product, wants)
        ctx.save_for_backward(*gradients)
        ctx.mark_non_differentiable(*sums[1:])
        return sums

    @staticmethod
    def backward(ctx: Any, d_loss: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # create_graph: what was computed forward does not know what it depends on
            raise RuntimeError("linear_cross_entropy cannot be differentiated twice; use F.linear and F.cross_entropy")
        found = ctx.saved_tensors
        if d_loss.device.type != "cpu" or float(d_loss) != 1.0:
            found = tuple(None if gradient is None else gradient * d_loss.to(gradient.dtype) for gradient in found)
        return *found, None, None, None, None, None


Found = tuple[tuple[Tensor, ...], Tensor | None, Tensor | None, Tensor | None]  # the sums of CrossEntropy; gradients of x, weight, bias
Wants = tuple[bool, bool, bool]  # which of the gradients


def _in_tiles(
    x: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, ignore_index: int, smoothing: float, product: torch.dtype, wants: Wants
) -> Found:
    """All of it in C++."""
    rows = logits_at_once(x.size(0), weight.size(0)) // weight.size(0)
    found = head(x, weight, bias, targets, chunk=rows, ignored=ignore_index, smoothing=smoothing, wants=wants)
    return _tensors(found.sums, smoothing), found.d_x, found.d_weight, found.d_bias


def _by_torch(
    x: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, ignore_index: int, smoothing: float, product: torch.dtype, wants: Wants
) -> Found:
    """The products are PyTorch's; what is between them is C++ where that can be."""
    d_x = torch.empty_like(x, memory_format=torch.contiguous_format) if wants[0] else None
    d_weight: Tensor | None = None
    sums = _Native(weight, bias, product) if has_softmax(product, x.device) else _Torch(x, bias, product)
    matrix = weight.to(product)
    for some in chunks(x.size(0), weight.size(0)):
        rows = x[some].to(product)  # (R, W)
        d_logits = sums.take(rows, matrix, targets[some], ignore_index, smoothing, any(wants))  # (R, K)
        if d_x is not None and d_x.dtype == product:
            torch.mm(d_logits, matrix, out=d_x[some])
        elif d_x is not None:
            d_x[some] = d_logits @ matrix
        if wants[1]:
            part = d_logits.t() @ rows  # (K, W)
            d_weight = part.to(weight.dtype) if d_weight is None else d_weight.add_(part)
    if wants[1] and d_weight is None:  # there was no row
        d_weight = torch.zeros_like(weight)
    return sums.found(smoothing), d_x, d_weight, sums.d_bias if wants[2] else None


def _tensors(sums: SoftmaxSums, smoothing: float) -> tuple[Tensor, ...]:
    loss = torch.tensor(sums.nats + smoothing * sums.others)
    return loss, torch.tensor(sums.nats, dtype=torch.float64), torch.tensor(sums.correct), torch.tensor(sums.asked)


class _Native:
    """The sums, and a chunk's pass over its logits, in C++. The logits of all chunks take turns in one piece of memory."""

    def __init__(self, weight: Tensor, bias: Tensor | None, product: torch.dtype) -> None:
        self._bias = None if bias is None else bias.float().contiguous()
        self.d_bias = None if self._bias is None else torch.zeros_like(self._bias)
        self._logits = torch.empty(0, dtype=product)
        self._sums = SoftmaxSums(0.0, 0.0, 0, 0)

    def take(self, rows: Tensor, matrix: Tensor, targets: Tensor, ignore_index: int, smoothing: float, gradient: bool) -> Tensor:
        size = rows.size(0) * matrix.size(0)
        if self._logits.numel() < size:
            self._logits = self._logits.new_empty(size)
        logits = torch.mm(rows, matrix.t(), out=self._logits[:size].view(rows.size(0), matrix.size(0)))  # (R, K)
        self._sums = self._sums + softmax_(
            logits,
            self._bias,
            targets.contiguous(),
            ignored=ignore_index,
            smoothing=smoothing,
            d_bias=self.d_bias if gradient else None,
            gradient=gradient,
        )
        return logits

    def found(self, smoothing: float) -> tuple[Tensor, ...]:
        return _tensors(self._sums, smoothing)


class _Torch:
    """The same in PyTorch's operations, for every device and dtype."""

    def __init__(self, x: Tensor, bias: Tensor | None, product: torch.dtype) -> None:
        self._bias = None if bias is None else bias.to(product)
        self._real = torch.float32 if product == torch.bfloat16 else product
        self.d_bias = None if bias is None else torch.zeros_like(bias)
        total = torch.float64 if x.device.type == "cpu" else torch.float32
        self._nats = torch.zeros((), dtype=total, device=x.device)
        self._others, self._correct, self._count = torch.zeros_like(self._nats), *torch.zeros(2, dtype=torch.int64, device=x.device)

    def take(self, rows: Tensor, matrix: Tensor, targets: Tensor, ignore_index: int, smoothing: float, gradient: bool) -> Tensor:
        logits = F.linear(rows, matrix, self._bias).to(self._real)  # (R, K)
        asked = (targets != ignore_index).unsqueeze(-1)  # (R, 1)
        right = targets.unsqueeze(-1).where(asked, 0)
        if right.device.type == "cpu" and bool(((right < 0) | (right >= logits.size(1))).any()):
            raise IndexError(f"a target lies outside 0..{logits.size(1) - 1}")
        self._correct = self._correct + ((logits.argmax(-1, keepdim=True) == right) & asked).sum()
        self._count = self._count + asked.sum()
        costs = logits.log_softmax(-1).neg_()
        own = costs.gather(-1, right).where(asked, 0)
        self._nats = self._nats + own.sum(dtype=self._nats.dtype)
        if smoothing:
            self._others = self._others + (costs.mean(-1, keepdim=True).where(asked, 0) - own).sum(dtype=self._nats.dtype)
        if not gradient:
            return logits
        d_logits = costs.neg_().exp_().sub_(smoothing / logits.size(1))
        d_logits.scatter_add_(-1, right, torch.full_like(own, smoothing - 1)).mul_(asked)
        if self.d_bias is not None:
            self.d_bias += d_logits.sum(0)
        return d_logits.to(rows.dtype)

    def found(self, smoothing: float) -> tuple[Tensor, ...]:
        loss = self._nats + smoothing * self._others
        return loss.to(self._real), self._nats, self._correct, self._count
