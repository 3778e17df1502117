"""A language model while it reads: its states and gates, and each character with what it cost and what it made likely.

The mathematics is that of ops/explicit.py, which keeps every step's gates for its way back.

Axes: T time, B batch, H hidden_size, V vocabulary size.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from charrnn.data.vocabulary import Vocabulary
from charrnn.errors import UserError
from charrnn.evaluation import Window, surprisal
from charrnn.models.char_rnn import CharRNN
from charrnn.ops.cells import CELLS, State
from charrnn.sampling import evaluating

By = Literal["surprisal", "cell", "gate"]


class LayerInside(NamedTuple):
    states: dict[str, Tensor]  # h, and c of an lstm, by name: after each step, (T, B, H)
    gates: dict[str, Tensor]  # by the names of ops.cells, (T, B, H)


class Inside(NamedTuple):
    logits: Tensor  # (T, B, V)
    layers: list[LayerInside]  # the one that reads the characters first
    final: tuple[State, ...]  # a state a layer, to go on with


@torch.no_grad()
def look_inside(model: CharRNN, inputs: Tensor, state: tuple[State, ...] | None = None) -> Inside:
    """What `model(inputs, state)` computes, (T, B) int64, with what its layers go through. In eval mode; of one direction."""
    with evaluating(model):
        outputs, seen = model.recurrent.walk(model.read(inputs), state)
        logits = model.head(outputs)
    cell = CELLS[model.recurrent.cell]
    layers: list[LayerInside] = []
    for _, walked in seen:
        after = [*walked.before[1:], walked.final]
        states = {name: torch.stack([s[i] for s in after]) for i, name in enumerate(cell.state_names)}
        gates = {name: torch.stack([k[i] for k in walked.kept]) for i, name in enumerate(cell.gate_names)}
        layers.append(LayerInside(states, gates))
    return Inside(logits, layers, tuple(walked.final for _, walked in seen))


@dataclass(frozen=True)
class View:
    """What characters are coloured by: their surprisal; or a number of a layer after each was read."""

    by: By = "surprisal"
    layer: int = 0
    name: str = ""  # of a state or a gate
    unit: int | None = None  # of a gate, None: the mean of all units

    def __str__(self) -> str:
        if self.by == "surprisal":
            return "surprisal in bits"
        what = self.name if self.by == "cell" else f"{self.name} gate"
        return f"layer {self.layer}, {what}, " + ("mean of all units" if self.unit is None else f"unit {self.unit}")

    def of(self, inside: Inside) -> Tensor:
        """The numbers of a column of its own, (T,); for a cell or a gate."""
        layer = inside.layers[self.layer]
        numbers = (layer.states if self.by == "cell" else layer.gates)[self.name][:, 0]  # (T, H)
        return numbers.mean(-1) if self.unit is None else numbers[:, self.unit]


def view_of(model: CharRNN, by: By | None, layer: int | None, unit: str | None, gate: str | None) -> View:
    """What a person asks for. `unit` is a number, with the state's letter before it (`c17`, `h17`) or without: c of an lstm, else h.

    Left out, `by` is gate where a gate is named, cell where a unit is, and else surprisal; `layer` is the last. Raises UserError for
    what the model does not have.
    """
    stack = model.recurrent
    cell = CELLS[stack.cell]
    by = by or ("gate" if gate is not None else "cell" if unit is not None else "surprisal")
    if by == "surprisal":
        if given := next((flag for flag, value in (("--layer", layer), ("--unit", unit), ("--gate", gate)) if value is not None), None):
            raise UserError(f"{given}: has no meaning for --by surprisal; expected --by cell or gate, or leave it out")
        return View()
    layer = stack.num_layers - 1 if layer is None else layer
    if not 0 <= layer < stack.num_layers:
        expected = f"expected 0, which reads the characters, to {stack.num_layers - 1}"
        raise UserError(f"--layer {layer}: the model has {stack.num_layers}; {expected}")
    state, number = _unit(unit, stack.hidden_size)
    if by == "cell":
        if gate is not None:
            raise UserError(f"--gate {gate}: has no meaning for --by cell; expected --by gate, or leave it out")
        if number is None:
            raise UserError(f"--by cell: of which? expected --unit 0 to {stack.hidden_size - 1}; --find tells which are worth it")
        name = state or cell.state_names[-1]
        if name not in cell.state_names:
            raise UserError(f"--unit {unit}: a cell {stack.cell} has no {name}; expected h{number}")
        return View("cell", layer, name, number)
    if not cell.gate_names:
        raise UserError(f"--by gate: a cell {stack.cell} has no gates; expected lstm or gru, or choose --by cell")
    if gate not in cell.gate_names:
        what = "of which?" if gate is None else f"a cell {stack.cell} has no gate {gate};"
        raise UserError(f"--gate{'' if gate is None else f' {gate}'}: {what} expected {', '.join(cell.gate_names)}")
    if state:
        raise UserError(f"--unit {unit}: a gate has no {state}; expected {number}")
    return View("gate", layer, gate, number)


def _unit(unit: str | None, size: int) -> tuple[str, int | None]:
    if unit is None:
        return "", None
    found = re.fullmatch(r"([hc]?)(\d{1,9})", unit)
    if not found or int(found[2]) >= size:
        raise UserError(f"--unit {unit}: expected 0 to {size - 1}, with h or c before it or without, such as c17")
    return found[1], int(found[2])


class Looked(NamedTuple):
    """A character as it is shown."""

    character: str  # "" for the end of a document
    bits: float | None  # its surprisal; None where nothing is scored, as in evaluation.per_char
    value: float | None  # what it is coloured by
    likely: list[tuple[str, float]]  # what the model takes to be next, the likeliest first, "" for an end, with probabilities


def look(model: CharRNN, vocabulary: Vocabulary, stream: Iterable[Window], view: View, top: int) -> Iterator[Looked]:
    """Each character of a stream of evaluation.py, with its surprisal as there and `top` likely next ones."""
    device = next(model.parameters()).device
    shown = [None] * len(vocabulary.symbols) + list(vocabulary.characters)
    banned = torch.tensor(vocabulary.unwritten, device=device)
    state: tuple[State, ...] | None = None
    before: Tensor | None = None  # (1, V): what the character before made likely
    if vocabulary.end is not None:
        opened = look_inside(model, torch.tensor([[vocabulary.end]], device=device))
        before, state = opened.logits[:, 0], opened.final
    for characters, ids in stream:
        inside = look_inside(model, torch.tensor(ids, device=device).unsqueeze(-1), state)
        state, logits = inside.final, inside.logits[:, 0]  # (T, V)
        nats = torch.full((len(ids),), math.nan, dtype=torch.float64)
        asked = logits[:-1] if before is None else torch.cat([before, logits[:-1]])
        targets = torch.tensor(ids[len(ids) - len(asked) :])
        if len(asked):
            cost, _ = surprisal(asked, targets)
            nats[len(ids) - len(asked) :] = cost.masked_fill(targets == vocabulary.unknown, math.nan)
        before = logits[-1:]
        odds, likely = logits.softmax(-1).index_fill(1, banned, 0).topk(min(top, len(shown) - len(banned)), -1)
        numbers = None if view.by == "surprisal" else view.of(inside).tolist()
        for i, (character, one, p, next_) in enumerate(zip(characters, nats.tolist(), odds.tolist(), likely.tolist())):
            bits = None if math.isnan(one) else one / math.log(2)
            yield Looked(character, bits, numbers[i] if numbers else bits, [(shown[n] or "", share) for n, share in zip(next_, p)])


def scale_of(view: View, looked: Sequence[Looked]) -> float:
    """What a value is divided by to lie in -1..1, or in 0..1 for a gate; of surprisal 1: it is in bits."""
    if view.by == "surprisal" or (view.by == "gate" and view.name != "candidate"):
        return 1.0
    return max((abs(one.value) for one in looked if one.value is not None), default=0.0) or 1.0
