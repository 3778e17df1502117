#!/usr/bin/env python3
"""Characters per second in training: charrnn against a plain PyTorch loop of the same shapes, run in turn.

The machine's speed drifts, so the two alternate, round by round, and medians are compared. Both read the same text with
the same model, optimizer, clipping, precision and carried state. Prints one markdown table.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from charrnn.config import Config, build_config
from charrnn.data.corpus import load_corpus
from charrnn.device import resolve_device, resolve_precision
from charrnn.training import Outcome, StepReport, train

CELLS = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn_tanh": nn.RNN}


class Stock(nn.Module):
    """What a careful user writes: torch's layers, one after the other."""

    def __init__(self, config: Config, vocabulary_size: int) -> None:
        super().__init__()
        shape = config.model
        self.embedding = nn.Embedding(vocabulary_size, shape.embedding_size)
        self.recurrent = CELLS[shape.cell](
            shape.embedding_size, shape.hidden_size, shape.num_layers, dropout=shape.dropout.between_layers if shape.num_layers > 1 else 0.0
        )
        self.dropout = nn.Dropout(shape.dropout.output)
        self.head = nn.Linear(shape.hidden_size, vocabulary_size)

    def forward(self, x, state):
        outputs, state = self.recurrent(self.embedding(x), state)
        return self.head(self.dropout(outputs)), state


def stock_rate(config: Config, seconds: float, device: torch.device, precision: torch.dtype) -> float:
    """Characters per second of the plain loop, after a tenth of the time to warm up."""
    corpus, settings = load_corpus(config.data, config.seed), config.train
    length = (len(corpus.split("train")) - 1) // settings.batch_size
    ids = torch.from_numpy(np.asarray(corpus.split("train")[: length * settings.batch_size]).astype(np.int64))
    text = ids.view(settings.batch_size, length).t().contiguous().to(device)  # (time, batch)
    torch.manual_seed(config.seed)
    model = Stock(config, len(corpus.vocabulary)).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, betas=(0.9, 0.99), weight_decay=0.0, fused=True)
    position, state, steps, started, counting = 0, None, 0, time.perf_counter(), False
    began = started
    while time.perf_counter() - began < seconds:
        if not counting and time.perf_counter() - began > seconds / 10:
            _wait(device)
            started, steps, counting = time.perf_counter(), 0, True
        if position + settings.tbptt_window + 1 > length:
            position, state = 0, None
        x = text[position : position + settings.tbptt_window]
        y = text[position + 1 : position + settings.tbptt_window + 1]
        position += settings.tbptt_window
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == torch.bfloat16):
            logits, state = model(x, state)
        state = tuple(s.detach() for s in state) if isinstance(state, tuple) else state.detach()
        loss = F.cross_entropy(logits.flatten(0, 1).float(), y.flatten())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), settings.max_grad_norm)
        optimizer.step()
        steps += 1
    _wait(device)
    return steps * settings.batch_size * settings.tbptt_window / (time.perf_counter() - started)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


class Rates:
    """A Reporter that keeps the pace of each report and is silent."""

    def __init__(self) -> None:
        self.found: list[float] = []

    def note(self, text: str) -> None: ...
    def warn(self, text: str) -> None: ...
    def encoding(self, done: int, total: int) -> None: ...
    def stepped(self, step: int, progress: float) -> None: ...
    def evaluated(self, metrics: dict[str, float], sample: str, is_best: bool) -> None: ...
    def done(self, outcome: Outcome) -> None: ...

    def step(self, report: StepReport) -> None:
        self.found.append(report.chars_per_second)


def our_rate(config: Config) -> float:
    """Characters per second of charrnn's own training, its first tenth left out."""
    rates = Rates()
    train(config, overwrite=True, reporter=rates)
    return statistics.mean(rates.found[len(rates.found) // 10 :])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text", help="file to train on; the running Python's standard library by default")
    parser.add_argument("--cell", choices=CELLS, default="lstm")
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--embedding", type=int, default=64)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--window", type=int, default=128)
    parser.add_argument("--dropout", type=float, default=0.4)
    parser.add_argument("--precision", choices=["auto", "fp32", "bf16"], default="auto")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seconds", type=float, default=20, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()

    data = {"path": args.text} if args.text else {"source": "python-stdlib"}
    device = resolve_device(args.device)
    precision = resolve_precision(args.precision, device)
    with tempfile.TemporaryDirectory() as directory:
        config = build_config(
            {
                "run": str(Path(directory) / "run"),
                "device": str(device),
                "data": {**data, "val_fraction": 0.001},
                "model": {
                    "cell": args.cell,
                    "embedding_size": args.embedding,
                    "hidden_size": args.hidden,
                    "num_layers": args.layers,
                    "dropout": {"output": args.dropout, "between_layers": args.dropout if args.layers > 1 else 0.0},
                },
                "train": {
                    "batch_size": args.batch,
                    "tbptt_window": args.window,
                    "max_minutes": args.seconds / 60,
                    "precision": args.precision,
                    "evaluate_every": 10**9,
                    "save_every": 10**9,
                    "log_every": 10,
                },
            },
            "bench_training",
        )
        load_corpus(config.data, config.seed)  # encoded before the clock starts
        ours, stock = [], []
        for _ in range(args.rounds):
            stock.append(stock_rate(config, args.seconds, device, precision))
            ours.append(our_rate(config))
    shape = f"{args.cell} {args.layers}×{args.hidden}, batch {args.batch}, window {args.window}"
    name = str(precision).removeprefix("torch.")
    print("| model | device | precision | stock chars/s | charrnn chars/s | ratio of medians | ratios by round |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    ratio = statistics.median(ours) / statistics.median(stock)
    by_round = ", ".join(f"{a / b:.2f}" for a, b in zip(ours, stock))
    print(f"| {shape} | {device} | {name} | {statistics.median(stock):,.0f} | {statistics.median(ours):,.0f} | {ratio:.2f} | {by_round} |")


if __name__ == "__main__":
    main()
