"""Which units follow something that has a name: the share of its variance that each explains on text that nothing was chosen on.

A feature f of the text (charrnn/nameable.py) is fitted by one unit u as f ≈ a + b u on the first half of a text, by least squares. What is
told is R² = 1 - Σ(f - a - b u)² / Σ(f - mean f)² on the second half. The control is the same with f shifted around within each half by a
random distance: it keeps all that it is but its place. Of the controls the best unit of all is told, so that chance has every chance.

A probe is a ridge regression on all units at once: what the state knows of f, whether one unit says it or many together.

Axes: T time, B columns of the text side by side, U units (of all layers and states), F features in their forms, each with its controls.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from charrnn.data.vocabulary import Vocabulary
from charrnn.errors import UserError
from charrnn.inside import look_inside
from charrnn.models.char_rnn import CharRNN
from charrnn.nameable import FORMS, YES_OR_NO, nameable
from charrnn.ops.cells import CELLS, State

COLUMNS = 16  # of each half; a column is read from a state of zeros
FORGOTTEN = 100  # characters of a column that are read and not counted, so that the state is one of a text that goes on
SHORTEST = 4000  # characters of a text: columns of a hundred or so, and something left to count
STEPS = 64  # read at once
SHIFTS = 5
RIDGE = 1e-3  # times the number of characters, of units scaled to unit variance


@dataclass(frozen=True)
class Unit:
    layer: int
    state: str  # h or c
    number: int

    def __str__(self) -> str:
        return f"layer {self.layer} {self.state}{self.number}"


@dataclass(frozen=True)
class Follows:
    """A feature, and the units that explain most of it, the best on the first half first."""

    feature: str
    form: str  # of nameable.FORMS, chosen with the first unit on the first half
    units: list[Unit]
    rises: list[bool]  # a unit goes up with the feature, or down
    fitted: list[float]  # R² on the first half
    explained: list[float]  # R² on the second
    control: float  # the best R² on the second half of any unit, with any of the shifted features
    probe: float  # R² on the second half of all units together
    probe_control: float


@dataclass(frozen=True)
class Found:
    follows: list[Follows]  # the best explained first
    absent: list[str]  # features that this text does not have, or that do not vary in both halves
    counted: int  # characters of each half
    units: int


class _Sums:
    """Of one half: what least squares needs, of every unit with every feature, and of all units together."""

    def __init__(self, units: int, features: int) -> None:
        self.count = 0
        self.u, self.f, self.ff = (torch.zeros(n, dtype=torch.float64) for n in (units, features, features))
        self.uf, self.uu = torch.zeros(units, features, dtype=torch.float64), torch.zeros(units, units, dtype=torch.float64)

    def add(self, units: Tensor, features: Tensor) -> None:
        """(n, U) and (n, F) float32."""
        self.count += len(units)
        self.u += units.sum(0, dtype=torch.float64)
        self.f += features.sum(0, dtype=torch.float64)
        self.ff += features.double().square().sum(0)
        self.uf += units.T @ features
        self.uu += units.T @ units

    def centred(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Means of u and f, and the sums of products about them: (U,), (F,), (U, U), (U, F), (F,)."""
        u, f = self.u / self.count, self.f / self.count
        return (
            u,
            f,
            self.uu - self.count * torch.outer(u, u),
            self.uf - self.count * torch.outer(u, f),
            self.ff - self.count * f.square(),
        )


def find(
    model: CharRNN,
    vocabulary: Vocabulary,
    characters: Sequence[str],
    *,
    top: int = 3,
    seed: int = 1,
    progress: Callable[[int], None] | None = None,
) -> Found:
    """Search all units of a model for those that follow something nameable in a text, "" in it being the end of a document.

    The text should be one that the model has not learned from. `seed` draws the shifts of the controls; `progress` hears of how many
    characters have been read. Raises UserError for a text of under SHORTEST characters.
    """
    if len(characters) < SHORTEST:
        fact = f"the text has {len(characters):,} characters; expected at least {SHORTEST:,}, half to fit on and half to tell of"
        raise UserError(f"{fact}; give a longer one with --file, or raise --length")
    length = len(characters) // 2 // COLUMNS  # of a column
    half, forgotten = length * COLUMNS, min(FORGOTTEN, length // 4)
    halves = [characters[:half], characters[half : 2 * half]]
    ids = [torch.tensor([_id(vocabulary, c) for c in text]).view(COLUMNS, length).T for text in halves]  # (T, COLUMNS)
    names, features = _features(halves, forgotten, np.random.default_rng(seed))  # [(name, form)], of each half (N, F, 1 + SHIFTS)
    columns = [torch.from_numpy(f).float().view(COLUMNS, length, -1).transpose(0, 1) for f in features]  # (T, COLUMNS, F)
    units = [
        Unit(layer, state, number)
        for layer in range(model.recurrent.num_layers)
        for state in CELLS[model.recurrent.cell].state_names
        for number in range(model.recurrent.hidden_size)
    ]
    sums = [_Sums(len(units), columns[0].size(-1)) for _ in halves]
    state: tuple[State, ...] | None = None
    device = next(model.parameters()).device
    both = torch.cat(ids, 1)  # (T, B)
    for first in range(0, length, STEPS):
        inside = look_inside(model, both[first : first + STEPS].to(device), state)
        state = inside.final
        activations = torch.cat([s for layer in inside.layers for s in layer.states.values()], -1).float().cpu()  # (STEPS, B, U)
        counts = slice(max(0, forgotten - first), None)
        for i, sum_ in enumerate(sums):
            of_half = activations[counts, i * COLUMNS : (i + 1) * COLUMNS].flatten(0, 1)
            sum_.add(of_half, columns[i][first : first + STEPS][counts].flatten(0, 1))
        if progress:
            progress(min(first + STEPS, length) * 2 * COLUMNS)
    return _found(units, names, sums, top, set(nameable(["\n"])))


def _id(vocabulary: Vocabulary, character: str) -> int:
    return vocabulary.id(character) if character else vocabulary.end or 0


def _features(
    halves: Sequence[Sequence[str]], forgotten: int, chance: np.random.Generator
) -> tuple[list[tuple[str, str]], list[npt.NDArray[np.float64]]]:
    """Names with forms, and of each half (N, F · (1 + SHIFTS)): the features of the first kind, then all once more for each shift.

    Of features that vary in what is counted of both halves.
    """
    told = [nameable(text) for text in halves]
    names: list[tuple[str, str]] = []
    for name in told[0]:
        for form in ["n"] if name in YES_OR_NO else FORMS:
            counted = [FORMS[form](numbers[name]).reshape(COLUMNS, -1)[:, forgotten:] for numbers in told]
            if all(one.std() > 0 for one in counted):
                names.append((name, form))
    if not names:
        raise UserError("the text has nothing nameable that varies, not even lines; give another with --file")
    made: list[npt.NDArray[np.float64]] = []
    for numbers in told:
        straight = np.stack([FORMS[form](numbers[name]) for name, form in names], -1)  # (N, F)
        apart = len(straight) // 10  # from its place at least
        shifts = chance.integers(apart, len(straight) - apart, SHIFTS)
        made.append(np.concatenate([straight, *(np.roll(straight, shift, 0) for shift in shifts)], -1))
    return names, made


def _found(units: list[Unit], names: list[tuple[str, str]], sums: list[_Sums], top: int, known: set[str]) -> Found:
    fitted, explained, slopes = _alone(*sums)  # (U, F') each
    probed = _together(*sums)  # (F',)
    forms, controls = len(names), range(1, SHIFTS + 1)
    follows: list[Follows] = []
    for name in dict.fromkeys(name for name, _ in names):
        own = [i for i, (called, _) in enumerate(names) if called == name]
        chosen = own[int(fitted[:, own].amax(0).argmax())]
        best = fitted[:, chosen].topk(min(top, len(units))).indices.tolist()
        shifted = [k * forms + chosen for k in controls]
        follows.append(
            Follows(
                name,
                names[chosen][1],
                [units[u] for u in best],
                [bool(slopes[u, chosen] > 0) for u in best],
                [float(fitted[u, chosen]) for u in best],
                [float(explained[u, chosen]) for u in best],
                float(explained[:, shifted].nan_to_num(0).max()),
                float(probed[chosen]),
                float(probed[shifted].nan_to_num(0).max()),
            )
        )
    follows.sort(key=lambda one: -one.explained[0])
    return Found(follows, sorted(known - {name for name, _ in names}), sums[0].count, len(units))


def _alone(first: _Sums, second: _Sums) -> tuple[Tensor, Tensor, Tensor]:
    """R² of f ≈ a + b u on the half that it is fitted to and on the other, and b: (U, F) each. A unit that never moves explains nothing."""
    u, f, uu, uf, ff = first.centred()
    variance = uu.diagonal().unsqueeze(-1)  # (U, 1)
    moves = variance > 1e-9 * first.count
    b = torch.where(moves, uf / variance, 0)
    fitted = b * uf / ff
    u2, f2, uu2, uf2, ff2 = second.centred()
    # The error has a mean of its own on the other half: f2 - a - b u2, with a = f - b u.
    offset = (f2 - f) - b * (u2 - u).unsqueeze(-1)
    error = ff2 - 2 * b * uf2 + b.square() * uu2.diagonal().unsqueeze(-1) + second.count * offset.square()
    return fitted, 1 - error / ff2, b


def _together(first: _Sums, second: _Sums) -> Tensor:
    """R² on the other half of ridge regressions on all units, (F,)."""
    u, f, uu, uf, _ = first.centred()
    scale = (uu.diagonal() / first.count).sqrt().clamp_(min=math.sqrt(1e-9))  # (U,)
    gram = uu / torch.outer(scale, scale) + RIDGE * first.count * torch.eye(len(u), dtype=torch.float64)
    b = torch.linalg.solve(gram, uf / scale.unsqueeze(-1)) / scale.unsqueeze(-1)  # (U, F)
    u2, f2, uu2, uf2, ff2 = second.centred()
    offset = (f2 - f) - (u2 - u) @ b
    error: Tensor = ff2 - 2 * (b * uf2).sum(0) + (b * (uu2 @ b)).sum(0) + second.count * offset.square()
    return 1 - error / ff2
