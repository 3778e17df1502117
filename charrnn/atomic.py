"""Files that are there whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from charrnn.errors import UserError


class WriteError(UserError):
    """A file that cannot be written; what it held before is still there."""


def write_atomically(
    path: Path, payload: bytes | Iterable[bytes], remedy: str = "free some space or name another run directory in `run`"
) -> None:
    """Write a file, whole or in pieces, so that a reader, or a crash at any moment, sees the old content or the new, never half.

    Raises WriteError, which ends with `remedy`.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        try:
            with open(partial, "wb") as file:
                file.writelines([payload] if isinstance(payload, bytes) else payload)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        if os.name == "posix":  # the new name is on the disk only when its directory is
            directory = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)
    except OSError as error:
        raise WriteError(f"{path}: cannot be written: {error.strerror or error}; {remedy}") from None
