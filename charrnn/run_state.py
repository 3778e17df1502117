"""What a run must remember to go on, and what is asked of a file that claims to hold it.

A state comes from wherever a run directory comes from. What is wrong in it must show before the first step, and as one line.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any

import torch
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, ValidationInfo
from torch import Tensor

__all__ = ["Counters", "believe"]


def _dense(tensor: Tensor) -> Tensor:
    if tensor.layout != torch.strided or tensor.is_meta or tensor.is_complex() or tensor.is_quantized:
        raise ValueError("expected a plain tensor of real numbers")
    if tensor.untyped_storage().nbytes() < tensor.numel() * tensor.element_size():  # a number that says it is a billion
        raise ValueError("expected a tensor that holds as many numbers as its shape says")
    return tensor


def _measured(values: dict[str, float], info: ValidationInfo) -> dict[str, float]:
    needed: set[str] = (info.context or {}).get("needed", set())
    if values and not values.keys() >= needed:
        raise ValueError(f"expected {' and '.join(sorted(needed))}")
    return values


Dense = Annotated[Tensor, AfterValidator(_dense)]
Natural = Annotated[int, Field(ge=0, lt=1 << 63)]
Finite = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Measured = Annotated[dict[str, float], AfterValidator(_measured)]


@dataclass
class Counters:
    """The plain numbers that a run must remember of itself."""

    step: Natural = 0
    chars: Natural = 0
    epoch: Natural = 0  # passes completed
    window: Natural = 0  # windows read of the pass that is under way
    seconds: Finite = 0.0
    reported: Natural = 0  # the step at which that was last done
    evaluated: Natural = 0
    saved: Natural = 0
    learning_rate_scale: Finite = 1.0  # halved by each retreat
    retreats: Natural = 0  # since the validation loss last improved
    best: Measured = field(default_factory=dict)
    best_step: Natural = 0
    last: Measured = field(default_factory=dict)
    stale: Natural = 0  # evaluations since the best


class _Part(BaseModel):
    model_config = ConfigDict(arbitrary_types_allowed=True)


class _Optimizer(_Part):
    state: dict[int, dict[str, Dense]]
    param_groups: list[dict[str, Any]]


class _Watch(_Part):
    mean: float
    steps: Natural


class _Pace(_Part):
    chars: Natural
    seconds: Finite


class _LastStep(_Part):
    grad_norm: Dense
    learning_rate: float


class _State(_Part):
    """The state of a run by name. Sizes are compared by those whose tensors they are."""

    model: dict[str, Dense]
    average: dict[str, Dense] | None
    optimizer: _Optimizer
    schedule: dict[str, float]
    scaler: dict[str, int | float]
    watch: _Watch
    generators: list[Dense]
    carried: tuple[tuple[Dense, ...], ...] | None
    counters: Counters
    since_report: tuple[Dense, Dense, Dense]
    pace: _Pace
    last_step: _LastStep
    journals: dict[str, Natural]
    text: dict[str, str | int]
    config: str | None = None  # of the run as it was saved, in YAML; old states have none


def believe(state: dict[str, Any], needed: set[str]) -> dict[str, Any]:
    """A state that was read from a file, of the types that a run goes on with. `needed`: the metrics by which it chooses and tells.

    Raises ValueError naming what is missing or wrong.
    """
    try:
        return _State.model_validate(state, context={"needed": needed}).model_dump()
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        if first["type"] == "missing":
            raise ValueError(f"it has no {place}") from None
        raise ValueError(f"{place} is wrong: {first['msg']}") from None
