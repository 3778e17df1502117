"""Text that streams: several texts from one prime, their lengths, stops and documents.

Axes: B batch (one row a sample), V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from charrnn.constraints import Constraint, restrict
from charrnn.data.vocabulary import Primed, Vocabulary, encode_prime
from charrnn.errors import UserError, characters_listed, listed
from charrnn.sampling import SamplingOptions, expect, filter_logits, opening, run_on, sample


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
    model: nn.Module,
    vocabulary: Vocabulary,
    prime_ids: Sequence[int],
    *,
    length: int,
    options: SamplingOptions,
    generator: torch.Generator,
    num_samples: int = 1,
    stop: Sequence[str] = (),
    continue_documents: bool = False,
    separator: str = "\n\n",
    constraints: Sequence[Constraint] = (),
) -> Iterator[list[str]]:
    """Write on from a prime. Yields, step by step, what each of `num_samples` texts grows by; "" for one that is over.

    A text is over after `length` new characters, when it ends with one of `stop` (which it keeps), or with its document.
    With `continue_documents` the end of a document is written as `separator` and the next one begins. `unknown` is never
    written, and a document is never empty. Where there are `constraints`, one a sample, each text stays within its own.

    All samples are one batch. Sample i draws from a generator of its own, so it does not depend on how many there are.
    The model is in eval mode from the first step to the last and then again as it was.
    Raises UserError for arguments that cannot mean anything, before the first step.
    """
    expect(length >= 0, "--length", length, "a number of new characters")
    expect(num_samples >= 1, "--num-samples", num_samples, "at least 1")
    expect("" not in stop, "--stop", repr(""), "at least one character; leave the flag out to stop nowhere")
    if continue_documents:
        expect(separator != "", "separator", repr(""), "at least one character")
    seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
    generators = [torch.Generator().manual_seed(_seed(seed, i)) for i in range(num_samples)]
    texts = [_Text(length, tuple(stop)) for _ in range(num_samples)]
    between = separator if continue_documents else None
    return _steps(model, vocabulary, list(prime_ids), options, generators, texts, between, constraints)


def _seed(seed: int, i: int) -> int:
    return int(np.random.SeedSequence((seed, i)).generate_state(1, np.uint64)[0])


class _Text:
    """Where one sample stands: how much it may still write, and whether it is over."""

    def __init__(self, length: int, stop: tuple[str, ...]) -> None:
        self.left = length
        self.stop = stop
        self.longest = max(map(len, stop), default=0)
        self.tail = ""  # as much of the new text as a stop string could match
        self.over = length == 0

    def grow(self, piece: str) -> str:
        """Take in a piece, or as much of it as there is room for. Returns what was taken."""
        for taken, character in enumerate(piece, start=1):
            self.left -= 1
            if self.stop:
                self.tail = (self.tail + character)[-self.longest :]
            if self.left == 0 or (self.stop and self.tail.endswith(self.stop)):
                self.over = True
                return piece[:taken]
        return piece


def _steps(
    model: nn.Module,
    vocabulary: Vocabulary,
    prime_ids: list[int],
    options: SamplingOptions,
    generators: list[torch.Generator],
    texts: list[_Text],
    separator: str | None,
    constraints: Sequence[Constraint],
) -> Iterator[list[str]]:
    remembers = options.repetition_penalty != 1 or options.no_repeat_ngram > 0
    history = [list(prime_ids) for _ in texts]
    empty = [not prime_ids] * len(texts)  # a document without a character has no end
    end, first = vocabulary.end, len(vocabulary.symbols)

    def choose(scores: Tensor) -> Tensor:  # (B, V) -> (B,)
        if end is not None and any(empty):
            scores[empty, end] = -math.inf
        restrict(scores, [None if text.over else constraint.allowed() for text, constraint in zip(texts, constraints)])
        return sample(filter_logits(scores, options, history, vocabulary.unwritten), options, generators)

    for text, constraint in zip(texts, constraints):
        text.over = text.over or constraint.over
    if all(text.over for text in texts):
        return
    with closing(run_on(model, opening(vocabulary, prime_ids), len(texts), choose)) as draws:
        for drawn in draws:
            pieces = []
            for i, (id_, text) in enumerate(zip(drawn.tolist(), texts)):
                if text.over:
                    pieces.append("")
                elif id_ != end:
                    pieces.append(text.grow(vocabulary.characters[id_ - first]))
                    empty[i] = False
                    if remembers:
                        history[i].append(id_)
                elif separator is not None:
                    pieces.append(text.grow(separator))
                    empty[i] = True
                    history[i].clear()
                else:
                    text.over = True
                    pieces.append("")
            for text, constraint, id_ in zip(texts, constraints, drawn.tolist()):
                if not text.over:
                    constraint.advance(id_)
                    text.over = constraint.over
            yield pieces
            if all(text.over for text in texts):
                return
