#!/usr/bin/env python3
"""Characters a second that a model writes: charrnn's native engine, in float32 and in int8, against the usual loop over torch.nn.

The usual loop gives one character at a time to nn.LSTM (nn.GRU, nn.RNN), divides the logits by the temperature, and draws by softmax and
multinomial; its figure is the better one of one thread and all. Each contestant runs in a process of its own, one after the other, round by
round, for the machine's speed drifts; medians and their ratios are printed, as one markdown table. Nothing is timed where
the engine's text is not PyTorch's, letter by letter, or int8 costs more than 0.01 bits per character. With --first, the seconds from
the shell to the first character are measured instead, of `charrnn sample` with the engine and with PyTorch.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

TEMPERATURE = 0.8
CHECKED = 300  # characters that have to be the same
COST = 0.01  # bits per character at most


class Shape(NamedTuple):
    vocabulary: int
    embedding: int
    hidden: int
    layers: int

    def __str__(self) -> str:
        return f"{self.layers}×{self.hidden}, V {self.vocabulary:,}"


SHAPES = {
    "2x128": Shape(65, 64, 128, 2),
    "2x256": Shape(65, 64, 256, 2),
    "2x512": Shape(65, 64, 512, 2),
    "3x512": Shape(65, 64, 512, 3),
    "2x512-6000": Shape(6000, 256, 512, 2),
}


def made(shape: Shape, cell: str, path: Path) -> None:
    """A model file of random weights."""
    import torch

    from charrnn.checkpoint import save_model
    from charrnn.config import build_config
    from charrnn.data.vocabulary import Vocabulary
    from charrnn.models.char_rnn import CharRNN

    sizes = {"cell": cell, "embedding_size": shape.embedding, "hidden_size": shape.hidden, "num_layers": shape.layers}
    config = build_config({"data": {"path": "none.txt"}, "model": sizes, "train": {"max_steps": 1}}, "bench")
    vocabulary = Vocabulary(("unknown",), "\n" + "".join(map(chr, range(0x4E00, 0x4E00 + shape.vocabulary - 2))))
    torch.manual_seed(0)
    save_model(path, CharRNN(config.model, len(vocabulary)), config, vocabulary, 0, {"val_nats_per_char": 0.0})


def text(model: Any, vocabulary: Any, length: int) -> str:
    from charrnn.generation import generate
    from charrnn.options import SamplingOptions

    return "".join(piece for (piece,) in generate(model, vocabulary, [], length=length, options=SamplingOptions(TEMPERATURE), generator=1))


def check(path: Path) -> float:
    """The cost of int8. Raises SystemExit where the engine does not write what PyTorch writes, or int8 costs too much."""
    from charrnn.checkpoint import build_model, load_model
    from charrnn.engine import NativeEngine, loss_of, open_language_model

    loaded, language = load_model(path), open_language_model(path)
    expected = text(build_model(loaded), loaded.vocabulary, CHECKED)
    if text(NativeEngine(language), language.vocabulary, CHECKED) != expected:
        raise SystemExit(f"{path}: the native engine writes another text than PyTorch; not timed")
    cost = loss_of(NativeEngine(language), NativeEngine(language, int8=True), language.vocabulary.encode(expected))
    if not cost <= COST:
        raise SystemExit(f"{path}: int8 costs {cost:.4f} bits per character; not timed")
    return cost


def engine_rate(path: Path, int8: bool, seconds: float) -> float:
    from charrnn.engine import NativeEngine, open_language_model
    from charrnn.generation import generate
    from charrnn.options import SamplingOptions

    language = open_language_model(path)
    engine = NativeEngine(language, int8=int8)
    pieces = generate(engine, language.vocabulary, [], length=1 << 62, options=SamplingOptions(TEMPERATURE), generator=1)
    until = time.perf_counter() + seconds / 4
    while time.perf_counter() < until:
        next(pieces)
    began, count = time.perf_counter(), 0
    while (now := time.perf_counter()) < began + seconds:
        count += len(next(pieces)[0])
    return count / (now - began)


def stock_rate(path: Path, seconds: float) -> float:
    import torch
    from torch import nn

    from charrnn.checkpoint import load_model

    loaded = load_model(path)
    sizes, size = loaded.config.model, len(loaded.vocabulary)
    kind = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn_tanh": nn.RNN}[sizes.cell]
    embed, rnn = nn.Embedding(size, sizes.embedding_size), kind(sizes.embedding_size, sizes.hidden_size, sizes.num_layers)
    head = nn.Linear(sizes.hidden_size, size)
    for name, module in (("embedding.", embed), ("recurrent.", rnn), ("head.", head)):
        module.load_state_dict({key.removeprefix(name): value for key, value in loaded.weights.items() if key.startswith(name)})

    @torch.inference_mode()
    def rate(seconds: float) -> float:
        state, char = None, torch.zeros(1, 1, dtype=torch.long)
        began, count = time.perf_counter(), 0
        while (now := time.perf_counter()) < began + seconds:
            y, state = rnn(embed(char), state)
            char = torch.multinomial((head(y[0]) / TEMPERATURE).softmax(-1), 1)
            count += 1
        return count / (now - began)

    rates = []
    for threads in sorted({1, torch.get_num_threads()}):
        torch.set_num_threads(threads)
        rate(seconds / 8)
        rates.append(rate(seconds / 2))
    return max(rates)


def first_character(path: Path, backend: str) -> float:
    """Seconds from the beginning of the process to its first character."""
    began = time.perf_counter()
    command = [sys.executable, "-m", "charrnn", "sample", str(path), "--backend", backend, "-n", "200", "--seed", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.read(1)
        seconds = time.perf_counter() - began
        process.stdout.read()
    return seconds


def apart(contestant: str, path: Path, seconds: float) -> float:
    """What a contestant does in a process of its own."""
    command = [sys.executable, __file__, "--alone", contestant, "--model", str(path), "--seconds", str(seconds)]
    return float(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", choices=SHAPES, nargs="+", default=list(SHAPES))
    parser.add_argument("--cells", choices=["lstm", "gru", "rnn_tanh"], nargs="+", default=["lstm"])
    parser.add_argument("--first", action="store_true", help="seconds to the first character")
    parser.add_argument("--seconds", type=float, default=2.0, help="that a contestant runs in a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--alone", choices=["stock", "fp32", "int8"], help="one contestant, of --model: its rate")
    parser.add_argument("--model", type=Path)
    args = parser.parse_args()
    if args.alone:
        print(
            stock_rate(args.model, args.seconds) if args.alone == "stock" else engine_rate(args.model, args.alone == "int8", args.seconds)
        )
        return

    import torch

    from charrnn.engine import instructions

    print(f"torch {torch.__version__}, {os.cpu_count()} cores, {instructions()[-1]}; medians of {args.rounds} rounds in turn")
    if args.first:
        print("| model | native, s | PyTorch, s |\n| --- | --- | --- |")
    else:
        print(
            "| model | stock, chars/s | native fp32 | native int8 | fp32 / stock | by round | int8 / fp32 | by round | int8 costs, bits |"
        )
        print("| --- " * 9 + "|")
    with tempfile.TemporaryDirectory() as directory:
        for (name, shape), cell in ((item, cell) for item in SHAPES.items() if item[0] in args.shapes for cell in args.cells):
            path = Path(directory) / f"{cell}-{name}.safetensors"
            made(shape, cell, path)
            cost = check(path)
            if args.first:
                taken: dict[str, list[float]] = {"native": [], "torch": []}
                for backend, _ in zip(cycle(taken), range(2 * args.rounds)):
                    taken[backend].append(first_character(path, backend))
                print(f"| {cell} {shape} | " + " | ".join(f"{statistics.median(of):.3f}" for of in taken.values()) + " |", flush=True)
                continue
            rates: dict[str, list[float]] = {"stock": [], "fp32": [], "int8": []}
            for contestant, _ in zip(cycle(rates), range(3 * args.rounds)):
                rates[contestant].append(apart(contestant, path, args.seconds))
            stock, fp32, int8 = (statistics.median(of) for of in rates.values())
            by_round = [", ".join(f"{a / b:.1f}" for a, b in zip(rates[x], rates[y])) for x, y in (("fp32", "stock"), ("int8", "fp32"))]
            figures = f"{stock:,.0f} | {fp32:,.0f} | {int8:,.0f} | {fp32 / stock:.1f} | {by_round[0]} | {int8 / fp32:.1f} | {by_round[1]}"
            print(f"| {cell} {shape} | {figures} | {cost:.4f} |", flush=True)


if __name__ == "__main__":
    main()
