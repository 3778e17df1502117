"""What a run says of itself to those who look on from elsewhere: a small file that is replaced every few seconds.

It is written between two steps, never by a thread of its own: where the file grows old, the run does not move.
"""

from __future__ import annotations

import json
import os
import platform
import time
from pathlib import Path
from typing import Literal

from charrnn.atomic import write_atomically

Ending = Literal["finished", "early_stopped", "interrupted", "terminated", "diverged"]
State = Ending | Literal["running", "failed"]
SECONDS = 10.0  # between two beats


class Heartbeat:
    """A run's heartbeat.json: `time` in seconds since 1970, `host`, `pid`, `step`, `progress` 0..1, `state` and `why`.

    A run that was killed leaves "running" behind, and a time that grows old.
    """

    def __init__(self, path: Path, every: float = SECONDS) -> None:
        self.path = path
        self._every = every
        self._last = -float("inf")  # by the clock that is never set

    def beat(self, step: int, progress: float) -> None:
        """Write that the run is at work, where that has not been written lately. Raises WriteError."""
        now = time.monotonic()
        if now - self._last >= self._every:
            self._last = now  # also where it fails: a full disk is asked again as seldom
            self._write(step, progress, "running", "")

    def end(self, step: int, progress: float, state: State, why: str = "") -> None:
        """Write how the run ended; `why`: of what is no ordinary end, one line. Raises WriteError."""
        self._write(step, progress, state, why)

    def _write(self, step: int, progress: float, state: State, why: str) -> None:
        who = {"time": time.time(), "host": platform.node(), "pid": os.getpid()}
        where = {"step": step, "progress": min(1.0, progress), "state": state, "why": why}
        write_atomically(self.path, (json.dumps(who | where) + "\n").encode())


def says_running(path: Path) -> bool:
    """Whether a heartbeat.json that can be read says that its run is at work: it may be that of a job that was killed."""
    try:
        said = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(said, dict) and said.get("state") == "running"
