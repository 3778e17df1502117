#!/usr/bin/env python3
"""Kills a small training again and again, starts the same command each time, and compares what it learns with a run that was left alone.

Once with kill -9, at random moments and in the middle of a save, and once with SIGTERM. Afterwards the weights must be the same to the bit,
the journal must have each step once, and no file may lie there that the other run does not have. After SIGTERM the exit code must be 75,
and no step that had been told of may be lost. Answers 1 where something of that is not so.

A process that is killed is a copy of this one (os.fork), which has imported all that training needs: to import it takes longer than the
training. --fresh starts new ones instead.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch

from charrnn import training  # noqa: F401, for the copies of this process
from charrnn.__main__ import main as charrnn
from charrnn.checkpoint import load_state
from charrnn.config import build_config
from charrnn.exits import Exit

WORDS = ["the ", "cat ", "sat ", "on a ", "mat.\n"]
IN_A_SAVE = 3  # of so many kills with -9 one waits for a file that is being written
PATIENCE = 120.0  # seconds for what must come


class Fault(Exception):
    """What may not be."""


class Ended(NamedTuple):
    code: int  # negative: the number of the signal that ended it
    said: str


def configuration(folder: Path, steps: int) -> Path:
    """A language model with all that is random in training, saved often."""
    folder.mkdir(parents=True)
    draw = random.Random(0)
    (folder / "text.txt").write_text("".join(draw.choices(WORDS, k=900)))
    settings: dict[str, Any] = {
        "device": "cpu",
        "data": {"path": str(folder / "text.txt"), "cache": str(folder / "cache")},
        "model": {
            "embedding_size": 8, "hidden_size": 24, "num_layers": 2,
            "dropout": {"embedding": 0.1, "input": 0.1, "between_layers": 0.2, "output": 0.3, "weight_hh": 0.2},
        },
        "train": {
            "max_steps": steps, "batch_size": 8, "tbptt_window": 12, "evaluate_every": 40, "save_every": 7, "log_every": 1,
            "threads": 1, "precision": "fp32", "ema_decay": 0.9, "warmup_steps": 3,
        },
    }  # fmt: skip
    path = folder / "config.yaml"
    path.write_text(build_config(settings, "soak").to_yaml())
    return path


class Job:
    """`charrnn train --config … --resume`, and what it writes to a terminal that is none."""

    def __init__(self, config: Path, run: Path, *, fresh: bool) -> None:
        self.log = tempfile.TemporaryFile()
        arguments = ["charrnn", "train", "--config", str(config), "--set", f"run={run}", "--resume"]
        if fresh:
            command = [sys.executable, "-m", *arguments]
            self._process = subprocess.Popen(command, stdout=self.log, stderr=self.log)
            self.pid = self._process.pid
            return
        self.pid = os.fork()
        if not self.pid:
            os.dup2(self.log.fileno(), 1)
            os.dup2(self.log.fileno(), 2)
            sys.argv = arguments
            code = 70
            try:
                charrnn()
            except SystemExit as end:
                code = int(end.code or 0)
            finally:
                sys.stdout.flush()
                os._exit(code)

    def send(self, number: int) -> None:
        os.kill(self.pid, number)  # it has not been waited for yet, so the number is still its own

    def wait(self) -> Ended:
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        self.log.seek(0)
        said = self.log.read().decode(errors="replace")
        self.log.close()
        return Ended(code, said)

    def stop(self) -> str:
        """Kill what has not ended as it should, and say how it was."""
        self.send(signal.SIGKILL)
        return str(self.wait())

    def runs(self) -> bool:
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None


def until(condition: Callable[[], bool], job: Job, pause: float) -> bool:
    """Whether it came to be so while the job ran, and in time. `pause`: seconds between two looks."""
    end = time.monotonic() + PATIENCE
    while job.runs() and time.monotonic() < end:
        if condition():
            return True
        time.sleep(pause)
    return False


def is_being_written(run: Path) -> bool:
    try:
        return any(entry.name.endswith(".partial") for entry in os.scandir(run))
    except FileNotFoundError:
        return False


def journal(run: Path) -> Iterator[dict[str, Any]]:
    path = run / "metrics.jsonl"
    for line in path.read_text().splitlines(keepends=True) if path.exists() else []:
        if line.endswith("\n"):  # the last may be half there while it is being written
            yield {key: value for key, value in json.loads(line).items() if key not in ("seconds", "chars_per_second")}


def last_step(run: Path) -> int:
    return max((line["step"] for line in journal(run)), default=0)


def has_stepped(run: Path, pid: int, lines: int) -> bool:
    """Whether the process has gone on to where the journal has more than so many lines. It writes a heartbeat once that is cut back."""
    path = run / "heartbeat.json"
    return path.exists() and json.loads(path.read_text())["pid"] == pid and length(run) > lines


def length(run: Path, size: int | None = None) -> int:
    """Lines of its journal, or of so many bytes of it."""
    path = run / "metrics.jsonl"
    return path.read_bytes()[:size].count(b"\n") if path.exists() else 0


def saved(run: Path) -> tuple[int, int]:
    """The step that a run would go on from, and how many lines its journal had there."""
    path = run / "last.state.pt"
    if not path.exists():
        return 0, 0
    state = load_state(path)
    return state["counters"]["step"], length(run, state["journals"]["metrics.jsonl"])


def compare(run: Path, whole: Path) -> None:
    """Raises Fault where the one did not become what the other is."""
    for name in ("last.safetensors", "best.safetensors"):
        mine, others = safetensors.torch.load_file(run / name), safetensors.torch.load_file(whole / name)
        if mine.keys() != others.keys() or any(not torch.equal(mine[key], others[key]) for key in mine):
            raise Fault(f"{run / name}: other weights than {whole / name}")
    if list(journal(run)) != list(journal(whole)):
        raise Fault(f"{run / 'metrics.jsonl'}: not what {whole / 'metrics.jsonl'} is")
    stray = sorted({path.name for path in run.iterdir()} - {path.name for path in whole.iterdir()})
    stray += [path.name for path in (run.parent / "cache").rglob("*") if "partial" in path.name or path.name.startswith(".building")]
    if stray:
        raise Fault(f"{run}: {stray} should not be there")


def soak(config: Path, run: Path, number: signal.Signals, kills: int, steps: int, draw: random.Random, *, fresh: bool) -> dict[str, int]:
    """End a run so many times, each after at most so many steps of a process, and then let it finish."""
    told = {"ended": 0, "in a save": 0, "before the first step": 0, "steps done twice": 0, "steps lost": 0}
    while told["ended"] < kills:
        begun, lines = saved(run)
        job = Job(config, run, fresh=fresh)
        inside = number == signal.SIGKILL and told["ended"] % IN_A_SAVE == 0
        if not inside and told["ended"] % 10 == 5:  # while it begins
            time.sleep(draw.uniform(0, 0.3))
        else:
            # By steps and not by seconds, so that it does not hang on how fast this machine is now.
            if not until(partial(has_stepped, run, job.pid, lines + draw.randrange(steps)), job, 0.002):
                raise Fault(f"the run ended or stood still before it was killed {kills} times: {job.stop()}; raise --steps")
            time.sleep(draw.uniform(0, 0.01))
            inside = inside and until(partial(is_being_written, run), job, 0.0002)
        reached = last_step(run)
        job.send(number)
        ended = job.wait()
        if ended.code == Exit.DONE:
            raise Fault(f"the run was finished before it was killed {kills} times; raise --steps")
        expected = -signal.SIGKILL if number == signal.SIGKILL else Exit.REQUEUE
        if ended.code != expected or "Traceback" in ended.said:
            raise Fault(f"exit code {ended.code}, expected {int(expected)}: {ended.said}")
        kept, _ = saved(run)
        told["ended"] += 1
        told["in a save"] += inside
        told["before the first step"] += reached <= begun
        told["steps done twice"] += max(0, last_step(run) - kept)
        if number != signal.SIGKILL:
            told["steps lost"] = max(told["steps lost"], reached - kept)
            if reached - kept > 1:
                raise Fault(f"step {reached} was told of, and step {kept} saved")
    ended = Job(config, run, fresh=fresh).wait()
    if ended.code != Exit.DONE:
        raise Fault(f"exit code {ended.code}: {ended.said}")
    again = Job(config, run, fresh=fresh).wait()
    if again.code != Exit.DONE or "finished already" not in again.said:
        raise Fault(f"exit code {again.code}, expected to be told that the run is finished: {again.said}")
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=60, help="with kill -9, and again with SIGTERM (default: 60)")
    parser.add_argument("--steps", type=int, default=0, help="of the run (default: 40 for each kill)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--fresh", action="store_true", help="start new processes instead of copies of this one")
    parser.add_argument("--out", type=Path, help="a folder for the runs, which stay there; it must not exist")
    args = parser.parse_args()
    if args.kills < 1 or args.steps < 0 or (args.out and args.out.exists()):
        parser.exit(2, f"{parser.prog}: error: expected --kills of at least 1, --steps of at least 0, and --out that does not exist\n")
    torch.set_num_threads(1)
    torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))])  # imports for seconds, the first time
    steps, draw, started = args.steps or 40 * args.kills, random.Random(args.seed), time.monotonic()
    folder = args.out or Path(tempfile.mkdtemp(prefix="soak-"))
    config = configuration(folder / "soak" if args.out is None else folder, steps)
    folder = config.parent
    try:
        ended = Job(config, folder / "whole", fresh=args.fresh).wait()
        if ended.code != Exit.DONE:
            raise Fault(f"exit code {ended.code}: {ended.said}")
        print(f"{steps} steps without a kill: {time.monotonic() - started:.1f} s", flush=True)
        for number in (signal.SIGKILL, signal.SIGTERM):
            begun = time.monotonic()
            told = soak(config, folder / number.name.lower(), number, args.kills, max(1, steps // (2 * args.kills)), draw, fresh=args.fresh)
            compare(folder / number.name.lower(), folder / "whole")
            figures = ", ".join(f"{name} {count}" for name, count in told.items())
            print(f"{number.name}: {figures}; the weights are the same to the bit; {time.monotonic() - begun:.1f} s", flush=True)
    except Fault as fault:
        parser.exit(1, f"{parser.prog}: error: {fault}; the runs are in {folder}\n")
    if args.out is None:
        shutil.rmtree(folder.parent)
    print(f"{time.monotonic() - started:.1f} s in all")


if __name__ == "__main__":
    main()
