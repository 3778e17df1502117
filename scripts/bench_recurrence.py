#!/usr/bin/env python3
"""Milliseconds forward and backward of recurrent layers: charrnn's backends against torch.nn's layers of the same shapes, run in turn.

All that are compared run once a round, one after the other, for the machine's speed drifts; medians and their ratios are printed, as one
markdown table. A backend is timed only where its outputs and gradients are those of the reference first. Where all sequences are
of one length the peers are torch.nn in float32 and under bfloat16 autocast. Where they are ragged a third is torch.nn on packed
sequences, which alone computes the same as charrnn; the other two run to the longest as if all were as long.

The last column, where all are of one length: the rate of the recurrence's products in bfloat16, over all the time it takes, as a share of
the rate at which the machine makes one large product of that type, 4H × 2H × 2,048, which runs in turn with the others.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from charrnn.device import keep_freed_memory
from charrnn.layers.recurrent import RecurrentStack
from charrnn.ops.backends import BACKENDS
from charrnn.ops.cells import CELLS
from charrnn.ops.timing import in_turn

STOCK = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn_tanh": nn.RNN}
EPS = {torch.float32: 1e-5, torch.bfloat16: 2.0**-7}


@dataclass(frozen=True)
class Shape:
    batch: int
    steps: int
    hidden: int
    layers: int = 1
    bidirectional: bool = False
    ragged: bool = False

    def __str__(self) -> str:
        kind = " both ways" * self.bidirectional + " ragged" * self.ragged
        return f"{self.layers}×{self.hidden}, batch {self.batch}, window {self.steps}{kind}"


SHAPES = {
    "layer": [Shape(50, 50, 128), Shape(64, 100, 128), Shape(32, 128, 256), Shape(64, 100, 256), Shape(32, 128, 512), Shape(64, 64, 512)],
    "ragged": [Shape(32, 64, 128, 2, True, True), Shape(32, 100, 256, 2, True, True)],
}


class Problem:
    """One shape's layers with the same weights on both sides, and the same input and cotangent for everybody."""

    def __init__(self, cell: str, shape: Shape) -> None:
        torch.manual_seed(0)
        self.shape = shape
        self.stock = STOCK[cell](shape.hidden, shape.hidden, shape.layers, bidirectional=shape.bidirectional)
        self.ours = RecurrentStack(cell, shape.hidden, shape.hidden, shape.layers, bidirectional=shape.bidirectional)
        self.ours.load_state_dict(self.stock.state_dict())
        self.x = torch.randn(shape.steps, shape.batch, shape.hidden, requires_grad=True)  # (T, B, I)
        self.d_outputs = torch.randn(shape.steps, shape.batch, self.ours.output_size)  # (T, B, D·H)
        self.lengths = torch.linspace(shape.steps, shape.steps // 2, shape.batch).long() if shape.ragged else None

    def charrnn(self, backend: str, dtype: torch.dtype) -> Callable[[], Tensor]:
        def run() -> Tensor:
            self.ours.backend = backend
            with _autocast(dtype):
                outputs, _ = self.ours(self.x, None, lengths=self.lengths, final_state=False)
            outputs.backward(self.d_outputs)
            return outputs.detach()

        return run

    def torch_nn(self, dtype: torch.dtype, packed: bool = False) -> Callable[[], Tensor]:
        def run() -> Tensor:
            with _autocast(dtype):
                if packed:
                    outputs, _ = pad_packed_sequence(self.stock(pack_padded_sequence(self.x, self.lengths))[0])
                else:
                    outputs, _ = self.stock(self.x)
            outputs.backward(self.d_outputs.to(outputs.dtype))
            return outputs.detach()

        return run

    def one_product(self) -> Callable[[], Tensor]:
        hidden = self.shape.hidden
        a, b = torch.randn(4 * hidden, 2 * hidden).bfloat16(), torch.randn(2 * hidden, 2048).bfloat16()
        return lambda: a @ b

    def share(self, seconds: float, of_product: float) -> float:
        """Of the product's rate: multiply-adds of x and of h, for the outputs, for the gradients of both, and for those of the weights."""
        shape = self.shape
        multiplied = 3 * shape.steps * shape.batch * CELLS[self.ours.cell].gates * shape.hidden * 2 * shape.hidden
        return multiplied / seconds / (4 * shape.hidden * 2 * shape.hidden * 2048 / of_product)

    def clear(self) -> None:
        self.x.grad = None
        self.stock.zero_grad(set_to_none=True)
        self.ours.zero_grad(set_to_none=True)

    def results(self, run: Callable[[], Tensor]) -> dict[str, Tensor]:
        self.clear()
        outputs = run()
        grads = {name: weight.grad for name, weight in self.ours.named_parameters()}
        return {"outputs": outputs, "x": self.x.grad, **grads}

    def check(self, backend: str, dtype: torch.dtype) -> None:
        """Raises SystemExit where the backend's results are not those of the reference in float32, up to rounding."""
        expected = self.results(self.charrnn("reference", torch.float32))
        for name, got in self.results(self.charrnn(backend, dtype)).items():
            # In the norm: of the largest element among millions rounding says little.
            error = ((got - expected[name]).norm() / expected[name].norm()).item()
            if not error <= 4 * EPS[dtype]:
                raise SystemExit(f"{backend} in {dtype}, {self.ours.cell} {self.shape}: {name} is off by {error:.1e}; not timed")


def _autocast(dtype: torch.dtype) -> contextlib.AbstractContextManager[object]:
    return torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", choices=SHAPES, nargs="+", default=list(SHAPES))
    parser.add_argument("--cells", choices=STOCK, nargs="+", default=list(STOCK))
    parser.add_argument("--backends", choices=BACKENDS, nargs="+", default=["native"])
    parser.add_argument("--hidden", type=int, nargs="+", help="only the shapes of so many units")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seconds", type=float, default=2.0, help="of each round")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--keep-memory", action="store_true", help="what is freed stays with the process, as in training; torch.nn's too")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.keep_memory:
        keep_freed_memory()

    names = [f"{backend} {kind}" for backend in args.backends for kind in ("fp32", "bf16")]
    print(f"torch {torch.__version__}, {args.threads} threads; milliseconds, medians of {args.rounds} rounds in turn")
    print("| cell, shape | stock fp32 | stock bf16 | packed | " + " | ".join(names) + " | best stock / best ours | by round | share |")
    print("| --- " * (7 + len(names)) + "|")
    for shape in (shape for kind in args.shapes for shape in SHAPES[kind] if not args.hidden or shape.hidden in args.hidden):
        for cell in args.cells:
            problem = Problem(cell, shape)
            contestants = {"stock fp32": problem.torch_nn(torch.float32), "stock bf16": problem.torch_nn(torch.bfloat16)}
            if shape.ragged:
                contestants["packed"] = problem.torch_nn(torch.float32, packed=True)
            else:
                contestants["product"] = problem.one_product()
            for backend in args.backends:
                for kind, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
                    problem.check(backend, dtype)
                    contestants[f"{backend} {kind}"] = problem.charrnn(backend, dtype)
            found = in_turn(contestants, args.seconds, args.rounds, problem.clear)
            medians = {name: statistics.median(of) for name, of in found.items()}
            stock = min((name for name in found if name not in (*names, "product")), key=medians.__getitem__)
            ours = min(names, key=medians.__getitem__)
            cells = [f"{medians[name]:.2f}" if name in medians else "" for name in ("stock fp32", "stock bf16", "packed", *names)]
            by_round = ", ".join(f"{a / b:.2f}" for a, b in zip(found[stock], found[ours]))
            bf16 = min(time for name, time in medians.items() if name.endswith(" bf16") and name in names)
            share = f"{problem.share(bf16, medians['product']):.2f}" if "product" in medians else ""
            print(
                f"| {cell} {shape} | " + " | ".join(cells) + f" | {medians[stock] / medians[ours]:.2f} | {by_round} | {share} |", flush=True
            )


if __name__ == "__main__":
    main()
