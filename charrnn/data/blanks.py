"""Which characters of an example are hidden, for a model that guesses them from both sides."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from charrnn.config import BlanksConfig
from charrnn.data.corpus import Ids
from charrnn.data.vocabulary import Vocabulary

Mask = npt.NDArray[np.bool_]


def draw_blanks(ids: Ids, vocabulary: Vocabulary, config: BlanksConfig, generator: np.random.Generator) -> Mask:
    """Ids (N,) of an example -> (N,), true where a character is hidden.

    Singles, spans and a line are drawn each on their own and may meet. A symbol is never hidden: nobody can be asked for it.
    At least one character is, unless the example has none that may be.
    """
    hidable = ids >= len(vocabulary.symbols)
    if config.never:
        hidable &= ~np.isin(ids, vocabulary.encode(config.never))
    if config.per_example is not None:
        hidden = np.zeros(len(ids), dtype=bool)
        hidden[generator.permutation(np.flatnonzero(hidable))[: config.per_example]] = True
        return hidden
    hidden = generator.random(len(ids)) < config.share
    if config.span_share:
        hidden |= _spans(len(ids), config.span_share, config.span_max, generator)
    if generator.random() < config.line_rate and "\n" in vocabulary:
        hidden |= _line(ids == vocabulary.id("\n"), generator)
    hidden &= hidable
    if not hidden.any() and hidable.any():
        hidden[generator.choice(np.flatnonzero(hidable))] = True
    return hidden


def hide(ids: Ids, hidden: Mask, blank: int, ignored: int) -> tuple[Ids, Ids]:
    """What is read and what is asked, both (N,): a hidden character stands in the targets alone, any other in the inputs alone."""
    ids = ids.astype(np.int64)  # a text's own type has no room for what is not asked
    return np.where(hidden, blank, ids), np.where(hidden, ids, ignored)


def _spans(length: int, share: float, longest: int, generator: np.random.Generator) -> Mask:
    """Spans of 2..longest characters, each length as likely, that cover `share` of the text where they do not meet its edges."""
    longest = min(longest, length)
    if longest < 2:
        return np.zeros(length, dtype=bool)
    # Spans may overlap: laid at random, so many as would cover x of the text cover 1 - e^-x of it.
    wanted = -math.log1p(-share) * length / ((2 + longest) / 2)
    sizes = generator.integers(2, longest, int(wanted + generator.random()), endpoint=True)
    starts = generator.integers(0, length - sizes, endpoint=True)
    edges = np.bincount(starts, minlength=length + 1) - np.bincount(starts + sizes, minlength=length + 1)
    return np.cumsum(edges[:-1]) > 0


def _line(line_ends: Mask, generator: np.random.Generator) -> Mask:
    """One whole line without its end. None where there is but one: nothing would be left to read."""
    ends = np.flatnonzero(line_ends)
    starts, stops = np.concatenate([[0], ends + 1]), np.concatenate([ends, [len(line_ends)]])
    written = np.flatnonzero(stops > starts)
    hidden = np.zeros(len(line_ends), dtype=bool)
    if len(written) > 1:
        chosen = generator.choice(written)
        hidden[starts[chosen] : stops[chosen]] = True
    return hidden
