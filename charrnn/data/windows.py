"""Documents as windows of at most so many characters: other ones in each epoch to learn from, overlapping ones to read with.

Axes: D documents, M windows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from charrnn.data.corpus import Ids


@dataclass(frozen=True)
class Windows:
    """Stretches of a text. What is answered in each is a part of what is read there."""

    starts: Ids  # (M,) int64
    stops: Ids  # (M,)
    first: Ids  # (M,) of what is answered in it, and
    last: Ids  # (M,) where that ends

    @property
    def lengths(self) -> Ids:
        return self.stops - self.starts


def margin_of(length: int) -> int:
    """What is read on each side of what is answered, in windows of this length."""
    return length // 4


def cut(edges: Ids, length: int, generator: np.random.Generator) -> Windows:
    """Documents, which begin and end at `edges` (D + 1,), in windows that do not overlap; longer ones are cut at places that are drawn.

    There are always as many windows. The beginning or the end of a document that would make one more is left out, the shorter of
    them; with the next draw it is another.
    """
    begins, ends = _documents(edges)
    starts, stops = [begins[ends - begins <= length]], [ends[ends - begins <= length]]
    long = ends - begins > length
    for begin, end, offset in zip(begins[long], ends[long], generator.integers(1, length + 1, long.sum())):
        cuts = np.concatenate([[begin], np.arange(begin + offset, end, length), [end]])
        if len(cuts) - 1 > -(-(end - begin) // length):
            cuts = cuts[1:] if cuts[1] - cuts[0] <= cuts[-1] - cuts[-2] else cuts[:-1]
        starts.append(cuts[:-1])
        stops.append(cuts[1:])
    begin, end = np.concatenate(starts), np.concatenate(stops)
    return Windows(begin, end, begin, end)


def count(edges: Ids, length: int) -> int:
    """How many windows `cut` makes."""
    begins, ends = _documents(edges)
    return int((-(-(ends - begins) // length)).sum())


def overlapping(edges: Ids, length: int, margin: int) -> Windows:
    """Documents in windows in which each character is answered once, with `margin` characters on both sides of it, or all there are.

    All windows of a document that is longer than one are equally long.
    """
    if not 0 <= 2 * margin < length:
        raise ValueError(f"a margin of {margin} on both sides leaves nothing of windows of {length}")
    begins, ends = _documents(edges)
    parts = [np.stack([begins, ends, begins, ends])[:, ends - begins <= length]]  # (4, M)
    for begin, end in zip(begins[ends - begins > length], ends[ends - begins > length]):
        inner = np.arange(begin + length - margin, end - margin, length - 2 * margin)  # where the answers of the next window begin
        first, last = np.concatenate([[begin], inner]), np.concatenate([inner, [end]])
        starts = np.minimum(np.maximum(begin, first - margin), end - length)
        parts.append(np.stack([starts, starts + length, first, last]))
    return Windows(*np.concatenate(parts, axis=1))


def _documents(edges: Ids) -> tuple[Ids, Ids]:
    """Where those that are not empty begin and end."""
    begins, ends = edges[:-1].astype(np.int64), edges[1:].astype(np.int64)
    return begins[ends > begins], ends[ends > begins]
