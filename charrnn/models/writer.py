"""What decoding asks of a model that writes: a start, and what comes next.

Axes: B columns, S places that there are to look at, V vocabulary size.
"""

from __future__ import annotations

from typing import Protocol, TypeVar

import torch
from torch import Tensor

SourceT = TypeVar("SourceT", bound="Source")
PlaceT = TypeVar("PlaceT", bound="Place")
_SourceT = TypeVar("_SourceT", bound="Source", contravariant=True)


class Source(Protocol):
    """What is written of: recordings, or pictures, as an encoder made them."""

    @property
    def columns(self) -> int: ...

    @property
    def device(self) -> torch.device: ...

    def steps(self) -> list[int]:
        """How many places each column has; 0 where there is nothing to look at."""

    def rows(self: SourceT, rows: Tensor) -> SourceT:
        """Some of the columns, in another order, one several times: (n,)."""

    def column(self: SourceT, b: int, copies: int = 1) -> SourceT:
        """One of the columns by itself, without padding, so many times."""


class Place(Protocol):
    """Where a model stands between two characters."""

    @property
    def alignment(self) -> Tensor:
        """(S, B): where it looked for the last one."""

    def rows(self: PlaceT, rows: Tensor) -> PlaceT:
        """Some of the columns, in another order, one several times: (n,)."""


class Writer(Protocol[_SourceT, PlaceT]):
    def start(self, source: _SourceT, /) -> PlaceT:
        """Before the first character."""

    def next(self, ids: Tensor, place: PlaceT, source: _SourceT, /) -> tuple[Tensor, PlaceT]:
        """The characters before (B,) -> logits of the next (B, V), and where the model then stands."""

    def ctc_logits(self, source: _SourceT, /) -> Tensor | None:
        """(S, B, V), id 0 being the blank; None of a model without that head."""
