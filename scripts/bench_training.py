#!/usr/bin/env python3
"""Characters per second in training: charrnn against a plain PyTorch loop of the same shapes, run in turn.

The machine's speed drifts, so all alternate, round by round, and medians are compared. They read the same text with the same model,
optimizer, clipping and carried state. The plain loop runs in float32 and, where the processor multiplies bfloat16, under autocast too, and
the better of the two is the peer. A backend is timed only where the gradients of a step are those of the reference first; that a recorded
step (train.cuda_graph) is the step itself, training finds out before it uses one. Prints one markdown table.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from charrnn.config import Config, build_config
from charrnn.data.corpus import load_corpus
from charrnn.device import float32_products, resolve_device, resolve_precision
from charrnn.gradients import Shards
from charrnn.ops.backends import BACKENDS
from charrnn.tasks import load_task
from charrnn.training import Outcome, StepReport, train

CELLS = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn_tanh": nn.RNN}
EPS = {torch.float32: 1e-5, torch.bfloat16: 2.0**-7}


@dataclass(frozen=True)
class Shape:
    layers: int
    hidden: int
    batch: int
    window: int
    vocabulary: int  # of a text of random characters; no matter where another is given

    def __str__(self) -> str:
        return f"{self.layers}×{self.hidden}, batch {self.batch}, window {self.window}"


SHAPES = {
    "small": Shape(2, 128, 50, 50, 65),  # what char-rnn (Karpathy 2015) begins with
    "wide": Shape(1, 512, 32, 128, 65),
    "deep": Shape(2, 512, 32, 128, 65),
    "vocabulary": Shape(2, 512, 32, 128, 6000),
}


def random_text(path: Path, vocabulary: int, length: int = 1_000_000) -> Path:
    """Characters drawn alike from so many, the one for what is unknown counted: what a step costs does not hang on what it reads."""
    first = 33 if vocabulary < 90 else 0x4E00
    draw = random.Random(1)
    path.write_text("".join(draw.choices([chr(first + i) for i in range(vocabulary - 1)], k=length)), encoding="utf-8")
    return path


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


def stock_steps(config: Config, device: torch.device, precision: torch.dtype) -> Iterator[None]:
    """The plain loop: text and model when it is asked first, then a step each time."""
    corpus, settings = load_corpus(config.data, config.seed), config.train
    length = (len(corpus.split("train")) - 1) // settings.batch_size
    ids = torch.from_numpy(np.asarray(corpus.split("train")[: length * settings.batch_size]).astype(np.int64))
    text = ids.view(settings.batch_size, length).t().contiguous().to(device)  # (time, batch)
    torch.manual_seed(config.seed)
    model = Stock(config, len(corpus.vocabulary)).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, betas=(0.9, 0.99), weight_decay=0.0, fused=True)
    position, state = 0, None
    yield
    while True:
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
        yield


def stock_rate(config: Config, seconds: float, device: torch.device, precision: torch.dtype) -> float:
    """Characters per second of the plain loop, after a tenth of the time to warm up."""
    steps, settings = stock_steps(config, device, precision), config.train
    began = time.perf_counter()
    while time.perf_counter() - began < seconds / 10:
        next(steps)
    _wait(device)
    started, count = time.perf_counter(), 0
    while count == 0 or time.perf_counter() - began < seconds:
        next(steps)
        count += 1
    _wait(device)
    return count * settings.batch_size * settings.tbptt_window / (time.perf_counter() - started)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


class Clock:
    """A Reporter that keeps the time of each step and of each report, and the warnings, and is otherwise silent."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.reported: list[tuple[float, int]] = []  # when, and how many characters had been read
        self.warnings: list[str] = []

    def note(self, text: str) -> None: ...
    def encoding(self, done: int, total: int) -> None: ...
    def evaluated(self, metrics: dict[str, float], sample: str, is_best: bool) -> None: ...
    def done(self, outcome: Outcome) -> None: ...

    def warn(self, text: str) -> None:
        self.warnings.append(text)

    def stepped(self, step: int, progress: float) -> None:
        self.times.append(time.perf_counter())

    def step(self, report: StepReport) -> None:
        self.reported.append((time.perf_counter(), report.chars))


def our_rate(config: Config) -> float:
    """Characters per second of charrnn's own training, all that its loop does between steps included; its first tenth left out.

    Raises SystemExit where a recorded step was refused: the figure would be that of another program.
    """
    clock = Clock()
    train(config, overwrite=True, reporter=clock)
    if refused := [warning for warning in clock.warnings if warning.startswith("train.cuda_graph")]:
        raise SystemExit(refused[0])
    if resolve_device(config.device).type == "cuda":  # there a step is over when it is reported, not when it has been asked for
        if len(clock.reported) < 10:
            raise SystemExit(f"{config.train.max_minutes * 60:.0f} seconds are {len(clock.reported)} reports; raise --seconds")
        (began, before), (ended, chars) = clock.reported[len(clock.reported) // 10], clock.reported[-1]
        return (chars - before) / (ended - began)
    counted = clock.times[len(clock.times) // 10 :]
    return (len(counted) - 1) * config.train.batch_size * config.train.tbptt_window / (counted[-1] - counted[0])


def check(config: Config, backend: str, device: torch.device, precision: torch.dtype) -> None:
    """Raises SystemExit where the gradients of a step are not those of the reference in float32, up to rounding."""

    def gradients(name: str, dtype: torch.dtype) -> list[torch.Tensor]:
        task = load_task(config.model_copy(update={"model": config.model.model_copy(update={"backend": name})}))
        scaler = torch.amp.GradScaler(device.type, enabled=False)
        model = task.model().to(device).train()
        products = float32_products(device, tf32=False)
        with products, Shards(task, model, 1, precision=dtype, label_smoothing=0.0, scaler=scaler, seed=1) as shards:
            return shards.gradients([next(task.batches("train"))])[0]

    names = [name for name, parameter in load_task(config).model().named_parameters() if parameter.requires_grad]
    for name, got, expected in zip(names, gradients(backend, precision), gradients("reference", torch.float32)):
        error = ((got - expected).norm() / expected.norm()).item()
        if not error <= 8 * EPS[precision]:
            raise SystemExit(f"{backend} in {precision}, {config.model.cell}: the gradient of {name} is off by {error:.1e}; not timed")


def settings(args: argparse.Namespace, shape: Shape, data: dict[str, Any], directory: str) -> Config:
    between = args.dropout if shape.layers > 1 else 0.0
    return build_config(
        {
            "run": str(Path(directory) / "run"),
            "device": args.device,
            "data": {**data, "val_fraction": 0.001},
            "model": {
                "cell": args.cell,
                "embedding_size": args.embedding,
                "hidden_size": shape.hidden,
                "num_layers": shape.layers,
                "dropout": {"output": args.dropout, "between_layers": between},
            },
            "train": {
                "batch_size": shape.batch,
                "tbptt_window": shape.window,
                "max_minutes": args.seconds / 60,
                "precision": args.precision,
                "threads": args.threads,
                "evaluate_every": 10**9,
                "save_every": 10**9,
            },
        },
        "bench_training",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", choices=SHAPES, nargs="+", help="instead of the next four: " + "; ".join(map(str, SHAPES.values())))
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--window", type=int, default=128)
    parser.add_argument("--vocabulary", type=int, default=65, help="characters of the random text")
    parser.add_argument("--text", help="file to train on instead")
    parser.add_argument("--cell", choices=CELLS, default="lstm")
    parser.add_argument("--embedding", type=int, default=64)
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--backend", choices=("auto", *BACKENDS), nargs="+", help="auto, and on a CPU native too")
    parser.add_argument("--cuda-graph", choices=["auto", "false"], nargs="+", default=["auto"], help="settings of train.cuda_graph")
    parser.add_argument("--precision", choices=["auto", "fp32", "bf16"], default="auto")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seconds", type=float, default=10, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device = resolve_device(args.device)
    args.device, args.backend = str(device), args.backend or ["auto", *(["native"] if device.type == "cpu" else [])]
    precision = resolve_precision(args.precision, device)
    peers = {"stock fp32": torch.float32} | ({"stock bf16": torch.bfloat16} if precision == torch.bfloat16 else {})
    shapes = (
        [SHAPES[name] for name in args.shapes]
        if args.shapes
        else [Shape(args.layers, args.hidden, args.batch, args.window, args.vocabulary)]
    )

    name = str(precision).removeprefix("torch.")
    print(f"torch {torch.__version__}, {device}, {args.threads} threads, {name}; characters a second, medians of {args.rounds} rounds")
    kinds = {
        f"charrnn {backend}" + (f", cuda_graph {graph}" if len(args.cuda_graph) > 1 else ""): (backend, graph)
        for backend in args.backend
        for graph in args.cuda_graph
    }
    ours = list(kinds)
    print("| " + " | ".join(["model", "vocabulary", *peers, *ours, "best of charrnn / best of stock", "by round"]) + " |")
    print("| --- " * (len(peers) + len(ours) + 4) + "|")
    with tempfile.TemporaryDirectory() as directory:
        for shape in shapes:
            text = args.text or str(random_text(Path(directory) / f"{shape.vocabulary}.txt", shape.vocabulary))
            config = settings(args, shape, {"path": text, "cache": directory}, directory)
            vocabulary = len(load_corpus(config.data, config.seed).vocabulary)  # encoded before the clock starts
            configs = {}
            for who, (backend, graph) in kinds.items():
                check(config, backend, device, precision)
                model = config.model.model_copy(update={"backend": backend})
                steps = config.train.model_copy(update={"cuda_graph": False if graph == "false" else graph})
                configs[who] = config.model_copy(update={"model": model, "train": steps})
            rates: dict[str, list[float]] = {who: [] for who in (*peers, *ours)}
            for _ in range(args.rounds):
                for who, dtype in peers.items():
                    rates[who].append(stock_rate(config, args.seconds, device, dtype))
                for who in ours:
                    rates[who].append(our_rate(configs[who]))
            medians = {who: statistics.median(found) for who, found in rates.items()}
            best, peer = max(ours, key=medians.__getitem__), max(peers, key=medians.__getitem__)
            by_round = ", ".join(f"{a / b:.2f}" for a, b in zip(rates[best], rates[peer]))
            figures = [f"{medians[who]:,.0f}" for who in (*peers, *ours)]
            row = [
                f"{args.cell} {shape}" + (f", dropout {args.dropout:g}" if args.dropout else ""),
                f"{vocabulary:,}",
                *figures,
                f"{medians[best] / medians[peer]:.2f} ({best})",
                by_round,
            ]
            print("| " + " | ".join(row) + " |", flush=True)


if __name__ == "__main__":
    main()
