"""Several processes train what one would train: the same numbers, the same files, one end for all."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from charrnn.checkpoint import load_model, load_state
from charrnn.distributed import ALONE, Ranks, find_ranks, on_cpu
from charrnn.errors import UserError
from charrnn.gradients import Carried

ROOT = Path(__file__).parent.parent
DROPOUT = {"embedding": 0.1, "between_layers": 0.2, "output": 0.3, "weight_hh": 0.2, "locked": ["output"]}
# Runs the jobs of a file, one after the other, as `charrnn train` would: a process that imports torch once for all of them.
DRIVER = """
import json, os, sys
from charrnn.cli import main
for port, arguments in json.loads(sys.argv[1]):
    os.environ["MASTER_PORT"] = str(port)
    try:
        main(["train", *arguments])
    except SystemExit as end:
        if end.code:
            raise
"""


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def start(jobs: list[list[str]], size: int) -> list[subprocess.Popen[str]]:
    """So many processes, which know of each other as torchrun would tell them, for the jobs one after the other."""
    planned = json.dumps([(free_port(), arguments) for arguments in jobs])
    outside = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "MASTER_ADDR")}
    environment = outside | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    if size > 1:
        environment |= {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1"}
    return [
        subprocess.Popen(
            [sys.executable, "-c", DRIVER, planned],
            env=environment | ({"RANK": str(rank), "LOCAL_RANK": str(rank)} if size > 1 else {}),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]


def ends(processes: list[subprocess.Popen[str]]) -> list[tuple[int, str, str]]:
    """Exit code, output and errors of each."""
    told = [process.communicate(timeout=200) for process in processes]
    return [(process.returncode, out, err) for process, (out, err) in zip(processes, told)]


def run(jobs: list[list[str]], size: int) -> str:
    """What the first process said. All have to succeed, and only the first to say anything."""
    found = ends(start(jobs, size))
    assert [code for code, _, _ in found] == [0] * size, found
    assert all(out == "" for _, out, _ in found[1:])
    return found[0][1]


def journal(run: Path) -> list[dict[str, Any]]:
    """Without what depends on the clock."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in ("seconds", "chars_per_second")} for line in lines]


def assert_close(a: Path, b: Path, tolerance: float) -> None:
    first, second = journal(a), journal(b)
    assert [line["step"] for line in first] == [line["step"] for line in second]
    for one, other in zip(first, second):
        assert one == pytest.approx(other, rel=tolerance, abs=1e-7)
    for name in ("best.safetensors", "last.safetensors"):
        torch.testing.assert_close(load_model(a / name).weights, load_model(b / name).weights, rtol=0, atol=20 * tolerance)


def assert_same(a: Path, b: Path) -> None:
    assert journal(a) == journal(b)
    assert load_model(a / "last.safetensors").weights.keys() == load_model(b / "last.safetensors").weights.keys()
    for name, weight in load_model(a / "last.safetensors").weights.items():
        assert torch.equal(weight, load_model(b / "last.safetensors").weights[name]), name


Build = Callable[..., list[str]]


@pytest.fixture
def job(tmp_path: Path) -> Build:
    """Arguments of `charrnn train` for a run of that name, of a small lm or fill."""
    rng = np.random.default_rng(0)
    words = ["the ", "cat ", "sat ", "on a ", "mat.\n"]
    (tmp_path / "text.txt").write_text("".join(words[i] for i in rng.integers(0, 5, 1200))[:4000])

    def build(name: str, *flags: str, task: str = "lm", model: dict[str, Any] | None = None, **train: Any) -> list[str]:
        data = {"path": str(tmp_path / "text.txt"), "cache": str(tmp_path / "cache")}
        window = {"tbptt_window": 9} if task == "lm" else {}
        limits = {"max_steps": 50, "evaluate_every": 20, "save_every": 10, "log_every": 1, "warmup_steps": 3}
        config = {
            "task": task,
            "run": str(tmp_path / name),
            "device": "cpu",
            "data": data | ({} if task == "lm" else {"documents": "lines", "example_length": 40}),
            "model": {"embedding_size": 6, "hidden_size": 10, **(model or {})},
            "train": {"batch_size": 8, "precision": "fp32", "threads": 1, **window, **limits, **train},
        }
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(config))
        return ["--config", str(path), *flags]

    return build


def test_two_processes_train_what_one_does(job: Build, tmp_path: Path) -> None:
    """lm with two windows a step; with dropout they draw what two shards of one process draw. And fill: padded batches, of which the
    last has one example, so that a process has none, and a table of pairs, whose gradients are sparse."""
    steps = {"accumulate": 2, "ema_decay": 0.9, "label_smoothing": 0.1}
    drawn = {"model": {"num_layers": 2, "dropout": DROPOUT}}
    padded = {"task": "fill", "model": {"bidirectional": True, "bigrams": {"max_size": 50, "size": 3}}, "batch_size": 5}
    alone = [job("one", **steps), job("shards", **drawn, shards=2), job("fill-one", **padded)]
    run(alone, 1)
    said = run([job("two", **steps), job("ranks", **drawn), job("fill-two", **padded)], 2)
    assert "2 processes, each with 4 of the 8 streams of a step" in said
    assert_close(tmp_path / "two", tmp_path / "one", 1e-5)
    assert_close(tmp_path / "ranks", tmp_path / "shards", 1e-5)
    assert_close(tmp_path / "fill-two", tmp_path / "fill-one", 1e-4)


def test_a_run_goes_on_with_another_number_of_processes(job: Build, tmp_path: Path) -> None:
    """To rounding where the number changes, and to the bit where it does not, dropout and all."""
    drawn = {"model": {"dropout": {"output": 0.3}}}
    half, rest = {"max_steps": 20, "schedule": "constant"}, {"schedule": "constant"}
    run([job("one", **rest), job("from-one", **half)], 1)
    run([job("two", **rest), job("from-two", **half), job("whole", **drawn, **rest), job("parted", **drawn, **half)], 2)
    said = run([job("from-two", "--resume", **rest)], 1)
    assert "resumed with another number of shards or processes" in said
    run([job("from-one", "--resume", **rest), job("parted", "--resume", **drawn, **rest)], 2)
    for name in ("from-one", "from-two", "two"):
        assert_close(tmp_path / name, tmp_path / "one", 1e-5)
    assert_same(tmp_path / "parted", tmp_path / "whole")
    assert len(load_state(tmp_path / "parted" / "last.state.pt")["generators"]) == 2


@pytest.mark.parametrize("number, rank", [(signal.SIGTERM, 1), (signal.SIGINT, 0)])
def test_a_signal_to_one_process_stops_and_saves_all(job: Build, tmp_path: Path, number: signal.Signals, rank: int) -> None:
    processes = start([job("run", max_steps=100_000)], 2)
    lines = tmp_path / "run" / "metrics.jsonl"
    while not (lines.exists() and lines.read_text().count("\n") > 30):
        assert all(process.poll() is None for process in processes), ends(processes)
        time.sleep(0.05)
    processes[rank].send_signal(number)
    found = ends(processes)
    assert found[0][0] == found[1][0] != 0
    step = load_state(tmp_path / "run" / "last.state.pt")["counters"]["step"]
    assert step >= 28 and f"saved at step {step:,}" in found[0][1]
    run([job("run", "--resume", max_steps=step + 5)], 2)
    assert journal(tmp_path / "run")[-1]["step"] == step + 5


def test_a_mistake_is_told_once_and_ends_all(job: Build, tmp_path: Path) -> None:
    run([job("taken", max_steps=2)], 1)
    for arguments, said in ((job("taken"), "holds a run already"), (job("narrow", batch_size=1), "1 streams for 2 processes")):
        found = ends(start([arguments], 2))
        assert [code for code, _, _ in found] == [2, 2]
        lines = [line for _, _, err in found for line in err.splitlines() if "charrnn: error" in line]
        assert 1 <= len(lines) <= 2 and said in lines[0]
        assert not any("Traceback" in err for _, _, err in found)


def test_torchrun_starts_a_killed_process_again_and_the_run_goes_on(job: Build, tmp_path: Path) -> None:
    arguments = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--max-restarts=2", "--monitor-interval=0.2"]
    arguments += [f"--master-port={free_port()}", "-m", "charrnn", "train", *job("run", max_steps=1500, log_every=10, save_every=100)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(arguments, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as launched:
        state = tmp_path / "run" / "last.state.pt"
        while not state.exists():
            assert launched.poll() is None, launched.stdout and launched.stdout.read()
            time.sleep(0.02)
        held = (tmp_path / "run" / ".lock").read_text()  # "process N on HOST": of the first
        os.kill(int(held.split()[1]), signal.SIGKILL)
        said = launched.communicate(timeout=200)[0]
    assert launched.returncode == 0, said
    steps = [line["step"] for line in journal(tmp_path / "run") if "grad_norm" in line]
    assert steps == list(range(10, 1501, 10))
    assert "Finished after 1,500 steps" in said


def test_who_is_told_of_nobody_is_alone() -> None:
    told = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
    assert find_ranks({}) == find_ranks({"WORLD_SIZE": "8"}) == ALONE
    assert find_ranks(told | {"LOCAL_RANK": "1"}) == Ranks(1, 2, 1)
    assert find_ranks(told | {"TORCHELASTIC_RESTART_COUNT": "3"}).restarts == 3
    for wrong, named in (
        ({"RANK": "x"}, "RANK='x'"),
        ({"RANK": "2"}, "RANK=2 and WORLD_SIZE=2"),
        ({"WORLD_SIZE": "-1"}, "WORLD_SIZE='-1'"),
    ):
        with pytest.raises(UserError, match=named):
            find_ranks(told | wrong)


def test_columns_are_shared_out_without_loss_or_repetition() -> None:
    for size, count in ((2, 8), (3, 8), (4, 3), (5, 1)):
        parts = [list(range(count))[Ranks(rank, size).part(count)] for rank in range(size)]
        assert [column for part in parts for column in part] == list(range(count))
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_what_is_sent_is_as_it_was() -> None:
    value = {"a": [Carried([torch.ones(2)], ((torch.zeros(1, 2),),)), None], "b": Ranks(0, 2)}
    found = on_cpu(value)
    assert isinstance(found["a"][0], Carried) and found["b"] == Ranks(0, 2)  # type: ignore[index]
    assert torch.equal(found["a"][0].state[0][0], torch.zeros(1, 2))  # type: ignore[index]
