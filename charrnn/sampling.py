"""Logits to ids, and a model that reads what it wrote.

Filters and draws are pure functions of logits; `run_on` is the one loop in which a model writes, whoever asks: a task's preview
while it trains, or a person. Every draw is made on the CPU in float64, so that a seed means the same text on every device.

Axes: T time, B batch (one row a sample), V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from charrnn.constraints import Mask
from charrnn.data.vocabulary import opening
from charrnn.errors import not_finite
from charrnn.options import SamplingOptions
from charrnn.texts import Texts

PRIME_WINDOW = 1024  # characters of a prime read at once: the logits of a whole file would not fit in memory


def penalize_repetition(logits: Tensor, history: Sequence[Sequence[int]], penalty: float, window: int) -> Tensor:
    """Make what was just said less likely: its logits are divided where positive, multiplied where negative. (B, V) -> (B, V)."""
    logits = logits.clone()
    for row, said in zip(logits, history):
        ids = torch.tensor(sorted(set(said[-window:])), dtype=torch.long)
        values = row[ids]
        row[ids] = torch.where(values > 0, values / penalty, values * penalty)
    return logits


def repeats(history: Sequence[int], n: int) -> set[int]:
    """The ids that would make the last n ids of `history` a run of n that it already holds."""
    if n == 1:
        return set(history)
    tail = list(history[len(history) - n + 1 :])  # what the next id would complete
    found: set[int] = set()
    at = n - 2  # where an earlier run may have its last but one
    while len(history) >= n:
        try:
            at = history.index(tail[-1], at, len(history) - 1)
        except ValueError:
            break
        if list(history[at - n + 2 : at + 1]) == tail:
            found.add(history[at + 1])
        at += 1
    return found


def ban_repeats(logits: Tensor, history: Sequence[Sequence[int]], n: int) -> Tensor:
    """Exclude what would repeat a run of n; where that would exclude everything, nothing. (B, V) -> (B, V)."""
    banned = logits.clone()
    for row, original, said in zip(banned, logits, history):
        row[sorted(repeats(said, n))] = -math.inf
        if bool((row == -math.inf).all()):
            row.copy_(original)
    return banned


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """Exclude what is less probable than the k-th; equals of the k-th stay. (B, V) -> (B, V)."""
    if k >= logits.size(-1):
        return logits
    least = logits.topk(k, -1).values[:, -1:]  # (B, 1)
    return logits.masked_fill(logits < least, -math.inf)


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """Keep the fewest most probable ids that together hold the share p: the nucleus. (B, V) -> (B, V)."""
    if p >= 1:
        return logits
    shares, order = torch.sort(logits.softmax(-1), dim=-1, descending=True, stable=True)
    before = shares.cumsum(-1) - shares  # what the more probable ones hold already
    excluded = before >= p
    excluded[:, 0] = False
    return logits.masked_fill(excluded.gather(-1, order.argsort(-1)), -math.inf)


def keep_min_p(logits: Tensor, p: float) -> Tensor:
    """Exclude what is less than p times as probable as the best. (B, V) -> (B, V)."""
    if p <= 0:
        return logits
    return logits.masked_fill(logits < logits.amax(-1, keepdim=True) + math.log(p), -math.inf)


def filter_logits(logits: Tensor, options: SamplingOptions, history: Sequence[Sequence[int]], forbidden: Sequence[int] = ()) -> Tensor:
    """Logits (B, V) at the temperature asked for, -inf for every id that must not be drawn.

    `history` holds the ids that each row's document has so far. In this order: `forbidden` ids, repetition, temperature,
    top-k, top-p, min-p, each on what the one before left. Whatever the options, an id that is not forbidden survives.
    """
    if forbidden:
        logits = logits.clone()
        logits[:, list(forbidden)] = -math.inf
    if options.repetition_penalty != 1:
        logits = penalize_repetition(logits, history, options.repetition_penalty, options.repetition_window)
    if options.no_repeat_ngram:
        logits = ban_repeats(logits, history, options.no_repeat_ngram)
    if options.temperature == 0:
        return logits  # the best survives each of the filters below, so they change nothing
    # With the best at 0 a temperature near 0 sends the others to -inf instead of everything to infinity.
    logits = (logits - logits.amax(-1, keepdim=True)) / options.temperature
    if options.top_k is not None:
        logits = keep_top_k(logits, options.top_k)
    if options.top_p is not None:
        logits = keep_top_p(logits, options.top_p)
    if options.min_p is not None:
        logits = keep_min_p(logits, options.min_p)
    return logits


def restrict(logits: Tensor, masks: Sequence[Mask | None]) -> None:
    """-inf, in place, for what a row's mask does not allow: logits (B, V). Rows that share a mask are masked at once."""
    distinct: dict[int, Mask] = {}  # by identity
    places: dict[int, int] = {}
    for mask in masks:
        if mask is not None and id(mask) not in distinct:
            places[id(mask)] = len(distinct)
            distinct[id(mask)] = mask
    if not distinct:
        return
    forbidden = ~torch.from_numpy(np.stack(list(distinct.values())))  # (distinct masks, V)
    if any(mask is None for mask in masks):
        places[id(None)] = len(forbidden)
        forbidden = torch.cat([forbidden, torch.zeros_like(forbidden[:1])])
    logits.masked_fill_(forbidden if len(forbidden) == 1 else forbidden[[places[id(mask)] for mask in masks]], -math.inf)


def sample(logits: Tensor, options: SamplingOptions, generators: Sequence[torch.Generator]) -> Tensor:
    """One id a row, from what filter_logits left: (B, V) -> (B,). A row draws one number, from its own generator."""
    if options.temperature == 0:
        return logits.argmax(-1)
    cumulative = logits.double().softmax(-1).cumsum(-1)  # (B, V)
    uniform = torch.cat([torch.rand(1, 1, dtype=torch.float64, generator=generator) for generator in generators])  # (B, 1) in [0, 1)
    # `right` finds the first id whose cumulative share lies above the draw, so an id of share 0 is never found.
    return torch.searchsorted(cumulative, uniform * cumulative[:, -1:], right=True).squeeze(-1)


State = tuple[tuple[Tensor, ...], ...]  # a layer: (h,) or (h, c), each (B, H)


def read(model: nn.Module, ids: Sequence[int]) -> tuple[Tensor, State]:
    """Read what stands before a text: the logits of what comes next, (1, V), and the state to go on from."""
    device = next(model.parameters()).device
    state = None
    for window in torch.split(torch.tensor(ids, device=device), PRIME_WINDOW):
        logits, state = model(window.unsqueeze(-1), state)  # (T, 1, V)
    return logits[-1], state or ()


def rows_of(state: State, rows: Tensor) -> State:
    """The state that goes on from some rows, in their order; a row may be taken more than once. rows (B,) int64."""
    return tuple(tuple(s.index_select(0, rows.to(s.device)) for s in layer) for layer in state)


def finite_scores(logits: Tensor) -> Tensor:
    """What a draw is made from: (B, V) of its own, in float64 on the CPU. Raises UserError for a model that is no use."""
    scores = logits.to("cpu", torch.float64, copy=True)
    if not math.isfinite(float(scores.sum())):
        raise not_finite()
    return scores


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """In eval mode, and then again as it was."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


@torch.inference_mode()
def run_on(model: nn.Module, ids: Sequence[int], rows: int, choose: Callable[[Tensor], Tensor]) -> Generator[Tensor, None, None]:
    """Read `ids`, then write on in `rows` rows, without end. Yields what each row writes next, (B,).

    `choose` makes ids (B,) of logits (B, V), which are its own, in float64 on the CPU. The model is in eval mode from the first
    step until the generator is closed, and then again as it was.
    """
    device = next(model.parameters()).device
    with evaluating(model):
        logits, state = read(model, ids)
        # One prime, many continuations: what was read once is everyone's beginning.
        logits, state = logits.expand(rows, -1), rows_of(state, torch.zeros(rows, dtype=torch.long))
        while True:
            drawn = choose(finite_scores(logits))  # (B, V) -> (B,)
            yield drawn
            steps, state = model(drawn.unsqueeze(0).to(device), state)  # (1, B, V)
            logits = steps[-1]


def draw(model: nn.Module, texts: Texts) -> Generator[list[list[int]], None, None]:
    """An engine of texts.py: one step at a time, with PyTorch."""
    vocabulary, options = texts.vocabulary, texts.options
    generators = [torch.Generator().manual_seed(seed) for seed in texts.seeds]
    remembers = options.repetition_penalty != 1 or options.no_repeat_ngram > 0
    history = [list(texts.prime_ids) for _ in generators]  # of each document
    empty = [not texts.prime_ids] * len(generators)  # a document without a character has no end
    end = vocabulary.end

    def choose(scores: Tensor) -> Tensor:  # (B, V) -> (B,)
        if end is not None and any(empty):
            scores[empty, end] = -math.inf
        restrict(scores, texts.masks())
        return sample(filter_logits(scores, options, history, vocabulary.unwritten), options, generators)

    with closing(run_on(model, opening(vocabulary, texts.prime_ids), len(generators), choose)) as draws:
        for drawn in draws:
            ids = drawn.tolist()
            for i, id_ in enumerate(ids):
                if id_ == end:
                    empty[i] = True
                    history[i].clear()
                else:
                    empty[i] = False
                    if remembers:
                        history[i].append(id_)
            yield [[id_] for id_ in ids]
