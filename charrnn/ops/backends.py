"""Which backend runs a recurrence: preference, refusals with their reason, and the choice, which can be asked for.

A backend is a module with `refuses(request) -> reason | None` and `run(request, x, state, weights, lengths)`.
"""

from __future__ import annotations

import functools
import importlib
from dataclasses import dataclass
from typing import NamedTuple, Protocol, cast

import torch
from torch import Tensor

from charrnn.ops.cells import State

BACKENDS = ("reference", "explicit", "fused", "native")


class UnsupportedBackend(ValueError):
    """A named backend cannot run what was asked of it; the message says why."""


class Weights(NamedTuple):
    """One layer, one direction, in torch.nn's shapes and gate order."""

    weight_ih: Tensor  # (G·H, I)
    weight_hh: Tensor  # (G·H, H)
    bias_ih: Tensor | None = None  # (G·H,)
    bias_hh: Tensor | None = None  # (G·H,)


@dataclass(frozen=True)
class Request:
    """All that a backend may base a refusal, and `auto` its choice, on."""

    cell: str
    device: str = "cpu"  # cpu | cuda | mps
    dtype: torch.dtype = torch.float32
    autocast: torch.dtype | None = None  # the products' dtype where it is lower than the state's
    ragged: bool = False
    reverse: bool = False
    final_state: bool = True  # whether anybody asks for the state after the last step

    def __str__(self) -> str:
        precision = self.dtype if self.autocast is None else self.autocast
        return f"{self.cell} on {self.device} in {str(precision).removeprefix('torch.')}" + (" with lengths" if self.ragged else "")


class Backend(Protocol):
    def refuses(self, request: Request) -> str | None: ...
    def run(self, request: Request, x: Tensor, state: State, weights: Weights, lengths: Tensor | None) -> tuple[Tensor, State]: ...


def backend(name: str) -> Backend:
    """The backend of that name. Raises UnsupportedBackend for an unknown one."""
    if name not in BACKENDS:
        raise UnsupportedBackend(f"unknown backend {name!r}; expected auto, {', '.join(BACKENDS)}")
    return cast(Backend, importlib.import_module(f"charrnn.ops.{name}"))


def preference(request: Request) -> tuple[str, ...]:
    """Backends in the order in which `auto` tries them, fastest first where docs/performance.md has measured it."""
    if request.device != "cpu":
        return ("fused", "explicit", "reference")
    return (("native",) if _native_is_fast(request) else ()) + _without_native(request)


def _native_is_fast(request: Request) -> bool:
    """Not in double precision, which has no vectors there, nor on a processor without AVX2, where nobody has measured it."""
    from charrnn.ops import native

    return request.dtype == torch.float32 and (not native.instructions() or native.instructions()[-1] != "plain")


def _without_native(request: Request) -> tuple[str, ...]:
    # oneDNN has kernels for the LSTM, but for packed sequences none, and only packed does a ragged one say its c_n. PyTorch's
    # own GRU and RNN loops hand the BLAS a transposed matrix with few rows at every step, which costs them up to half of the machine.
    if request.cell == "lstm" and not (request.ragged and request.final_state):
        return ("fused", "explicit", "reference")
    return ("explicit", "fused", "reference")


def require(name: str, request: Request) -> Backend:
    """The named backend. Raises UnsupportedBackend with its reason when it cannot run the request."""
    chosen = backend(name)
    if reason := chosen.refuses(request):
        raise UnsupportedBackend(f"backend {name!r} cannot run {request}: {reason}")
    return chosen


@functools.cache
def choose(request: Request) -> Backend:
    """The first backend in the order of preference that does not refuse. Who asked is told by `explain`."""
    return backend(_first(request)[0])


def explain(name: str, request: Request) -> str:
    """What model.backend comes to, and why not what `auto` would rather have: `explicit (not fused: …)`. Raises as `require` does."""
    if name != "auto":
        require(name, request)
        return name
    chosen, refusals = _first(request)
    return f"{chosen} (not {'; not '.join(refusals)})" if refusals else chosen


def _first(request: Request) -> tuple[str, list[str]]:
    refusals: list[str] = []
    for name in preference(request):
        reason = backend(name).refuses(request)
        if reason is None:
            return name, refusals
        refusals.append(f"{name}: {reason}")
    raise AssertionError("the reference backend refuses nothing")
