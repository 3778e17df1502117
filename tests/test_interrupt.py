"""Signals: raised where nothing is half done, or where somebody asks; and without a traceback where nothing has begun."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from charrnn.config import build_config
from charrnn.interrupt import NOTHING_LOST, SIGNALS, Interrupt

ROOT = Path(__file__).parent.parent
CODES = {signal.SIGINT: 130, signal.SIGTERM: 75, signal.SIGUSR1: 75}


def send(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_waits_for_the_end_of_the_block(number: signal.Signals) -> None:
    interrupt, reached = Interrupt(), []
    with interrupt.listening(), pytest.raises(KeyboardInterrupt), interrupt.held():
        with interrupt.held():
            send(number)
            reached.append("inner")
        reached.append("outer")
        assert interrupt.requested
    assert reached == ["inner", "outer"] and not interrupt.requested
    assert interrupt.terminated == (number != signal.SIGINT)


def test_one_is_raised_and_the_next_does_not_disturb() -> None:
    interrupt = Interrupt()
    with interrupt.listening():
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)
        send(signal.SIGTERM)
        with interrupt.ignored():
            send(signal.SIGTERM)
        assert interrupt.terminated


@pytest.mark.parametrize("number", SIGNALS)
def test_polled_it_is_raised_only_where_it_is_asked_for(number: signal.Signals) -> None:
    interrupt = Interrupt(polled=True)
    with interrupt.listening():
        interrupt.check()
        send(number)
        with interrupt.held():
            interrupt.check()
        assert interrupt.requested and interrupt.terminated == (number != signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            interrupt.check()
        assert not interrupt.requested
        send(number)
        interrupt.check()  # the run is being brought to its end
    interrupt = Interrupt(polled=True)
    with interrupt.listening():
        with interrupt.ignored():
            send(number)
            interrupt.check()
        interrupt.check()


EARLY = """
import sys
import charrnn.__main__
name, state, config = sys.argv[1:]
sys.argv = ["charrnn", "train", "--config", config]
if name == "import":
    import builtins
    plain = builtins.__import__
    def slow(what, *rest, **named):
        if what == "torch":
            pause()
        return plain(what, *rest, **named)
    builtins.__import__ = slow
else:
    import charrnn.training
    charrnn.training.load_task = lambda *_: pause()
def pause():
    import time
    open(state, "w").close()
    time.sleep(60)
charrnn.__main__.main()
"""


@pytest.mark.timeout(600)
@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("where", ["import", "encoding"])
def test_before_the_loop_it_takes_one_line_and_no_traceback(tmp_path: Path, where: str, number: signal.Signals) -> None:
    (tmp_path / "text.txt").write_text("to be or not to be\n" * 50)
    settings: dict[str, Any] = {"run": str(tmp_path / "run"), "data": {"path": str(tmp_path / "text.txt")}, "train": {"max_steps": 5}}
    (tmp_path / "config.yaml").write_text(build_config(settings, "test").to_yaml())
    ready = tmp_path / "ready"
    command = [sys.executable, "-c", EARLY, where, str(ready), str(tmp_path / "config.yaml")]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while not ready.exists() and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(number)
        out, err = process.communicate()
    assert (process.returncode, out, err) == (CODES[number], "", f"charrnn: {NOTHING_LOST}\n")
    assert not (tmp_path / "run").exists()
