"""Text that streams: several texts from one prime, by an engine that needs no torch or by a module that does."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Literal

from charrnn.data.vocabulary import Primed, Vocabulary, encode_prime
from charrnn.errors import UserError, characters_listed, listed
from charrnn.options import SamplingOptions, expect
from charrnn.randomness import base_seed, seed_of
from charrnn.texts import Engine, Texts

if TYPE_CHECKING:
    import torch
    from torch import nn

    from charrnn.constraints import Constraint


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
