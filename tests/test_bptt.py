"""The triangle of gradients against autograd on the reference backend, and what is read from it.

Axes: T time, B batch (1), H hidden_size, V vocabulary size.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from charrnn.bptt import Triangle, triangle
from charrnn.config import ModelConfig
from charrnn.models.char_rnn import CharRNN
from charrnn.ops.cells import CELLS
from charrnn.ops.recurrence import recurrence

IDS = [3, 1, 4, 1, 5, 2, 6, 5, 3, 5]
SHAPES: dict[str, dict[str, Any]] = {
    "one layer": {},
    "two layers": {"num_layers": 2},
    "two layers with norms, residuals and pairs": {
        "num_layers": 2, "layer_norm": True, "residual": True, "bigrams": {"max_size": 4, "min_count": 1, "size": 2},
    },
}  # fmt: skip


def model_of(cell: str, **config: Any) -> CharRNN:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = CharRNN(ModelConfig(cell=cell, embedding_size=4, hidden_size=6, dropout={"output": 0.5}, **config), 7)  # type: ignore[arg-type]
    if model.bigrams is not None:
        model.bigrams.keep(torch.tensor([[3, 1], [4, 1], [5, 3]]))
    return model


def by_autograd(model: CharRNN, layer: int) -> tuple[Tensor, Tensor]:
    """‖∂E_t/∂s_k‖ and ‖the k-th term of ∂E_t/∂W_hh‖, each (T, T): one backward a loss, a leaf a state and a copy of W_hh a step."""
    model = model.double().eval()
    stack, steps = model.recurrent, len(IDS) - 1
    x = model.read(torch.tensor(IDS[:-1]).unsqueeze(-1)).detach()
    added: list[list[Tensor]] = []  # zeros that are added to each state of the layer: what reaches them is ∂E_t/∂s_k
    copies: list[Tensor] = []
    for each in range(stack.num_layers):
        weights, state = stack.weights(each), stack.initial_state(1, x)[each]
        written = []
        for k in range(steps):
            own = weights._replace(weight_hh=weights.weight_hh.detach().clone().requires_grad_())
            _, state = recurrence(stack.cell, x[k : k + 1], state, own, backend="reference")
            zeros = [torch.zeros_like(s, requires_grad=True) for s in state]
            state = tuple(s + zero for s, zero in zip(state, zeros))
            written.append(state[0])
            if each == layer:
                added.append(zeros)
                copies.append(own.weight_hh)
        x = stack.handed_up(each, torch.stack(written), x)
    losses = F.cross_entropy(model.head(x.squeeze(1)), torch.tensor(IDS[1:]), reduction="none")
    states, weight = torch.zeros(steps, steps, dtype=torch.float64), torch.zeros(steps, steps, dtype=torch.float64)
    for t, loss in enumerate(losses):
        leaves = [zero for zeros in added[: t + 1] for zero in zeros]
        found = torch.autograd.grad(loss, [*leaves, *copies[: t + 1]], retain_graph=True, materialize_grads=True)
        of_state, of_weight = found[: len(leaves)], found[len(leaves) :]
        each = len(added[0])
        states[t, : t + 1] = torch.stack([torch.cat(of_state[k * each : (k + 1) * each]).norm() for k in range(t + 1)])
        weight[t, : t + 1] = torch.stack([d.norm() for d in of_weight])
    return states, weight


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("cell", CELLS)
def test_the_triangle_is_autograds(cell: str, shape: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("charrnn.bptt.TOGETHER", 4)  # the text has nine losses: two blocks and a bit
    model = model_of(cell, **SHAPES[shape])
    for layer in range(model.recurrent.num_layers):
        found = triangle(model, IDS, layer)
        states, weight = by_autograd(model, layer)
        torch.testing.assert_close(found.state, states, rtol=0, atol=1e-6)
        torch.testing.assert_close(found.weight, weight, rtol=0, atol=1e-6)
        assert (found.cell, found.layer) == (cell, layer)
        if cell != "rnn_relu":  # whose units may all be off
            assert torch.equal(found.state > 0, torch.ones_like(states, dtype=torch.bool).tril())


def test_the_losses_are_the_models_and_the_model_stays_as_it_is() -> None:
    model = model_of("gru").train()
    found = triangle(model, IDS)
    assert model.training and model.head.weight.dtype == torch.float32
    with torch.inference_mode():
        logits, _ = model.eval()(torch.tensor(IDS[:-1]).unsqueeze(-1), None)
    nats = F.cross_entropy(logits.squeeze(1), torch.tensor(IDS[1:]), reduction="none")
    torch.testing.assert_close(found.nats, nats.double())


def falling(factor: float, steps: int = 40) -> Triangle:
    """A gradient that each step back multiplies by a factor, of losses of many sizes."""
    t, k = torch.meshgrid(torch.arange(steps), torch.arange(steps), indexing="ij")
    state = torch.where(k <= t, factor ** (t - k).double() * (1 + t % 7), 0)
    return Triangle("rnn_tanh", 0, state, state, torch.ones(steps))


@pytest.mark.parametrize("half_life", [0.05, 0.5, 1.0, 1.7])
def test_the_half_life_of_an_even_fall_is_where_it_has_halved(half_life: float) -> None:
    found = falling(2 ** (-1 / half_life))
    assert found.half_life() == pytest.approx(half_life)
    assert found.fallen(1) == pytest.approx(half_life)
    assert found.reach(6) == pytest.approx(2 ** (-6 / half_life))
    assert found.reach(0) == 1 and math.isnan(found.reach(40))


def test_what_has_not_halved_by_the_beginning_of_the_text_has_no_half_life() -> None:
    assert falling(0.99).half_life() == math.inf
    assert falling(1.1).half_life() == math.inf


def test_a_fall_that_grows_slow_has_a_half_life_between_its_two() -> None:
    """A first halving in one step, and the nine others in two steps each."""
    t, k = torch.meshgrid(torch.arange(60), torch.arange(60), indexing="ij")
    d = (t - k).double()
    found = falling(0.5)
    object.__setattr__(found, "state", torch.where(d < 0, 0, torch.where(d == 0, 1, 2 ** (-0.5 - d / 2))))
    assert found.fallen(1) == pytest.approx(1)
    assert found.half_life() == pytest.approx(1.9)


def test_a_step_that_stops_everything_counts_whole() -> None:
    stopped = falling(0.9)
    stopped.state[:, :-1] = torch.where(torch.eye(40)[:, :-1] > 0, stopped.state[:, :-1], 0)
    assert stopped.fallen(1) == stopped.fallen(10) == 1


def test_texts_and_models_that_have_none() -> None:
    with pytest.raises(ValueError, match="1 ids; expected at least two"):
        triangle(model_of("gru"), [1])
    with pytest.raises(ValueError, match="two directions"):
        triangle(model_of("gru", bidirectional=True), IDS)
    with pytest.raises(ValueError, match="pooled"):
        triangle(model_of("gru", pooling="mean"), IDS)
