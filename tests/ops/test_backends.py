"""Backends refuse aloud, `auto` chooses aloud, and `recurrence` refuses what does not fit, with the shapes in the message."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from charrnn.ops import explicit, fused, native
from charrnn.ops.backends import BACKENDS, Request, UnsupportedBackend, Weights, backend, choose, explain, preference, require
from charrnn.ops.cells import CELLS
from charrnn.ops.recurrence import recurrence

from .cases import SMALL, problem


@pytest.fixture(autouse=True)
def fresh_choices() -> Iterator[None]:
    """`choose` remembers what it chose, across tests too."""
    choose.cache_clear()
    yield
    choose.cache_clear()


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("name", ["reference", "explicit", "fused", "native"])
@pytest.mark.parametrize("ragged", [False, True], ids=["dense", "ragged"])
def test_require_returns_what_runs_on_a_cpu(name: str, cell: str, ragged: bool) -> None:
    assert require(name, Request(cell, ragged=ragged)) is backend(name)


@pytest.mark.parametrize("device", ["meta", "xla"])
def test_require_refuses_a_device_with_its_reason(device: str) -> None:
    with pytest.raises(UnsupportedBackend) as refusal:
        require("fused", Request("lstm", device))
    expected = f"backend 'fused' cannot run lstm on {device} in float32: PyTorch has no fused recurrence for device '{device}'"
    assert str(refusal.value) == expected


def test_require_refuses_lengths_on_mps_with_its_reason() -> None:
    require("fused", Request("gru", "mps"))
    with pytest.raises(UnsupportedBackend) as refusal:
        require("fused", Request("gru", "mps", autocast=torch.bfloat16, ragged=True))
    expected = "backend 'fused' cannot run gru on mps in bfloat16 with lengths: PyTorch has no packed sequences on MPS"
    assert str(refusal.value) == expected


def test_an_unknown_backend_is_named_with_the_known_ones() -> None:
    with pytest.raises(UnsupportedBackend, match="unknown backend 'cudnn'; expected auto, reference, explicit, fused, native"):
        require("cudnn", Request("lstm"))
    case = problem("gru", SMALL)
    with pytest.raises(ValueError, match="unknown backend 'cudnn'"):
        recurrence("gru", case.x, case.state, case.weights, backend="cudnn")


@pytest.mark.parametrize(
    "request_, first",
    [
        (Request("lstm"), "native"),
        (Request("gru", ragged=True), "native"),
        (Request("rnn_tanh", autocast=torch.bfloat16), "native"),
        (Request("lstm", dtype=torch.float64), "fused"),
        (Request("lstm", dtype=torch.float64, ragged=True), "explicit"),
        (Request("lstm", dtype=torch.float64, ragged=True, final_state=False), "fused"),
        (Request("gru", dtype=torch.float64, ragged=True, final_state=False), "explicit"),
        (Request("rnn_tanh", "cuda"), "fused"),
        (Request("gru", "mps"), "fused"),
    ],
    ids=str,
)
def test_preference(request_: Request, first: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "instructions", lambda: ("plain", "avx2"))
    order = preference(request_)
    assert order[0] == first
    assert order[-1] == "reference"  # it refuses nothing, so `auto` always ends
    assert len(set(order)) == len(order) and set(order) <= set(BACKENDS)


def test_where_nobody_has_measured_the_loop_in_cpp_auto_does_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "instructions", lambda: ("plain",))
    assert preference(Request("gru")) == ("explicit", "fused", "reference")


def test_without_a_compiler_auto_says_what_it_would_rather_have(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "library_path", lambda: None)
    monkeypatch.setattr(native, "instructions", lambda: ())
    said = explain("auto", Request("lstm"))
    assert said.startswith("fused (not native: it was not compiled when charrnn was installed; install a C++ compiler")


def test_choose_takes_the_first_that_can() -> None:
    double = Request("gru", dtype=torch.float64)
    assert choose(double) is explicit and explain("auto", double) == "explicit"
    assert choose(Request("lstm", "cuda")) is fused and explain("auto", Request("lstm", "cuda")) == "fused"


@pytest.mark.parametrize(
    "refused, reason",
    [
        (Request("lstm", "xla"), "PyTorch has no fused recurrence for device 'xla'"),
        (Request("lstm", "mps", ragged=True), "PyTorch has no packed sequences on MPS"),
        (Request("lstm", autocast=torch.float16), "oneDNN has no float16 recurrence"),
    ],
    ids=str,
)
def test_choose_falls_back_and_can_say_why(refused: Request, reason: str) -> None:
    assert choose(refused) is explicit
    assert explain("auto", refused).endswith(f"not fused: {reason})")
    assert explain("reference", refused) == "reference"
    with pytest.raises(UnsupportedBackend, match=reason):
        explain("fused", refused)


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"cell": "lsmt"}, "unknown cell 'lsmt'; expected one of rnn_tanh, rnn_relu, lstm, gru"),
        ({"x": torch.zeros(3, 2)}, "x has shape (3, 2); expected (T, B, input_size) with at least one step"),
        ({"x": torch.zeros(0, 2, 2)}, "x has shape (0, 2, 2); expected (T, B, input_size) with at least one step"),
        ({"x": torch.zeros(3, 2, 4)}, "weight_ih has shape (6, 2); expected (6, 4) for gru on x (3, 2, 4)"),
        ({"x": torch.zeros(3, 5, 2)}, "state has shapes [(2, 2)]; expected (h), each (5, 2)"),
        ({"weight_ih": torch.zeros(8, 2)}, "weight_ih has shape (8, 2); expected (6, 2) for gru on x (3, 2, 2)"),
        ({"weight_hh": torch.zeros(8, 2)}, "weight_hh has shape (8, 2); expected (6, 2) for gru on x (3, 2, 2)"),
        ({"bias_ih": torch.zeros(2)}, "bias_ih has shape (2,); expected (6,) for gru on x (3, 2, 2)"),
        ({"bias_hh": torch.zeros(6, 1)}, "bias_hh has shape (6, 1); expected (6,) for gru on x (3, 2, 2)"),
        ({"bias_ih": None}, "bias_ih and bias_hh come together or not at all"),
        ({"bias_hh": None}, "bias_ih and bias_hh come together or not at all"),
        ({"state": (torch.zeros(2, 3),)}, "state has shapes [(2, 3)]; expected (h), each (2, 2)"),
        ({"state": (torch.zeros(1, 2, 2),)}, "state has shapes [(1, 2, 2)]; expected (h), each (2, 2)"),
        ({"state": (torch.zeros(2, 2),) * 2}, "state has shapes [(2, 2), (2, 2)]; expected (h), each (2, 2)"),
        ({"state": ()}, "state has shapes []; expected (h), each (2, 2)"),
        ({"lengths": torch.tensor([3])}, "lengths has shape (1,); expected (2,)"),
        ({"lengths": torch.tensor([[3, 1]])}, "lengths has shape (1, 2); expected (2,)"),
    ],
    ids=lambda value: value if isinstance(value, str) else next(iter(value)),
)
def test_what_does_not_fit_is_named(changed: dict[str, Any], message: str) -> None:
    case = problem("gru", SMALL)
    arguments: dict[str, Any] = {"cell": "gru", "x": case.x, "state": case.state, "weights": case.weights, "lengths": None}
    for name, value in changed.items():
        if name in Weights._fields:
            arguments["weights"] = case.weights._replace(**{name: value})
        else:
            arguments[name] = value
    with pytest.raises(ValueError) as refusal:
        recurrence(**arguments)
    assert str(refusal.value) == message


def test_an_lstm_without_its_c_is_named() -> None:
    case = problem("lstm", SMALL)
    with pytest.raises(ValueError) as refusal:
        recurrence("lstm", case.x, case.state[:1], case.weights)
    assert str(refusal.value) == "state has shapes [(2, 2)]; expected (h, c), each (2, 2)"


def test_a_request_reads_aloud() -> None:
    request = Request("gru", "cuda", torch.float32, torch.bfloat16, ragged=True)
    assert str(request) == "gru on cuda in bfloat16 with lengths"
    assert str(replace(request, autocast=None, ragged=False)) == "gru on cuda in float32"


GROWTH = """
import sys
import torch
from charrnn.layers.recurrent import RecurrentStack
torch.set_num_threads(1)
stack = RecurrentStack("lstm", 128, 128, bidirectional=True, backend="fused")  # oneDNN's
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096
for steps in range(20, 140):
    if steps == 24:
        before = resident()
    with torch.autocast("cpu", torch.bfloat16):
        outputs, _ = stack(torch.zeros(steps, 8, 128), None, lengths=torch.full((8,), steps), final_state=False)
    outputs.sum().backward()
print(resident() - before)
"""


@pytest.mark.skipif(
    sys.platform != "linux" or not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="reads /proc, and is of oneDNN's bf16 kernels"
)
def test_memory_does_not_grow_with_every_length_that_is_seen() -> None:
    def growth(**environment: str) -> int:
        inherited = {name: value for name, value in os.environ.items() if name != "ONEDNN_PRIMITIVE_CACHE_CAPACITY"}
        ran = subprocess.run([sys.executable, "-c", GROWTH], env=inherited | environment, capture_output=True, text=True, check=True)
        return int(ran.stdout)

    assert growth() < 0.9 * growth(ONEDNN_PRIMITIVE_CACHE_CAPACITY="1024")
