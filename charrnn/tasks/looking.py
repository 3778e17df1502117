"""Whether a captioner looks at its pictures, and what its captions are worth: what `charrnn eval` measures besides.

A model that has learned what captions are like, and nothing of pictures, predicts a caption as well with another picture. So its captions
are predicted three times: with their own picture, with another, and with none. And the right picture is sought by a caption's likelihood.

Axes: P pictures, N captions, L characters, B captions of a batch, V vocabulary size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from charrnn.data.corpus import Ids
from charrnn.data.padding import buckets, pad
from charrnn.data.vocabulary import Vocabulary
from charrnn.metrics import Bleu
from charrnn.models.captioner import Captioner
from charrnn.models.speller import Encoded
from charrnn.models.teller import Told
from charrnn.tables import aligned
from charrnn.tasks.writing import asked_of, before, nats_of

SEARCHED = 100  # pictures, among which the right one is sought …
SOUGHT = 1000  # … for so many captions at most: each costs as much as predicting a hundred
PREDICTED = 128  # captions side by side

Progress = Callable[[int], None]  # is told of captions predicted


@dataclass(frozen=True)
class Estimate:
    value: float
    error: float  # standard error; NaN of a single picture, whose spread nobody knows

    def said(self, form: str, unit: str = "") -> str:
        """For a person, as `form` has the value; with its standard error, where there is one."""
        error = "" if math.isnan(self.error) else f" ± {self.error:{form.removeprefix('+')}}"
        return f"{self.value:{form}}{unit}{error}"

    def times(self, factor: float) -> Estimate:
        return Estimate(factor * self.value, factor * self.error)


@dataclass(frozen=True)
class Without:
    """The captions predicted without their pictures: what each character cost, and how much more that is than with them."""

    nats_per_char: float
    more: Estimate


@dataclass(frozen=True)
class Recall:
    """How often the right picture was among the likeliest by a caption of it."""

    first: Estimate
    ten: Estimate
    captions: int  # of as many pictures
    searched: int  # pictures, each time


@dataclass(frozen=True)
class Looking:
    """What an evaluation of captions shows beyond how well they are predicted."""

    pictures: int
    captions: int
    left_out: int  # pictures of the split that were not asked for
    nats_per_char: float  # with the right pictures
    shuffled: Without | None  # with another's; None where there are too few others
    none: Without
    recall: Recall | None  # None of a single picture
    bleu: Bleu | None
    notes: tuple[str, ...] = ()

    def as_metrics(self) -> dict[str, float | str]:
        found: dict[str, float | str] = {"control_pictures": self.pictures, "control_left_out": self.left_out}
        found |= {"right_nats_per_char": self.nats_per_char}
        for name, other in (("shuffled", self.shuffled), ("no_picture", self.none)):
            if other is not None:
                found |= {
                    f"{name}_nats_per_char": other.nats_per_char,
                    f"{name}_bits_per_char": other.nats_per_char / math.log(2),
                    f"{name}_minus_right": other.more.value,
                    f"{name}_minus_right_error": other.more.error,
                }
        if self.recall is not None:
            for name, share in (("recall_1", self.recall.first), ("recall_10", self.recall.ten)):
                found |= {name: share.value, f"{name}_error": share.error}
            found |= {"recall_captions": self.recall.captions, "recall_searched": self.recall.searched}
        if self.bleu is not None:
            found |= {f"bleu_{n}": score for n, score in enumerate(self.bleu.scores, start=1)} | {"bleu_signature": self.bleu.signature}
        return found

    def describe(self) -> str:
        rows = [["captions predicted with", "nats/char", "bits/char", "more" if self.pictures == 1 else "more, with its standard error"]]
        rows.append(["their own picture", *_costs(self.nats_per_char), ""])
        for name, other in (("another picture, shuffled", self.shuffled), ("no picture", self.none)):
            if other is not None:
                rows.append([name, *_costs(other.nats_per_char), other.more.said("+.4f")])
        lines = aligned(rows, left=(0, 3))
        if self.left_out:
            whole = f"{self.pictures + self.left_out:,} pictures"
            lines.append(f"that is of {self.pictures:,} of the {whole}, drawn by the seed; the other {self.left_out:,} are left out here")
        if self.recall is not None:
            found = self.recall
            shares = ", ".join(share.said(".1f", " %") for share in (found.first.times(100), found.ten.times(100)))
            what = f"the right picture among {found.searched:,}, by a caption's likelihood: the first, among the first 10"
            lines.append(f"{what}: {shares} (of {found.captions:,} captions)")
        if self.bleu is not None:
            scores = ", ".join(f"{score:.1f}" for score in self.bleu.scores)
            lines.append(f"BLEU-1 to -{len(self.bleu.scores)}: {scores} ({self.bleu.signature})")
        return "\n".join(lines)


def _costs(nats: float) -> tuple[str, str]:
    return f"{nats:.4f}", f"{nats / math.log(2):.4f}"


@torch.inference_mode()
def look(
    model: Captioner,
    source: Told | Encoded,
    captions: Sequence[Sequence[Ids]],
    contents: Ids,
    vocabulary: Vocabulary,
    seed: int,
    progress: Progress | None = None,
) -> tuple[float, Without | None, Without, Recall | None]:
    """What captions cost a character with the right pictures; with others; with none; and how often the right one is found.

    source     of P columns, a picture each
    captions   of each picture its captions, ids with `end` last
    contents   (P,), equal where pictures are: such are never taken for others
    seed       draws which picture is taken for another, which caption of a picture, and among which pictures the right one is sought
    """
    draw = np.random.default_rng(seed)
    pictures, others = len(captions), deranged(contents, draw)
    texts = [caption for of_one in captions for caption in of_one]  # N of them
    of = torch.from_numpy(np.repeat(np.arange(pictures), [len(of_one) for of_one in captions]))  # (N,)
    sources = [source, source.rows(torch.from_numpy(others).to(source.device)) if others is not None else None, model.unseen(source)]
    nats = torch.zeros(len(sources), pictures, dtype=torch.float64)
    counts = torch.zeros(pictures, dtype=torch.float64)
    for some in buckets([len(text) for text in texts], PREDICTED, None):
        columns = of[some]  # (B,)
        for k, seen in enumerate(sources):
            if seen is not None:
                cost, asked = _predicted(model, seen.rows(columns.to(seen.device)), [texts[i] for i in some], vocabulary)
                nats[k].index_add_(0, columns, cost)
                if k == 0:
                    counts.index_add_(0, columns, asked)
        if progress:
            progress(len(some) * (2 + (others is not None)))
    total = float(counts.sum())

    def without(k: int) -> Without:
        return Without(float(nats[k].sum()) / total, ratio(nats[k] - nats[0], counts))

    recall = _recall(model, source, captions, contents, vocabulary, draw, progress)
    return float(nats[0].sum()) / total, None if others is None else without(1), without(2), recall


def _predicted(model: Captioner, source: Told | Encoded, texts: Sequence[Ids], vocabulary: Vocabulary) -> tuple[Tensor, Tensor]:
    """What each text cost with the column of its own, in nats, and how many characters of it were asked: both (B,) float64, on the CPU."""
    targets = pad(texts, texts).targets.to(source.device)  # (L, B)
    asked = asked_of(targets, vocabulary)
    nats = nats_of(model(source, before(targets, vocabulary)).float(), asked)  # (L, B)
    return nats.cpu().double().sum(0), (asked >= 0).sum(0).cpu().double()


def deranged(contents: Ids, draw: np.random.Generator) -> Ids | None:
    """For each of P pictures another, each once, and never one of the same content; None where one content is more than half of them."""
    _, content, counts = np.unique(contents, return_inverse=True, return_counts=True)
    step = int(counts.max())  # so far apart no two are equal where equal ones stand side by side
    if 2 * step > len(contents):
        return None
    order = draw.permutation(len(contents))
    places = draw.permutation(len(counts))[content]  # of each content, where its pictures come
    order = order[np.argsort(places[order], kind="stable")]
    others = np.empty_like(order)
    others[order] = np.roll(order, -step)
    return others


def ratio(sums: Tensor, counts: Tensor) -> Estimate:
    """Of sums over groups, (P,), and over how much each is: the mean of all, with its standard error where groups are independent."""
    groups, total = len(sums), float(counts.sum())
    mean = float(sums.sum()) / total
    if groups < 2:
        return Estimate(mean, math.nan)
    spread = (sums - mean * counts).square().sum() * groups / (groups - 1)
    return Estimate(mean, float(spread.sqrt()) / total)


def _recall(
    model: Captioner,
    source: Told | Encoded,
    captions: Sequence[Sequence[Ids]],
    contents: Ids,
    vocabulary: Vocabulary,
    draw: np.random.Generator,
    progress: Progress | None,
) -> Recall | None:
    firsts = np.unique(contents, return_index=True)[1]  # of each content one picture
    if len(firsts) < 2:
        return None
    searched = min(SEARCHED, len(firsts))
    asked = draw.permutation(len(captions))[:SOUGHT].tolist()
    chosen = {p: captions[p][int(draw.integers(len(captions[p])))] for p in asked}
    hits = torch.zeros(2, len(asked), dtype=torch.float64)
    for query, p in enumerate(asked):
        distractors = draw.choice(firsts[contents[firsts] != contents[p]], searched - 1, replace=False)
        columns = torch.from_numpy(np.append(distractors, p)).to(source.device)  # the right one last
        cost, _ = _predicted(model, source.rows(columns), [chosen[p]] * searched, vocabulary)
        hits[:, query] = torch.tensor([share_among(cost, first) for first in (1, 10)])
        if progress:
            progress(searched)
    once = torch.ones(len(asked), dtype=torch.float64)
    return Recall(ratio(hits[0], once), ratio(hits[1], once), len(asked), searched)


def share_among(costs: Tensor, first: int) -> float:
    """Whether the last of (n,) is among the `first` that cost least: 0 or 1; where others cost the same, the share of their orders in
    which it is, so that a model that sees nothing comes to chance."""
    less, same = int((costs < costs[-1]).sum()), int((costs == costs[-1]).sum())
    return min(max((first - less) / same, 0.0), 1.0)
