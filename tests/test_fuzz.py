"""Spoilt and hostile files of every kind that is read: one line, or read; never a crash, a hang, much memory, or code that is run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "scripts/fuzz.py"
COUNT = 20
KINDS = ("checkpoints", "states", "configs", "corpora", "captions", "recordings", "labelled", "conll", "runs")


def fuzz(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, env=environment, timeout=500)


@pytest.mark.timeout(600)
def test_spoilt_files_of_each_kind_are_read_or_refused_by_one_line() -> None:
    """`python scripts/fuzz.py` does the same with a thousand of each."""
    done = fuzz("--count", str(COUNT))
    assert done.returncode == 0, done.stdout + done.stderr
    found = dict(re.findall(r"^(\w+): 20 cases, .* refused, (\d+) wrong; ", done.stdout, re.MULTILINE))
    assert found == dict.fromkeys(KINDS, "0"), done.stdout


@pytest.mark.timeout(300)
def test_what_is_wrong_is_found() -> None:
    """A reader that unpickles, hangs, takes memory, dies, or lets an exception out, is told of with the number of the case."""
    sick = f"""
import os, pickle, runpy, sys, time
sys.path.insert(0, {str(ROOT)!r})
fuzz = runpy.run_path({str(SCRIPT)!r})
Case = fuzz["Case"]

class Sick:
    def __init__(self, folder, marker):
        self.folder, self.marker = folder, marker

    def case(self, rng):
        self.number = getattr(self, "number", -1) + 1
        return Case("sick", [self.unpickles, self.spins, self.sleeps, self.grows, self.dies, self.lets_out, self.well][self.number])

    def unpickles(self):
        pickle.loads(pickle.dumps(fuzz["Bomb"](self.marker)))

    def spins(self):
        while True:
            pass

    def sleeps(self):
        time.sleep(100)

    def grows(self):
        b"x" * (600 << 20)

    def dies(self):
        os.kill(os.getpid(), 11)

    def lets_out(self):
        raise KeyError("x")

    def well(self):
        pass

names = fuzz["main"].__globals__
names["KINDS"] = {{"sick": Sick}}
names["CPU_SECONDS"], names["WALL_SECONDS"], names["BATCH"] = 1, 5, 1
plain = fuzz["Ground"].run

def run(self, number):
    self.maker.number = number - 1  # each case runs in a child of its own
    if self.marker.exists():
        self.marker.rmdir()
    return plain(self, number)

fuzz["Ground"].run = run
sys.argv = ["fuzz.py", "--count", "7"]
fuzz["main"]()
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", sick], capture_output=True, text=True, env=environment, timeout=250)
    assert done.returncode == 1, done.stdout + done.stderr
    assert re.search(r"^sick: 7 cases, 2 read, 0 refused, 6 wrong; ", done.stdout, re.MULTILINE), done.stdout
    for number, what in enumerate(
        ["AssertionError: code was run", "hang", "hang", r"\d{3} MB", "dead process, signal 11", "KeyError: 'x'"]
    ):
        assert re.search(rf"^sick {number}: [?\w]+: {what}", done.stdout, re.MULTILINE), done.stdout
