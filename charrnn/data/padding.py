"""Examples of different lengths, side by side: those of like length together, the shorter ones padded on the right.

Axes: T time, B batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from charrnn.data.batch import IGNORED, Batch
from charrnn.data.corpus import Ids

POOL = 64  # batches among whose examples those of like length are sought: enough for little padding, few enough to mix them


def buckets(lengths: Sequence[int] | Ids, batch_size: int, generator: np.random.Generator | None) -> list[list[int]]:
    """One pass over the examples: for each batch the indices of its examples, whose lengths are close.

    With a generator the examples are mixed, and so are the batches; without one they come by length, the same each time. Either way
    there are as many batches as it takes, all but one of them full.
    """
    count = len(lengths)
    order = np.arange(count) if generator is None else generator.permutation(count)
    pool = max(1, count) if generator is None else POOL * batch_size
    batches: list[list[int]] = []
    for start in range(0, count, pool):
        some = order[start : start + pool]
        some = some[np.argsort(np.asarray(lengths)[some], kind="stable")]
        batches += [some[at : at + batch_size].tolist() for at in range(0, len(some), batch_size)]
    if generator is None:
        return batches
    return [batches[i] for i in generator.permutation(len(batches))]


def grouped_buckets(lengths: Ids, firsts: Ids, batch_size: int, generator: np.random.Generator | None) -> list[list[int]]:
    """One pass over examples of which some belong together, those of a group side by side, beside groups of like length.

    `lengths` (N,) of the examples; `firsts` (G + 1,) of each group the first of them. With a generator the groups are mixed, and so are
    the batches, of which all but one are full: a group may begin in one and end in another. Without one they come by length, the same
    each time, and no group is cut: a batch has so many examples at most, or is one large group.
    """
    groups = len(firsts) - 1
    longest = np.maximum.reduceat(lengths, firsts[:-1])  # (G,)
    if generator is None:
        whole: list[list[int]] = []
        for group in np.argsort(longest, kind="stable").tolist():
            examples = list(range(int(firsts[group]), int(firsts[group + 1])))
            if whole and len(whole[-1]) + len(examples) <= batch_size:
                whole[-1] += examples
            else:
                whole.append(examples)
        return whole
    order = generator.permutation(groups)
    pool = max(1, POOL * batch_size * groups // len(lengths))  # groups with so many examples, more or less
    ordered: list[int] = []
    for start in range(0, groups, pool):
        some = order[start : start + pool]
        for group in some[np.argsort(longest[some], kind="stable")].tolist():
            ordered += range(int(firsts[group]), int(firsts[group + 1]))
    batches = [ordered[at : at + batch_size] for at in range(0, len(ordered), batch_size)]
    return [batches[i] for i in generator.permutation(len(batches))]


def pad(inputs: Sequence[Ids], targets: Sequence[Ids] | Ids) -> Batch:
    """Examples as one batch. `targets`: for each character of each example, or, as one array, for each example one.

    Inputs are padded with id 0, targets with IGNORED.
    """
    lengths = torch.tensor([len(example) for example in inputs])  # (B,)
    ragged = bool((lengths != lengths[0]).any())
    answers = torch.from_numpy(targets.astype(np.int64)) if isinstance(targets, np.ndarray) else _columns(targets, IGNORED)
    return Batch(_columns(inputs, 0), answers, lengths if ragged else None, continues=False)


def _columns(examples: Sequence[Ids], padding: int) -> torch.Tensor:
    columns = np.full((max(map(len, examples)), len(examples)), padding, dtype=np.int64)  # (T, B)
    for column, example in enumerate(examples):
        columns[: len(example), column] = example
    return torch.from_numpy(columns)
