"""The head and its cross-entropy in one: F.linear and F.cross_entropy, chunk by chunk, in C++ and in PyTorch's operations."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from charrnn.ops import linear_cross_entropy as module
from charrnn.ops import native, step
from charrnn.ops.linear_cross_entropy import CrossEntropy, chunks, linear_cross_entropy

IGNORED = -1
EPS = torch.finfo(torch.bfloat16).eps  # 2⁻⁷
WAYS = [*native.INSTRUCTIONS, "torch"]


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each instruction set that this processor has, and PyTorch's operations."""
    name: str = request.param
    if name != "torch" and name not in native.instructions():
        pytest.skip(f"this processor has no {name}")
    monkeypatch.setattr(step, "instructions", lambda: () if name == "torch" else (name,))
    return name


@pytest.fixture(params=[1, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK_ROWS", 30)
    monkeypatch.setattr(module, "CHUNK_LOGITS", 0)


class Problem(NamedTuple):
    x: Tensor  # (N, W)
    weight: Tensor  # (K, W)
    bias: Tensor | None  # (K,)
    targets: Tensor  # (N,)

    def leaves(self) -> list[Tensor]:
        return [leaf for leaf in (self.x, self.weight, self.bias) if leaf is not None]


def problem(rows: int, width: int, classes: int, *, biased: bool = True, dtype: torch.dtype = torch.float32) -> Problem:
    generator = torch.Generator().manual_seed(rows * classes)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype).requires_grad_()

    targets = torch.randint(0, classes, (rows,), generator=generator)
    targets[1::5] = IGNORED
    return Problem(draw(rows, width), draw(classes, width), draw(classes) if biased else None, targets)


def stock(x: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, *, label_smoothing: float = 0.0) -> CrossEntropy:
    logits = F.linear(x, weight, bias)
    logits = logits if logits.dtype == torch.float64 else logits.float()
    loss, nats = (
        F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum", label_smoothing=smoothing)
        for smoothing in (label_smoothing, 0.0)
    )
    asked = targets != IGNORED
    return CrossEntropy(loss, nats.detach(), ((logits.argmax(-1) == targets) & asked).sum(), asked.sum())


def found(of: Callable[..., CrossEntropy], case: Problem, smoothing: float, scale: float = 1.0) -> tuple[CrossEntropy, list[Tensor]]:
    sums = of(*case, label_smoothing=smoothing)
    return sums, list(torch.autograd.grad(sums.loss * scale, case.leaves()))


# Fewer classes than a vector has lanes, whole and broken vectors, several pieces of rows; then as many features as fill tiles.
SHAPES = [(1, 1, 1), (7, 5, 3), (70, 8, 16), (150, 9, 65), (33, 4, 200), (1, 32, 1), (95, 96, 33), (1100, 64, 130)]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("biased", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.usefixtures("way", "threads", "small_chunks")
def test_it_is_the_cross_entropy_of_the_logits(shape: tuple[int, int, int], biased: bool, smoothing: float) -> None:
    case = problem(*shape, biased=biased)
    (ours, gradients), (theirs, expected) = (found(of, case, smoothing, 0.5) for of in (linear_cross_entropy, stock))
    torch.testing.assert_close(ours.loss, theirs.loss, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours.nats.float(), theirs.nats, rtol=1e-5, atol=1e-5)
    assert (int(ours.correct), int(ours.asked)) == (int(theirs.correct), int(theirs.asked))
    assert ours.loss.dtype == torch.float32 and ours.nats.dtype == torch.float64
    for got, wanted in zip(gradients, expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.usefixtures("way", "threads", "small_chunks")
def test_bfloat16_products_are_as_near_as_those_of_autocast(shape: tuple[int, int, int], smoothing: float) -> None:
    case = problem(*shape)
    exact_sums, exact = found(stock, case, smoothing)
    with torch.autocast("cpu", torch.bfloat16):
        theirs, rounded = found(stock, case, smoothing)
        ours, gradients = found(linear_cross_entropy, case, smoothing)
    near = 2 * abs(theirs.loss - exact_sums.loss) + EPS * int(ours.asked)
    assert abs(ours.loss - exact_sums.loss) <= near
    for got, stocks, wanted in zip(gradients, rounded, exact, strict=True):
        assert got.dtype == torch.float32
        assert (got - wanted).norm() <= 2 * (stocks - wanted).norm() + EPS * wanted.norm() + 1e-6


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.usefixtures("small_chunks")
def test_gradients_in_float64(smoothing: float) -> None:
    case = problem(70, 3, 5, dtype=torch.float64)

    def loss(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return linear_cross_entropy(x, weight, bias, case.targets, label_smoothing=smoothing).loss

    assert torch.autograd.gradcheck(loss, case.leaves())
    torch.testing.assert_close(loss(*case.leaves()), stock(*case, label_smoothing=smoothing).loss)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("bf16", [False, True])
def test_what_needs_no_gradient_gets_none(bf16: bool) -> None:
    case = problem(20, 32, 6)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        with torch.no_grad():
            assert not linear_cross_entropy(*case).loss.requires_grad
        whole, expected = found(linear_cross_entropy, case, 0.0)
        for k, leaf in enumerate(case.leaves()):
            x, weight, bias = (t if t is leaf else t.detach() for t in case.leaves())
            alone = linear_cross_entropy(x, weight, bias, case.targets)
            (got,) = torch.autograd.grad(alone.loss, leaf)
            assert torch.equal(got, expected[k]) and torch.equal(alone.loss.detach(), whole.loss.detach())


@pytest.mark.parametrize("bf16", [False, True])
def test_without_gradients_none_is_computed(bf16: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[bool, ...]] = []
    for name in ("_in_tiles", "_by_torch"):
        way = getattr(module, name)

        def spied(*given: Any, way: Callable[..., Any] = way) -> Any:
            asked.append(given[-1])
            return way(*given)

        monkeypatch.setattr(module, name, spied)
    case = problem(20, 32, 6)
    for context in (torch.no_grad(), torch.inference_mode()):
        with context, torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            linear_cross_entropy(*case)
    linear_cross_entropy(*case)
    assert asked == [(False, False, False), (False, False, False), (True, True, True)]


def test_targets_and_bias_of_other_types_are_refused() -> None:
    case = problem(20, 32, 6)
    with pytest.raises(ValueError, match=r"targets are torch.int32; expected torch.int64"):
        linear_cross_entropy(*case._replace(targets=case.targets.int()))
    assert case.bias is not None
    with pytest.raises(ValueError, match=r"bias is torch.float64; expected the weight's torch.float32"):
        linear_cross_entropy(*case._replace(bias=case.bias.double()))


@pytest.mark.usefixtures("way")
def test_rows_that_nobody_asks_for_and_no_rows_at_all() -> None:
    for case, bf16 in product((problem(9, 32, 6)._replace(targets=torch.full((9,), IGNORED)), problem(0, 32, 6)), (False, True)):
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            sums, gradients = found(linear_cross_entropy, case, 0.1)
        assert (sums.loss.item(), float(sums.nats), int(sums.correct), int(sums.asked)) == (0, 0, 0, 0)
        assert not any(gradient.any() for gradient in gradients)


@pytest.mark.usefixtures("way")
def test_of_equals_the_first_is_the_answer() -> None:
    x, weight = torch.ones(4, 1), torch.tensor([[0.0], [1.0], [0.0], [1.0]])
    sums = linear_cross_entropy(x, weight, None, torch.tensor([0, 1, 2, 3]))
    assert (int(sums.correct), int(sums.asked)) == (1, 4)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("logit", [float("nan"), float("inf"), 200.0, -200.0])
def test_logits_that_are_extreme(logit: float) -> None:
    """What is not finite shows in the loss; what is large does not overflow."""
    x, weight = torch.tensor([[1.0, 0.0]] * 20), torch.tensor([[logit, 0.0], [0.0, 1.0], [0.0, 2.0]])
    case = Problem(x.requires_grad_(), weight.requires_grad_(), None, torch.tensor([0, 1] * 10))
    (ours, gradients), (theirs, expected) = (found(of, case, 0.0) for of in (linear_cross_entropy, stock))
    torch.testing.assert_close(ours.loss, theirs.loss, equal_nan=True)
    assert torch.isfinite(ours.loss) == (abs(logit) == 200)
    if torch.isfinite(ours.loss):
        torch.testing.assert_close(gradients, expected)


@pytest.mark.usefixtures("way")
def test_tied_to_an_embedding_the_weight_gets_both_gradients() -> None:
    rows = torch.randn(6, 4, requires_grad=True)
    ids = torch.tensor([1, 5, 5, 0])
    ours, theirs = (torch.autograd.grad(of(F.embedding(ids, rows), rows, None, ids).loss, rows)[0] for of in (linear_cross_entropy, stock))
    torch.testing.assert_close(ours, theirs)


@pytest.mark.usefixtures("way")
def test_it_refuses_aloud() -> None:
    case = problem(6, 32, 5)
    for bf16 in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16), pytest.raises(IndexError):
            linear_cross_entropy(case.x, case.weight, case.bias, torch.full((6,), 5))
    with pytest.raises(ValueError, match=r"targets \(5,\); expected \(N, W\), \(K, W\) and \(N,\)"):
        linear_cross_entropy(case.x, case.weight, case.bias, case.targets[:5])
    with pytest.raises(ValueError, match=r"bias has shape \(4,\); expected \(5,\)"):
        linear_cross_entropy(case.x, case.weight, torch.zeros(4), case.targets)
    with pytest.raises(RuntimeError, match="cannot be differentiated twice"):
        torch.autograd.grad(linear_cross_entropy(*case).loss, case.x, create_graph=True)


def test_chunks_are_of_like_size_and_small_vocabularies_take_one() -> None:
    assert chunks(2500, 65) == [slice(0, 2500)]
    assert [some.stop - some.start for some in chunks(1100, 6000)] == [366, 367, 367]
    assert chunks(0, 7) == []


PEAK = """
import resource, sys, torch
from charrnn.ops.linear_cross_entropy import linear_cross_entropy
torch.set_num_threads(1)
x, weight = torch.randn(4096, 32, requires_grad=True), torch.randn(6000, 32, requires_grad=True)
with torch.autocast("cpu", torch.bfloat16, enabled=sys.argv[1] == "True"):
    linear_cross_entropy(x[:8], weight, None, torch.zeros(8, dtype=torch.int64)).loss.backward()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    linear_cross_entropy(x, weight, None, torch.arange(4096)).loss.backward()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere ru_maxrss has another unit")
@pytest.mark.parametrize("bf16", [False, True])
def test_logits_of_many_classes_are_never_whole_in_memory(bf16: bool) -> None:
    """4,096 rows of 6,000 classes are 94 MiB in float32, of which PyTorch makes three or four, and in bfloat16 47."""
    done = subprocess.run([sys.executable, "-c", PEAK, str(bf16)], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 32 * 1024  # KiB
