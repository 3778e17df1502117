"""A label for each character of texts of any length.

A text that is longer than an example is read in windows that overlap, and each character is answered in the one in which it has a
margin on both sides: what a model sees from there is the same wherever the windows are cut. A CRF then judges the whole text at once.

Axes: N characters, T time, B batch, K labels, D documents.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from charrnn.config import DataConfig
from charrnn.data.batch import IGNORED, Batch
from charrnn.data.corpus import Ids
from charrnn.data.marks import Unmarked, restore, unmark
from charrnn.data.padding import buckets, pad
from charrnn.data.vocabulary import Vocabulary
from charrnn.data.windows import Windows, margin_of, overlapping
from charrnn.layers.crf import CRF
from charrnn.sampling import evaluating

CHARS = 1 << 15  # of a batch of windows
CHUNK = 512  # of a chain that is walked side by side with others of the same text
FORGETS = 64  # labels to both sides: what lies further moves a marginal of a chain by less than can be seen
_PREFIXED = re.compile(r"([BIMES])-(.+)", re.DOTALL)
OUTSIDE = "O"


@dataclass(frozen=True)
class Tagged:
    labels: Ids  # (N,) int64
    emissions: Tensor  # (N, K)
    edges: Ids  # (D + 1,) of the documents


@dataclass(frozen=True)
class Marked:
    unmarked: Unmarked
    closes: list[int]  # places in the text behind which a document closes; behind the last one the text may go on
    tagged: Tagged

    def written(self, marks: tuple[str, ...]) -> list[str]:
        """Each document with its marks put in, all else as it was. `marks`: what is written for each label."""
        return restore(self.unmarked, self.tagged.labels, marks, self.closes)


def tag(model: nn.Module, ids: Ids, edges: Ids, data: DataConfig, precision: torch.dtype = torch.float32) -> Tagged:
    """The labels of documents that begin and end at `edges` (D + 1,), read in windows of at most `data.example_length` characters."""
    device = next(model.parameters()).device
    with torch.autocast(device.type, precision, enabled=precision != torch.float32):
        found = emissions(model, ids, edges, data.example_length)
    return Tagged(decide(model, found, edges, data.labels != "column"), found, edges)


def mark(model: nn.Module, vocabulary: Vocabulary, data: DataConfig, text: str, precision: torch.dtype = torch.float32) -> Marked:
    """A text without its marks, and what a model that learned them would put there."""
    closes = closes_of(text, data.documents or data.format) if vocabulary.end is not None else []
    unmarked = unmark(text, closes, vocabulary, data.labels, data.marks)
    return Marked(unmarked, closes, tag(model, unmarked.read.ids, unmarked.read.edges, data, precision))


def closes_of(text: str, documents: str) -> list[int]:
    """The places in a text behind which a document closes: lines, what stands between blank lines, or all of it."""
    ends = {"lines": r"\n", "blank_lines": r"\n[^\S\n]*\n\s*"}.get(documents)
    return [match.end() for match in re.finditer(ends, text)] if ends else []


@torch.inference_mode()
def emissions(model: nn.Module, ids: Ids, edges: Ids, length: int, margin: int | None = None) -> Tensor:
    """The logits of each character, (N, K) float32 on the CPU. `margin` on both sides: a quarter of the length where none is given."""
    windows = overlapping(edges, length, margin_of(length) if margin is None else margin)
    device = next(model.parameters()).device
    found: Tensor | None = None
    with evaluating(model):
        for some in buckets(windows.lengths, max(1, CHARS // length), None):
            batch, places = read(ids, np.arange(len(ids)), windows, some)
            batch = batch.to(device)
            logits, _ = model(batch.inputs, None, lengths=batch.lengths)  # (T, B, K)
            found = torch.zeros(len(ids), logits.size(-1)) if found is None else found
            answered = places != IGNORED  # (T, B)
            found[places[answered]] = logits.float().cpu()[answered]
    return torch.zeros(0, 0) if found is None else found


def read(ids: Ids, targets: Ids, windows: Windows, some: Sequence[int]) -> tuple[Batch, Tensor]:
    """Some windows as a batch; and its targets, which are IGNORED where a window reads what another one answers, (T, B)."""
    asked = []
    for i in some:
        here = targets[windows.starts[i] : windows.stops[i]].astype(np.int64)
        here[: windows.first[i] - windows.starts[i]] = IGNORED
        here[windows.last[i] - windows.starts[i] :] = IGNORED
        asked.append(here)
    batch = pad([ids[windows.starts[i] : windows.stops[i]] for i in some], asked)
    return batch, batch.targets


def crf_of(model: nn.Module) -> CRF | None:
    crf = getattr(model, "crf", None)
    return crf if isinstance(crf, CRF) else None


def decision_of(model: nn.Module) -> Tensor | None:
    return decision if isinstance(decision := getattr(model, "decision", None), Tensor) else None


def choose(emissions: Tensor, decision: Tensor | None, marks: bool) -> Tensor:
    """The label of each row, (N, K) -> (N,), where each is chosen alone. `decision` (K,) is added, or nothing where it is None.

    Marks, labels 1 and further, are weighed together against label 0, that there is none: where it is certain that one belongs and not
    which, the likeliest of them is put there, though none of them is likelier than none.
    """
    chosen = emissions if decision is None else emissions + decision
    if not marks:
        return chosen.argmax(-1)
    against = chosen[:, 0]  # what is added to label 0 speaks against any mark
    return torch.where(emissions[:, 1:].logsumexp(-1) > against, chosen[:, 1:].argmax(-1) + 1, 0)


@torch.inference_mode()
def decide(model: nn.Module, emissions: Tensor, edges: Ids, marks: bool) -> Ids:
    """The labels of each character, (N,), chosen one by one, or with a CRF as the likeliest sequence of its document."""
    crf = crf_of(model)
    if crf is None:
        decision = decision_of(model)
        chosen = choose(emissions, None if decision is None else decision.cpu(), marks) if emissions.numel() else emissions.new_zeros(0)
        return np.asarray(chosen.numpy(), dtype=np.int64)
    labels = np.zeros(len(emissions), dtype=np.int64)
    lengths = np.diff(edges)
    for i in np.flatnonzero(lengths > CHUNK):
        labels[edges[i] : edges[i + 1]] = viterbi(crf, emissions[edges[i] : edges[i + 1]]).numpy()
    short = np.flatnonzero((lengths > 0) & (lengths <= CHUNK))
    for some in buckets(lengths[short], CHARS // CHUNK, None):
        documents = [emissions[edges[i] : edges[i + 1]] for i in short[some]]
        found = crf.decode(*_padded(documents, crf))  # (T, B)
        for column, i in enumerate(short[some]):
            labels[edges[i] : edges[i + 1]] = found[: lengths[i], column].cpu().numpy()
    return labels


def viterbi(crf: CRF, emissions: Tensor, chunk: int = CHUNK) -> Tensor:
    """The likeliest labels of one long sequence, (N, K) -> (N,): what crf.decode finds, but of ties, with its chunks side by side.

    First the best way through each chunk from every label to every label, then the labels where chunks meet, then what lies between.
    """
    count = len(emissions)
    if count <= chunk + 1:
        return crf.decode(emissions.unsqueeze(1).to(crf.start.device), None).squeeze(1).cpu()
    transitions, start, end = (p.detach().float().cpu() for p in (crf.transitions, crf.start, crf.end))
    meets = [*range(0, count - 1, chunk), count - 1]  # places where a chunk begins, the last one that where the text ends
    sizes = torch.tensor(meets[1:]) - torch.tensor(meets[:-1])
    labels = emissions.size(1)
    ways = torch.full((len(sizes), labels, labels), -torch.inf)  # (C, K from, K to), C chunks
    ways[:, range(labels), range(labels)] = 0.0
    for step in range(1, chunk + 1):
        runs = (step <= sizes).view(-1, 1, 1)
        here = emissions[(torch.tensor(meets[:-1]) + step).clamp(max=count - 1)]  # (C, K)
        further = (ways.unsqueeze(-1) + transitions).amax(2) + here.unsqueeze(1)  # (C, K, K)
        ways = torch.where(runs, further, ways)
    best, came_from = start + emissions[0], []  # (K,)
    for way in ways:
        best, before = (best.unsqueeze(1) + way).max(0)
        came_from.append(before)
    met = [int((best + end).argmax())]
    for before in reversed(came_from):
        met.append(int(before[met[-1]]))
    met.reverse()
    # A label that is settled is the only one possible there, so each chunk can be decoded alone.
    pieces = []
    for (first, last), (one, other) in zip(itertools.pairwise(meets), itertools.pairwise(met)):
        piece = emissions[first : last + 1].clone()
        for place, label in ((0, one), (-1, other)):
            settled = piece[place, label].clone()
            piece[place] = -torch.inf
            piece[place, label] = settled
        pieces.append(piece)
    found = crf.decode(*_padded(pieces, crf)).cpu()  # (T, C)
    parts = [found[: len(piece) - 1, column] for column, piece in enumerate(pieces)]
    return torch.cat([*parts, torch.tensor(met[-1:])])


def probabilities(model: nn.Module, tagged: Tagged) -> Tensor:
    """What each label has for it at each character, (N, K), given the whole text."""
    crf, emissions, labels, edges = crf_of(model), tagged.emissions, tagged.labels, tagged.edges
    if crf is None:
        return emissions.softmax(-1) if emissions.numel() else emissions
    found = torch.zeros_like(emissions)
    windows = overlapping(edges, 4 * FORGETS, FORGETS)
    for some in buckets(windows.lengths, CHARS // CHUNK, None):
        parts = [slice(int(windows.starts[i]), int(windows.stops[i])) for i in some]
        # What all labels of a step share changes no marginal, and a sum of smaller numbers is more exact.
        values, lengths = _padded([emissions[part].log_softmax(-1) for part in parts], crf)  # (T, B, K)
        batch, _ = read(labels, labels, Windows(windows.starts, windows.stops, windows.starts, windows.stops), some)
        # The derivative of log Σ exp(s) by an emission is its label's marginal, and that of the labels' own score is 1 at each.
        with torch.inference_mode(False), torch.enable_grad():
            values = values.clone().requires_grad_()
            nats = crf.nats(values, batch.targets.to(values.device), lengths).sum()
            (slope,) = torch.autograd.grad(nats, values)
        for column, (i, part) in enumerate(zip(some, parts)):
            marginals = slope[: part.stop - part.start, column].cpu()  # (T, K)
            marginals[torch.arange(len(marginals)), torch.from_numpy(labels[part])] += 1
            first, last = int(windows.first[i]), int(windows.last[i])
            found[first:last] = marginals[first - part.start : last - part.start]
    found = found.clamp(min=0)
    return found / found.sum(-1, keepdim=True)


def _padded(sequences: Sequence[Tensor], crf: CRF) -> tuple[Tensor, Tensor]:
    """Emissions side by side on the CRF's device, (T, B, K) and their lengths (B,)."""
    lengths = torch.tensor([len(sequence) for sequence in sequences], device=crf.start.device)
    return nn.utils.rnn.pad_sequence(list(sequences)).to(crf.start.device), lengths


@dataclass(frozen=True)
class Scheme:
    """What labels of single characters say of spans. IOB2, IOBES and BMES; else each character is a span of its own label.

    As the CoNLL scorer reads it, an I- that continues nothing begins a span.
    """

    kinds: tuple[str, ...]  # of spans, sorted
    parts: tuple[tuple[str, int], ...]  # of each label: B, I, E, S or O, and the kind's index

    @classmethod
    def of(cls, labels: Sequence[str]) -> Scheme:
        inside = [label for label in labels if label != OUTSIDE]
        matches = [_PREFIXED.fullmatch(label) for label in inside]
        if inside and all(matches):
            said = {label: (match[1], match[2]) for label, match in zip(inside, matches) if match}
        elif "B" in inside and set(inside) <= set("BIMES"):
            said = {label: (label, "span") for label in inside}
        else:
            said = {label: ("S", label) for label in inside}
        kinds = tuple(sorted({kind for _, kind in said.values()}))
        parts = (("O", 0) if label == OUTSIDE else (said[label][0].replace("M", "I"), kinds.index(said[label][1])) for label in labels)
        return cls(kinds, tuple(parts))

    def spans(self, labels: Sequence[int], edges: Sequence[int]) -> Iterator[tuple[int, int, int]]:
        """(start, stop, kind) of each span of a text whose documents begin and end at `edges`; what is below 0 belongs to none."""
        cuts = set(edges)
        begun, kind = -1, -1
        for place, label in enumerate(labels):
            part, here = self.parts[label] if label >= 0 else ("O", 0)
            if begun >= 0 and (part in "OBS" or here != kind or place in cuts):
                yield begun, place, kind
                begun = -1
            if part != "O" and begun < 0:
                begun, kind = place, here
            if part in "ES":
                yield begun, place + 1, kind
                begun = -1
        if begun >= 0:
            yield begun, len(labels), kind
