"""How many threads share a product on the CPU: all there are, or one where other programs hold the cores.

Threads inside a product wait for each other, spinning. When another program takes the core of one of them, each product lasts
a time slice of the scheduler: with one other busy program on two cores 3,000 characters a second were measured instead of
75,000, and 42,000 with one thread (docs/performance.md).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

import torch

LOOK_SECONDS = 3.0  # between two looks
RETRY_SECONDS = 60.0  # with one thread, before all are tried again
CROWDED = 0.1  # of the time, that threads of this process stood in line for a core; alone on the machine it is a hundredth of that


def queued_seconds() -> float | None:
    """How long the threads of this process have stood in line for a core, added up. None where the system does not tell."""
    try:
        lines = [task.read_text() for task in Path("/proc/self/task").glob("*/schedstat")]
        return sum(int(line.split()[1]) for line in lines) / 1e9 if lines else None
    except (OSError, ValueError, IndexError):  # not Linux's; or a thread has just ended, and the next look will tell
        return None


class Threads:
    """Keeps the number of threads of a run. A context: behind it the number is again as it was.

    `wanted` is a fixed number; with None, a crowded machine gets one thread, and all of them are tried again from time to time.
    """

    def __init__(
        self,
        wanted: int | None,
        told: Callable[[str], None],
        *,
        clock: Callable[[], float] = time.monotonic,
        queued: Callable[[], float | None] = queued_seconds,
    ) -> None:
        self._wanted, self._told, self._clock, self._queued = wanted, told, clock, queued
        self._before = self._all = torch.get_num_threads()
        self._next = self._since = self._waited = 0.0
        self._said = False

    def __enter__(self) -> Threads:
        self._before = torch.get_num_threads()
        self._all = self._wanted or self._before
        torch.set_num_threads(self._all)
        self._begin(LOOK_SECONDS)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        torch.set_num_threads(self._before)

    def look(self) -> None:
        """To be called once in a while, between two steps."""
        if self._wanted is not None or self._all == 1 or self._clock() < self._next:
            return
        if torch.get_num_threads() == 1:
            torch.set_num_threads(self._all)
            self._begin(LOOK_SECONDS)
            return
        waited = self._queued()
        if waited is not None and waited - self._waited > CROWDED * (self._clock() - self._since):
            torch.set_num_threads(1)
            if not self._said:
                self._said = True
                self._told(
                    f"other programs want the cores, so one thread and not {self._all} trains while they do; "
                    "sums may differ in their last digits (train.threads fixes the number)"
                )
            self._begin(RETRY_SECONDS)
            return
        self._begin(LOOK_SECONDS)

    def _begin(self, seconds: float) -> None:
        self._since, self._waited = self._clock(), self._queued() or 0.0
        self._next = self._since + seconds
