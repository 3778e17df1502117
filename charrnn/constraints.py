"""What a text may go on with: masks over the ids, combinable, one value for each text.

Axes: V vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

Mask = npt.NDArray[np.bool_]  # (V,)


class Constraint(Protocol):
    """What one text may still write. Holds what was written so far; a text that is forked forks its constraint with `copy`."""

    @property
    def over(self) -> bool:
        """Whether nothing may follow: the text ends here, whatever the model says."""
        ...

    def allowed(self) -> Mask | None:
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

    def allowed(self) -> Mask | None:
        joint: Mask | None = None
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
