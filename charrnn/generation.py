"""Text that streams: several texts from one prime, their lengths, stops and documents. Without torch, which only some engines need.

Axes: B batch (one row a sample), V vocabulary.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

from charrnn.data.vocabulary import Primed, Vocabulary, encode_prime
from charrnn.errors import UserError, characters_listed, listed
from charrnn.options import SamplingOptions, expect
from charrnn.randomness import base_seed, seed_of

if TYPE_CHECKING:
    import torch
    from torch import nn

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
        end = self.vocabulary.end
        if end is None or end not in ids:
            return text.grow(self.vocabulary.decode(ids))
        at = ids.index(end)
        piece = text.grow(self.vocabulary.decode(ids[:at]))
        if text.over:
            return piece
        if self.separator is None:
            text.over = True
            return piece
        piece += text.grow(self.separator)
        return piece + self._taken(text, ids[at + 1 :])


@runtime_checkable
class Engine(Protocol):
    """What runs a model: reads what stands before the texts, and draws."""

    def draw(self, texts: Texts) -> Generator[Sequence[Sequence[int]], None, None]:
        """What each text draws next, (B, n): the next n ids of each, n being the engine's choice, and 1 where there are constraints.

        Asked for the next, it finds in `texts` how far they have come with the last. Raises UserError for a model that is no use.
        """


def prepare_prime(
    vocabulary: Vocabulary, text: str, on_unknown: Literal["drop", "error"] = "drop", place: str = "--prime"
) -> tuple[Primed, list[str]]:
    """Encode what a person gave at `place`, and what there is to warn about. Raises UserError for `error` at an unknown character."""
    primed = encode_prime(vocabulary, text)
    warnings = []
    if primed.replaced:
        pairs = [f"{typed!r} as {known!r}" for typed, known in primed.replaced.items()]
        warnings.append(f"{place}: the model knows another form of some characters and reads {listed(pairs)}")
    if primed.dropped:
        names = characters_listed(primed.dropped)
        if on_unknown == "error":
            remedy = "leave them out, or pass --on-unknown drop"
            raise UserError(f"{place}: the model does not know {names}; expected characters of its training text; {remedy}")
        rest = "" if primed.ids else "; nothing is left of the prime, so the text starts as a document starts"
        warnings.append(f"{place}: the model does not know {names}; dropped{rest}")
    return primed, warnings


def generate(
    model: nn.Module | Engine,
    vocabulary: Vocabulary,
    prime_ids: Sequence[int],
    *,
    length: int,
    options: SamplingOptions,
    generator: torch.Generator | int,
    num_samples: int = 1,
    stop: Sequence[str] = (),
    continue_documents: bool = False,
    separator: str = "\n\n",
    constraints: Sequence[Constraint] = (),
) -> Generator[list[str], None, None]:
    """Write on from a prime. Yields what each of `num_samples` texts grows by, a few characters at a time; "" for one that is over.

    A text is over after `length` new characters, when it ends with one of `stop` (which it keeps), or with its document.
    With `continue_documents` the end of a document is written as `separator` and the next one begins. `unknown` is never
    written, and a document is never empty. Where there are `constraints`, one a sample, each text stays within its own.

    All samples are one batch. Sample i draws from a generator of its own, so it does not depend on how many there are; `generator`, or
    the one on the CPU that has this seed, gives all of them their seeds. The model is in eval mode from the first step to the
    last and then again as it was. Raises UserError for arguments that cannot mean anything, before the first step.
    """
    expect(length >= 0, "--length", length, "a number of new characters")
    expect(num_samples >= 1, "--num-samples", num_samples, "at least 1")
    expect("" not in stop, "--stop", repr(""), "at least one character; leave the flag out to stop nowhere")
    if continue_documents:
        expect(separator != "", "separator", repr(""), "at least one character")
    base = base_seed(generator)
    texts = Texts(
        vocabulary,
        prime_ids,
        length,
        options,
        [seed_of(base, i) for i in range(num_samples)],
        stop=stop,
        separator=separator if continue_documents else None,
        constraints=constraints,
    )
    return _steps(model, texts)


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


def _steps(model: nn.Module | Engine, texts: Texts) -> Generator[list[str], None, None]:
    if texts.over:
        return
    with closing(_drawn(model, texts)) as draws:
        for drawn in draws:
            yield texts.grow(drawn)
            if texts.over:
                return


def _drawn(model: nn.Module | Engine, texts: Texts) -> Generator[Sequence[Sequence[int]], None, None]:
    if isinstance(model, Engine):
        return model.draw(texts)
    from charrnn.sampling import draw

    return draw(model, texts)
