"""What was said, by the model's own odds: greedy or by beam search, many sequences side by side.

Beam search adds up what the decoder thinks of a beginning, what the encoder thinks of it (connectionist temporal
classification), and what a language model thinks of it, each of them where it is asked. It never fails for want of an end:
where no hypothesis has come to one within the length that is allowed, the likeliest that has not is returned, and marked.

Axes: S encoder steps, L characters, B batch, K hypotheses (beam width), R hypotheses of all sequences, A sequences that are still
searched, V vocabulary size.
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
ROWS = 320  # hypotheses of sequences that are searched side by side …
PLACES = 1 << 14  # … and for how many of them times encoder steps: from there on it is arithmetic that takes the time
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
    """Beginnings of all columns that are still searched: those of one stand together, the likeliest first."""

    columns: Tensor  # (R,) int64, ascending
    reached: Tensor  # (R,) the score of each before it is normalised, float64
    decoder: Tensor  # (R,) log P by the decoder, float64
    language: Tensor  # (R,) by the language model
    last: Tensor  # (R,) the last character
    place: Any  # a Place of the model's own


class _Step(NamedTuple):
    """The last character of each of the beginnings, and behind which of the step before it stands."""

    rows: list[int]  # of each of R
    ids: list[int]
    nats: list[float]
    looked: Tensor  # (S, R of the step before) where these looked for it


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
        looked.append(step.looked[:width, row])
    alignment = torch.stack(looked[::-1]) if looked else torch.zeros(0, width)
    return Hypothesis(ids[::-1], nats[::-1], score, end is not None, alignment)


class _Search:
    """Beam search of several sequences side by side: each step asks the model once, of all beginnings of all of them."""

    def __init__(
        self,
        model: Writer[SourceT, PlaceT],
        encoded: SourceT,
        vocabulary: Vocabulary,
        config: DecodingConfig,
        fusion: Fusion | None,
        count: int,
    ) -> None:
        assert vocabulary.end is not None
        self._model, self._encoded, self._config, self._fusion, self._count = model, encoded, config, fusion, count
        self._end, self._steps = vocabulary.end, encoded.steps()
        self._scorers: list[PrefixScorer] = []
        if config.ctc_weight:
            logits = model.ctc_logits(encoded)
            if logits is None:
                raise ValueError("ctc_weight is above 0, and the model was trained without a CTC head")
            self._scorers = [PrefixScorer(logits[:steps, b]) for b, steps in enumerate(self._steps)]
        self._forbidden = _forbidden(vocabulary, torch.device("cpu"))
        self._limits = [longest(steps, config) for steps in self._steps]
        self._written: list[_Step] = []
        self._ended: list[list[_Ended]] = [[] for _ in self._steps]
        self._found: list[list[Hypothesis]] = [[] for _ in self._steps]

    def found(self) -> list[list[Hypothesis]]:
        """Of each column what `beam_search` says."""
        config, fusion, end = self._config, self._fusion, self._end
        batch, width = len(self._steps), config.beam_width
        none = torch.zeros(batch, dtype=torch.float64)
        beam = _Beam(torch.arange(batch), none, none, none, torch.full((batch,), end), self._model.start(self._encoded))
        prefixes = [scorer.begin() for scorer in self._scorers]
        read, expected = fusion.begin() if fusion else (None, None)  # the language model's state, and its odds of what comes next
        read, expected = _copied(read, batch), None if expected is None else expected.expand(batch, -1)
        before = torch.empty(0, dtype=torch.int64)  # the columns of the beam that all below hangs on
        for length in range(max(self._limits) + 1):
            if not torch.equal(beam.columns, before):
                before = beam.columns
                counts = before.bincount(minlength=batch)
                alive = counts.nonzero().squeeze(1)  # (A,)
                counts = counts[alive]  # (A,)
                firsts, which = counts.cumsum(0) - counts, torch.arange(len(alive)).repeat_interleave(counts)  # (A,), (R,)
                slots = torch.arange(len(before)) - firsts[which]  # (R,)
                seen = self._seen(before)
            logits, place = self._model.next(beam.last.to(self._encoded.device), beam.place, seen)
            odds = (logits.float().cpu() + self._forbidden).log_softmax(-1).double()  # (R, V)
            decoder = beam.decoder.unsqueeze(-1) + odds
            total = (1 - config.ctc_weight) * decoder
            if self._scorers:
                total = total + config.ctc_weight * self._by_encoder(odds, prefixes, alive.tolist(), firsts.tolist(), counts.tolist())
            spoken = beam.language.unsqueeze(-1) + (expected.double() if expected is not None else 0.0)  # (R, V) or (R, 1)
            if fusion:
                total = total + fusion.weight * spoken
            spoken = spoken.expand_as(total)
            size = total.size(1)
            if len(alive) == 1:
                wide = total.unsqueeze(0)  # (A, K, V)
            else:
                wide = total.new_full((len(alive), int(counts.max()), size), -torch.inf)
                wide[which, slots] = total
            best = wide.flatten(1).topk(min(width, wide[0].numel()))  # (A, n)
            rows, ids = firsts.unsqueeze(-1) + best.indices // size, best.indices % size
            possible = best.values > -torch.inf
            self._note_ends(best.values, rows, ids, odds, alive, possible & (ids == end), length)
            going = possible & (ids != end)
            over = self._over(alive, best.values.where(going, -torch.inf).amax(1), length)
            for at, b in enumerate(alive.tolist()):
                if over[at]:
                    self._found[b] = self._told(b, beam.reached, int(firsts[at]), int(counts[at]))
            going &= ~torch.tensor(over).unsqueeze(-1)
            rows, ids, totals = rows[going], ids[going], best.values[going]  # (R,) of the next step
            if not len(rows):
                break
            self._written.append(_Step(rows.tolist(), ids.tolist(), (-odds[rows, ids]).tolist(), place.alignment.float().cpu()))
            columns = before[rows]
            for b, scorer in enumerate(self._scorers):
                own = columns == b
                prefixes[b] = scorer.extend(prefixes[b], slots[rows[own]], ids[own])
            chosen = place.rows(rows.to(self._encoded.device))
            beam = _Beam(columns, totals, decoder[rows, ids], spoken[rows, ids], ids, chosen)
            if fusion:
                read = None if read is None else tuple(tuple(part[rows.to(part.device)] for part in layer) for layer in read)
                read, expected = fusion.go_on(ids, read)
        return self._found

    def _seen(self, columns: Tensor) -> Any:
        """What the rows of a beam are written of. Of a single column there is nothing to copy."""
        if len(self._steps) == 1:
            return self._encoded.column(0, len(columns))
        return self._encoded.rows(columns.to(self._encoded.device))

    def _by_encoder(
        self, odds: Tensor, prefixes: Sequence[Prefixes], alive: Sequence[int], firsts: Sequence[int], counts: Sequence[int]
    ) -> Tensor:
        """What the encoders think of each beginning with one more character, (R, V): of the characters that the decoders do not think of,
        that it is impossible."""
        likely = odds.topk(min(odds.size(1), max(CANDIDATES, 2 * self._config.beam_width))).indices  # (R, n)
        found = torch.full_like(odds, -torch.inf)
        for b, first, count in zip(alive, firsts, counts):
            own = slice(first, first + count)
            found[own] = found[own].scatter(1, likely[own], self._scorers[b].longer(prefixes[b], likely[own]))
            found[own, self._end] = self._scorers[b].whole(prefixes[b])
        return found

    def _note_ends(self, totals: Tensor, rows: Tensor, ids: Tensor, odds: Tensor, alive: Tensor, ended: Tensor, length: int) -> None:
        """Keep the texts that have come to their end, all (A, n) but odds (R, V) and alive (A,): of each column the best."""
        for at, n in ended.nonzero().tolist():
            row = int(rows[at, n])
            texts = self._ended[int(alive[at])]
            score = _normalised(float(totals[at, n]), length, self._config)
            texts.append(_Ended(score, length, row, -float(odds[row, self._end])))
            texts.sort(key=lambda text: -text.score)
            del texts[self._config.beam_width :]

    def _over(self, alive: Tensor, best: Tensor, length: int) -> list[bool]:
        """Of each column that is searched, whether that ends here. `best` (A,): what its likeliest text that goes on has reached.

        A score only falls as a text grows; what is left of it at the longest is the most that any of these can still reach.
        """

        def over(b: int, reached: float) -> bool:
            if length == self._limits[b] or reached == -math.inf:
                return True
            ended = self._ended[b]
            return len(ended) >= self._count and ended[self._count - 1].score >= _normalised(reached, self._limits[b], self._config)

        return [over(b, reached) for b, reached in zip(alive.tolist(), best.tolist())]

    def _told(self, b: int, reached: Tensor, first: int, count: int) -> list[Hypothesis]:
        """A column's texts, the best first; `count` rows from `first` on have not come to an end."""
        width, written = self._steps[b], self._written
        found = [_traced(written[: text.steps], text.row, text.score, text.nats, width) for text in self._ended[b]]
        known = {tuple(text.ids) for text in found}  # whose end was not their only way to go on
        for row in range(first, first + count):
            if len(found) >= self._count:
                break
            text = _traced(written, row, _normalised(float(reached[row]), len(written), self._config), None, width)
            found += [text] if tuple(text.ids) not in known else []
        return found


def _copied(state: tuple[State, ...] | None, times: int) -> tuple[State, ...] | None:
    """A state of one column, so many times."""
    return None if state is None else tuple(tuple(part.expand(times, -1) for part in layer) for layer in state)


@torch.inference_mode()
def beam_search(
    model: Writer[SourceT, PlaceT],
    encoded: SourceT,
    vocabulary: Vocabulary,
    config: DecodingConfig,
    fusion: Fusion | None = None,
    *,
    count: int = 1,
) -> list[list[Hypothesis]]:
    """The likeliest texts of each sequence, no two the same, the best first: at least one, and no more than `beam_width`.

    A text has come to its end where that is among the `beam_width` likeliest ways to go on; so a beam of 1 is greedy. The search ends
    where nothing can overtake the best `count` any more. Where fewer have come to an end, the likeliest others stand behind them, marked
    as unfinished. Sequences are searched side by side, as many as make ROWS beginnings and PLACES to look at; each as it would be alone.

    count     up to `beam_width`
    score     (1 - λ) log P_decoder + λ log P_encoder + β log P_language, over ((5 + n) / 6)^α for n characters and the end, λ being
              ctc_weight, β the fusion's weight and α length_normalization (Wu et al. 2016, equation 14)

    Raises ValueError for a ctc_weight with a model that has no such head.
    """
    rows = min(ROWS, PLACES // max(1, *encoded.steps()))
    together, found = max(1, rows // config.beam_width), list[list[Hypothesis]]()
    for first in range(0, encoded.columns, together):
        last = min(first + together, encoded.columns)
        alone = last == first + 1
        some = encoded.column(first) if alone else encoded.rows(torch.arange(first, last, device=encoded.device))
        found += _Search(model, some, vocabulary, config, fusion, count).found()
    return found


def decode(
    model: Writer[SourceT, PlaceT], encoded: SourceT, vocabulary: Vocabulary, config: DecodingConfig, fusion: Fusion | None = None
) -> list[Hypothesis]:
    """The likeliest text of each sequence as `config` has it sought. Raises ValueError as beam_search does."""
    if config.beam_width == 1 and not config.ctc_weight and fusion is None:
        return greedy(model, encoded, vocabulary, config)
    return [texts[0] for texts in beam_search(model, encoded, vocabulary, config, fusion)]


def _normalised(score: float, length: int, config: DecodingConfig) -> float:
    return float(score / ((5 + length + 1) / 6) ** config.length_normalization)


def _forbidden(vocabulary: Vocabulary, device: torch.device) -> Tensor:
    """(V,) to be added to logits: what is never written is impossible."""
    mask = torch.zeros(len(vocabulary), device=device)
    mask[vocabulary.unwritten] = -torch.inf
    return mask
