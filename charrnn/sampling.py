"""Logits to ids, and a model that reads what it wrote.

Filters and draws are pure functions of logits; `run_on` is the one loop in which a model writes, whoever asks: a task's preview
while it trains, or a person. Every draw is made on the CPU in float64, so that a seed means the same text on every device.

Axes: T time, B batch (one row a sample), V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from charrnn.data.vocabulary import Vocabulary
from charrnn.errors import UserError

PRIME_WINDOW = 1024  # characters of a prime read at once: the logits of a whole file would not fit in memory


@dataclass(frozen=True)
class SamplingOptions:
    """How an id is chosen. Raises UserError, naming the flag, for a value that cannot mean anything."""

    temperature: float = 0.8  # 0 is greedy
    top_k: int | None = None  # only the k most probable
    top_p: float | None = None  # only the most probable that hold this share together (Holtzman et al. 2020)
    min_p: float | None = None  # only those at least this share as probable as the best (Nguyen et al. 2024)
    repetition_penalty: float = 1.0  # on what stands in the last `repetition_window` characters (Keskar et al. 2019)
    repetition_window: int = 64
    no_repeat_ngram: int = 0  # no run of so many characters twice in a document; 0 is off

    def __post_init__(self) -> None:
        k, p, least, penalty = self.top_k, self.top_p, self.min_p, self.repetition_penalty
        all_stay = "leave the flag out to keep all characters"
        expect(0 <= self.temperature < math.inf, "--temperature", self.temperature, "a number from 0 up; 0 is greedy")
        expect(k is None or k >= 1, "--top-k", k, f"at least 1; {all_stay}")
        expect(p is None or 0 < p <= 1, "--top-p", p, f"a share above 0 and at most 1; {all_stay}")
        expect(least is None or 0 <= least <= 1, "--min-p", least, f"a share from 0 to 1; {all_stay}")
        expect(0 < penalty < math.inf, "--repetition-penalty", penalty, "a number above 0; 1 changes nothing, 1.2 is usual")
        expect(self.repetition_window >= 1, "--repetition-window", self.repetition_window, "at least 1 character")
        expect(self.no_repeat_ngram >= 0, "--no-repeat-ngram", self.no_repeat_ngram, "a number of characters; 0 is off")


def expect(holds: bool, flag: str, value: object, expectation: str) -> None:
    if not holds:
        raise UserError(f"{flag} {value}: expected {expectation}")


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


def sample(logits: Tensor, options: SamplingOptions, generators: Sequence[torch.Generator]) -> Tensor:
    """One id a row, from what filter_logits left: (B, V) -> (B,). A row draws one number, from its own generator."""
    if options.temperature == 0:
        return logits.argmax(-1)
    cumulative = logits.double().softmax(-1).cumsum(-1)  # (B, V)
    uniform = torch.cat([torch.rand(1, 1, dtype=torch.float64, generator=generator) for generator in generators])  # (B, 1) in [0, 1)
    # `right` finds the first id whose cumulative share lies above the draw, so an id of share 0 is never found.
    return torch.searchsorted(cumulative, uniform * cumulative[:, -1:], right=True).squeeze(-1)


def opening(vocabulary: Vocabulary, prime_ids: Sequence[int]) -> list[int]:
    """What the model reads before it writes. A document follows the `end` of another; a stream has lines, or else just begins."""
    if vocabulary.end is not None:
        return [vocabulary.end, *prime_ids]
    start = "\n" if "\n" in vocabulary else vocabulary.characters[0]
    return list(prime_ids) or [vocabulary.id(start)]


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
        remedy = "its training diverged, so sample from an earlier checkpoint"
        raise UserError(f"the model answers with numbers that are not finite; expected finite logits; {remedy}")
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
