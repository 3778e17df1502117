"""What several texts are to be and where each stands, and what writes them. Without torch, which only some engines need.

Axes: B batch (one row a text), V vocabulary.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from charrnn.data.vocabulary import Vocabulary
from charrnn.options import SamplingOptions

if TYPE_CHECKING:
    from charrnn.constraints import Constraint, Mask


class Texts:
    """What several texts are to be, and where each stands: all that an engine has to know to write them."""

    def __init__(
        self,
        vocabulary: Vocabulary,
        prime_ids: Sequence[int],
        length: int,
        options: SamplingOptions,
        seeds: Sequence[int],
        *,
        stop: Sequence[str] = (),
        separator: str | None = None,
        constraints: Sequence[Constraint] = (),
    ) -> None:
        self.vocabulary, self.options, self.separator = vocabulary, options, separator
        self.prime_ids = list(prime_ids)  # the document that all go on with
        self.seeds = list(seeds)  # (B,) of the generators that they draw from
        self.constraints = constraints
        self._rows = [_Text(length, tuple(stop)) for _ in seeds]
        for text, constraint in zip(self._rows, constraints):
            text.over = text.over or constraint.over

    @property
    def over(self) -> bool:
        return all(text.over for text in self._rows)

    @property
    def left(self) -> int:
        """How many characters the text that may still grow the most may grow by."""
        return max((text.left for text in self._rows if not text.over), default=0)

    def masks(self) -> list[Mask | None]:
        """What each may go on with, (V,) bool; None for all. Of a text that is over nothing is asked."""
        return [None if text.over else constraint.allowed() for text, constraint in zip(self._rows, self.constraints)]

    def grow(self, drawn: Sequence[Sequence[int]]) -> list[str]:
        """Take in what each drew, the next few ids of it: what each grows by. Where there are constraints it is one id."""
        pieces = [self._taken(text, ids) for text, ids in zip(self._rows, drawn)]
        for text, constraint, (id_,) in zip(self._rows, self.constraints, drawn):
            if not text.over:
                constraint.advance(id_)
                text.over = constraint.over
        return pieces

    def _taken(self, text: _Text, ids: Sequence[int]) -> str:
        if text.over:
            return ""
        end, pieces, at = self.vocabulary.end, [], 0
        while not text.over:
            try:
                stop = ids.index(end, at) if end is not None else len(ids)
            except ValueError:
                stop = len(ids)
            pieces.append(text.grow(self.vocabulary.decode(ids[at:stop])))
            if stop == len(ids):
                break
            if not text.over and self.separator is not None:
                pieces.append(text.grow(self.separator))
            else:
                text.over = True
            at = stop + 1
        return "".join(pieces)


@runtime_checkable
class Engine(Protocol):
    """What runs a model: reads what stands before the texts, and draws."""

    def draw(self, texts: Texts) -> Generator[Sequence[Sequence[int]], None, None]:
        """What each text draws next, (B, n): the next n ids of each, n being the engine's choice, and 1 where there are constraints.

        Asked for the next, it finds in `texts` how far they have come with the last. Raises UserError for a model that is no use.
        """


class _Text:
    """Where one sample stands: how much it may still write, and whether it is over."""

    def __init__(self, length: int, stop: tuple[str, ...]) -> None:
        self.left = length
        self.stop = stop
        self.longest = max(map(len, stop), default=0)
        self.tail = ""  # as much of the new text as a stop string could begin in
        self.over = length == 0

    def grow(self, piece: str) -> str:
        """Take in a piece, or as much of it as there is room for. Returns what was taken."""
        piece = piece[: self.left]
        if self.stop:
            whole = self.tail + piece
            places = [(whole.find(stop), stop) for stop in self.stop]
            ends = [at + len(stop) for at, stop in places if at >= 0]  # each stop ends behind what stood before: it did not stand there yet
            if ends:
                piece = piece[: min(ends) - len(self.tail)]
                self.over = True
            self.tail = whole[max(0, len(whole) - self.longest + 1) :]
        self.left -= len(piece)
        self.over = self.over or self.left == 0
        return piece
