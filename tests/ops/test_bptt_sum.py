"""Back-propagation through time as its definition writes it, term by term, against the backends.

    ∂E/∂W = Σ_t Σ_{k≤t}  ∂E_t/∂s_t · (∏_{j=k+1..t} ∂s_j/∂s_{j-1}) · ∂s_k/∂W ,      E = Σ_t E_t,  E_t = -log softmax(V s_t)[y_t]

for s_t = tanh(U x_t + W s_{t-1} + b). Axes: T time, I input_size, H hidden_size, C classes; the batch is 1.
"""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from charrnn.ops.backends import Weights
from charrnn.ops.recurrence import recurrence

from .cases import assert_exact

STEPS, INPUTS, HIDDEN, CLASSES = 5, 2, 3, 4


class Example(NamedTuple):
    x: Tensor  # (T, 1, I)
    s_0: Tensor  # (1, H): the state before the first step
    weights: Weights
    head: Tensor  # (C, H), the V of the softmax
    targets: Tensor  # (T,)


@pytest.fixture
def example() -> Example:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    weights = Weights(
        draw(HIDDEN, INPUTS).requires_grad_(),
        draw(HIDDEN, HIDDEN).requires_grad_(),
        draw(HIDDEN).requires_grad_(),
        draw(HIDDEN).requires_grad_(),
    )
    targets = torch.randint(CLASSES, (STEPS,), generator=generator)
    return Example(draw(STEPS, 1, INPUTS), draw(1, HIDDEN), weights, draw(CLASSES, HIDDEN), targets)


def losses(example: Example, outputs: Tensor) -> Tensor:
    """E_t for every t. (T, 1, H) -> (T,)."""
    return F.cross_entropy(outputs.squeeze(1) @ example.head.T, example.targets, reduction="none")


def written_out(example: Example) -> dict[str, Tensor]:
    """Every term of the sum, for each weight: [t, k] is what E_t owes to the weight's use at step k. (T, T, *weight)."""
    u, w, b_ih, b_hh = (weight.detach() for weight in example.weights if weight is not None)
    x = example.x.squeeze(1)  # (T, I)
    before, after = [], []  # s_{t-1} and s_t, each (H,)
    s = example.s_0.squeeze(0)
    for t in range(STEPS):
        before.append(s)
        s = torch.tanh(u @ x[t] + b_ih + w @ s + b_hh)
        after.append(s)
    jacobian = [torch.diag(1 - s * s) @ w for s in after]  # ∂s_j/∂s_{j-1}: diag(1 - s_j²) W, (H, H)
    eye = torch.eye(HIDDEN, dtype=torch.float64)
    # ∂s_k/∂weight with s_{k-1} held fixed: row i of the weight moves unit i alone. (H, *weight)
    immediate = {
        "weight_ih": [torch.einsum("i,ia,b->iab", 1 - after[k] ** 2, eye, x[k]) for k in range(STEPS)],
        "weight_hh": [torch.einsum("i,ia,b->iab", 1 - after[k] ** 2, eye, before[k]) for k in range(STEPS)],
        "bias_ih": [torch.diag(1 - after[k] ** 2) for k in range(STEPS)],
        "bias_hh": [torch.diag(1 - after[k] ** 2) for k in range(STEPS)],
    }
    terms = {name: torch.zeros(STEPS, STEPS, *of_step[0].shape[1:], dtype=torch.float64) for name, of_step in immediate.items()}
    for t in range(STEPS):
        o = torch.softmax(example.head @ after[t], 0)
        d_s = (o - F.one_hot(example.targets[t], CLASSES)) @ example.head  # ∂E_t/∂s_t, (H,)
        for k in range(t + 1):
            through_time = eye
            for j in range(k + 1, t + 1):
                through_time = jacobian[j] @ through_time  # ∏ ∂s_j/∂s_{j-1}, the latest step leftmost
            for name, of_step in immediate.items():
                terms[name][t, k] = torch.tensordot(d_s @ through_time, of_step[k], dims=1)
    return terms


def weight_gradients(example: Example, loss: Tensor) -> dict[str, Tensor]:
    grads = torch.autograd.grad(loss, [weight for weight in example.weights if weight is not None], retain_graph=True)
    return dict(zip(Weights._fields, grads, strict=True))


@pytest.mark.parametrize("backend", ["reference", "explicit", "fused", "native"])
def test_gradient_is_the_whole_sum(example: Example, backend: str) -> None:
    outputs, _ = recurrence("rnn_tanh", example.x, (example.s_0,), example.weights, backend=backend)
    terms = written_out(example)
    for name, grad in weight_gradients(example, losses(example, outputs).sum()).items():
        assert_exact(grad, terms[name].sum((0, 1)), name)


@pytest.mark.parametrize("backend", ["reference", "explicit", "fused", "native"])
def test_gradient_of_one_step_is_its_row_of_the_sum(example: Example, backend: str) -> None:
    outputs, _ = recurrence("rnn_tanh", example.x, (example.s_0,), example.weights, backend=backend)
    terms = written_out(example)
    for t, loss in enumerate(losses(example, outputs)):
        for name, grad in weight_gradients(example, loss).items():
            assert_exact(grad, terms[name][t].sum(0), f"∂E_{t}/∂{name}")


@pytest.mark.parametrize("window", [1, 2])
def test_truncation_keeps_the_terms_within_a_window(example: Example, window: int) -> None:
    """Cutting the graph between windows drops exactly the terms that cross a cut, and they matter."""
    state: tuple[Tensor, ...] = (example.s_0,)
    pieces: list[Tensor] = []
    for x in torch.split(example.x, window):
        outputs, state = recurrence("rnn_tanh", x, tuple(s.detach() for s in state), example.weights, backend="explicit")
        pieces.append(outputs)
    windows = torch.arange(STEPS) // window
    kept = windows.unsqueeze(1) == windows  # (T, T): t and k in one window; for a window of 1 only k = t
    terms = written_out(example)
    for name, grad in weight_gradients(example, losses(example, torch.cat(pieces)).sum()).items():
        assert_exact(grad, terms[name][kept].sum(0), name)
        whole = terms[name].sum((0, 1))
        assert (grad - whole).norm() > 0.01 * whole.norm(), name


def test_what_comes_later_owes_nothing_earlier(example: Example) -> None:
    """No term has k > t, and each k ≤ t has one: the sum is a triangle."""
    for terms in written_out(example).values():
        owes = terms.flatten(2).abs().sum(-1) > 0  # (T, T)
        assert torch.equal(owes, torch.ones(STEPS, STEPS, dtype=torch.bool).tril())
