"""What stands in the blanks of a text, by a model that reads both sides of them.

One blank is answered by one read, exactly. Several are filled jointly: the blank that the model is surest of first, then the
others are asked again with that one filled, and so on, for the `width` most probable partial fillings side by side. Whole
fillings are then scored anew by their pseudo-log-likelihood, the sum over the blanks of the log-probability of what was filled
in with that one hidden and the others in their places, which does not depend on the order in which they were filled
(Salazar et al. 2020). Their probabilities are these scores, normalised over the fillings that were found.

A text of `longest` characters at most is read whole. In a longer one blanks that lie close together share a window of that
many characters around them, and blanks far apart are answered independently of each other. A window with k blanks is read at
most 1 + (k - 1) · width + k · width times, in batches: k is at most half of `longest`, or what a shorter text holds.

Axes: R rows (a window as it is read once), T time, N blanks that are asked, C characters.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor, nn

from charrnn.data.vocabulary import Vocabulary
from charrnn.errors import UserError, printable, short
from charrnn.sampling import evaluating

BLANKS = "_＿□"  # what a person writes for a character that is to be found
WIDTH = 32  # partial fillings side by side, at least; twice as many as are wanted
CHOICES = 5  # characters told of each blank
READ = 1 << 14  # characters read at once
LOGITS = 1 << 22  # numbers in the logits of one read

Assignment = tuple[int, ...]  # of the blanks of a window: the character's index, OPEN where there is none yet
OPEN = -1


@dataclass(frozen=True)
class Filling:
    text: str
    characters: str  # one for each blank
    probability: float


@dataclass(frozen=True)
class Blank:
    place: int  # in the text
    choices: tuple[tuple[str, float], ...]  # the most probable characters while all other blanks are empty, the best first


@dataclass(frozen=True)
class Filled:
    fillings: tuple[Filling, ...]  # distinct, the most probable first
    blanks: tuple[Blank, ...]


def unknown_to(vocabulary: Vocabulary, text: str, blanks: str = BLANKS) -> str:
    """The characters of a text that a model does not know, each once, in their order."""
    return "".join(dict.fromkeys(c for c in text if c not in vocabulary and c not in blanks))


def fill(model: nn.Module, vocabulary: Vocabulary, text: str, *, longest: int, top: int = 5, blanks: str = BLANKS) -> Filled:
    """The `top` most probable fillings of a text in which each character of `blanks` stands for one that is to be found.

    Fewer where there are not so many. What the model does not know is read as unknown. Raises UserError where nothing is to be filled.
    """
    if vocabulary.blank is None:
        raise UserError("the model has no symbol for a blank; expected a model of task fill")
    places = [place for place, character in enumerate(text) if character in blanks]
    if not places:
        listed = ", ".join(blanks)
        raise UserError(f"{short(printable(text))} has no blank; expected one of {listed} for each character that is to be found")
    ids = torch.tensor([vocabulary.blank if c in blanks else vocabulary.id(c) for c in text])  # (T,)
    reader = _Reader(model, vocabulary)
    width = max(WIDTH, 2 * top)
    found: list[tuple[Assignment, float]] = [((), 0.0)]  # with their log-probabilities
    told: list[Blank] = []
    with torch.inference_mode(), evaluating(model):
        for start, stop, here in _windows(places, len(text), longest):
            fillings, choices = _fill_window(reader, ids[start:stop], [place - start for place in here], width)
            # Windows are independent of each other, so the best fillings of the whole are among products of their best.
            joined = [(left + right, p + q) for (left, p), (right, q) in product(found, fillings)]
            found = sorted(joined, key=lambda one: -one[1])[:width]
            told += [Blank(place, tuple((vocabulary.characters[i], p) for i, p in best)) for place, best in zip(here, choices)]
    return Filled(tuple(_filling(text, places, vocabulary, *one) for one in found[:top]), tuple(told))


def _filling(text: str, places: Sequence[int], vocabulary: Vocabulary, assignment: Assignment, log_probability: float) -> Filling:
    characters = [vocabulary.characters[index] for index in assignment]
    whole = list(text)
    for place, character in zip(places, characters):
        whole[place] = character
    return Filling("".join(whole), "".join(characters), math.exp(log_probability))


def _windows(places: Sequence[int], length: int, longest: int) -> Iterator[tuple[int, int, list[int]]]:
    """Where to read from and to, and the blanks to be answered there: each in one window, with text on both sides where there is any."""
    if length <= longest:
        yield 0, length, list(places)
        return
    together: list[int] = []
    for place in places:
        if together and place - together[0] >= max(1, longest // 2):
            yield _around(together, length, longest)
            together = []
        together.append(place)
    yield _around(together, length, longest)


def _around(places: list[int], length: int, longest: int) -> tuple[int, int, list[int]]:
    middle = (places[0] + places[-1] + 1) // 2
    start = min(max(0, middle - longest // 2), length - longest)
    return start, start + longest, places


def _fill_window(
    reader: _Reader, ids: Tensor, places: list[int], width: int
) -> tuple[list[tuple[Assignment, float]], list[list[tuple[int, float]]]]:
    """The most probable fillings of a window with their log-probabilities, and of each blank the most probable characters alone."""
    count = len(places)
    scores, best = reader.best(ids, places, [(OPEN,) * count], [range(count)], width)  # (N, K)
    choices = [list(zip(row, p)) for row, p in zip(best[:, :CHOICES].tolist(), scores[:, :CHOICES].exp().tolist())]
    if count == 1:
        return list(zip([(index,) for index in best[0].tolist()], scores[0].tolist())), choices
    beam: dict[Assignment, float] = {(OPEN,) * count: 0.0}
    for step in range(count):
        rows = list(beam)
        open_blanks = [[blank for blank, index in enumerate(row) if index == OPEN] for row in rows]
        if step:
            scores, best = reader.best(ids, places, rows, open_blanks, width)
        grown: dict[Assignment, float] = {}
        for r, (row, blanks) in enumerate(zip(rows, open_blanks)):
            asked = slice(r * len(blanks), (r + 1) * len(blanks))  # as many in each row
            surest = int(scores[asked, 0].argmax())
            blank = blanks[surest]
            for index, score in zip(best[asked][surest].tolist(), scores[asked][surest].tolist()):
                whole = (*row[:blank], index, *row[blank + 1 :])
                grown[whole] = max(beam[row] + score, grown.get(whole, -math.inf))
        beam = dict(sorted(grown.items(), key=lambda one: -one[1])[:width])
    likelihoods = reader.pseudo_likelihoods(ids, places, list(beam))  # (R,)
    shares = likelihoods.log_softmax(0).tolist()
    return sorted(zip(beam, shares), key=lambda one: -one[1]), choices


class _Reader:
    """Asks a model for blanks, in as few passes as memory allows. A character's index is its place in vocabulary.characters."""

    def __init__(self, model: nn.Module, vocabulary: Vocabulary) -> None:
        self._model, self._first, self._characters = model, len(vocabulary.symbols), len(vocabulary.characters)
        self._blank = vocabulary.blank
        self._device = next(model.parameters()).device

    def best(
        self, ids: Tensor, places: list[int], rows: Sequence[Assignment], asked: Sequence[Sequence[int]], width: int
    ) -> tuple[Tensor, Tensor]:
        """Of each blank that is asked of a row, row after row: the `width` highest log-probabilities and their characters, (N, K) both."""
        found = [scores.topk(min(width, scores.size(-1))) for scores in self._ask(ids, places, rows, asked)]
        return torch.cat([f.values for f in found]), torch.cat([f.indices for f in found])

    def pseudo_likelihoods(self, ids: Tensor, places: list[int], fillings: Sequence[Assignment]) -> Tensor:
        """Whole fillings -> (R,): the sum over the blanks of the log-probability of what is filled in, with that one hidden."""
        blanks = range(len(places))
        rows = [(*filling[:blank], OPEN, *filling[blank + 1 :]) for filling in fillings for blank in blanks]
        scores = self._ask(ids, places, rows, [[blank] for _ in fillings for blank in blanks])
        truth = torch.tensor(fillings).flatten()  # (R·blanks,)
        at = 0
        found = []
        for part in scores:
            found.append(part.gather(1, truth[at : at + len(part), None]).squeeze(1))
            at += len(part)
        return torch.cat(found).view(len(fillings), len(places)).sum(1)

    def _ask(self, ids: Tensor, places: list[int], rows: Sequence[Assignment], asked: Sequence[Sequence[int]]) -> Iterator[Tensor]:
        """Log-probabilities of all characters, float64 on the CPU, a part of the blanks after the other: (n, C) each."""
        where = torch.tensor(places)
        most = max(1, min(READ // len(ids), LOGITS // (self._characters * max(map(len, asked)))))
        for begin in range(0, len(rows), most):
            some = torch.tensor(rows[begin : begin + most])  # (R, blanks)
            read = ids.repeat(len(some), 1)  # (R, T)
            read[:, where] = torch.where(some == OPEN, torch.tensor(self._blank), some + self._first)
            mask = torch.zeros_like(read, dtype=torch.bool)
            for row, blanks in enumerate(asked[begin : begin + most]):
                mask[row, where[list(blanks)]] = True
            logits, _ = self._model(read.t().contiguous().to(self._device), None, at=mask.t().contiguous().to(self._device))  # (n, V)
            # The model answers step by step, all rows of a step together; what is wanted is row by row.
            steps = torch.zeros(mask.t().shape, dtype=torch.long)  # (T, R)
            steps[mask.t()] = torch.arange(len(logits))
            scores = logits.to("cpu", torch.float64)[steps.t()[mask], self._first :].log_softmax(-1)  # (n, C)
            if not bool(scores.isfinite().all()):
                raise UserError("the model answers with numbers that are not finite; its training diverged, so take an earlier checkpoint")
            yield scores
