"""A cache whose entries are folders: each whole or not there, made once, whoever else makes the same at the same time.

An entry holds a checksum of its files: one that has been damaged since is made again.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from charrnn.errors import DataError, UserError
from charrnn.lock import locked

CHECKSUM = "checksum"  # the file of an entry that holds it
PIECE = 1 << 20  # bytes read at a time
BUILDING = ".building-"  # what a folder is called in which an entry is being made


def build_entry(entry: Path, make: Callable[[Path, Path], None], is_whole: Callable[[Path], bool]) -> None:
    """Have `make` write an entry of the cache; what it raises goes on to the caller.

    `make` gets a folder for the entry's files, and one beside it for what it needs on the way. Raises DataError where the cache
    cannot be written.
    """
    cache = entry.parent
    try:
        cache.mkdir(parents=True, exist_ok=True)
        _sweep(cache)
        with _workshop(cache) as workshop:
            made = workshop / "made"
            made.mkdir()
            make(made, workshop)
            (made / CHECKSUM).write_text(_checksum(made), encoding="ascii")
            for path in made.iterdir():  # an entry that is there after a power cut is whole
                with open(path, "rb+") as file:
                    os.fsync(file.fileno())
            if not is_whole(entry):  # it may be there, and damaged
                with contextlib.suppress(FileNotFoundError):
                    os.replace(entry, workshop / "damaged")
            try:
                os.replace(made, entry)
            except OSError:
                if not is_whole(entry):  # else another job was faster, and what it wrote is the same
                    raise
    except OSError as error:
        remedy = "free some space or name another directory in data.cache"
        raise DataError(f"data.cache {cache}: cannot be written: {error.strerror or error}; {remedy}") from None


def is_sealed(entry: Path) -> bool:
    """Whether what lies in the cache there is what was written. Reads all of it."""
    try:
        return (entry / CHECKSUM).read_bytes() == _checksum(entry).encode()
    except OSError:
        return False


def _checksum(folder: Path) -> str:
    """Of the names and contents of the other files in a folder."""
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted(folder.iterdir()):
        if path.name != CHECKSUM:
            digest.update(f"{path.name}\0{path.stat().st_size}\0".encode())
            with open(path, "rb") as file:
                while piece := file.read(PIECE):
                    digest.update(piece)
    return digest.hexdigest()


@contextlib.contextmanager
def _workshop(cache: Path) -> Iterator[Path]:
    """A folder to make an entry in. Its lock is there before it and behind it, so who finds a folder that is not locked may sweep it."""
    folder = cache / (BUILDING + secrets.token_hex(8))
    with locked(_lock_of(folder)):
        folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)  # what stays is swept by the next job


def _sweep(cache: Path) -> None:
    """Take away the workshops of jobs that were killed: those whose lock can be had."""
    for folder in cache.glob(f"{BUILDING}*"):
        # A UserError: its job is at work. An OSError: it is another user's, and not ours to take away.
        with contextlib.suppress(UserError, OSError):
            if folder.is_dir():
                with locked(_lock_of(folder)) as hindrance:
                    if not hindrance:
                        shutil.rmtree(folder, ignore_errors=True)


def _lock_of(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.lock")
