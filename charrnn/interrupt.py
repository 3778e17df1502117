"""Ctrl-C at a moment when nothing is half done."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType


class Interrupt:
    """Inside `listening`, Ctrl-C that comes during a `held` block is raised as KeyboardInterrupt when the block ends."""

    def __init__(self) -> None:
        self._holding = False
        self._wanted = False

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():  # only the main thread is ever interrupted
            yield
            return
        before = signal.signal(signal.SIGINT, self._on_signal)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

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
        if not self._holding:
            self._holding = True  # one is enough: what comes while the run is being brought to its end must not disturb that
            raise KeyboardInterrupt
        self._wanted = True
