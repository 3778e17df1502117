"""The clock of `charrnn backends --bench`: what is wrong is not timed, and what is timed is told by backend."""

from __future__ import annotations

import pytest
import torch

from charrnn.ops import explicit, timing
from charrnn.ops.cells import CELLS
from charrnn.ops.timing import Work, milliseconds, right


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_the_backends_are_right(cell: str, precision: torch.dtype) -> None:
    for backend in ("explicit", "fused"):
        assert right(Work(cell, 24, 3, 5, precision), backend)


def test_one_that_is_wrong_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    run = explicit.run

    def off(*arguments):  # type: ignore[no-untyped-def]
        outputs, state = run(*arguments)
        return outputs * 1.01, state

    monkeypatch.setattr(explicit, "run", off)
    assert not right(Work("gru", 24, 3, 5), "explicit")
    assert right(Work("gru", 24, 3, 5), "fused")


def test_each_is_timed() -> None:
    found = milliseconds(Work("lstm", 8, 2, 3), ["explicit", "fused"], seconds=0.05)
    assert list(found) == ["explicit", "fused"] and all(0 < taken < 1000 for taken in found.values())


def test_backends_bench_prints_what_auto_takes(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from charrnn.cli.info import backends

    monkeypatch.setattr(timing, "milliseconds", lambda work, names: {name: work.hidden + len(name) / 10 for name in names})
    monkeypatch.setattr(timing, "right", lambda work, name: name != "explicit")
    backends(bench=True)
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["cell", "units", "precision", "explicit", "fused", "native"]
    assert len(lines) == 2 + len(CELLS) * 3 * 2 + 1
    first = lines[2].split()
    assert first[:4] == ["rnn_tanh", "128", "fp32", "wrong"] and first[4] == "128.50"
