"""Dropout keeps its expectation, repeats under one generator, and is nothing where nothing is trained."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from charrnn.layers.dropout import drop_rows, drop_weight, dropout, dropout_mask

DEVICES = ["cpu"] + ["cuda"] * torch.cuda.is_available() + ["mps"] * torch.backends.mps.is_available()


def seeded(seed: int = 0, device: str = "cpu") -> torch.Generator:
    return torch.Generator(device).manual_seed(seed)


def mask(shape: tuple[int, ...], p: float, device: str = "cpu", seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return dropout_mask(shape, p, device=device, dtype=dtype, generator=seeded(seed, device))


@pytest.mark.parametrize("p", [0.01, 0.2, 0.5, 0.9])
@pytest.mark.parametrize("device", DEVICES)
def test_mask_is_zero_or_scaled_and_keeps_the_expectation(device: str, p: float) -> None:
    drawn = mask((20, 50, 51), p, device).cpu()
    kept = drawn[drawn != 0]
    torch.testing.assert_close(kept, torch.full_like(kept, 1 / (1 - p)), rtol=2e-4, atol=0)
    deviation = (p / (1 - p) / drawn.numel()) ** 0.5
    assert abs(drawn.double().mean().item() - 1) < 5 * deviation
    assert abs((drawn == 0).double().mean().item() - p) < 5 * (p * (1 - p) / drawn.numel()) ** 0.5


@pytest.mark.parametrize("dim", [0, 1, 2])
def test_mask_is_independent_along_every_axis(dim: int) -> None:
    drawn = (mask((64, 65, 66), 0.5) != 0).double() - 0.5
    neighbours = (drawn.narrow(dim, 1, drawn.size(dim) - 1) * drawn.narrow(dim, 0, drawn.size(dim) - 1)).mean() / 0.25
    assert abs(neighbours.item()) < 5 * drawn.numel() ** -0.5


@pytest.mark.parametrize("shape", [(1,), (3,), (5, 1), (2, 3, 7), (0, 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_mask_has_the_shape_and_dtype_asked_for(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    drawn = mask(shape, 0.3, dtype=dtype)
    assert drawn.shape == shape and drawn.dtype == dtype


def test_mask_at_the_ends_of_p() -> None:
    assert torch.equal(mask((4, 5), 0.0), torch.ones(4, 5))
    assert mask((300, 300), 1 - 1e-9).isfinite().all()


@pytest.mark.parametrize("device", DEVICES)
def test_generator_decides(device: str) -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    assert torch.equal(mask((9, 9), 0.5, device, seed=1), mask((9, 9), 0.5, device, seed=1))
    assert not torch.equal(mask((9, 9), 0.5, device, seed=1), mask((9, 9), 0.5, device, seed=2))
    assert torch.equal(before, torch.get_rng_state())


def test_locked_mask_is_constant_over_time_and_unlocked_is_not() -> None:
    x = torch.ones(6, 3, 50)
    locked = dropout(x, 0.5, locked=True, training=True, generator=seeded())
    assert torch.equal(locked, locked[:1].expand_as(locked))
    assert not torch.equal(locked[0, 0], locked[0, 1])
    free = dropout(x, 0.5, locked=False, training=True, generator=seeded())
    assert not any(torch.equal(free[0], free[t]) for t in range(1, 6))


def test_rows_are_dropped_whole_and_weights_alone() -> None:
    weight = torch.ones(200, 30)
    rows = drop_rows(weight, 0.5, training=True, generator=seeded())
    assert torch.equal(rows, rows[:, :1].expand_as(rows))
    assert {0.0, 2.0} == set(rows[:, 0].tolist())
    alone = drop_weight(weight, 0.5, training=True, generator=seeded())
    assert not torch.equal(alone, alone[:, :1].expand_as(alone)) and {0.0, 2.0} == set(alone.flatten().tolist())
    assert torch.equal(weight, torch.ones(200, 30))


@pytest.mark.parametrize("p, training", [(0.5, False), (0.0, True)])
def test_nothing_happens_in_evaluation_or_at_zero(p: float, training: bool) -> None:
    x, weight = torch.randn(2, 3, 4), torch.randn(3, 4)
    assert dropout(x, p, locked=False, training=training) is x
    assert dropout(x, p, locked=True, training=training) is x
    assert drop_rows(weight, p, training=training) is weight
    assert drop_weight(weight, p, training=training) is weight


def test_gradient_is_the_mask() -> None:
    x = torch.randn(4, 3, 5, requires_grad=True)
    kept = dropout(x, 0.4, locked=False, training=True, generator=seeded())
    torch.autograd.backward(kept.sum())
    assert x.grad is not None
    torch.testing.assert_close(x.grad * x.detach(), kept.detach())
