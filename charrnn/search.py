"""The likeliest text instead of a drawn one: beam search, and the best of several draws.

Both judge by the model's own odds, before any mask or temperature: the mean log-likelihood, in nats per character.

Axes: T time, B batch, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from charrnn.constraints import Constraint
from charrnn.data.vocabulary import Vocabulary, opening
from charrnn.options import expect
from charrnn.sampling import ban_repeats, evaluating, finite_scores, read, restrict, rows_of

SCORED = 1 << 24  # logits held at once where texts are scored …
SCORED_STEPS = 32  # … of so many steps


class _Text(NamedTuple):
    ids: list[int]
    nats: float  # log-likelihood
    constraint: Constraint | None

    @property
    def likelihood(self) -> float:
        return self.nats / len(self.ids)


@torch.inference_mode()
def beam_search(
    model: nn.Module,
    vocabulary: Vocabulary,
    prime_ids: Sequence[int],
    *,
    width: int,
    length: int,
    count: int = 1,
    stop: Sequence[str] = (),
    no_repeat_ngram: int = 0,
    constraint: Constraint | None = None,
) -> list[str]:
    """The `count` likeliest texts that a beam of `width` finds, the likeliest first. Nothing is left to chance.

    Of all that the live texts could go on with, the `width` likeliest live on. A text ends as one of `generation.generate` does:
    after `length` characters, with a stop string, its document or its constraint; the end of the document counts as a character.
    What ended is compared by its mean log-likelihood, so that a short text has nothing of being short.
    Raises UserError for arguments that cannot mean anything.
    """
    expect(width >= 1, "--beam-width", width, "at least 1 text")
    expect(length >= 1, "--length", length, "at least 1 character to search for")
    expect(1 <= count <= width, "--num-samples", count, f"from 1 to the --beam-width, {width}")
    expect("" not in stop, "--stop", repr(""), "at least one character; leave the flag out to stop nowhere")
    end, device = vocabulary.end, next(model.parameters()).device
    live, ended = [_Text([], 0.0, constraint)], list[_Text]()
    with evaluating(model):
        logits, state = read(model, opening(vocabulary, prime_ids))  # (1, V)
        while live and len(live[0].ids) < length:
            scores = finite_scores(logits).log_softmax(-1)  # (B, V)
            totals = scores + torch.tensor([[text.nats] for text in live], dtype=torch.float64)
            totals[:, vocabulary.unwritten] = -math.inf
            if end is not None and not prime_ids and not live[0].ids:
                totals[:, end] = -math.inf  # a document without a character has no end
            restrict(totals, [text.constraint.allowed() if text.constraint else None for text in live])
            if no_repeat_ngram:
                totals = ban_repeats(totals, [[*prime_ids, *text.ids] for text in live], no_repeat_ngram)
            before, live, parents = live, [], []
            for row, id_, nats in _likeliest(totals, 2 * width):
                parent = before[row].constraint
                text = _Text([*before[row].ids, id_], nats, parent.copy() if parent else None)
                if text.constraint and id_ != end:
                    text.constraint.advance(id_)
                over = id_ == end or (text.constraint is not None and text.constraint.over)
                if over or (stop and vocabulary.decode(text.ids).endswith(tuple(stop))):
                    ended.append(text)
                elif len(live) < width:
                    live.append(text)
                    parents.append(row)
            ended = sorted(ended, key=lambda text: -text.likelihood)[:width]
            if live:
                read_on = torch.tensor([[text.ids[-1] for text in live]], device=device)  # (1, B)
                steps, state = model(read_on, rows_of(state, torch.tensor(parents)))
                logits = steps[-1]
    found = sorted([*ended, *live], key=lambda text: -text.likelihood)  # a stable sort: equals stay in the order they were found in
    return [vocabulary.decode(text.ids) for text in found[:count]]


def _likeliest(totals: Tensor, count: int) -> list[tuple[int, int, float]]:
    """The best of (B, V), best first and equals in order: row, id, total."""
    flat = totals.flatten()
    if count < len(flat):
        least = flat.topk(count).values[-1]
        places = (flat >= least).nonzero().flatten()
    else:
        places = torch.arange(len(flat))
    order = flat[places].argsort(descending=True, stable=True)[:count]
    found = [(int(place), float(flat[place])) for place in places[order] if flat[place] > -math.inf]
    return [(*divmod(place, totals.size(1)), total) for place, total in found]


def best_of(model: nn.Module, vocabulary: Vocabulary, prime_ids: Sequence[int], groups: Sequence[Sequence[str]]) -> list[str]:
    """Of each group of texts that follow the prime, the likeliest."""
    texts = [text for group in groups for text in group]
    scores = iter(likelihoods(model, vocabulary, prime_ids, texts))
    return [max(zip([next(scores) for _ in group], group), key=lambda scored: scored[0])[1] for group in groups]


@torch.inference_mode()
def likelihoods(model: nn.Module, vocabulary: Vocabulary, prime_ids: Sequence[int], texts: Sequence[str]) -> list[float]:
    """The mean log-likelihood, in nats per character, of texts that follow a prime; -inf for one without a character."""
    device = next(model.parameters()).device
    rows = max(1, SCORED // len(vocabulary) // SCORED_STEPS)
    means: list[float] = []
    with evaluating(model):
        first, beginning = read(model, opening(vocabulary, prime_ids))  # (1, V)
        for start in range(0, len(texts), rows):
            part = [torch.tensor(vocabulary.encode(text), dtype=torch.long) for text in texts[start : start + rows]]
            lengths = torch.tensor([len(text) for text in part])
            ids = nn.utils.rnn.pad_sequence(part, padding_value=vocabulary.unknown).to(device)  # (T, B)
            state = rows_of(beginning, torch.zeros(len(part), dtype=torch.long))
            nats = [_chosen(first.expand(1, len(part), -1), ids[:1])]
            for at in range(1, len(ids), SCORED_STEPS):
                targets = ids[at : at + SCORED_STEPS]
                logits, state = model(ids[at - 1 : at - 1 + len(targets)], state)  # (T, B, V)
                nats.append(_chosen(logits, targets))
            inside = torch.arange(len(ids)).unsqueeze(-1) < lengths  # (T, B)
            sums = (torch.cat(nats) * inside).sum(0)
            means += [total / length if length else -math.inf for total, length in zip(sums.tolist(), lengths.tolist())]
    return means


def _chosen(logits: Tensor, ids: Tensor) -> Tensor:
    """The log-likelihood of each id: (T, B, V), (T, B) -> (T, B) in float64 on the CPU."""
    return -F.cross_entropy(logits[: len(ids)].float().flatten(0, 1), ids.flatten(), reduction="none").view_as(ids).cpu().double()
