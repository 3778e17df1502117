"""Who does which piece of work, told by files in a folder that processes on several machines share.

A claim is a file NAME.N.claim, made by a hard link, which succeeds for one process only, over NFS too. Who holds it holds a lock on it,
which the system drops with the process, and touches it now and then. A claim whose holder is gone is never taken away: the next
holder makes NAME.N+1.claim, so that two who find it abandoned cannot both take it up, and one that was only asleep sees what it lost.

On the machine of the holder the lock tells at once that it is gone. On others a lock may not reach (NFS mounted without them), so there
a claim counts for STALE seconds after it was last touched, by the clock of the file system, which is the same for all.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import platform
import secrets
import threading
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, NamedTuple

from charrnn.atomic import WriteError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

STALE = 300.0  # seconds; far above what a network file system keeps of a file's times before it asks again
REFRESH = 20.0
NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EACCES)


class Taken(BaseException):
    """Another process has taken up what this one had claimed. No Exception, so that nobody saves anything on its way up."""


class Abandoned(NamedTuple):
    """A claim whose holder has gone without giving it up."""

    number: int
    note: dict[str, Any]  # what the holder wrote in it


def create(path: Path, payload: bytes) -> bool:
    """Make a file that is there whole or not at all; False where there is one already. Raises OSError."""
    file = _create(path, payload, None)
    if file is None:
        return False
    file.close()
    return True


def _create(path: Path, payload: bytes, before: float | None) -> BinaryIO | None:
    """The new file, open and locked before anyone sees it. `before`: only if this is before the file system's time now."""
    partial = path.with_name(f".{path.name}.{secrets.token_hex(8)}.partial")
    file = open(partial, "w+b")
    try:
        file.write(payload)
        file.flush()
        os.fsync(file.fileno())
        _lock(file)
        if before is not None and not before < os.fstat(file.fileno()).st_mtime:
            file.close()
            return None
        try:
            os.link(partial, path)
        except FileExistsError:
            # The answer of a server may be lost, and the second asking then finds what the first has made.
            if os.fstat(file.fileno()).st_nlink != 2 or not os.path.samestat(os.stat(path), os.fstat(file.fileno())):
                file.close()
                return None
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise
            file.close()
            file = _create_exclusively(path, payload)  # type: ignore[assignment]
        return file
    except BaseException:
        file.close()
        raise
    finally:
        partial.unlink(missing_ok=True)


def _create_exclusively(path: Path, payload: bytes) -> BinaryIO | None:
    """For file systems without hard links."""
    try:
        file = open(path, "x+b")
    except FileExistsError:
        return None
    _lock(file)
    file.write(payload)
    file.flush()
    os.fsync(file.fileno())
    return file


def _lock(file: BinaryIO) -> None:
    if fcntl is not None:
        with contextlib.suppress(OSError):  # of a network file system that was mounted without locks: time tells there
            fcntl.flock(file, fcntl.LOCK_EX)  # nobody else has it for longer than a look takes


def machine() -> str:
    """One kernel, within which a lock is always seen."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return platform.node()


class Claims:
    """The claims of one folder, which is there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def newest(self) -> dict[str, int]:
        """By name of what was ever claimed, the number of its last claim."""
        found: dict[str, int] = {}
        for name in os.listdir(self.folder):
            if name.endswith(".claim") and not name.startswith("."):
                stem, _, number = name.removesuffix(".claim").rpartition(".")
                if number.isdecimal():
                    found[stem] = max(found.get(stem, 0), int(number))
        return found

    def take(self, name: str, newest: int, **note: Any) -> Claim | None:
        """Claim what was last claimed by claim `newest`, 0 for never; None where another holds it. `note` is written in it.

        Raises WriteError.
        """
        try:
            before: float | None = None
            if newest:
                held, before = self._until(name, newest)
                if held:
                    return None
            mine = {"host": platform.node(), "machine": machine(), "pid": os.getpid(), **note}
            path = self._path(name, newest + 1)
            file = _create(path, json.dumps(mine).encode() + b"\n", before)
        except OSError as error:
            raise WriteError(f"{self.folder}: cannot be written: {error.strerror or error}; name another folder in `run`") from None
        return None if file is None else Claim(path, self._path(name, newest + 2), newest + 1, file)

    def _until(self, name: str, number: int) -> tuple[bool, float | None]:
        """Whether a claim is locked; and until when, by the file system's clock, it counts where the lock tells nothing."""
        path = self._path(name, number)
        with open(path, "rb") as file:
            if fcntl is not None:
                try:
                    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared: two that look do not take each other for the holder
                except BlockingIOError:
                    return True, None
                except OSError:  # no locks here: time tells
                    return False, os.fstat(file.fileno()).st_mtime + STALE
            note = _note(file.read())
            touched = os.fstat(file.fileno()).st_mtime
        if fcntl is not None and note.get("machine") == machine():
            return False, None
        return False, touched + STALE

    def abandoned(self, name: str, newest: int, after: int = 0) -> list[Abandoned]:
        """The claims from number `after` + 1 to `newest` that nobody gave up. To be asked of what nobody holds."""
        found = []
        for number in range(after + 1, newest + 1):
            with contextlib.suppress(FileNotFoundError), open(self._path(name, number), "rb") as file:
                if os.fstat(file.fileno()).st_mtime:
                    found.append(Abandoned(number, _note(file.read())))
        return found

    def _path(self, name: str, number: int) -> Path:
        return self.folder / f"{name}.{number}.claim"


class Claim:
    """What this process has claimed, for the time of a `with`; then it is given up, so that any machine may take it up at once."""

    def __init__(self, path: Path, next_path: Path, number: int, file: BinaryIO) -> None:
        self.number = number
        self._path, self._next, self._file = path, next_path, file
        self._over, self._taken = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._stay, name="claim", daemon=True)

    def __enter__(self) -> Claim:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()
        self.give_up()

    def give_up(self) -> None:
        """Let it be taken by others; done by the end of a `with`."""
        with contextlib.suppress(OSError):  # then it counts until it is stale
            os.utime(self._path, (0, 0))  # older than any
        self._file.close()

    def check(self) -> None:
        """Raises Taken where this process was asleep for so long that another has taken its work up."""
        if self._taken.is_set():
            raise Taken

    def look(self) -> None:
        """Say that this process is there, and see whether it was taken for gone."""
        with contextlib.suppress(OSError):  # a file system that is away for a moment
            os.utime(self._path)
        if self._next.exists():
            self._taken.set()

    def _stay(self) -> None:
        while not self._over.wait(REFRESH):
            self.look()


def _note(raw: bytes) -> dict[str, Any]:
    try:
        note = json.loads(raw)
    except (ValueError, RecursionError):
        return {}
    return note if isinstance(note, dict) else {}
