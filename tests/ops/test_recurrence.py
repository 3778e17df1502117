"""Three witnesses: every fast backend against the reference, the reference against torch.nn, all of them against finite differences."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from charrnn.ops.backends import Weights
from charrnn.ops.cells import CELLS, State
from charrnn.ops.fused import flip_time
from charrnn.ops.recurrence import recurrence

from .cases import (
    ALL_BACKENDS,
    DEVICES,
    FAST_BACKENDS,
    ODD,
    ONE,
    SMALL,
    Problem,
    Sizes,
    assert_exact,
    error,
    gradients,
    problem,
    results,
    runs_on,
)

LENGTHS = {"dense": None, "ragged": (7, 4, 1), "with_empty": (5, 0, 2)}  # the last: unsorted, and nobody reaches T
FAST_CASES = [
    pytest.param(
        cell, backend, lengths, device, id=f"{cell}-{backend}-{name}-{device}", marks=[pytest.mark.gpu] if device == "cuda" else []
    )
    for cell, backend, (name, lengths), device in product(CELLS, FAST_BACKENDS, LENGTHS.items(), DEVICES)
    if runs_on(device, backend, cell, lengths is not None)
]
both_ways = pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
every_backend = pytest.mark.parametrize("cell, backend", list(product(CELLS, ALL_BACKENDS)))


@pytest.fixture(autouse=True)
def no_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    """cuDNN rounds float32 products to TF32 unless told otherwise; the tolerances here are float32's."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.fixture
def nan_in_fresh_memory() -> Iterator[None]:
    """torch.empty returns NaN, so an element that nobody writes shows."""
    torch.set_deterministic_debug_mode("warn")  # which makes fill_uninitialized_memory, on by default, count
    yield
    torch.set_deterministic_debug_mode("default")


def as_lengths(lengths: tuple[int, ...] | None, device: str = "cpu") -> Tensor | None:
    return None if lengths is None else torch.tensor(lengths, device=device)


@functools.cache
def reference_results(
    cell: str, sizes: Sizes, biased: bool, lengths: tuple[int, ...] | None, reverse: bool, dtype: torch.dtype, device: str
) -> dict[str, Tensor]:
    given = problem(cell, sizes, biased=biased, dtype=dtype, device=device)
    return results(given, "reference", lengths=as_lengths(lengths, device), reverse=reverse)


def assert_matches_reference(
    cell: str, backend: str, sizes: Sizes, biased: bool, lengths: tuple[int, ...] | None, reverse: bool, device: str
) -> None:
    """Exact in float64, where the device has it; in float32 within a few times the reference's own rounding noise."""
    exact = reference_results(cell, sizes, biased, lengths, reverse, torch.float64, "cpu")
    rounded = reference_results(cell, sizes, biased, lengths, reverse, torch.float32, device)
    in32 = problem(cell, sizes, biased=biased, dtype=torch.float32, device=device)
    got32 = results(in32, backend, lengths=as_lengths(lengths, device), reverse=reverse)
    assert got32.keys() == exact.keys()
    for name, got in got32.items():
        assert got.shape == exact[name].shape and got.dtype == torch.float32, name
        assert error(got, exact[name]) <= 4 * error(rounded[name], exact[name]) + 1e-6, name
    if device == "mps":  # which has no float64
        return
    in64 = problem(cell, sizes, biased=biased, device=device)
    got64 = results(in64, backend, lengths=as_lengths(lengths, device), reverse=reverse)
    for name, got in got64.items():
        assert_exact(got.cpu(), exact[name], name)


@both_ways
@pytest.mark.parametrize("biased", [True, False], ids=["biased", "unbiased"])
@pytest.mark.parametrize("cell, backend, lengths, device", FAST_CASES)
def test_backend_matches_reference(
    cell: str, backend: str, lengths: tuple[int, ...] | None, device: str, biased: bool, reverse: bool
) -> None:
    assert_matches_reference(cell, backend, ODD, biased, lengths, reverse, device)


@both_ways
@pytest.mark.parametrize("lengths", [None, (1,), (0,)], ids=["dense", "ragged", "empty"])
@pytest.mark.parametrize("cell, backend", list(product(CELLS, FAST_BACKENDS)))
def test_backend_matches_reference_at_size_one(cell: str, backend: str, lengths: tuple[int, ...] | None, reverse: bool) -> None:
    assert_matches_reference(cell, backend, ONE, True, lengths, reverse, "cpu")


@pytest.mark.parametrize("sizes", [Sizes(1, 5, 3, 7), Sizes(11, 1, 1, 17), Sizes(5, 2, 19, 1)], ids=str)
@pytest.mark.parametrize("cell, backend", list(product(CELLS, FAST_BACKENDS)))
def test_backend_matches_reference_at_odd_sizes(cell: str, backend: str, sizes: Sizes) -> None:
    assert_matches_reference(cell, backend, sizes, True, None, False, "cpu")


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
@every_backend
@pytest.mark.usefixtures("nan_in_fresh_memory")
def test_every_element_is_written(cell: str, backend: str, lengths: tuple[int, ...] | None) -> None:
    assert torch.empty(3).isnan().all()
    for name, got in results(problem(cell), backend, lengths=as_lengths(lengths)).items():
        assert got.isfinite().all(), name


@pytest.mark.parametrize("cell", CELLS)
def test_auto_is_one_of_them(cell: str) -> None:
    exact = reference_results(cell, ODD, True, (7, 4, 1), False, torch.float64, "cpu")
    for name, got in results(problem(cell), "auto", lengths=torch.tensor([7, 4, 1])).items():
        assert_exact(got, exact[name], name)


@pytest.mark.parametrize("lengths", [None, (7, 4, 1)], ids=["dense", "ragged"])
@pytest.mark.parametrize("cell, backend", list(product(CELLS, FAST_BACKENDS)))
def test_gradient_from_each_result_alone(cell: str, backend: str, lengths: tuple[int, ...] | None) -> None:
    """A loss may use the outputs and drop the final state, or the other way around."""
    ours, exact = problem(cell), problem(cell)
    got, expected = (
        recurrence(cell, p.x, p.state, p.weights, lengths=as_lengths(lengths), backend=name)
        for p, name in ((ours, backend), (exact, "reference"))
    )
    cotangents = (ours.d_outputs, *ours.d_final)
    for got_y, expected_y, d_y in zip((got[0], *got[1]), (expected[0], *expected[1]), cotangents, strict=True):
        got_grads = torch.autograd.grad(got_y, list(ours.leaves().values()), d_y, retain_graph=True)
        expected_grads = torch.autograd.grad(expected_y, list(exact.leaves().values()), d_y, retain_graph=True)
        for name, got_grad, expected_grad in zip(ours.leaves(), got_grads, expected_grads, strict=True):
            assert_exact(got_grad, expected_grad, name)


@every_backend
def test_gradient_to_each_leaf_alone(cell: str, backend: str) -> None:
    """A frozen weight, or a state that was cut off, changes nobody else's gradient."""
    exact = reference_results(cell, ODD, True, None, False, torch.float64, "cpu")
    for wanted in problem(cell).leaves():
        frozen = problem(cell)
        for name, leaf in frozen.leaves().items():
            leaf.requires_grad_(name == wanted)
        outputs, final = recurrence(cell, frozen.x, frozen.state, frozen.weights, backend=backend)
        (grad,) = torch.autograd.grad((outputs, *final), frozen.leaves()[wanted], (frozen.d_outputs, *frozen.d_final))
        assert_exact(grad, exact[f"d_{wanted}"], wanted)


def outputs_alone(case: Problem, backend: str, lengths: tuple[int, ...] | None, reverse: bool) -> dict[str, Tensor]:
    """Outputs and every gradient, where nobody asks for the final state."""
    outputs, final = recurrence(
        case.cell, case.x, case.state, case.weights, lengths=as_lengths(lengths), reverse=reverse, final_state=False, backend=backend
    )
    assert final == ()
    leaves = case.leaves()
    grads = torch.autograd.grad(outputs, list(leaves.values()), case.d_outputs)
    return {"outputs": outputs.detach()} | {f"d_{name}": grad for name, grad in zip(leaves, grads, strict=True)}


@both_ways
@pytest.mark.parametrize("lengths", [*LENGTHS.values(), (1, 7, 7)], ids=[*LENGTHS, "unsorted"])
@pytest.mark.parametrize("cell, backend", list(product(CELLS, FAST_BACKENDS)))
@pytest.mark.usefixtures("nan_in_fresh_memory")
def test_without_a_final_state_the_rest_is_the_same(cell: str, backend: str, lengths: tuple[int, ...] | None, reverse: bool) -> None:
    exact, rounded = (outputs_alone(problem(cell, dtype=dtype), "reference", lengths, reverse) for dtype in (torch.float64, torch.float32))
    for name, got in outputs_alone(problem(cell), backend, lengths, reverse).items():
        assert_exact(got, exact[name], name)
    for name, got in outputs_alone(problem(cell, dtype=torch.float32), backend, lengths, reverse).items():
        assert error(got, exact[name]) <= 4 * error(rounded[name], exact[name]) + 1e-6, name


@both_ways
@pytest.mark.parametrize("beyond", [100.0, torch.inf, torch.nan])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_dense_run_over_ragged_sequences_reads_nothing_beyond_them(dtype: torch.dtype, beyond: float, reverse: bool) -> None:
    """A fused LSTM without a final state steps through the padding, which must not show, not even as 0 · NaN."""
    lengths = (5, 0, 2)
    case, other = problem("lstm", dtype=dtype), problem("lstm", dtype=dtype)
    with torch.no_grad():
        other.x[past_the_end(torch.tensor(lengths), ODD.steps)] = beyond
    got, changed = (outputs_alone(p, "fused", lengths, reverse) for p in (case, other))
    for name in got:
        assert torch.equal(got[name], changed[name]), name


@every_backend
def test_inputs_are_left_alone(cell: str, backend: str) -> None:
    given, untouched = problem(cell), problem(cell)
    results(given, backend, lengths=torch.tensor([7, 4, 1]))
    for name, leaf in given.leaves().items():
        assert torch.equal(leaf, untouched.leaves()[name]), name


# Against torch.nn


def torch_module(forward: Problem, backward: Problem, *, biased: bool) -> nn.RNNBase:
    """The torch.nn module of the cell, both directions, with the weights of the two problems."""
    _, _, inputs, hidden = ODD
    module: nn.RNNBase
    if forward.cell == "lstm":
        module = nn.LSTM(inputs, hidden, bias=biased, bidirectional=True, dtype=torch.float64)
    elif forward.cell == "gru":
        module = nn.GRU(inputs, hidden, bias=biased, bidirectional=True, dtype=torch.float64)
    else:
        nonlinearity = forward.cell.removeprefix("rnn_")
        module = nn.RNN(inputs, hidden, bias=biased, nonlinearity=nonlinearity, bidirectional=True, dtype=torch.float64)
    both = ((forward, "l0"), (backward, "l0_reverse"))
    module.load_state_dict({f"{name}_{suffix}": w for p, suffix in both for name, w in p.weights._asdict().items() if w is not None})
    return module


@both_ways
@pytest.mark.parametrize("biased", [True, False], ids=["biased", "unbiased"])
@pytest.mark.parametrize("lengths", [None, (7, 4, 1), (2, 6, 3)], ids=["dense", "packed", "packed_unsorted"])
@pytest.mark.parametrize("cell", CELLS)
def test_reference_matches_torch(cell: str, lengths: tuple[int, ...] | None, biased: bool, reverse: bool) -> None:
    """One direction of a bidirectional torch.nn module: outputs, h_n, c_n and all gradients, in float64."""
    directions = problem(cell, biased=biased, seed=1), problem(cell, biased=biased, seed=2)
    ours = directions[reverse]
    module = torch_module(*directions, biased=biased)

    x = ours.x.detach().clone().requires_grad_()
    initial = [
        torch.stack([forward, backward]).detach().requires_grad_() for forward, backward in zip(*(p.state for p in directions), strict=True)
    ]
    state = tuple(initial) if cell == "lstm" else initial[0]
    if lengths is None:
        outputs, final = module(x, state)
    else:
        packed, final = module(pack_padded_sequence(x, torch.tensor(lengths), enforce_sorted=False), state)
        outputs, _ = pad_packed_sequence(packed, total_length=ODD.steps)
    final = final if cell == "lstm" else (final,)
    outputs = outputs.unflatten(-1, (2, ODD.hidden))[:, :, int(reverse)]  # (T, B, H)
    final = tuple(s[int(reverse)] for s in final)

    suffix = "l0_reverse" if reverse else "l0"
    names = list(ours.leaves())
    weights = [getattr(module, f"{name}_{suffix}") for name in names if "weight" in name or "bias" in name]
    grads = torch.autograd.grad((outputs, *final), [x, *initial, *weights], (ours.d_outputs, *ours.d_final))
    expected = {"outputs": outputs, "h_n": final[0]} | ({"c_n": final[1]} if cell == "lstm" else {})
    for name, grad in zip(names, grads, strict=True):
        expected[f"d_{name}"] = grad[int(reverse)] if name in ("h_0", "c_0") else grad

    got = results(ours, "reference", lengths=as_lengths(lengths), reverse=reverse)
    assert got.keys() == expected.keys()
    for name in expected:
        assert_exact(got[name], expected[name].detach(), name)


# Against finite differences


@pytest.mark.parametrize("lengths", [None, (3, 1), (0, 2)], ids=["dense", "ragged", "with_empty"])
@every_backend
def test_gradcheck(cell: str, backend: str, lengths: tuple[int, ...] | None) -> None:
    case = problem(cell, SMALL, seed=3)
    states = len(case.state)

    def run(x: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        outputs, final = recurrence(cell, x, rest[:states], Weights(*rest[states:]), lengths=as_lengths(lengths), backend=backend)
        return outputs, *final

    assert torch.autograd.gradcheck(run, tuple(case.leaves().values()))


def test_flipping_is_differentiated_as_often_as_one_likes() -> None:
    x = torch.randn(4, 3, 2, dtype=torch.float64, requires_grad=True)
    lengths = torch.tensor([4, 0, 3])
    expected = torch.stack([torch.cat([x[:n, b].flip(0), x[n:, b]]) for b, n in enumerate(lengths.tolist())], 1)
    assert torch.equal(flip_time(x, lengths), expected)
    assert torch.autograd.gradcheck(lambda x: flip_time(x, lengths), x)
    assert torch.autograd.gradgradcheck(lambda x: flip_time(x, lengths), x)


def test_explicit_refuses_to_be_differentiated_twice() -> None:
    case = problem("lstm", SMALL)
    outputs, _ = recurrence("lstm", case.x, case.state, case.weights, backend="explicit")
    with pytest.raises(RuntimeError, match="differentiate"):
        (dx,) = torch.autograd.grad(outputs.square().sum(), case.x, create_graph=True)
        dx.square().sum().backward()  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("power", [1, 2])
def test_explicit_never_returns_half_a_second_derivative(power: int) -> None:
    case = problem("lstm", SMALL)
    outputs, _ = recurrence("lstm", case.x, case.state, case.weights, backend="explicit")
    with pytest.raises(RuntimeError, match="differentiate"):
        (dx,) = torch.autograd.grad(outputs.pow(power).sum(), case.x, create_graph=True)
        torch.autograd.grad(dx.sum(), case.weights.weight_ih)


# Lengths


def past_the_end(lengths: Tensor, steps: int) -> Tensor:
    return torch.arange(steps).unsqueeze(-1) >= lengths  # (T, B)


@both_ways
@every_backend
@settings(max_examples=5, deadline=None, derandomize=True)
@given(lengths=st.lists(st.integers(0, 5), min_size=1, max_size=4), seed=st.integers(0, 1000))
def test_nothing_beyond_the_length_is_read(cell: str, backend: str, reverse: bool, lengths: list[int], seed: int) -> None:
    ends = torch.tensor(lengths)
    sizes = Sizes(5, len(lengths), 2, 3)
    beyond = past_the_end(ends, sizes.steps)
    case, other = problem(cell, sizes, seed=seed), problem(cell, sizes, seed=seed)
    with torch.no_grad():
        other.x[beyond] += 100
    got, changed = (results(p, backend, lengths=ends, reverse=reverse) for p in (case, other))
    for name in got:
        assert torch.equal(got[name], changed[name]), name
    assert (got["outputs"][beyond] == 0).all()
    assert (got["d_x"][beyond] == 0).all()


@pytest.mark.parametrize("final_state", [True, False])
@every_backend
def test_a_state_does_not_grow_in_the_padding(cell: str, backend: str, final_state: bool) -> None:
    """Weights that make a ReLU 30 times as large at each step: forty steps of padding would leave float32."""
    case = problem(cell, Sizes(40, 2, 2, 3), dtype=torch.float32)
    with torch.no_grad():
        case.weights.weight_hh.fill_(10)
    outputs, final = recurrence(
        cell, case.x, case.state, case.weights, lengths=torch.tensor([2, 1]), final_state=final_state, backend=backend
    )
    grads = torch.autograd.grad(
        [outputs.sum(), *(s.sum() for s in final)], list(case.leaves().values()), [torch.ones(())] * (1 + len(final))
    )
    assert all(tensor.isfinite().all() for tensor in (outputs, *final, *grads))


@every_backend
def test_an_empty_sequence_keeps_its_state(cell: str, backend: str) -> None:
    case = problem(cell)
    _, final = recurrence(cell, case.x, case.state, case.weights, lengths=torch.tensor([7, 0, 3]), backend=backend)
    for before, after in zip(case.state, final, strict=True):
        assert torch.equal(before[1], after[1])


@both_ways
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
@every_backend
def test_two_calls_that_carry_the_state_are_one(cell: str, backend: str, lengths: tuple[int, ...] | None, reverse: bool) -> None:
    cut = 3
    case = problem(cell)
    ends = as_lengths(lengths)
    whole = results(case, backend, lengths=ends, reverse=reverse)
    halves = [
        (case.x[:cut], None if ends is None else ends.clamp(max=cut)),
        (case.x[cut:], None if ends is None else (ends - cut).clamp(min=0)),
    ]
    state: State = case.state
    pieces: list[Tensor] = []
    for x, half_ends in reversed(halves) if reverse else halves:
        outputs, state = recurrence(cell, x, state, case.weights, lengths=half_ends, reverse=reverse, backend=backend)
        pieces.append(outputs)
    outputs = torch.cat(pieces[::-1] if reverse else pieces)
    assert_exact(outputs, whole["outputs"], "outputs")
    for name, final in zip(CELLS[cell].state_names, state, strict=True):
        assert_exact(final, whole[f"{name}_n"], name)
    for name, grad in gradients(case, outputs, state).items():
        assert_exact(grad, whole[name], name)
