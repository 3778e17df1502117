"""Of all who ask for a piece of work one gets it, and what a lost process held is taken up by one other."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from charrnn import claims
from charrnn.claims import STALE, Claim, Claims, Taken, create

ROOT = Path(__file__).parent.parent
HOLDER = """
import sys, time
from pathlib import Path
from charrnn.claims import Claims
with Claims(Path({!r})).take("work", 0, step=7):
    print("held", flush=True)
    time.sleep(60)
"""


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def no_links(*_: Any) -> None:
    raise OSError(errno.EPERM, os.strerror(errno.EPERM))


@pytest.mark.parametrize("links", [True, False], ids=["links", "no links"])
def test_a_file_is_made_once_and_whole(links: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not links:
        monkeypatch.setattr(os, "link", no_links)
    assert create(tmp_path / "plan", b"first")
    assert not create(tmp_path / "plan", b"second")
    assert (tmp_path / "plan").read_bytes() == b"first" and files(tmp_path) == ["plan"]


def test_a_server_whose_answer_was_lost_has_made_the_file_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link = os.link

    def deaf(source: Path, to: Path) -> None:
        link(source, to)
        raise FileExistsError

    monkeypatch.setattr(os, "link", deaf)
    assert create(tmp_path / "plan", b"first")


@pytest.mark.parametrize("links", [True, False], ids=["links", "no links"])
def test_one_of_many_gets_it(links: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not links:
        monkeypatch.setattr(os, "link", no_links)
    for number in range(20):
        together, got = threading.Barrier(6), list[Claim | None]()

        def ask(name: str, together: threading.Barrier, got: list[Claim | None]) -> None:
            mine = Claims(tmp_path)
            together.wait()
            got.append(mine.take(name, 0))

        threads = [threading.Thread(target=ask, args=(f"work {number}", together, got)) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        holders = [claim for claim in got if claim is not None]
        assert len(got) == 6 and len(holders) == 1
        with holders[0]:
            assert Claims(tmp_path).take(f"work {number}", 1) is None


def test_what_is_given_up_can_be_taken_at_once_from_any_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = Claims(tmp_path)
    first = mine.take("work", 0)
    assert first is not None
    with first:
        assert mine.take("work", 1) is None
    assert mine.newest() == {"work": 1} and mine.abandoned("work", 1) == []
    monkeypatch.setattr(claims, "machine", lambda: "another")
    second = Claims(tmp_path).take("work", 1)
    assert second is not None and second.number == 2
    with second:
        pass


def test_kill_9_frees_it_for_this_machine_at_once(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLDER.format(str(tmp_path))], stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout and process.stdout.readline() == "held\n"
        assert Claims(tmp_path).take("work", 1) is None
        process.kill()
    mine = Claims(tmp_path)
    assert [(lost.number, lost.note["step"], lost.note["pid"]) for lost in mine.abandoned("work", 1)] == [(1, 7, process.pid)]
    claim = mine.take("work", 1)
    assert claim is not None
    with claim:
        pass


def test_on_another_machine_a_claim_counts_until_it_is_stale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = Claims(tmp_path).take("work", 0)
    assert first is not None
    first._file.close()  # as a lock that does not reach the other machine
    monkeypatch.setattr(claims, "machine", lambda: "another")
    theirs = Claims(tmp_path)
    assert theirs.take("work", 1) is None
    first.look()
    assert theirs.take("work", 1) is None
    first.check()
    long_ago = time.time() - STALE - 5
    os.utime(tmp_path / "work.1.claim", (long_ago, long_ago))
    second = theirs.take("work", 1)
    assert second is not None
    with second:
        first.look()  # it was only asleep
        with pytest.raises(Taken):
            first.check()
    assert not [name for name in files(tmp_path) if name.endswith(".partial")]


def test_who_holds_it_says_so_now_and_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "REFRESH", 0.01)
    claim = Claims(tmp_path).take("work", 0)
    assert claim is not None
    os.utime(tmp_path / "work.1.claim", (1, 1))
    with claim:
        until = time.monotonic() + 20
        while (tmp_path / "work.1.claim").stat().st_mtime == 1 and time.monotonic() < until:
            time.sleep(0.01)
        assert (tmp_path / "work.1.claim").stat().st_mtime > 1
