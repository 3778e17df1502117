"""Optimizer, learning-rate schedule, weight average and the watch over the loss, each from the configuration."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from charrnn.config import TrainConfig
from charrnn.errors import short
from charrnn.ops.step import AdamTensor, adam_, has_adam


class Adam(torch.optim.Adam):
    """Adam (Kingma & Ba 2015), with decoupled weight decay (Loshchilov & Hutter 2019) where asked; of a table only what was read moves.

    A parameter whose gradient is sparse is a table: a step changes the rows and the moments that the gradient names, and no others.
    To a row that is read once in a thousand steps, momentum would otherwise go on giving steps, ten times the first one's in all,
    on what one sighting taught; and each step would read and write the whole table. There is no weight decay on tables.
    """

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        tables = [(p, p.grad, group) for group in self.param_groups for p in group["params"] if p.grad is not None and p.grad.is_sparse]
        for table, _, _ in tables:
            table.grad = None
        super().step()
        overflown = getattr(self, "found_inf", None)  # set by a GradScaler, which leaves the test to an optimizer that is fused
        for table, gradient, group in tables:
            table.grad = gradient
            if overflown is None or not overflown:
                self._step_rows(table, gradient.coalesce(), group)

    def in_one_pass(
        self, gradients: Sequence[Tensor], *, scale: float, max_norm: float, averages: Mapping[Tensor, Tensor] | None, follow: float
    ) -> float | None:
        """A step on gradients of all parameters, in their order, times `scale` and clipped, that reads and writes each number once.

        `averages`: of some parameters, which go the share `follow` of the way to the new weights. Returns the norm before it was clipped;
        None, with nothing done, where the library or what it takes is missing. There are no gradients in the parameters themselves.
        """
        tensors: list[AdamTensor] = []
        settings = self.param_groups[0]  # groups differ in their weight decay alone
        decays = [(parameter, group["weight_decay"]) for group in self.param_groups for parameter in group["params"]]
        for (parameter, decay), gradient in zip(decays, gradients):
            state, lying = self._state_of(parameter), _lying_as(parameter, gradient)
            average = None if averages is None else averages[parameter]
            tensors.append(AdamTensor(parameter.data, lying, state["exp_avg"], state["exp_avg_sq"], average, state["step"], decay))
        if not has_adam(tensors):
            return None
        return adam_(
            tensors,
            rate=float(settings["lr"]),
            betas=settings["betas"],
            epsilon=settings["eps"],
            decoupled=settings["decoupled_weight_decay"],
            scale=scale,
            max_norm=max_norm,
            follow=follow,
        )

    def _state_of(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        """What it remembers of a parameter, as PyTorch's fused Adam begins it."""
        state: dict[str, Tensor] = self.state[parameter]
        if not state:
            state["step"] = torch.zeros(())
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        return state

    def _step_rows(self, table: nn.Parameter, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self._state_of(table)
        state["step"] += 1
        beta1, beta2 = group["betas"]
        rows, g = gradient.indices()[0], gradient.values()  # (R,), (R, size)
        mean = state["exp_avg"][rows].lerp_(g, 1 - beta1)
        square = state["exp_avg_sq"][rows].lerp_(g.square(), 1 - beta2)
        state["exp_avg"][rows], state["exp_avg_sq"][rows] = mean, square
        t = float(state["step"])
        root = (square / (1 - beta2**t)).sqrt_().add_(group["eps"])
        table.index_add_(0, rows, mean / root, alpha=-float(group["lr"]) / (1 - beta1**t))


MOMENTS = {  # what each remembers of a parameter
    Adam: ("step", "exp_avg", "exp_avg_sq"),
    torch.optim.RMSprop: ("step", "square_avg"),
    torch.optim.SGD: ("momentum_buffer",),
}


def build_optimizer(config: TrainConfig, model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer that `config` names. Weight decay pulls on matrices only: a bias has no scale to keep small."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    rate, betas = config.learning_rate, (config.momentum, config.beta2)
    if config.optimizer in ("adamw", "adam"):
        return Adam(groups, lr=rate, betas=betas, fused=True, decoupled_weight_decay=config.optimizer == "adamw")
    if config.optimizer == "rmsprop":
        return torch.optim.RMSprop(groups, lr=rate, alpha=config.beta2)
    return torch.optim.SGD(groups, lr=rate, momentum=config.momentum)


def give(optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter], gradients: Sequence[Tensor]) -> None:
    """Set the gradients of the next step; a sparse one becomes dense where the optimizer knows no rows."""
    for parameter, gradient in zip(parameters, gradients):
        if gradient.is_sparse and not isinstance(optimizer, Adam):
            gradient = gradient.to_dense()
        parameter.grad = _lying_as(parameter, gradient)


def _lying_as(parameter: Tensor, gradient: Tensor) -> Tensor:
    """A dense gradient comes to lie in memory as its parameter does, as `backward` itself sees to: fused optimizers read both as they
    lie, and that of a convolution over channels_last lies in another order."""
    if gradient.is_sparse or gradient.stride() == parameter.stride():
        return gradient
    return torch.empty_like(parameter, dtype=gradient.dtype).copy_(gradient)


def advance(
    optimizer: torch.optim.Optimizer,
    parameters: Sequence[nn.Parameter],
    gradients: Sequence[Tensor],
    scale: Tensor,
    *,
    max_norm: float,
    scaler: torch.amp.GradScaler,
    average: Average | None = None,
    step: int = 0,
) -> Tensor:
    """One step on gradients times `scale`, clipped to `max_norm`, and after it the `average`, for which it is the `step`th.

    Adam on a CPU passes over memory once, others several times. Returns the norm before it was clipped. The gradients are used up.
    """
    if isinstance(optimizer, Adam) and not scaler.is_enabled() and gradients[0].device.type == "cpu":
        by_parameter = dict(zip(parameters, gradients))
        norm = optimizer.in_one_pass(
            [by_parameter[parameter] for group in optimizer.param_groups for parameter in group["params"]],
            scale=float(scale),
            max_norm=max_norm,
            averages=average.averaged if average else None,
            follow=average.share(step) if average else 0.0,
        )
        if norm is not None:
            if average:
                average.update(step, parameters)
            return torch.tensor(norm, dtype=torch.float32)
    values = [gradient.values() if gradient.is_sparse else gradient for gradient in gradients]
    torch._foreach_mul_(values, scale.to(values[0].dtype))
    give(optimizer, parameters, gradients)
    scaler.unscale_(optimizer)
    total = clip([p.grad for p in parameters if p.grad is not None], max_norm)
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad(set_to_none=True)
    if average:
        average.update(step)
    return total


def clip(gradients: Sequence[Tensor], max_norm: float) -> Tensor:
    """Scale gradients in place so that the norm of all of them together is at most `max_norm`; what it was."""
    values = [gradient.values() if gradient.is_sparse else gradient for gradient in gradients]
    norm = torch.nn.utils.get_total_norm(values)
    torch._foreach_mul_(values, (max_norm / (norm + 1e-6)).clamp(max=1.0))
    return norm


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Take up the moments of a saved optimizer. Its settings stay those it was built with: a resumed run may have changed them.

    Raises ValueError where the moments are not those of these parameters; torch would find out in the next step.
    """
    own, saved = optimizer.param_groups, state["param_groups"]
    if len(saved) != len(own):
        raise ValueError(f"optimizer: {len(saved)} groups of parameters; expected {len(own)}")
    groups = [{**settings, "params": group["params"]} for settings, group in zip(own, saved)]
    optimizer.load_state_dict({"state": state["state"], "param_groups": groups})
    names = MOMENTS[type(optimizer)]
    for parameter in (p for group in optimizer.param_groups for p in group["params"]):
        moments = optimizer.state.get(parameter)
        if not moments:  # no step has been taken, or it is an optimizer that remembers nothing
            continue
        if moments.keys() != set(names):
            raise ValueError(f"optimizer: it remembers {short(sorted(moments))}; expected {', '.join(names)}")
        for name, moment in moments.items():
            shape = () if name == "step" else tuple(parameter.shape)
            if (tuple(moment.shape), moment.dtype) != (shape, parameter.dtype):
                expected = f"expected {shape} in {parameter.dtype}"
                raise ValueError(f"optimizer: {name} has shape {tuple(moment.shape)} in {moment.dtype}; {expected}")


class Schedule:
    """What multiplies `learning_rate` at a step: warm-up by steps, then a curve over the run's progress."""

    def __init__(self, config: TrainConfig) -> None:
        self._config = config
        self._scale = 1.0  # plateau: what the evaluations have left of the rate
        self._best = math.inf
        self._stale = 0

    def factor(self, progress: float, step: int) -> float:
        """For the step after `step` steps, with `progress` in 0..1 of the run behind it."""
        config, progress = self._config, min(max(progress, 0.0), 1.0)
        warmup = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
        floor = config.min_learning_rate
        if config.schedule == "cosine":
            return warmup * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress)))
        if config.schedule == "linear":
            return warmup * (floor + (1 - floor) * (1 - progress))
        if config.schedule == "plateau":
            return warmup * max(floor, self._scale)
        return warmup

    def observe(self, value: float) -> None:
        """Tell the plateau schedule what an evaluation gave; lower is better."""
        if value < self._best:
            self._best, self._stale = value, 0
            return
        self._stale += 1
        if self._stale >= self._config.plateau_patience:
            self._scale, self._stale = self._scale * self._config.plateau_factor, 0

    def state_dict(self) -> dict[str, float | int]:
        return {"scale": self._scale, "best": self._best, "stale": self._stale}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._scale, self._best, self._stale = float(state["scale"]), float(state["best"]), int(state["stale"])


class Average:
    """An exponential average of the weights over the steps, held by a model of its own that can be evaluated and saved.

    Running means that a model keeps of what it has seen are averaged too, though no loss moves them: they belong to the weights.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = copy.deepcopy(model).requires_grad_(False)
        self._decay = decay
        pairs = list(zip(self.model.parameters(), model.parameters()))
        self.averaged: dict[Tensor, Tensor] = {other: own.data for own, other in pairs if other.is_floating_point()}  # of each weight
        self._counts = [(own, other) for own, other in pairs if not other.is_floating_point() and other.dim() == 0]

    def share(self, step: int) -> float:
        """How far it goes towards the weights after `step` steps. Early on it is short, so that the first weights are soon forgotten."""
        return 1 - min(self._decay, (1 + step) / (10 + step))

    @torch.no_grad()
    def update(self, step: int, but: Sequence[Tensor] = ()) -> None:
        """Follow the weights after `step` steps, all `but` some that have been followed."""
        followed = [weight for weight in self.averaged if not any(weight is other for other in but)]
        if followed:
            torch._foreach_lerp_([self.averaged[weight] for weight in followed], followed, self.share(step))
        for own, other in self._counts:  # of batches that running means are of
            own.copy_(other)


@dataclass
class LossWatch:
    """Notices a loss that has left the road: not finite, or both three times its running mean and a nat above it.

    A text known by heart has a mean near zero, and the start of a pass through it is many times that and no harm. A mean over
    few answers (a batch of 32 texts has 32 labels) strays by itself, as 1 / √count: the nat is one of 256 answers.
    """

    mean: float = 0.0
    steps: int = 0
    WARM_IN: ClassVar[int] = 50  # steps before the mean means anything
    LIMIT: ClassVar[float] = 3.0  # times the mean
    MARGIN: ClassVar[float] = 1.0  # nats above the mean …
    ENOUGH: ClassVar[int] = 256  # … of so many answers, and more of fewer

    def healthy(self, nats: float, steps: int = 1, count: int = ENOUGH) -> bool:
        """Take in the mean loss of the last `steps` steps and `count` answers; a loss that is refused does not enter the mean."""
        if not math.isfinite(nats):
            return False
        margin = self.MARGIN * math.sqrt(max(1.0, self.ENOUGH / max(1, count)))
        if self.steps >= self.WARM_IN and nats > max(self.LIMIT * self.mean, self.mean + margin):
            return False
        self.steps += steps
        self.mean += (nats - self.mean) * max(1 - 0.98**steps, steps / self.steps)
        return True

    def state_dict(self) -> dict[str, Any]:
        return asdict(self)
