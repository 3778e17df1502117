"""Logits to ids, and ids to text that streams.

Filters and draws are pure functions of logits; the engine below them keeps what a step needs: state, history, stops.
Every draw is made on the CPU in float64, so that a seed means the same text on every device.

Axes: T time, B batch (one row a sample), V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from charrnn.data.vocabulary import Primed, Vocabulary, encode_prime
from charrnn.errors import UserError

PRIME_WINDOW = 1024  # characters of a prime read at once: the logits of a whole file would not fit in memory
NAMED = 8  # characters that a warning lists before it only counts them


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
        _expect(0 <= self.temperature < math.inf, "--temperature", self.temperature, "a number from 0 up; 0 is greedy")
        _expect(k is None or k >= 1, "--top-k", k, f"at least 1; {all_stay}")
        _expect(p is None or 0 < p <= 1, "--top-p", p, f"a share above 0 and at most 1; {all_stay}")
        _expect(least is None or 0 <= least <= 1, "--min-p", least, f"a share from 0 to 1; {all_stay}")
        _expect(0 < penalty < math.inf, "--repetition-penalty", penalty, "a number above 0; 1 changes nothing, 1.2 is usual")
        _expect(self.repetition_window >= 1, "--repetition-window", self.repetition_window, "at least 1 character")
        _expect(self.no_repeat_ngram >= 0, "--no-repeat-ngram", self.no_repeat_ngram, "a number of characters; 0 is off")


def _expect(holds: bool, flag: str, value: object, expectation: str) -> None:
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


def prepare_prime(vocabulary: Vocabulary, text: str, on_unknown: Literal["drop", "error"] = "drop") -> tuple[Primed, list[str]]:
    """Encode what a person typed, and what there is to warn about. Raises UserError for `error` where a character is unknown."""
    primed = encode_prime(vocabulary, text)
    warnings = []
    if primed.replaced:
        pairs = [f"{typed!r} as {known!r}" for typed, known in primed.replaced.items()]
        warnings.append(f"--prime: the model knows another form of some characters and reads {_list(pairs)}")
    if primed.dropped:
        names = _list([f"{c!r} (U+{ord(c):04X})" for c in primed.dropped])
        if on_unknown == "error":
            remedy = "leave them out, or pass --on-unknown drop"
            raise UserError(f"--prime: the model does not know {names}; expected characters of its training text; {remedy}")
        rest = "" if primed.ids else "; nothing is left of the prime, so the text starts as a document starts"
        warnings.append(f"--prime: the model does not know {names}; dropped{rest}")
    return primed, warnings


def _list(names: Sequence[str]) -> str:
    return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")


def opening(vocabulary: Vocabulary, prime_ids: Sequence[int]) -> list[int]:
    """What the model reads before it writes. A document follows the `end` of another; a stream has lines, or else just begins."""
    if vocabulary.end is not None:
        return [vocabulary.end, *prime_ids]
    start = "\n" if "\n" in vocabulary else vocabulary.characters[0]
    return list(prime_ids) or [vocabulary.id(start)]


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
) -> Iterator[list[str]]:
    """Write on from a prime. Yields, step by step, what each of `num_samples` texts grows by; "" for one that is over.

    A text is over after `length` new characters, when it ends with one of `stop` (which it keeps), or with its document.
    With `continue_documents` the end of a document is written as `separator` and the next one begins. `unknown` is never
    written, and a document is never empty.

    All samples are one batch. Sample i draws from a generator of its own, so it does not depend on how many there are.
    The model is in eval mode from the first step to the last and then again as it was.
    Raises UserError for arguments that cannot mean anything, before the first step.
    """
    _expect(length >= 0, "--length", length, "a number of new characters")
    _expect(num_samples >= 1, "--num-samples", num_samples, "at least 1")
    _expect("" not in stop, "--stop", repr(""), "at least one character; leave the flag out to stop nowhere")
    if continue_documents:
        _expect(separator != "", "separator", repr(""), "at least one character")
    seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
    generators = [torch.Generator().manual_seed(_seed(seed, i)) for i in range(num_samples)]
    texts = [_Text(length, tuple(stop)) for _ in range(num_samples)]
    between = separator if continue_documents else None
    return _steps(model, vocabulary, list(prime_ids), options, generators, texts, between)


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


@torch.inference_mode()
def _steps(
    model: nn.Module,
    vocabulary: Vocabulary,
    prime_ids: list[int],
    options: SamplingOptions,
    generators: list[torch.Generator],
    texts: list[_Text],
    separator: str | None,
) -> Iterator[list[str]]:
    device = next(model.parameters()).device
    remembers = options.repetition_penalty != 1 or options.no_repeat_ngram > 0
    history = [list(prime_ids) for _ in texts]
    empty = [not prime_ids] * len(texts)  # a document without a character has no end
    end, first = vocabulary.end, len(vocabulary.symbols)
    training = model.training
    model.eval()
    try:
        if all(text.over for text in texts):
            return
        state = None
        for ids in torch.split(torch.tensor(opening(vocabulary, prime_ids), device=device), PRIME_WINDOW):
            logits, state = model(ids.unsqueeze(-1), state)  # (T, 1, V)
        # One prime, many continuations: what was read once is everyone's beginning.
        logits = logits[-1:].expand(-1, len(texts), -1)
        state = tuple(tuple(s.expand(len(texts), -1).contiguous() for s in layer) for layer in state or ())
        while True:
            scores = logits[-1].to("cpu", torch.float64, copy=True)  # (B, V)
            if not math.isfinite(float(scores.sum())):
                remedy = "its training diverged, so sample from an earlier checkpoint"
                raise UserError(f"the model answers with numbers that are not finite; expected finite logits; {remedy}")
            if end is not None and any(empty):
                scores[empty, end] = -math.inf
            drawn = sample(filter_logits(scores, options, history, (vocabulary.unknown,)), options, generators)  # (B,)
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
            yield pieces
            if all(text.over for text in texts):
                return
            logits, state = model(drawn.unsqueeze(0).to(device), state)  # (1, B, V)
    finally:
        model.train(training)
