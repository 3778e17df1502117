"""Ctrl-C, or the SIGTERM or SIGUSR1 of a batch system, at a moment when nothing is half done."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from charrnn.exits import Exit

# By which a scheduler tells a job to go; Windows has no SIGUSR1.
DISMISSALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name))
SIGNALS = (signal.SIGINT, *DISMISSALS)
NOTHING_LOST = "stopped while no step was under way; nothing is lost: the same command with --resume starts or goes on"


class Interrupt:
    """Inside `listening`, a signal that comes during a `held` block is raised as KeyboardInterrupt when the block ends.

    polled: nothing is raised where a signal comes or a block ends, only where `check` is called; for several processes, which must
    stop at the same step. What they agree on is `requested`, and `terminated` where a scheduler asked.
    """

    def __init__(self, *, polled: bool = False) -> None:
        self._polled = polled
        self._holding = False
        self._wanted = False
        self.terminated = False  # by SIGTERM or SIGUSR1

    @property
    def requested(self) -> bool:
        """Whether a signal has come that has not been raised yet."""
        return self._wanted

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():  # only the main thread is ever interrupted
            yield
            return
        with contextlib.ExitStack() as stack:
            for number in SIGNALS:
                if signal.getsignal(number) is signal.SIG_IGN:  # by whoever started this: nohup, or `&` in a script
                    continue
                stack.callback(signal.signal, number, signal.signal(number, self._on_signal))
            yield

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        outer, self._holding = self._holding, True
        try:
            yield
        finally:
            self._holding = outer
        if not self._polled:
            self.check()

    def check(self) -> None:
        """Raises KeyboardInterrupt where a signal has come, unless it has to wait: in a `held` block, or where all are ignored."""
        if self._wanted and not self._holding:
            self._wanted = False
            self._holding = True  # one is enough: what comes while the run is being brought to its end must not disturb that
            raise KeyboardInterrupt

    def close(self) -> None:
        """Raise nothing any more: the run has come to its end, and what is left is its last save."""
        self._holding = True

    @contextlib.contextmanager
    def ignored(self) -> Iterator[None]:
        """For the last save: the run is ending already, and who asks again must not lose it."""
        self._holding = True
        try:
            yield
        finally:
            self._holding, self._wanted = False, False

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.terminated |= number in DISMISSALS
        self._wanted = True
        if not self._polled:
            self.check()


def quit_on_signals() -> None:
    """Let a signal end this process at once, with one line: before anything is done, while libraries are imported.

    An exception raised in the middle of an import would be told of as a failure of that import, or be lost in it.
    """
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _quit)


def _quit(number: int, frame: FrameType | None) -> None:
    os.write(2, f"charrnn: {NOTHING_LOST}\n".encode())
    os._exit(Exit.REQUEUE if number in DISMISSALS else Exit.INTERRUPTED)
