"""What was said, by the model's own odds: greedy for many sequences side by side, or by beam search, one at a time.

Beam search adds up what the decoder thinks of a beginning, what the encoder thinks of it (connectionist temporal
classification), and what a language model thinks of it, each of them where it is asked. It never fails for want of an end:
where no hypothesis has come to one within the length that is allowed, the likeliest that has not is returned, and marked.

Axes: S encoder steps, L characters, B batch, K hypotheses (beam width), V vocabulary size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from charrnn.config import DecodingConfig
from charrnn.data.vocabulary import Vocabulary
from charrnn.models.char_rnn import CharRNN
from charrnn.models.transcriber import CTC_BLANK
from charrnn.models.writer import PlaceT, SourceT, Writer
from charrnn.ops.cells import State

CANDIDATES = 40  # characters, of each hypothesis the likeliest by the decoder, of which the encoder is asked too
ENOUGH = 8  # characters that may be written of anything, however short
Draw = Callable[[Tensor], Tensor]  # log probabilities of the next characters (B, V), -inf of what is never written -> one of each (B,)


@dataclass(frozen=True)
class Hypothesis:
    """What may have been said."""

    ids: list[int]  # without the end
    nats: list[float]  # what each character and, last, the end cost the decoder; without the end where it is unfinished
    score: float  # what hypotheses are compared by, the more the better
    finished: bool  # came to an end by itself
    alignment: Tensor  # (L, S) where the decoder looked for each character, float32 on the CPU

    @property
    def confidence(self) -> float:
        """As `certainty` has it."""
        return certainty(self.nats)


def certainty(nats: Sequence[float]) -> float:
    """The geometric mean of the decoder's probabilities, 0..1; 0 of none."""
    return math.exp(-math.fsum(nats) / len(nats)) if nats else 0.0


def longest(steps: int, config: DecodingConfig) -> int:
    """Characters that may be written of so many encoder steps."""
    return config.max_length or 2 * steps + ENOUGH


@torch.inference_mode()
def greedy(
    model: Writer[SourceT, PlaceT], encoded: SourceT, vocabulary: Vocabulary, config: DecodingConfig, draw: Draw | None = None
) -> list[Hypothesis]:
    """The likeliest next character, again and again, of each sequence; with `draw` what it draws from the logits instead.

    The length that is allowed is each sequence's own. An end behind as many characters as are allowed is one still.
    """
    end = vocabulary.end
    assert end is not None
    batch, lengths = encoded.columns, encoded.steps()
    limits = [longest(length, config) for length in lengths]
    forbidden = _forbidden(vocabulary, encoded.device)
    spelling, ids = model.start(encoded), torch.full((batch,), end, device=encoded.device)
    written: list[list[int]] = [[] for _ in range(batch)]
    nats: list[list[float]] = [[] for _ in range(batch)]
    alignments: list[Tensor] = []
    ended, cut = [False] * batch, [False] * batch
    while not all(ended[b] or cut[b] for b in range(batch)):
        logits, spelling = model.next(ids, spelling, encoded)
        odds = (logits.float() + forbidden).log_softmax(-1)  # (B, V)
        ids = odds.argmax(-1) if draw is None else draw(odds)  # (B,)
        costs = odds.gather(-1, ids.unsqueeze(-1)).squeeze(-1)
        alignments.append(spelling.alignment.float().cpu())
        for b, (chosen, log_p) in enumerate(zip(ids.tolist(), costs.tolist())):
            if ended[b] or cut[b]:
                continue
            if chosen != end and len(written[b]) == limits[b]:
                cut[b] = True
                continue
            nats[b].append(-log_p)
            if chosen == end:
                ended[b] = True
            else:
                written[b].append(chosen)
    found = []
    for b in range(batch):
        looked = [where[: lengths[b], b] for where in alignments[: len(written[b])]]
        alignment = torch.stack(looked) if looked else torch.zeros(0, lengths[b])
        found.append(Hypothesis(written[b], nats[b], _normalised(-sum(nats[b]), len(written[b]), config), ended[b], alignment))
    return found


class Fusion:
    """A language model that has a say in what was said: shallow fusion (Gulcehre et al. 2015). `weight`: of its nats in the score.

    It reads its own vocabulary: a character that it does not know costs it what `unknown` does. The end of a text counts where it
    knows documents.
    """

    def __init__(self, model: CharRNN, own: Vocabulary, vocabulary: Vocabulary, weight: float) -> None:
        self.weight = weight
        self._model, self._own_end = model, own.end
        ids = [own.end if symbol == "end" and own.end is not None else own.unknown for symbol in vocabulary.symbols]
        self._ids = torch.tensor(ids + [own.id(character) for character in vocabulary.characters])  # (V,) its id of each of ours
        self._silent = vocabulary.end if own.end is None else None  # what it has no opinion of

    def begin(self) -> tuple[tuple[State, ...] | None, Tensor]:
        """Its state before a text, and the odds of the first character, (1, V)."""
        if self._own_end is None:
            return None, torch.zeros(1, len(self._ids))
        return self._read(torch.tensor([self._own_end]), None)

    def go_on(self, ids: Tensor, state: tuple[State, ...] | None) -> tuple[tuple[State, ...], Tensor]:
        """After characters of ours, (K,): its state, and the odds of the next, (K, V)."""
        return self._read(self._ids[ids], state)

    def _read(self, ids: Tensor, state: tuple[State, ...] | None) -> tuple[tuple[State, ...], Tensor]:
        device = next(self._model.parameters()).device
        logits, after = self._model(ids.to(device).unsqueeze(0), state)  # (1, K, V of its own)
        odds = logits.squeeze(0).float().cpu().log_softmax(-1)[:, self._ids]  # (K, V)
        if self._silent is not None:
            odds[:, self._silent] = 0.0
        return after, odds


class Prefixes(NamedTuple):
    """Of beginnings, what the encoder thinks of all the ways in which they may lie in its steps; log probabilities in float64.

    After each number of steps 0..S: all of the beginning has been said, and the last step was its last character, or a blank.
    """

    character: Tensor  # (S + 1, K)
    blank: Tensor  # (S + 1, K)
    last: Tensor  # (K,) the last character of each; CTC_BLANK of the empty one


class PrefixScorer:
    """log P(the text begins so | the encoder) (Graves 2008, 7.5; Watanabe et al. 2017, algorithm 2), for all next characters at once.

    Each recursion over the steps is linear in the probabilities: r_t = p_t (r_{t-1} + φ_t). So its solution is a cumulative sum of
    φ_t / (p_1 … p_{t-1}), and no step has to wait for another.
    """

    def __init__(self, logits: Tensor) -> None:
        """`logits` (S, V) of one sequence, id CTC_BLANK being the blank."""
        self._log_p = logits.double().log_softmax(-1).cpu()  # (S, V)
        self._run = torch.cat([torch.zeros(1, self._log_p.size(1), dtype=torch.float64), self._log_p.cumsum(0)])  # (S + 1, V)

    def begin(self) -> Prefixes:
        blank = self._run[:, CTC_BLANK : CTC_BLANK + 1]  # (S + 1, 1)
        return Prefixes(torch.full_like(blank, -torch.inf), blank, torch.tensor([CTC_BLANK]))

    def whole(self, prefixes: Prefixes) -> Tensor:
        """log P of the beginnings as whole texts, (K,)."""
        return torch.logaddexp(prefixes.character[-1], prefixes.blank[-1])

    def longer(self, prefixes: Prefixes, ids: Tensor) -> Tensor:
        """log P of each beginning with one of some characters behind it, ids (K, n) -> (K, n). That of a blank means nothing."""
        return (self._ready(prefixes, ids) + self._log_p[:, ids]).logsumexp(0)

    def extend(self, prefixes: Prefixes, rows: Tensor, ids: Tensor) -> Prefixes:
        """The beginnings `rows` (n,), each with one of `ids` (n,) behind it."""
        chosen = Prefixes(prefixes.character[:, rows], prefixes.blank[:, rows], prefixes.last[rows])
        ready = self._ready(chosen, ids.unsqueeze(-1)).squeeze(-1)  # (S, n)
        character = self._sum(ready, self._run[:, ids])
        blank = self._sum(character[:-1], self._run[:, CTC_BLANK : CTC_BLANK + 1].expand(-1, len(ids)))
        return Prefixes(character, blank, ids)

    def _ready(self, prefixes: Prefixes, ids: Tensor) -> Tensor:
        """φ: before each step, all of the beginning has been said, and ids (K, n) may follow, (S, K, n): a second one of the same only
        behind a blank."""
        character, blank = prefixes.character[:-1].unsqueeze(-1), prefixes.blank[:-1].unsqueeze(-1)  # (S, K, 1)
        return torch.where(ids == prefixes.last.unsqueeze(-1), blank, torch.logaddexp(character, blank))

    @staticmethod
    def _sum(ready: Tensor, run: Tensor) -> Tensor:
        """r_t = p_t (r_{t-1} + φ_t), r_0 = 0: ready (S, n), run = log(p_1 … p_t) for t = 0..S (S + 1, n) -> (S + 1, n)."""
        summed = run[1:] + (ready - run[:-1]).logcumsumexp(0)
        return torch.cat([torch.full_like(run[:1], -torch.inf), summed])


class _Beam(NamedTuple):
    """Beginnings, the likeliest first."""

    decoder: Tensor  # (K,) log P by the decoder, float64
    language: Tensor  # (K,) by the language model
    spelling: Any  # a Place of the model's own


class _Step(NamedTuple):
    """The last character of each of the beginnings, and behind which of the step before it stands."""

    rows: list[int]  # of each of K
    ids: list[int]
    nats: list[float]
    looked: Tensor  # (S, K of the step before) where these looked for it


class _Ended(NamedTuple):
    """A text that has come to its end."""

    score: float
    steps: int
    row: int  # of the last of its steps
    nats: float  # that the end cost


def _traced(steps: Sequence[_Step], row: int, score: float, end: float | None, width: int) -> Hypothesis:
    """The text that leads to a row of the last of these steps, read from its end to its beginning: of all others nothing is copied.

    `end`: what its end cost, if that has come; `width`: S.
    """
    ids, nats, looked = list[int](), [] if end is None else [end], list[Tensor]()
    for step in reversed(steps):
        ids.append(step.ids[row])
        nats.append(step.nats[row])
        row = step.rows[row]
        looked.append(step.looked[:, row])
    alignment = torch.stack(looked[::-1]) if looked else torch.zeros(0, width)
    return Hypothesis(ids[::-1], nats[::-1], score, end is not None, alignment)


@torch.inference_mode()
def beam_search(
    model: Writer[SourceT, PlaceT],
    encoded: SourceT,
    vocabulary: Vocabulary,
    config: DecodingConfig,
    fusion: Fusion | None = None,
    *,
    count: int = 1,
) -> list[Hypothesis]:
    """The likeliest texts of one sequence, no two the same, the best first: at least one, and no more than `beam_width`.

    A text has come to its end where that is among the `beam_width` likeliest ways to go on; so a beam of 1 is greedy. The search ends
    where nothing can overtake the best `count` any more. Where fewer have come to an end, the likeliest others stand behind them, marked
    as unfinished.

    encoded   of one column, without padding
    count     up to `beam_width`
    score     (1 - λ) log P_decoder + λ log P_encoder + β log P_language, over ((5 + n) / 6)^α for n characters and the end, λ being
              ctc_weight, β the fusion's weight and α length_normalization (Wu et al. 2016, equation 14)

    Raises ValueError for a ctc_weight with a model that has no such head.
    """
    end = vocabulary.end
    assert end is not None
    scorer = None
    if config.ctc_weight:
        logits = model.ctc_logits(encoded)
        if logits is None:
            raise ValueError("ctc_weight is above 0, and the model was trained without a CTC head")
        scorer = PrefixScorer(logits[:, 0])
    device, (steps,) = encoded.device, encoded.steps()
    forbidden = _forbidden(vocabulary, torch.device("cpu"))
    prefixes = scorer.begin() if scorer else None
    read, expected = fusion.begin() if fusion else (None, None)  # the language model's state, and its odds of what comes next
    none = torch.zeros(1, dtype=torch.float64)
    beam = _Beam(none, none, model.start(encoded))
    reached, last = none, torch.tensor([end])  # of each, its score before it is normalised, and what it has written last
    written: list[_Step] = []
    ended: list[_Ended] = []
    limit = longest(steps, config)
    for length in range(limit + 1):
        logits, spelling = model.next(last.to(device), beam.spelling, encoded.column(0, len(last)))
        odds = (logits.float().cpu() + forbidden).log_softmax(-1).double()  # (K, V)
        decoder = beam.decoder.unsqueeze(-1) + odds
        total = (1 - config.ctc_weight) * decoder
        if scorer and prefixes:
            likely = odds.topk(min(odds.size(1), max(CANDIDATES, 2 * config.beam_width))).indices  # (K, n)
            encoder = torch.full_like(total, -torch.inf).scatter_(1, likely, scorer.longer(prefixes, likely))
            encoder[:, end] = scorer.whole(prefixes)
            total = total + config.ctc_weight * encoder
        spoken = beam.language.unsqueeze(-1) + (expected.double() if expected is not None else 0.0)  # (K, V) or (K, 1)
        if fusion:
            total = total + fusion.weight * spoken
        spoken = spoken.expand_as(total)
        best = total.flatten().topk(min(config.beam_width, total.numel()))
        possible = best.values > -torch.inf
        totals, rows, ids = (found[possible] for found in (best.values, best.indices // total.size(1), best.indices % total.size(1)))
        for k, value in zip(rows[ids == end].tolist(), totals[ids == end].tolist()):
            ended.append(_Ended(_normalised(value, length, config), length, k, -float(odds[k, end])))
        ended = sorted(ended, key=lambda text: -text.score)[: config.beam_width]
        totals, rows, ids = (found[ids != end] for found in (totals, rows, ids))
        if length == limit or not len(ids):
            break
        # A score only falls as a text grows; what is left of it at the longest is the most that any of these can still reach.
        if len(ended) >= count and ended[count - 1].score >= _normalised(float(totals[0]), limit, config):
            break
        written.append(_Step(rows.tolist(), ids.tolist(), (-odds[rows, ids]).tolist(), spelling.alignment.float().cpu()))
        beam = _Beam(decoder[rows, ids], spoken[rows, ids], spelling.rows(rows.to(device)))
        reached, last = totals, ids
        if scorer and prefixes:
            prefixes = scorer.extend(prefixes, rows, ids)
        if fusion:
            read = None if read is None else tuple(tuple(part[rows.to(part.device)] for part in layer) for layer in read)
            read, expected = fusion.go_on(ids, read)
    found = [_traced(written[: text.steps], text.row, text.score, text.nats, steps) for text in ended]
    known = {tuple(text.ids) for text in found}  # whose end was not their only way to go on
    for row, total in enumerate(reached.tolist()):
        if len(found) >= count:
            break
        text = _traced(written, row, _normalised(total, len(written), config), None, steps)
        found += [text] if tuple(text.ids) not in known else []
    return found


def decode(
    model: Writer[SourceT, PlaceT], encoded: SourceT, vocabulary: Vocabulary, config: DecodingConfig, fusion: Fusion | None = None
) -> list[Hypothesis]:
    """The likeliest text of each sequence as `config` has it sought. Raises ValueError as beam_search does."""
    if config.beam_width == 1 and not config.ctc_weight and fusion is None:
        return greedy(model, encoded, vocabulary, config)
    return [beam_search(model, encoded.column(b), vocabulary, config, fusion)[0] for b in range(encoded.columns)]


def _normalised(score: float, length: int, config: DecodingConfig) -> float:
    return float(score / ((5 + length + 1) / 6) ** config.length_normalization)


def _forbidden(vocabulary: Vocabulary, device: torch.device) -> Tensor:
    """(V,) to be added to logits: what is never written is impossible."""
    mask = torch.zeros(len(vocabulary), device=device)
    mask[vocabulary.unwritten] = -torch.inf
    return mask
