"""The optimizer, the schedule's curve, the average and the watch over the loss."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn

from charrnn import optimization
from charrnn.config import TrainConfig
from charrnn.layers.vision import Standardization
from charrnn.ops import native
from charrnn.ops import step as step_of
from charrnn.optimization import (
    MOMENTS,
    Adam,
    Average,
    LossWatch,
    Schedule,
    advance,
    build_optimizer,
    clip,
    give,
    load_optimizer,
)


def settings(**values: Any) -> TrainConfig:
    return TrainConfig(max_steps=100, **values)


OPTIMIZERS = ["adamw", "adam", "rmsprop", "sgd"]
KINDS: list[type[torch.optim.Optimizer]] = [torch.optim.AdamW, torch.optim.Adam, torch.optim.RMSprop, torch.optim.SGD]


@pytest.mark.parametrize("name, kind", list(zip(OPTIMIZERS, KINDS)))
def test_steps_are_those_of_the_named_optimizer(name: str, kind: type[torch.optim.Optimizer]) -> None:
    torch.manual_seed(0)
    ours, theirs = nn.Linear(4, 1, bias=False), nn.Linear(4, 1, bias=False)
    theirs.load_state_dict(ours.state_dict())
    decay = {"weight_decay": 0.1} if name in ("adamw", "adam") else {}
    own = build_optimizer(settings(optimizer=name, learning_rate=0.02, **decay), ours)
    more = {"rmsprop": {"alpha": 0.99}, "sgd": {"momentum": 0.9}}.get(name, {"betas": (0.9, 0.99)} | decay)
    other = kind(theirs.parameters(), lr=0.02, **more)  # type: ignore[call-arg]
    for _ in range(5):
        x = torch.randn(8, 4)
        for model, optimizer in ((ours, own), (theirs, other)):
            optimizer.zero_grad()
            (model(x) - x.sum(-1, keepdim=True)).square().mean().backward()
            optimizer.step()
    torch.testing.assert_close(ours.weight, theirs.weight)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_table_is_learned_by_each_optimizer(name: str) -> None:
    torch.manual_seed(0)
    table = nn.Embedding(6, 2, sparse=True)
    before, target = table.weight.detach().clone(), torch.randn(6, 2)
    optimizer = build_optimizer(settings(optimizer=name, learning_rate=0.05), table)
    for step in range(200):
        rows = torch.tensor([[0, 2, 2], [5, 0, 3]][step % 2])
        loss = (table(rows) - target[rows]).square().sum()
        give(optimizer, list(table.parameters()), torch.autograd.grad(loss, [table.weight]))
        optimizer.step()
    read = torch.tensor([0, 2, 3, 5])
    assert (table.weight - target)[read].abs().max() < 0.2 * (before - target)[read].abs().max()
    assert torch.equal(table.weight[[1, 4]], before[[1, 4]])


def test_of_a_table_only_the_rows_that_were_read_move() -> None:
    """A row that is read in each step goes Adam's way; one that is read once moves once, and not by momentum afterwards."""
    torch.manual_seed(0)
    table, column = nn.Embedding(3, 2, sparse=True), nn.Parameter(torch.zeros(2))
    column.data.copy_(table.weight[0].detach())
    ours = build_optimizer(settings(learning_rate=0.1, weight_decay=0.1), table)
    theirs = torch.optim.Adam([column], lr=0.1, betas=(0.9, 0.99))
    once: list[torch.Tensor] = []
    for step in range(6):
        rows = torch.tensor([0, 1] if step == 2 else [0])
        for vectors in (table(rows), column):
            torch.autograd.backward((vectors.square() * torch.tensor([1.0, 3.0])).sum())
        for optimizer in (ours, theirs):
            optimizer.step()
            optimizer.zero_grad()
        once.append(table.weight[1].detach().clone())
    torch.testing.assert_close(table.weight[0], column)
    assert torch.equal(once[0], once[1]) and not torch.equal(once[1], once[2])
    assert all(torch.equal(once[2], later) for later in once[3:])


def test_the_norm_is_that_of_all_gradients_rows_among_them() -> None:
    table = torch.tensor([[0.0], [3.0], [0.0]]).to_sparse(1)
    gradients = [torch.tensor([0.0, 4.0]), table]
    assert float(clip(gradients, 10.0)) == 5.0 and gradients[0].tolist() == [0.0, 4.0]
    assert float(clip(gradients, 1.0)) == 5.0
    assert torch.cat([gradients[0], gradients[1].to_dense().flatten()]).norm() == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_named_optimizer_lowers_a_loss(name: str) -> None:
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    optimizer = build_optimizer(settings(optimizer=name, learning_rate=0.02), model)
    x = torch.randn(64, 4)
    target = x.sum(-1, keepdim=True)
    losses = []
    for _ in range(150):
        loss = (model(x) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]


@pytest.mark.parametrize("name", ["adamw", "rmsprop", "sgd"])
def test_a_gradient_in_another_order_of_memory_gives_the_same_step(name: str) -> None:
    gradient = torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(1))
    moved = []
    for order in (torch.contiguous_format, torch.channels_last):
        model = nn.Conv2d(3, 4, 3, bias=False)
        with torch.no_grad():
            model.weight.zero_()
        optimizer = build_optimizer(TrainConfig.model_validate({"optimizer": name, "weight_decay": 0, "max_steps": 1}), model)
        give(optimizer, list(model.parameters()), [gradient.contiguous(memory_format=order)])
        optimizer.step()
        moved.append(model.weight.detach().clone())
    assert moved[0].any()
    torch.testing.assert_close(moved[1], moved[0], rtol=0, atol=0)


def test_weight_decay_pulls_on_matrices_only() -> None:
    model = nn.Linear(3, 2)
    optimizer = build_optimizer(settings(weight_decay=0.1), model)
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert decay == {id(model.weight): 0.1, id(model.bias): 0.0}


def test_betas_come_from_the_config() -> None:
    optimizer = build_optimizer(settings(momentum=0.8, beta2=0.95), nn.Linear(2, 2))
    assert optimizer.param_groups[0]["betas"] == (0.8, 0.95)


@pytest.mark.parametrize("name, middle, end", [("constant", 1.0, 1.0), ("cosine", 0.55, 0.1), ("linear", 0.55, 0.1), ("plateau", 1.0, 1.0)])
def test_schedule_begins_at_one_and_ends_at_the_floor(name: str, middle: float, end: float) -> None:
    schedule = Schedule(settings(schedule=name, warmup_steps=0, min_learning_rate=0.1))
    assert [schedule.factor(p, 10) for p in (0.0, 0.5, 1.0, 1.7)] == pytest.approx([1.0, middle, end, end])


def test_warmup_rises_in_equal_steps_and_never_stands_at_zero() -> None:
    schedule = Schedule(settings(schedule="constant", warmup_steps=4))
    assert [schedule.factor(0.0, step) for step in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_plateau_falls_after_so_many_evaluations_and_survives_a_round_trip() -> None:
    config = settings(schedule="plateau", warmup_steps=0, plateau_factor=0.5, plateau_patience=2, min_learning_rate=0.2)
    schedule = Schedule(config)
    seen = []
    for value in (2.0, 1.9, 1.95, 1.9, 1.8, 1.8, 1.8, 1.8, 1.8, 1.8, math.nan):
        schedule.observe(value)
        again = Schedule(config)
        again.load_state_dict(schedule.state_dict())
        assert again.factor(0.3, 5) == schedule.factor(0.3, 5)
        seen.append(schedule.factor(0.3, 5))
    assert seen == [1, 1, 1, 0.5, 0.5, 0.5, 0.25, 0.25, 0.2, 0.2, 0.2]


def test_average_follows_the_ramp() -> None:
    model = nn.Linear(2, 1, bias=False)
    average = Average(model, 0.9)
    expected = model.weight.detach().clone()
    for step in range(1, 120):
        with torch.no_grad():
            model.weight.add_(torch.randn_like(model.weight))
        average.update(step)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * model.weight.detach()
    (averaged,) = average.model.parameters()
    torch.testing.assert_close(averaged.detach(), expected)
    assert not averaged.requires_grad


def test_average_follows_running_means_that_no_loss_moves() -> None:
    """Else what is evaluated and saved would see with the means that it began with."""
    torch.manual_seed(0)
    seen = Standardization(2)
    model = nn.Sequential(nn.Linear(3, 2), seen)
    average = Average(model, 0.9)
    for step in range(1, 400):
        model(torch.rand(1, 8, 3))
        average.update(step)
    own = average.model.get_submodule("1")
    assert isinstance(own, Standardization)
    torch.testing.assert_close(own.mean, seen.mean, rtol=0.1, atol=0.1 * float(seen.mean.abs().max()))
    torch.testing.assert_close(own.variance, seen.variance, rtol=0.1, atol=0.0)


def test_average_keeps_a_shared_matrix_shared() -> None:
    first, second = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
    second.weight = first.weight
    parameters = list(Average(nn.Sequential(first, second), 0.9).model.parameters())
    assert len(parameters) == 1


def test_watch_lets_a_falling_loss_pass_and_stops_a_runaway() -> None:
    watch = LossWatch()
    assert all(watch.healthy(4 * 0.99**i) for i in range(200))
    mean = watch.mean
    assert 0 < mean < 4
    assert watch.healthy(2.9 * mean)
    assert not watch.healthy(10.0)
    assert watch.healthy(mean + 2.5, count=32) and not watch.healthy(mean + 3.5, count=32)  # a mean over few answers strays by itself
    assert not watch.healthy(math.nan) and not watch.healthy(math.inf)
    assert LossWatch(**watch.state_dict()).mean == watch.mean


def test_watch_says_nothing_while_it_warms_in_but_of_nan() -> None:
    watch = LossWatch()
    assert watch.healthy(1.0) and watch.healthy(50.0)
    assert not watch.healthy(math.nan)


def test_watch_counts_the_steps_that_a_mean_stands_for() -> None:
    one, many = LossWatch(), LossWatch()
    for _ in range(100):
        one.healthy(2.0)
    for _ in range(10):
        many.healthy(2.0, steps=10)
    assert one.steps == many.steps == 100
    assert one.mean == pytest.approx(many.mean) == pytest.approx(2.0)


def test_watch_leaves_a_loss_near_zero_alone() -> None:
    watch = LossWatch()
    assert all(watch.healthy(0.01) for _ in range(100))
    assert watch.healthy(0.3)  # the start of a pass through a text known by heart
    assert not watch.healthy(1.5)


# Clipping, Adam and the average in one pass


class Followed(NamedTuple):
    model: nn.Module
    optimizer: torch.optim.Optimizer
    average: Average
    norms: list[float]


def _trained(build: Callable[[], nn.Module], one_pass: bool, monkeypatch: pytest.MonkeyPatch, *, steps: int = 5, **train: Any) -> Followed:
    torch.manual_seed(0)
    model = build()
    optimizer, average, scaler = build_optimizer(settings(**train), model), Average(model, 0.9), torch.amp.GradScaler("cpu", enabled=False)
    parameters = [p for p in model.parameters() if p.requires_grad]
    generator, norms = torch.Generator().manual_seed(1), []
    with monkeypatch.context() as patched:
        if not one_pass:
            patched.setattr(optimization, "has_adam", lambda tensors: False)
        for step in range(steps):
            gradients = [torch.randn(p.shape, generator=generator).to(memory_format=torch.contiguous_format) for p in parameters]
            norm = advance(
                optimizer,
                parameters,
                gradients,
                torch.tensor(0.5 if step else 1e-3),
                max_norm=1.0,
                scaler=scaler,
                average=average,
                step=step,
            )
            norms.append(float(norm))
    return Followed(model, optimizer, average, norms)


def _mixed() -> nn.Module:
    """Matrices, biases, a convolution that lies otherwise in memory, more numbers than a thread takes at once, and a running mean."""
    convolution = nn.Conv2d(3, 4, 3)
    convolution.weight.data = convolution.weight.data.contiguous(memory_format=torch.channels_last)
    return nn.Sequential(nn.Linear(5, 7), nn.Linear(200, 201), convolution, Standardization(3))


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("name", ["adamw", "adam"])
def test_one_pass_is_clipping_adam_and_the_average(name: str, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        ours, theirs = (_trained(_mixed, way, monkeypatch, optimizer=name, weight_decay=0.1, learning_rate=0.01) for way in (True, False))
    finally:
        torch.set_num_threads(before)
    assert ours.norms == pytest.approx(theirs.norms, rel=1e-5) and ours.norms[0] < 1 < ours.norms[1]  # not clipped, and clipped
    for own, other in ((ours.model, theirs.model), (ours.average.model, theirs.average.model)):
        torch.testing.assert_close(dict(own.named_parameters()), dict(other.named_parameters()), rtol=1e-5, atol=1e-7)
    states = [followed.optimizer.state_dict()["state"] for followed in (ours, theirs)]
    torch.testing.assert_close(states[0], states[1], rtol=1e-5, atol=1e-8)
    assert states[0][0].keys() == set(MOMENTS[Adam]) and float(states[0][0]["step"]) == 5


def test_one_pass_goes_on_where_pytorch_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    """The state of one is that of the other, so a run can be resumed where the library is missing."""
    half = _trained(lambda: nn.Linear(4, 3), False, monkeypatch, steps=2)
    fresh = build_optimizer(settings(), half.model)
    load_optimizer(fresh, copy.deepcopy(half.optimizer.state_dict()))
    parameters, scaler = list(half.model.parameters()), torch.amp.GradScaler("cpu", enabled=False)
    before = [p.detach().clone() for p in parameters]
    advance(fresh, parameters, [torch.ones_like(p) for p in parameters], torch.tensor(1.0), max_norm=1e9, scaler=scaler)
    moved = [p.detach().clone() for p in parameters]
    with torch.no_grad():
        for parameter, value in zip(parameters, before):
            parameter.copy_(value)
            parameter.grad = torch.ones_like(parameter)
    half.optimizer.step()
    torch.testing.assert_close(moved, [p.detach() for p in parameters])


@pytest.mark.parametrize("name", native.INSTRUCTIONS)
def test_each_instruction_set_makes_the_same_step(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if name not in native.instructions():
        pytest.skip(f"this processor has no {name}")
    expected = _trained(_mixed, False, monkeypatch)
    monkeypatch.setattr(step_of, "instructions", lambda: (name,))
    found = _trained(_mixed, True, monkeypatch)
    assert found.norms == pytest.approx(expected.norms, rel=1e-5)
    torch.testing.assert_close(list(found.model.parameters()), list(expected.model.parameters()), rtol=1e-5, atol=1e-7)


def test_a_gradient_that_is_not_a_number_shows_in_the_norm(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Linear(20, 3)
    optimizer, scaler = build_optimizer(settings(), model), torch.amp.GradScaler("cpu", enabled=False)
    gradients = [torch.zeros_like(p) for p in model.parameters()]
    gradients[0][1, 7] = math.nan
    norm = advance(optimizer, list(model.parameters()), gradients, torch.tensor(1.0), max_norm=1.0, scaler=scaler)
    assert math.isnan(float(norm))


@pytest.mark.parametrize("name", ["rmsprop", "sgd", "adamw"])
def test_rows_and_other_optimizers_are_clipped_too(name: str) -> None:
    table = nn.Embedding(5, 2, sparse=True)
    before = table.weight.detach().clone()
    optimizer, scaler = build_optimizer(settings(optimizer=name, learning_rate=1.0), table), torch.amp.GradScaler("cpu", enabled=False)
    (gradient,) = torch.autograd.grad((table(torch.tensor([1, 3])) * torch.tensor([6.0, 8.0])).sum(), [table.weight])
    norm = advance(optimizer, list(table.parameters()), [gradient.coalesce()], torch.tensor(0.5), max_norm=1.0, scaler=scaler)
    assert float(norm) == pytest.approx(math.sqrt(50))
    moved = (table.weight - before).detach()
    assert moved[[1, 3]].ne(0).all() and not moved[[0, 2, 4]].any()
    if name == "sgd":
        assert float(moved.norm()) == pytest.approx(1.0, abs=1e-4)
