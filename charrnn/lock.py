"""One job for a directory: a lock that the system drops with the process that holds it, however that ends."""

from __future__ import annotations

import contextlib
import os
import platform
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from charrnn.errors import UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

PATIENCE = 0.2  # seconds for which a lock is asked for: who only looks whether it is held, holds it for a moment


class Busy(UserError):
    """Another job holds the lock."""


@contextlib.contextmanager
def locked(path: Path, setting: str = "`run`") -> Iterator[str]:
    """Hold the file `path` as the lock of the directory it is in. Yields what stands in the way, where the system cannot lock.

    Raises Busy naming who holds it and the setting that names the directory, and OSError where the file cannot be written.
    """
    if fcntl is None:
        with open(path, "ab"):  # whether it can be written is asked here too
            pass
        path.unlink(missing_ok=True)
        yield "this system has no file locks"
        return
    file, hindrance = _take(path, setting)
    with file:
        try:
            yield hindrance
        finally:
            # While it is held: who has opened it by now sees that it is gone. In a folder that has become read-only it stays, and keeps
            # nobody out: the lock is the system's, not the file.
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)


def is_held(path: Path) -> bool:
    """Whether a job holds the lock at `path`, as far as this machine can tell; False where that cannot be asked. Changes nothing."""
    if fcntl is None:
        return False
    try:
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:  # no such file: what a job that ends leaves behind
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared: two that look do not take each other for a job
    except BlockingIOError:
        return True
    except OSError:  # of a network file system that was mounted without locks
        return False
    finally:
        os.close(file)
    return False


def _take(path: Path, setting: str) -> tuple[BinaryIO, str]:
    until = time.monotonic() + PATIENCE
    while True:
        file = open(path, "a+b")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(path, file):
                file.truncate(0)
                file.write(f"process {os.getpid()} on {platform.node()}".encode())
                file.flush()
                return file, ""
        except BlockingIOError:
            if time.monotonic() < until:
                file.close()
                time.sleep(PATIENCE / 10)
                continue
            file.seek(0)
            holder = file.read(200).decode(errors="replace") or "another process"
            file.close()
            raise Busy(f"{path.parent}: {holder} is at work in it; wait for its end or name another directory in {setting}") from None
        except OSError as error:  # of a network file system that was mounted without locks
            return file, f"it cannot be locked ({error.strerror or error})"
        file.close()


def _is_at(path: Path, file: BinaryIO) -> bool:
    """Whether the file that was opened is still the one of that name."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False
