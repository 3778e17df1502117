"""A run gives way to one thread where other programs hold the cores, and comes back."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
import torch

from charrnn.threads import CROWDED, LOOK_SECONDS, RETRY_SECONDS, Threads, queued_seconds


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


class Machine:
    """Time that passes when told to, and a share of it in which the threads stand in line."""

    def __init__(self) -> None:
        self.now, self.queued = 0.0, 0.0
        self.said: list[str] = []

    def threads(self, wanted: int | None = None) -> Threads:
        return Threads(wanted, self.said.append, clock=lambda: self.now, queued=lambda: self.queued)

    def pass_time(self, seconds: float, share: float) -> None:
        self.now += seconds
        self.queued += seconds * share


def test_one_thread_while_others_hold_the_cores() -> None:
    machine = Machine()
    with machine.threads() as threads:
        machine.pass_time(LOOK_SECONDS, CROWDED / 2)
        threads.look()
        assert torch.get_num_threads() == 2
        for _ in range(2):
            machine.pass_time(LOOK_SECONDS, 2 * CROWDED)
            threads.look()
            assert torch.get_num_threads() == 1
            machine.pass_time(RETRY_SECONDS - 1, 0)
            threads.look()
            assert torch.get_num_threads() == 1
            machine.pass_time(1, 0)
            threads.look()
            assert torch.get_num_threads() == 2
        machine.pass_time(LOOK_SECONDS, 0)
        threads.look()
        assert torch.get_num_threads() == 2
    assert machine.said == [
        "other programs want the cores, so one thread and not 2 trains while they do; "
        "sums may differ in their last digits (train.threads fixes the number)"
    ]


def test_the_number_is_again_as_it_was() -> None:
    machine = Machine()
    with machine.threads() as threads:
        machine.pass_time(LOOK_SECONDS, 1)
        threads.look()
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("wanted", [1, 2, 3])
def test_a_fixed_number_stays(wanted: int) -> None:
    machine = Machine()
    with machine.threads(wanted) as threads:
        machine.pass_time(RETRY_SECONDS, 1)
        threads.look()
        assert torch.get_num_threads() == wanted
    assert not machine.said


def test_standing_in_line_is_seen() -> None:
    if sys.platform != "linux":
        assert queued_seconds() is None
        return
    script = "import os, time\nos.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\nprint(flush=True)\nwhile True: pass"
    measure = (
        "import os, time\nfrom charrnn.threads import queued_seconds\n"
        "os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\nbegan = time.monotonic()\n"
        "while time.monotonic() - began < 1: pass\nprint(queued_seconds())"
    )
    other = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert other.stdout is not None
    with other.stdout:
        other.stdout.readline()
        try:
            found = subprocess.run([sys.executable, "-c", measure], capture_output=True, text=True, check=True, timeout=60)
        finally:
            other.kill()
            other.wait()
    assert float(found.stdout) > CROWDED
    before = queued_seconds()
    assert before is not None
    time.sleep(0.2)  # who sleeps stands in no line
    assert (queued_seconds() or 0) - before < 0.1
