"""Under autocast the products are rounded to bfloat16; gates, state and every gradient's dtype stay as they were."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor

from charrnn.ops.cells import CELLS
from charrnn.ops.recurrence import recurrence

from .cases import error, gradients, problem, results

BF16_CASES = [*product(CELLS, ("reference", "explicit", "native")), ("lstm", "fused")]
EPS = torch.finfo(torch.bfloat16).eps  # 2⁻⁷


@pytest.mark.parametrize("lengths", [None, (7, 4, 1)], ids=["dense", "ragged"])
@pytest.mark.parametrize("cell, backend", BF16_CASES)
def test_bf16_is_close_to_fp32(cell: str, backend: str, lengths: tuple[int, ...] | None) -> None:
    ends = None if lengths is None else torch.tensor(lengths)
    expected = results(problem(cell, dtype=torch.float32), "reference", lengths=ends)
    case = problem(cell, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        outputs, final = recurrence(cell, case.x, case.state, case.weights, lengths=ends, backend=backend)
    got = {"outputs": outputs, **{f"{name}_n": s for name, s in zip(CELLS[cell].state_names, final, strict=True)}} | gradients(
        case, outputs, final
    )
    assert got.keys() == expected.keys()
    for name, tensor in got.items():
        assert tensor.shape == expected[name].shape and tensor.isfinite().all(), name
        assert error(tensor, expected[name]) <= 4 * EPS * expected[name].abs().max(), name
        if name.startswith("d_"):
            assert tensor.dtype == torch.float32, name


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("cell, backend", BF16_CASES)
def test_bf16_without_a_final_state_is_close_to_fp32(cell: str, backend: str, reverse: bool) -> None:
    """Where a fused LSTM runs dense over ragged sequences."""

    def run(backend: str, autocast: bool) -> dict[str, Tensor]:
        case = problem(cell, dtype=torch.float32)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            outputs, _ = recurrence(
                cell, case.x, case.state, case.weights, lengths=torch.tensor([4, 7, 0]), reverse=reverse, final_state=False, backend=backend
            )
        leaves = case.leaves()
        grads = torch.autograd.grad(outputs, list(leaves.values()), case.d_outputs)
        return {"outputs": outputs} | {f"d_{name}": grad for name, grad in zip(leaves, grads, strict=True)}

    expected = run("reference", False)
    for name, got in run(backend, True).items():
        assert got.dtype == torch.float32, name
        assert error(got, expected[name]) <= 4 * EPS * expected[name].abs().max(), name


@pytest.mark.parametrize("lengths", [None, (7, 4, 1)], ids=["dense", "ragged"])
@pytest.mark.parametrize("backend", ["reference", "explicit", "native"])
@pytest.mark.parametrize("cell", CELLS)
def test_state_stays_float32(cell: str, backend: str, lengths: tuple[int, ...] | None) -> None:
    case = problem(cell, dtype=torch.float32)
    ends: Tensor | None = None if lengths is None else torch.tensor(lengths)
    with torch.autocast("cpu", torch.bfloat16):
        outputs, final = recurrence(cell, case.x, case.state, case.weights, lengths=ends, backend=backend)
    assert all(tensor.dtype == torch.float32 for tensor in (outputs, *final))
