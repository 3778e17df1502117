#!/usr/bin/env python3
"""What several processes of one thread each read in a second, against one: the same model, the same step, run in turn.

    python scripts/bench_scaling.py --hidden 512 --batch 64 --window 128

Each measurement is `charrnn train` itself, alone or under torchrun, and its figure the median of `chars_per_second` in
metrics.jsonl, without the first two reports. The text is made here: what it says does not matter for time.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import string
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
import yaml


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--cell", default="lstm")
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--batch", type=int, default=64, help="streams of a step, of all processes together")
    parser.add_argument("--window", type=int, default=128)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    wanted = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder) / "text.txt"
        draw = np.random.default_rng(0).integers(0, 64, wanted.batch * wanted.window * (wanted.steps + 4))
        text.write_text("".join((string.ascii_letters + string.digits + " \n")[k] for k in draw))
        found: dict[int, list[float]] = {1: [], wanted.processes: []}
        for round_ in range(wanted.rounds):
            for count in found:
                found[count].append(pace(Path(folder), text, wanted, count, f"{round_}-{count}"))
    one, several = (statistics.median(paces) for paces in found.values())
    ratios = ", ".join(f"{b / a:.2f}" for a, b in zip(*found.values()))
    print(f"torch {torch.__version__}, one thread a process, characters a second, medians of {wanted.rounds} runs in turn\n")
    print(f"| model | 1 process | {wanted.processes} processes | ratio | each |\n| --- | --- | --- | --- | --- |")
    shape = f"{wanted.cell} {wanted.layers}×{wanted.hidden}, batch {wanted.batch}, window {wanted.window}"
    print(f"| {shape} | {one:,.0f} | {several:,.0f} | {several / one:.2f} | {ratios} |")


def pace(folder: Path, text: Path, wanted: argparse.Namespace, count: int, name: str) -> float:
    run = folder / name
    config = {
        "run": str(run),
        "device": "cpu",
        "data": {"path": str(text), "val_fraction": 0, "cache": str(folder / "cache")},
        "model": {"cell": wanted.cell, "hidden_size": wanted.hidden, "num_layers": wanted.layers},
        "train": {
            "batch_size": wanted.batch, "tbptt_window": wanted.window, "max_steps": wanted.steps, "log_every": 4, "threads": 1,
            "evaluate_every": 10**6, "save_every": 10**6,
        },
    }  # fmt: skip
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(config))
    start = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"] if count > 1 else []
    command = [sys.executable, *start, "-m", "charrnn", "train", "--config", str(path)]
    ended = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    if ended.returncode:
        sys.exit(f"charrnn: error: {' '.join(command)} ended with {ended.returncode}:\n{ended.stderr}")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return statistics.median([line["chars_per_second"] for line in lines if "chars_per_second" in line][2:])


if __name__ == "__main__":
    main()
