"""What goes wrong on a machine that nobody watches: through the command line, with a process of its own each."""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from charrnn.checkpoint import load_state
from charrnn.config import build_config
from charrnn.run_files import CURVES, FILES

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.timeout(600)  # each is several processes, and a machine may be busy
ENDLESS = ("--set", "train.max_steps=1000000")
DROP_FROM_BOUNDING_SET, DAC_OVERRIDE = 24, 1  # of prctl(2) and capabilities(7)


def write_config(folder: Path, **model: Any) -> Path:
    (folder / "text.txt").write_text("The quick brown fox jumps over the lazy dog.\n" * 60)
    settings = {
        "run": str(folder / "disk/run"),
        "device": "cpu",
        "data": {"path": str(folder / "text.txt"), "cache": str(folder / "cache")},
        "model": {"embedding_size": 4, "hidden_size": 8, **model},
        "train": {"max_steps": 6, "batch_size": 2, "tbptt_window": 8, "evaluate_every": 20, "save_every": 10, "log_every": 5, "threads": 1},
    }
    path = folder / "config.yaml"
    path.write_text(build_config(settings, "test").to_yaml())
    return path


Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """`charrnn train --resume` in the background; what is left of it at the end of a test is killed."""
    begun: list[subprocess.Popen[str]] = []

    def start(*arguments: str, **options: Any) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "charrnn", "train", "--config", str(tmp_path / "config.yaml"), "--resume", *arguments]
        # Both into one pipe: two would have to be read at the same time.
        pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "cwd": ROOT} | options
        begun.append(subprocess.Popen(command, **pipes))
        return begun[-1]

    yield start
    for process in begun:
        process.kill()
        process.wait()
        if process.stdout:
            process.stdout.close()


def read_until(process: subprocess.Popen[str], fragment: str) -> str:
    """All that it says until it says that."""
    assert process.stdout
    said = ""
    while fragment not in (line := process.stdout.readline()):
        assert line, f"{fragment!r} was not said: {said}"
        said += line
    return said + line


def end(process: subprocess.Popen[str], number: signal.Signals | None = None) -> tuple[int, str]:
    """Its exit code and the rest of what it says."""
    if number is not None:
        process.send_signal(number)
    said, _ = process.communicate()
    assert "Traceback" not in said, said
    return process.returncode, said


def step(run: Path) -> int:
    return int(load_state(run / "last.state.pt")["counters"]["step"])


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[subprocess.Popen[str]], Callable[[], None]]]:
    """A small disk, tmp_path / "disk", that can be filled while a process writes to it; answers with what empties it again.

    Where no file system may be mounted, the process may write no file as large as its state instead.
    """
    place = tmp_path / "disk"
    place.mkdir()
    mounted = not subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)], capture_output=True, check=False
    ).returncode

    def fill(process: subprocess.Popen[str]) -> Callable[[], None]:
        if not mounted:
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (4096, 4096))
            return lambda: None
        with pytest.raises(OSError, match="No space left"), open(place / "filler", "wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        return (place / "filler").unlink

    yield fill
    if mounted:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def test_a_full_disk(tmp_path: Path, start: Start, disk: Callable[[subprocess.Popen[str]], Callable[[], None]]) -> None:
    write_config(tmp_path)
    run = tmp_path / "disk/run"
    process = start(*ENDLESS)
    read_until(process, "val ")
    empty = disk(process)
    said = read_until(process, "last.state.pt: cannot be written: ")
    assert said.endswith("; training goes on\n")
    before = step(run)
    code, said = end(process, signal.SIGTERM)
    assert code == 2 and said.splitlines()[-1].startswith(f"charrnn: error: {run / 'last.state.pt'}: cannot be written: ")
    assert step(run) == before and not list(run.glob("*.partial")) and not list(run.glob(".*.partial"))
    empty()
    process = start(*ENDLESS)
    read_until(process, "val ")
    code, said = end(process, signal.SIGTERM)
    assert code == 75 and step(run) > before


def held_by_permissions() -> None:
    """Let a directory's permissions hold for root too."""
    if os.geteuid() == 0 and ctypes.CDLL(None).prctl(DROP_FROM_BOUNDING_SET, DAC_OVERRIDE, 0, 0, 0):
        os._exit(70)


def test_a_folder_that_becomes_read_only(tmp_path: Path, start: Start) -> None:
    write_config(tmp_path)
    run = tmp_path / "disk/run"
    process = start(*ENDLESS, preexec_fn=held_by_permissions)
    read_until(process, "val ")
    run.chmod(0o555)
    try:
        read_until(process, "last.state.pt: cannot be written: Permission denied; ")
        before = step(run)
        code, said = end(process, signal.SIGTERM)
        assert code == 2 and "cannot be written: Permission denied; free some space or name another run directory" in said
        code, said = end(start(*ENDLESS, preexec_fn=held_by_permissions))
        assert (code, said.count("\n")) == (2, 1) and ": cannot be written: Permission denied; " in said
    finally:
        run.chmod(0o755)
    assert step(run) == before
    code, said = end(start("--set", f"train.max_steps={before + 5}"))
    assert code == 0 and step(run) == before + 5


def test_data_that_vanish(tmp_path: Path, start: Start) -> None:
    """What is being read stays there until it is closed; who comes later is told what is missing."""
    write_config(tmp_path)
    process = start(*ENDLESS)
    read_until(process, "val ")
    text = (tmp_path / "text.txt").read_text()
    for path in (tmp_path / "text.txt", *(tmp_path / "cache").rglob("*")):
        if path.is_file():
            path.unlink()
    read_until(process, "val ")
    read_until(process, "val ")
    assert end(process, signal.SIGTERM)[0] == 75
    before = step(tmp_path / "disk/run")
    code, said = end(start(*ENDLESS))
    assert (code, said.count("\n")) == (2, 1) and f"data.path '{tmp_path / 'text.txt'}': no such file; " in said
    (tmp_path / "text.txt").write_text(text)
    assert end(start("--set", f"train.max_steps={before + 5}"))[0] == 0


def test_memory_that_runs_out(tmp_path: Path, start: Start) -> None:
    write_config(tmp_path, hidden_size=600)
    run = tmp_path / "disk/run"
    assert end(start("--set", "train.max_steps=1"))[0] == 0
    before = (run / "last.state.pt").read_bytes()
    process = start("--set", "train.max_steps=2")
    read_until(process, "parameters")
    process.send_signal(signal.SIGSTOP)  # before it has taken what follows
    status = (Path("/proc") / str(process.pid) / "status").read_text()
    kilobytes = int(status.partition("VmSize:")[2].split()[0])
    limit = kilobytes * 1024 + 2_000_000  # a copy of the weights alone takes six million
    resource.prlimit(process.pid, resource.RLIMIT_AS, (limit, limit))
    process.send_signal(signal.SIGCONT)
    code, said = end(process)
    lines = [line for line in said.splitlines() if "warning: " not in line]
    assert code == 1 and lines == ["charrnn: error: out of memory; lower train.batch_size, train.tbptt_window or model.hidden_size"]
    assert (run / "last.state.pt").read_bytes() == before
    assert json.loads((run / "heartbeat.json").read_text())["state"] == "failed"
    assert end(start("--set", "train.max_steps=2"))[0] == 0 and step(run) == 2


def test_kill_9_keeps_nobody_out(tmp_path: Path, start: Start) -> None:
    write_config(tmp_path)
    run = tmp_path / "disk/run"
    first = start(*ENDLESS)
    read_until(first, "val ")
    code, said = end(start(*ENDLESS))
    assert (code, said.count("\n")) == (2, 1) and f"{run}: process {first.pid} on " in said
    assert end(first, signal.SIGKILL)[0] == -signal.SIGKILL
    heartbeat = json.loads((run / "heartbeat.json").read_text())
    assert heartbeat["state"] == "running" and heartbeat["pid"] == first.pid
    assert end(start("--set", f"train.max_steps={step(run) + 5}"))[0] == 0
    assert json.loads((run / "heartbeat.json").read_text())["state"] == "finished"
    assert {path.name for path in run.iterdir()} - {CURVES} == {*FILES}


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 75), (signal.SIGUSR1, 75), (signal.SIGINT, 130)])
def test_the_same_command_goes_on_after_a_signal_and_says_when_it_is_done(
    tmp_path: Path, start: Start, number: signal.Signals, code: int
) -> None:
    write_config(tmp_path)
    run = tmp_path / "disk/run"
    process = start(*ENDLESS)
    read_until(process, "val ")
    done = end(process, number)
    assert done[0] == code and f"saved at step {step(run):,}; go on with: " in done[1]
    assert json.loads((run / "heartbeat.json").read_text())["state"] == ("interrupted" if code == 130 else "terminated")
    limit = f"train.max_steps={step(run) + 5}"
    assert end(start("--set", limit))[0] == 0
    done = end(start("--set", limit))
    assert done[0] == 0 and "This run is finished already" in done[1]


def test_a_clock_that_is_set_back_does_no_harm(tmp_path: Path, start: Start) -> None:
    """Nothing that is decided hangs on what time it is."""
    write_config(tmp_path)
    backwards = "import itertools, time; time.time = map(float, itertools.count(2_000_000_000, -3600)).__next__"
    (tmp_path / "sitecustomize.py").write_text(backwards)
    begun = time.monotonic()
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
    code, said = end(start("--set", "train.max_steps=40", "--set", "train.max_minutes=10", env=environment))
    assert code == 0 and "Finished after 40 steps" in said
    lines = [json.loads(line) for line in (tmp_path / "disk/run/metrics.jsonl").read_text().splitlines()]
    seconds = [line["seconds"] for line in lines]
    assert seconds == sorted(seconds) and seconds[0] > 0 and seconds[-1] < time.monotonic() - begun
    assert json.loads((tmp_path / "disk/run/heartbeat.json").read_text())["time"] < 2_000_000_000 - 3600
