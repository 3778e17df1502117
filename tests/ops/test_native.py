"""The C++ loop: every instruction set of this processor, its operators as PyTorch checks them, threads, and refusals."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from collections.abc import Iterator
from itertools import product

import pytest
import torch
from torch import Tensor

from charrnn.ops import native
from charrnn.ops.backends import Request, UnsupportedBackend, require
from charrnn.ops.cells import CELLS
from charrnn.ops.recurrence import recurrence

from .cases import ODD, Problem, Sizes, error, gradients, problem, results

# Whole and broken vectors and tiles of units and of rows: one tile, two, more than two, and a few rows beyond.
SHAPES = [ODD, Sizes(4, 16, 3, 64), Sizes(3, 37, 8, 70), Sizes(3, 70, 5, 33)]
LENGTHS = [None, "ragged"]
EPS = torch.finfo(torch.bfloat16).eps  # 2⁻⁷


def lengths_of(sizes: Sizes, kind: str | None) -> Tensor | None:
    return None if kind is None else torch.randint(0, sizes.steps + 1, (sizes.batch,), generator=torch.Generator().manual_seed(1))


@pytest.fixture(params=native.INSTRUCTIONS)
def instructions(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each set that this processor has, chosen in place of its best."""
    name: str = request.param
    if name not in native.instructions():
        pytest.skip(f"this processor has no {name}")
    monkeypatch.setattr(native, "instructions", lambda: (name,))
    return name


@pytest.fixture(params=[1, 2, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def in_bf16(case: Problem, backend: str, lengths: Tensor | None, reverse: bool) -> dict[str, Tensor]:
    with torch.autocast("cpu", torch.bfloat16):
        outputs, final = recurrence(case.cell, case.x, case.state, case.weights, lengths=lengths, reverse=reverse, backend=backend)
    named = {"outputs": outputs, **{f"{name}_n": s for name, s in zip(CELLS[case.cell].state_names, final, strict=True)}}
    return {name: t.detach() for name, t in named.items()} | gradients(case, outputs, final)


@functools.cache
def expected(cell: str, sizes: Sizes, kind: str | None, reverse: bool) -> tuple[dict[str, Tensor], ...]:
    """The results themselves, and as `explicit`, whose sums have the same order, rounds them in float32 and with bfloat16 products."""
    lengths = lengths_of(sizes, kind)
    return (
        results(problem(cell, sizes), "reference", lengths=lengths, reverse=reverse),
        results(problem(cell, sizes, dtype=torch.float32), "explicit", lengths=lengths, reverse=reverse),
        in_bf16(problem(cell, sizes, dtype=torch.float32), "explicit", lengths, reverse),
    )


@pytest.mark.parametrize("kind, reverse", [(None, False), (None, True), ("ragged", False), ("ragged", True)])
@pytest.mark.parametrize("cell, sizes", list(product(CELLS, SHAPES)), ids=str)
@pytest.mark.usefixtures("instructions")
def test_every_instruction_set_matches_the_reference(cell: str, sizes: Sizes, kind: str | None, reverse: bool) -> None:
    lengths = lengths_of(sizes, kind)
    exact, rounded, coarse = expected(cell, sizes, kind, reverse)
    for name, got in results(problem(cell, sizes, dtype=torch.float32), "native", lengths=lengths, reverse=reverse).items():
        assert error(got, exact[name]) <= 4 * error(rounded[name], exact[name]) + 1e-6, name
    for name, got in in_bf16(problem(cell, sizes, dtype=torch.float32), "native", lengths, reverse).items():
        assert got.dtype == torch.float32, name
        if cell == "rnn_relu":  # rounding sends some preactivations over the kink, and with each a whole gradient
            assert (got - exact[name]).norm() <= 16 * EPS * exact[name].norm(), name
            continue
        allowed = max(4 * error(coarse[name], exact[name]), EPS * exact[name].abs().max().item())
        assert error(got, exact[name]) <= allowed, name


@pytest.mark.parametrize("cell", CELLS)
def test_x_multiplied_beforehand_gives_the_same(cell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = problem(cell, Sizes(5, 37, 24, 70), dtype=torch.float32)
    together = in_bf16(case, "native", None, False)
    monkeypatch.setattr(native, "TOGETHER", 0)
    apart = in_bf16(case, "native", None, False)
    for name, got in apart.items():
        assert (got - together[name]).norm() <= (16 if cell == "rnn_relu" else 2) * EPS * together[name].norm(), name


@pytest.mark.parametrize("kind", LENGTHS)
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_threads_that_share_a_matrix_give_the_same(cell: str, kind: str | None, threads: int) -> None:
    """One too large for a core's cache: each thread then has some of the units, and waits for the others after each step."""
    sizes = Sizes(4, 20, 8, 1056)
    case, lengths = problem(cell, sizes, dtype=torch.float32), lengths_of(sizes, kind)
    shared = in_bf16(case, "native", lengths, True)
    torch.set_num_threads(1)
    for name, alone in in_bf16(case, "native", lengths, True).items():
        assert (shared[name] - alone).norm() <= EPS * alone.norm(), name


@pytest.mark.parametrize("kind", LENGTHS)
@pytest.mark.parametrize("cell", CELLS)
def test_threads_change_no_more_than_the_order_of_sums(cell: str, kind: str | None, threads: int) -> None:
    sizes = Sizes(5, 7, 4, 20)
    exact = results(problem(cell, sizes), "reference", lengths=lengths_of(sizes, kind))
    for name, got in results(problem(cell, sizes), "native", lengths=lengths_of(sizes, kind)).items():
        torch.testing.assert_close(got, exact[name], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("cell", CELLS)
def test_without_gradients_the_results_are_the_same(cell: str) -> None:
    case = problem(cell, dtype=torch.float32)
    expected, _ = recurrence(cell, case.x, case.state, case.weights, backend="native")
    with torch.no_grad():
        got, _ = recurrence(cell, case.x, case.state, case.weights, backend="native")
    assert torch.equal(got, expected)


@pytest.mark.parametrize("instruction_set", native.instructions())
def test_gates_saturate_and_nan_is_not_hidden(instruction_set: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "instructions", lambda: (instruction_set,))
    for cell in CELLS:
        case = problem(cell, Sizes(2, 3, 20, 20), dtype=torch.float32)
        with torch.no_grad():
            case.x[:, 0] *= 1e4
            case.x[:, 1] = torch.nan
            outputs, _ = recurrence(cell, case.x, case.state, case.weights, backend="native")
            expected, _ = recurrence(cell, case.x, case.state, case.weights, backend="reference")
        assert outputs[:, 1].isnan().all()
        torch.testing.assert_close(outputs, expected, rtol=1e-5, atol=1e-5, equal_nan=True)


def test_numbers_too_small_are_flushed_inside_a_call_only() -> None:
    tiny = torch.full((4,), 1e-39)
    case = problem("rnn_relu", dtype=torch.float32)
    recurrence("rnn_relu", case.x, case.state, case.weights, backend="native")
    assert (tiny * 0.5 > 0).all()


def operator_inputs(cell: str, bf16: bool, ragged: bool) -> tuple[object, ...]:
    case = problem(cell, dtype=torch.float32)
    lengths = torch.tensor([7, 0, 4]) if ragged else None
    return (cell, case.x, case.state[0], case.state[1] if cell == "lstm" else None, *case.weights, lengths, False, bf16, True)


@pytest.mark.parametrize("bf16, ragged", [(False, False), (False, True), (True, False)], ids=["fp32", "ragged", "bf16"])
@pytest.mark.parametrize("cell", CELLS)
def test_the_operator_is_one_as_pytorch_knows_them(cell: str, bf16: bool, ragged: bool) -> None:
    torch.library.opcheck(torch.ops.charrnn.recurrence, operator_inputs(cell, bf16, ragged))


@pytest.mark.parametrize("cell", CELLS)
def test_so_is_its_backward(cell: str) -> None:
    case = problem(cell, dtype=torch.float32)
    given = operator_inputs(cell, False, False)
    outputs, h_n, c_n, gates, cells = torch.ops.charrnn.recurrence(*given)
    inputs = (*given[:6], None, False, False, outputs, gates, cells, case.d_outputs, h_n, c_n if cell == "lstm" else None, True, True)
    detached = tuple(i.detach() if isinstance(i, Tensor) else i for i in inputs)
    torch.library.opcheck(torch.ops.charrnn.recurrence_backward, detached)


@pytest.mark.parametrize("power", [1, 2])
def test_it_refuses_to_be_differentiated_twice(power: int) -> None:
    case = problem("lstm")
    outputs, _ = recurrence("lstm", case.x, case.state, case.weights, backend="native")
    with pytest.raises(RuntimeError, match="native backend cannot be differentiated twice; use backend='reference'"):
        torch.autograd.grad(outputs.pow(power).sum(), case.x, create_graph=True)


@pytest.mark.parametrize(
    "request_, reason",
    [
        (Request("lstm", "cuda"), "it runs on the CPU only"),
        (Request("lstm", dtype=torch.bfloat16), "its states are float32 or float64; use train.precision: bf16 for bfloat16 products"),
        (Request("lstm", autocast=torch.float16), "it has no products in float16"),
    ],
    ids=str,
)
def test_it_refuses_with_its_reason(request_: Request, reason: str) -> None:
    with pytest.raises(UnsupportedBackend) as refusal:
        require("native", request_)
    assert str(refusal.value) == f"backend 'native' cannot run {request_}: {reason}"


def test_without_its_library_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "library_path", lambda: None)
    with pytest.raises(UnsupportedBackend) as refusal:
        require("native", Request("gru"))
    assert str(refusal.value) == (
        "backend 'native' cannot run gru on cpu in float32: it was not compiled when charrnn was installed; "
        "install a C++ compiler (g++ or clang++), then charrnn again"
    )
    case = problem("gru")
    recurrence("gru", case.x, case.state, case.weights)  # auto has others


POOLS = """
import os, torch
from charrnn.ops.recurrence import recurrence
from tests.ops.cases import Sizes, problem
torch.set_num_threads(2)
torch.randn(512, 512) @ torch.randn(512, 512)  # PyTorch's threads have started
before = len(os.listdir("/proc/self/task"))
case = problem("lstm", Sizes(3, 4, 5, 6))
recurrence("lstm", case.x, case.state, case.weights, backend="native")
print(before, len(os.listdir("/proc/self/task")))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_its_threads_are_pytorchs() -> None:
    ran = subprocess.run(
        [sys.executable, "-c", POOLS], env=os.environ | {"PYTHONPATH": os.getcwd()}, capture_output=True, text=True, check=True
    )
    before, after = ran.stdout.split()
    assert before == after
