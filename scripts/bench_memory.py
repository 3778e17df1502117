#!/usr/bin/env python3
"""Peak memory of training steps: charrnn against a plain PyTorch loop of the same shape, each in a process of its own. Linux only.

What is measured is the highest resident memory of some steps, less what the process held before the first of them: text and weights. So
it counts what is kept from forward to backward, logits, gradients and the optimizer's moments. Prints one markdown table.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from bench_training import CELLS, Clock, Shape, random_text, settings, stock_steps

from charrnn.config import Config
from charrnn.data.corpus import load_corpus
from charrnn.device import keep_freed_memory, resolve_precision
from charrnn.ops.backends import BACKENDS
from charrnn.run_directory import RunDirectory
from charrnn.tasks import load_task
from charrnn.training import Trainer

STEPS = 4


def our_steps(config: Config, backend: str) -> Iterator[None]:
    keep_freed_memory()  # as training does
    task = load_task(config.model_copy(update={"model": config.model.model_copy(update={"backend": backend})}))
    trainer = Trainer(task, RunDirectory(Path(config.run)), Clock(), torch.device("cpu"))
    yield
    with trainer.shards:
        while True:
            trainer.step()
            trainer.look()
            yield


def memory(name: str) -> int:
    """VmRSS or VmHWM of this process, in bytes."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return 1024 * int(line.split()[1])


def measure(config: Config, who: str) -> int:
    """Bytes that the steps of one contestant take at the most."""
    kind, name = who.split()
    device = torch.device("cpu")
    stock = kind == "stock"
    steps = stock_steps(config, device, torch.bfloat16 if name == "bf16" else torch.float32) if stock else our_steps(config, name)
    next(steps)
    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the highest is now what is held now
    for _ in range(STEPS):
        next(steps)
    return memory("VmHWM") - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--window", type=int, default=128)
    parser.add_argument("--vocabulary", type=int, default=6000, help="characters of the random text")
    parser.add_argument("--text", help="file to train on instead")
    parser.add_argument("--cell", choices=CELLS, default="lstm")
    parser.add_argument("--embedding", type=int, default=64)
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--backend", choices=("auto", *BACKENDS), nargs="+", default=["auto", "native"])
    parser.add_argument("--precision", choices=["auto", "fp32", "bf16"], default="auto")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--only", help=argparse.SUPPRESS)  # whom this process measures
    args = parser.parse_args()
    args.device, args.seconds = "cpu", 60
    torch.set_num_threads(args.threads)

    shape = Shape(args.layers, args.hidden, args.batch, args.window, args.vocabulary)
    precision = resolve_precision(args.precision, torch.device("cpu"))
    with tempfile.TemporaryDirectory() as directory:
        text = args.text or str(random_text(Path(directory) / "text.txt", shape.vocabulary))
        config = settings(args, shape, {"path": text, "cache": directory}, directory)
        if args.only:
            print(measure(config, args.only))
            return
        peers = ["stock fp32", *(["stock bf16"] if precision == torch.bfloat16 else [])]
        ours = [f"charrnn {backend}" for backend in args.backend]
        found: dict[str, int] = {}
        for who in (*peers, *ours):
            done = subprocess.run([sys.executable, *sys.argv, "--only", who], stdout=subprocess.PIPE, text=True, check=True)
            found[who] = int(done.stdout)
        vocabulary = len(load_corpus(config.data, config.seed).vocabulary)
    least = min(found[who] for who in peers)
    name = str(precision).removeprefix("torch.")
    print(f"torch {torch.__version__}, {args.threads} threads, charrnn in {name}; MiB of {args.cell} {shape}, vocabulary {vocabulary:,}")
    print("| " + " | ".join(found) + " | " + " | ".join(f"{who} / least stock" for who in ours) + " |")
    print("| --- " * (len(found) + len(ours)) + "|")
    figures = [f"{found[who] / 2**20:,.0f}" for who in found] + [f"{found[who] / least:.2f}" for who in ours]
    print("| " + " | ".join(figures) + " |")


if __name__ == "__main__":
    main()
