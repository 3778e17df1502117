"""What a text may go on with: masks over the ids, combinable, one value for each text.

Axes: B batch, V vocabulary.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor


class Constraint(Protocol):
    """What one text may still write. Holds what was written so far; a text that is forked forks its constraint with `copy`."""

    @property
    def over(self) -> bool:
        """Whether nothing may follow: the text ends here, whatever the model says."""
        ...

    def allowed(self) -> Tensor | None:
        """Which ids may come next, (V,) bool, at least one of them; None for all. Read, never written, by who asks."""
        ...

    def advance(self, id_: int) -> None:
        """Take in what was written."""
        ...

    def copy(self) -> Constraint: ...


class Every:
    """All of several at once. Where nothing would satisfy them all, the last ones yield."""

    def __init__(self, parts: Sequence[Constraint]) -> None:
        self.parts = list(parts)

    @property
    def over(self) -> bool:
        return any(part.over for part in self.parts)

    def allowed(self) -> Tensor | None:
        joint: Tensor | None = None
        for part in self.parts:
            mask = part.allowed()
            if joint is None or mask is None:
                joint = mask if joint is None else joint
                continue
            both = joint & mask
            if both.any():
                joint = both
        return joint

    def advance(self, id_: int) -> None:
        for part in self.parts:
            part.advance(id_)

    def copy(self) -> Every:
        other = copy.copy(self)
        other.parts = [part.copy() for part in self.parts]
        return other


def restrict(logits: Tensor, masks: Sequence[Tensor | None]) -> None:
    """-inf, in place, for what a row's mask does not allow: logits (B, V). Rows that share a mask are masked at once."""
    distinct: dict[int, Tensor] = {}  # by identity
    places: dict[int, int] = {}
    for mask in masks:
        if mask is not None and id(mask) not in distinct:
            places[id(mask)] = len(distinct)
            distinct[id(mask)] = mask
    if not distinct:
        return
    forbidden = ~torch.stack(list(distinct.values()))  # (distinct masks, V)
    if any(mask is None for mask in masks):
        places[id(None)] = len(forbidden)
        forbidden = torch.cat([forbidden, torch.zeros_like(forbidden[:1])])
    logits.masked_fill_(forbidden if len(forbidden) == 1 else forbidden[[places[id(mask)] for mask in masks]], -math.inf)
