"""Two jobs never write into one directory, and a job that was killed keeps nobody out."""

from __future__ import annotations

import errno
import fcntl
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from charrnn import lock
from charrnn.errors import UserError
from charrnn.lock import locked

ROOT = Path(__file__).parent.parent
HOLDER = """
import time
from pathlib import Path
from charrnn.lock import locked
with locked(Path({!r})):
    print("held", flush=True)
    time.sleep(60)
"""


def test_the_second_is_told_who_the_first_is(tmp_path: Path) -> None:
    with locked(tmp_path / ".lock") as hindrance, pytest.raises(UserError) as refused, locked(tmp_path / ".lock"):
        pass
    who = f"process {os.getpid()} on {platform.node()}"
    assert hindrance == ""
    assert str(refused.value) == f"{tmp_path}: {who} is at work in it; wait for its end or name another directory in `run`"
    assert not list(tmp_path.iterdir())
    with locked(tmp_path / ".lock"):
        pass


def test_kill_9_leaves_no_lock(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    with subprocess.Popen([sys.executable, "-c", HOLDER.format(str(path))], stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout and process.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=f"process {process.pid} on "), locked(path):
            pass
        process.kill()
    assert path.exists()
    with locked(path) as hindrance:
        assert hindrance == ""


def test_a_lock_whose_name_was_taken_away_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The holder before may end between the opening of the file and the taking of the lock."""
    path, plain = tmp_path / ".lock", fcntl.flock
    calls: list[Any] = []

    def flock(*args: Any) -> None:
        if not calls:
            path.unlink()
        calls.append(args)
        plain(*args)

    monkeypatch.setattr(fcntl, "flock", flock)
    with locked(path):
        assert path.exists() and len(calls) == 2


def test_where_there_are_no_locks_that_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(*_: Any) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    with monkeypatch.context() as patched:
        patched.setattr(fcntl, "flock", flock)
        with locked(tmp_path / ".lock") as hindrance:
            assert hindrance == f"it cannot be locked ({os.strerror(errno.ENOLCK)})"
    monkeypatch.setattr(lock, "fcntl", None)
    with locked(tmp_path / ".lock") as hindrance:
        assert hindrance == "this system has no file locks"
    assert not list(tmp_path.iterdir())
