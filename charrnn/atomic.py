"""Files that are there whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from charrnn.errors import UserError

REMEDY = "free some space or name another run directory in `run`"


class WriteError(UserError):
    """A file that cannot be written; what it held before is still there."""


def write_atomically(
    path: Path, payload: bytes | Iterable[bytes | memoryview], remedy: str = REMEDY, *, before: Path | None = None
) -> None:
    """Write a file, whole or in pieces, so that a reader, or a crash at any moment, sees the old content or the new, never half.

    `before`: what the file held until now is kept under that name, in the same folder. Raises WriteError, which ends with `remedy`.
    """
    partial = _partial(path)
    try:
        try:
            with open(partial, "wb") as file:
                file.writelines([payload] if isinstance(payload, bytes) else payload)
                file.flush()
                os.fsync(file.fileno())
            if before is not None and path.exists():
                try:
                    _link(path, before)
                except OSError:  # a file system without links: for a moment there is only the other name
                    os.replace(path, before)
            os.replace(partial, path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        _sync_names(path.parent)
    except OSError as error:
        raise WriteError(f"{path}: cannot be written: {error.strerror or error}; {remedy}") from None


def copy_atomically(path: Path, to: Path) -> None:
    """Put a file, which is never written into, under another name of the same folder too; without a copy, where that can be.

    Raises WriteError.
    """
    try:
        _link(path, to)
        _sync_names(to.parent)
    except OSError:
        try:
            content = path.read_bytes()
        except OSError as error:
            raise WriteError(f"{to}: cannot be written: {path}: {error.strerror or error}; {REMEDY}") from None
        write_atomically(to, content)


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.partial")


def _link(path: Path, to: Path) -> None:
    """Give a file a second name, at once, whatever bore it before."""
    partial = _partial(to)
    partial.unlink(missing_ok=True)
    try:
        os.link(path, partial)
        os.replace(partial, to)
    finally:
        partial.unlink(missing_ok=True)  # where both were names of one file, replacing has left it


def _sync_names(directory: Path) -> None:
    """A new name is on the disk only when its directory is."""
    if os.name == "posix":
        opened = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)
