"""The optimizer, the schedule's curve, the average and the watch over the loss."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from charrnn.config import TrainConfig
from charrnn.optimization import Average, LossWatch, Schedule, build_optimizer


def settings(**values: Any) -> TrainConfig:
    return TrainConfig(max_steps=100, **values)


@pytest.mark.parametrize("name, kind", [("adamw", "AdamW"), ("adam", "Adam"), ("rmsprop", "RMSprop"), ("sgd", "SGD")])
def test_the_named_optimizer_lowers_a_loss(name: str, kind: str) -> None:
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    optimizer = build_optimizer(settings(optimizer=name, learning_rate=0.02), model)
    assert type(optimizer).__name__ == kind
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
