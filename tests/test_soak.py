"""A run that is killed again and again ends as one that was left alone. Sixty times each: scripts/soak.py."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.timeout(900)  # a dozen processes, and a machine may be busy


def test_two_kills_and_two_dismissals_change_nothing(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "scripts/soak.py"), "--kills", "2", "--out", str(tmp_path / "soak")]
    done = subprocess.run(command, cwd=ROOT, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    found = re.findall(r"^(SIG\w+): ended 2, .*steps lost [01]; the weights are the same to the bit", done.stdout, flags=re.MULTILINE)
    assert found == ["SIGKILL", "SIGTERM"]


def test_what_may_not_be_is_told(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "scripts/soak.py"), "--kills", "2", "--steps", "1", "--out", str(tmp_path / "soak")]
    done = subprocess.run(command, cwd=ROOT, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and done.stderr.endswith(f"raise --steps; the runs are in {tmp_path / 'soak'}\n"), done.stderr
