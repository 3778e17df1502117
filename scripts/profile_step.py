#!/usr/bin/env python3
"""Where the time of a training step goes: milliseconds by part, medians over steps. Takes the shapes of bench_training.py.

The trainer itself is run, with a clock around each of its parts; what no part covers is shown as the rest. Prints one markdown table.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from bench_training import CELLS, SHAPES, Clock, random_text, settings

from charrnn import cuda_graph
from charrnn.device import keep_freed_memory
from charrnn.layers.recurrent import RecurrentStack
from charrnn.models.char_rnn import CharRNN
from charrnn.ops.backends import BACKENDS
from charrnn.run_directory import RunDirectory
from charrnn.tasks import lm, load_task
from charrnn.training import Trainer

# Each part, and the one around it, from which its time is taken.
PARTS: list[tuple[str, Any, str, str]] = [
    ("the rest: Python between the parts", Trainer, "step", ""),
    ("data", Trainer, "_next_window", "the rest: Python between the parts"),
    ("embedding, dropout", CharRNN, "features", "the rest: Python between the parts"),
    ("recurrence forward", RecurrentStack, "forward", "embedding, dropout"),
    ("head and loss with their gradients", lm, "cross_entropy_of", "the rest: Python between the parts"),
    ("backward through recurrence and embedding", torch.autograd, "grad", "the rest: Python between the parts"),
    ("clipping, Adam, average", cuda_graph, "advance", "the rest: Python between the parts"),
    ("look at the loss", Trainer, "look", ""),
]


def timed(owner: Any, name: str, taken: list[float]) -> None:
    """Have a function add what each of its calls takes to `taken`, in milliseconds."""
    function: Callable[..., Any] = getattr(owner, name)

    def run(*args: Any, **named: Any) -> Any:
        started = time.perf_counter()
        result = function(*args, **named)
        taken.append(1e3 * (time.perf_counter() - started))
        return result

    setattr(owner, name, run)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--text", help="file to train on; random characters otherwise")
    parser.add_argument("--cell", choices=CELLS, default="lstm")
    parser.add_argument("--embedding", type=int, default=64)
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--backend", choices=("auto", *BACKENDS), default="native")
    parser.add_argument("--precision", choices=["auto", "fp32", "bf16"], default="auto")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--steps", type=int, default=100)
    args = parser.parse_args()
    args.device, args.seconds = "cpu", 3600
    torch.set_num_threads(args.threads)
    keep_freed_memory()  # as training does

    found: dict[str, list[float]] = {part: [] for part, *_ in PARTS}
    for part, owner, name, _ in PARTS:
        timed(owner, name, found[part])
    shape = SHAPES[args.shape]
    with tempfile.TemporaryDirectory() as directory:
        text = args.text or str(random_text(Path(directory) / "text.txt", shape.vocabulary))
        config = settings(args, shape, {"path": text, "cache": directory}, directory)
        task = load_task(config.model_copy(update={"model": config.model.model_copy(update={"backend": args.backend})}))
        trainer = Trainer(task, RunDirectory(Path(config.run)), Clock(), torch.device("cpu"))
        with trainer.shards:
            for step in range(10 + args.steps):
                if step == 10:  # warm
                    for taken in found.values():
                        taken.clear()
                trainer.step()
                trainer.look()
    inner = {part: [found[other] for other, _, _, around in PARTS if around == part] for part in found}
    # A part's own time in each step, and of that the median: what interrupts a step falls into one of its parts.
    own = {part: statistics.median(t - sum(others) for t, *others in zip(found[part], *inner[part])) for part in found}
    total = sum(own.values())
    print(f"torch {torch.__version__}, {args.threads} threads, {args.backend}; {args.cell} {shape}, vocabulary {len(task.vocabulary):,}")
    print("| part | ms | share |")
    print("| --- | --- | --- |")
    for part in [*(part for part, *_ in PARTS[1:]), PARTS[0][0]]:
        print(f"| {part} | {own[part]:.2f} | {own[part] / total:.0%} |")
    print(f"| a step | {total:.2f} | |")


if __name__ == "__main__":
    main()
