"""The pyramid against a plain definition: each sequence alone, a loop over its steps and another over its pairs."""

from __future__ import annotations

import functools
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from charrnn.layers.pyramid import PyramidalEncoder, merge_steps, merged_lengths, within
from charrnn.layers.recurrent import RecurrentStack
from charrnn.ops.cells import CELLS

# T time, B batch, INPUTS input_size, H hidden_size
INPUTS, H = 5, 3
LENGTHS = {"dense": (7, 7), "one": (1,), "ragged": (13, 1, 6, 2, 8, 3, 5)}
SHAPES: dict[str, dict[str, Any]] = {
    "no_level": {"levels": 0, "num_layers": 2},
    "halved": {"levels": 1},
    "eighth": {"levels": 3},
    "thirds": {"levels": 2, "reduction": 3, "layer_norm": True},
    "one_way": {"levels": 2, "bidirectional": False, "layer_norm": True},
    "residual": {"levels": 1, "num_layers": 2, "residual": True},
}
Shape = tuple[tuple[str, Any], ...]


def encoder(
    cell: str, shape: dict[str, Any], dtype: torch.dtype = torch.float64, *, inputs: int = INPUTS, **options: Any
) -> PyramidalEncoder:
    torch.manual_seed(0)
    return PyramidalEncoder(cell, inputs, H, **shape, **options).to(dtype)


def frames(lengths: tuple[int, ...], dtype: torch.dtype = torch.float64, inputs: int = INPUTS) -> Tensor:
    """(T, B, I), zeros behind the shorter ones."""
    x = torch.randn(max(lengths), len(lengths), inputs, generator=torch.Generator().manual_seed(1))
    return (x * within(torch.tensor(lengths), len(x)).unsqueeze(-1)).to(dtype).requires_grad_()


def left(length: int, levels: int, reduction: int) -> int:
    for _ in range(levels):
        length = length // reduction + (length % reduction > 0)
    return length


# The definition


def one_cell(cell: str, inputs: int) -> nn.Module:
    if cell == "lstm":
        return nn.LSTMCell(inputs, H)
    return nn.GRUCell(inputs, H) if cell == "gru" else nn.RNNCell(inputs, H, nonlinearity=cell.removeprefix("rnn_"))


def walk(cell: str, steps: list[Tensor], weights: dict[str, Tensor]) -> list[Tensor]:
    """h after each step, from a state of zeros, each (1, H)."""
    module, h, c, written = one_cell(cell, steps[0].size(-1)), steps[0].new_zeros(1, H), steps[0].new_zeros(1, H), []
    for x in steps:
        if cell == "lstm":
            h, c = functional_call(module, weights, (x, (h, c)))
        else:
            h = functional_call(module, weights, (x, h))
        written.append(h)
    return written


def plain(model: PyramidalEncoder, sequence: Tensor) -> Tensor:
    """(length, I) -> (S, D·H)."""
    steps = [x.unsqueeze(0) for x in sequence]
    for level, stack in enumerate(model.stacks):
        assert isinstance(stack, RecurrentStack)
        if level:
            merged = []
            for first in range(0, len(steps), model.reduction):
                group = steps[first : first + model.reduction]
                merged.append(torch.cat(group + [torch.zeros_like(steps[0])] * (model.reduction - len(group)), -1))
            steps = merged
        for layer in range(stack.num_layers):
            weights = [{n: w for n, w in stack.weights(layer, d)._asdict().items() if w is not None} for d in range(stack.directions)]
            written = walk(stack.cell, steps, weights[0])
            if stack.directions == 2:
                back = walk(stack.cell, steps[::-1], weights[1])[::-1]
                written = [torch.cat(both, -1) for both in zip(written, back)]
            if stack.layer_norm:
                written = [stack.norms[layer](h) for h in written]
            if stack.residual and steps[0].size(-1) == written[0].size(-1):
                written = [h + x for h, x in zip(written, steps)]
            steps = written
    return torch.cat(steps)


def cotangent(lengths: tuple[int, ...], steps: int, width: int, dtype: torch.dtype) -> Tensor:
    """(S, B, W), zeros beyond each length, where nobody asks."""
    drawn = torch.randn(steps, len(lengths), width, generator=torch.Generator().manual_seed(2))
    return (drawn * within(torch.tensor(lengths), steps).unsqueeze(-1)).to(dtype)


def everything(model: PyramidalEncoder, x: Tensor, outputs: Tensor, lengths: tuple[int, ...]) -> dict[str, Tensor]:
    """Outputs within the lengths and the gradient of all that has one, by name."""
    d_outputs = cotangent(lengths, len(outputs), model.output_size, x.dtype)
    leaves = {"x": x, **dict(model.named_parameters())}
    grads = torch.autograd.grad(outputs, list(leaves.values()), d_outputs)
    kept = outputs.detach() * within(torch.tensor(lengths), len(outputs)).unsqueeze(-1)
    return {"outputs": kept} | {f"d_{name}": grad for name, grad in zip(leaves, grads, strict=True)}


@functools.cache
def expected(cell: str, shape: str, lengths: tuple[int, ...], dtype: torch.dtype) -> dict[str, Tensor]:
    model, x = encoder(cell, SHAPES[shape], dtype), frames(lengths, dtype)
    alone = [plain(model, x[:length, b]) for b, length in enumerate(lengths)]
    outputs = nn.utils.rnn.pad_sequence(alone)
    return everything(model, x, outputs, tuple(map(len, alone)))


def distance(got: Tensor, exact: Tensor) -> float:
    """The largest difference, as a share of the largest number where that is above 1."""
    return float((got.double() - exact).abs().max()) / max(1.0, float(exact.abs().max()))


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("cell, backend", list(product(CELLS, ("reference", "explicit", "fused", "native"))))
def test_outputs_and_every_gradient_are_those_of_the_definition(cell: str, backend: str, shape: str, lengths: tuple[int, ...]) -> None:
    """In float64 but for the order of sums; in float32 within 4 times the definition's own rounding."""
    exact, rounded = (expected(cell, shape, lengths, dtype) for dtype in (torch.float64, torch.float32))
    noise = max(distance(rounded[name], exact[name]) for name in exact)
    for dtype, most in ((torch.float64, 1e-12), (torch.float32, 4 * noise + 1e-6)):
        model, x = encoder(cell, SHAPES[shape], dtype, backend=backend), frames(lengths, dtype)
        ragged = torch.tensor(lengths) if len(set(lengths)) > 1 else None
        outputs, after = model(x, ragged)
        ends = [left(length, model.levels, model.reduction) for length in lengths]
        assert (after is None) == (ragged is None) and (after is None or after.tolist() == ends)
        assert outputs.shape == (max(ends), len(lengths), model.output_size) and outputs.dtype == dtype
        got = everything(model, x, outputs, tuple(ends))
        assert got.keys() == exact.keys()
        for name, value in got.items():
            assert distance(value, exact[name]) <= most, name


@pytest.mark.parametrize("backend", ["auto", "reference", "explicit", "fused", "native"])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("rubbish", [7.0, 1e30])
def test_what_padding_holds_changes_no_bit_and_has_no_gradient(rubbish: float, residual: bool, backend: str) -> None:
    """Also where a residual connection hands it up as it is."""
    lengths = LENGTHS["ragged"]
    model = encoder("gru", {"levels": 2, "residual": residual}, torch.float32, inputs=2 * H, backend=backend)
    clean, dirty = frames(lengths, torch.float32, 2 * H), frames(lengths, torch.float32, 2 * H)
    padding = ~within(torch.tensor(lengths), len(clean))
    with torch.no_grad():
        dirty[padding] = rubbish
    results = []
    for x in (clean, dirty):
        outputs, after = model(x, torch.tensor(lengths))
        results.append(everything(model, x, outputs, tuple(after.tolist())))
    assert not results[0]["d_x"][padding].any()
    for name, value in results[0].items():
        assert torch.equal(value, results[1][name]), name


def test_what_means_nothing_may_be_no_number() -> None:
    """A product with 0 would not take it away."""
    model, x = encoder("gru", {"levels": 1}), frames((5, 3)).detach()
    clean, _ = model(x, torch.tensor([5, 3]))

    def spoil(_: nn.Module, __: Any, found: tuple[Tensor, tuple[()]]) -> tuple[Tensor, tuple[()]]:
        return found[0].masked_fill(~within(torch.tensor([5, 3]), 5).unsqueeze(-1), torch.nan), ()

    model.stacks[0].register_forward_hook(spoil)
    dirty, _ = model(x, torch.tensor([5, 3]))
    assert torch.equal(dirty, clean)


def test_a_longer_batch_changes_nothing_but_rounding() -> None:
    """A sequence with a last pair that is not full, alone and beside longer ones."""
    model = encoder("lstm", {"levels": 3})
    x, lengths = frames(LENGTHS["ragged"]), LENGTHS["ragged"]
    outputs, after = model(x, torch.tensor(lengths))
    for b, length in enumerate(lengths):
        alone, _ = model(x[:length, b : b + 1], None)
        assert len(alone) == after[b]
        torch.testing.assert_close(outputs[: len(alone), b], alone[:, 0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("reduction", [1, 2, 3, 5])
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5, 6, 7, 10])
def test_neighbours_become_one_the_earliest_first(steps: int, reduction: int) -> None:
    x = torch.arange(1.0, 1 + steps * 2 * 3).view(steps, 2, 3)
    merged = merge_steps(x, reduction)
    assert merged.shape == (left(steps, 1, reduction), 2, 3 * reduction)
    for s, b, k in product(range(len(merged)), range(2), range(reduction)):
        t = s * reduction + k
        assert torch.equal(merged[s, b, 3 * k : 3 * k + 3], x[t, b] if t < steps else torch.zeros(3))


@pytest.mark.parametrize("reduction", [2, 3, 4])
def test_lengths_are_divided_and_rounded_up(reduction: int) -> None:
    lengths = torch.arange(0, 40)
    expected = [left(length, 1, reduction) for length in lengths.tolist()]
    assert merged_lengths(lengths, reduction).tolist() == expected
    assert merged_lengths(lengths, reduction).dtype == lengths.dtype


def test_within() -> None:
    assert within(torch.tensor([0, 1, 3]), 3).tolist() == [[False, True, True], [False, False, True], [False, False, True]]


@pytest.mark.parametrize("locked", [True, False])
def test_dropout_is_between_all_layers_in_training_alone_and_from_the_generator(locked: bool) -> None:
    shape = {"levels": 2, "num_layers": 2}
    model, still = encoder("lstm", shape, between_layers=0.5, locked=locked), encoder("lstm", shape)
    x, lengths = frames(LENGTHS["ragged"]), torch.tensor(LENGTHS["ragged"])

    def run(seed: int) -> Tensor:
        outputs: Tensor = model(x, lengths, generator=torch.Generator().manual_seed(seed))[0]
        return outputs

    assert torch.equal(run(1), run(1)) and not torch.equal(run(1), run(2))
    seen: list[Tensor] = []
    for stack in list(model.stacks)[1:]:
        stack.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    run(1)
    for read in seen:  # (S, B, r·D·H): rows that are not padding
        first = read[:, 0].eq(0)
        assert 0.2 < first.double().mean() < 0.8
        halves = first.view(len(read), 2, -1)
        same = bool((halves == halves[:1, :1])[: (len(read) - 1)].all())
        assert same == locked
    model.eval()
    assert torch.equal(run(1), still(x, lengths)[0])


def test_recurrent_dropout_reaches_every_layer() -> None:
    model = encoder("gru", {"levels": 2, "weight_hh": 0.5})
    model(frames((9, 9)), None, generator=torch.Generator().manual_seed(3))[0].square().sum().backward()
    masks = {n: p.grad.eq(0).double().mean() for n, p in model.named_parameters() if "weight_hh" in n and p.grad is not None}
    assert len(masks) == 6 and all(0.1 < share < 0.9 for share in masks.values())


def test_parameters_are_those_of_stacks() -> None:
    model = encoder("lstm", {"levels": 2, "reduction": 3})
    assert model.output_size == 2 * H
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters() if "weight_ih" in name and "reverse" not in name}
    assert shapes == {
        "stacks.0.weight_ih_l0": (4 * H, INPUTS),
        "stacks.1.weight_ih_l0": (4 * H, 3 * 2 * H),
        "stacks.2.weight_ih_l0": (4 * H, 3 * 2 * H),
    }
