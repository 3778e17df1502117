"""Ctrl-C, or the SIGTERM of a batch system, at a moment when nothing is half done."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupt:
    """Inside `listening`, a signal that comes during a `held` block is raised as KeyboardInterrupt when the block ends."""

    def __init__(self) -> None:
        self._holding = False
        self._wanted = False
        self.terminated = False  # by SIGTERM

    @property
    def wanted(self) -> bool:
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
        if self._wanted and not outer:
            self._wanted = False
            raise KeyboardInterrupt

    @contextlib.contextmanager
    def ignored(self) -> Iterator[None]:
        """For the last save: the run is ending already, and who asks again must not lose it."""
        self._holding = True
        try:
            yield
        finally:
            self._holding, self._wanted = False, False

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.terminated |= number == signal.SIGTERM
        if not self._holding:
            self._holding = True  # one is enough: what comes while the run is being brought to its end must not disturb that
            raise KeyboardInterrupt
        self._wanted = True
