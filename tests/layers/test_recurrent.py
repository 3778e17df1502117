"""The stack is torch.nn's: same parameters, same start, same outputs and gradients; then what torch.nn does not have."""

from __future__ import annotations

import functools
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from charrnn.layers.recurrent import RecurrentStack
from charrnn.ops.cells import CELLS, State

# T time, B batch, INPUTS input_size, H hidden_size
T, B, INPUTS, H, DEPTH = 7, 3, 5, 6, 3
DEVICES = ["cpu"] + ["cuda"] * torch.cuda.is_available()


def stock(cell: str, num_layers: int = DEPTH, bias: bool = True, bidirectional: bool = False) -> nn.RNNBase:
    if cell == "lstm":
        return nn.LSTM(INPUTS, H, num_layers, bias=bias, bidirectional=bidirectional)
    if cell == "gru":
        return nn.GRU(INPUTS, H, num_layers, bias=bias, bidirectional=bidirectional)
    return nn.RNN(INPUTS, H, num_layers, nonlinearity=cell.removeprefix("rnn_"), bias=bias, bidirectional=bidirectional)


def stack(cell: str = "lstm", num_layers: int = DEPTH, **options: Any) -> RecurrentStack:
    torch.manual_seed(0)
    return RecurrentStack(cell, INPUTS, H, num_layers, **options)


def text(steps: int = T, device: str = "cpu") -> Tensor:
    return torch.randn(steps, B, INPUTS, generator=torch.Generator().manual_seed(1)).to(device)


def some_state(cell: str, num_layers: int = DEPTH, device: str = "cpu") -> tuple[State, ...]:
    generator = torch.Generator().manual_seed(2)
    names = CELLS[cell].state_names
    return tuple(tuple(torch.randn(B, H, generator=generator).to(device).requires_grad_() for _ in names) for _ in range(num_layers))


def gradient(of: Tensor) -> Tensor:
    assert of.grad is not None
    return of.grad


def assert_states_equal(got: tuple[State, ...], expected: tuple[State, ...]) -> None:
    assert len(got) == len(expected)
    for ours, theirs in zip(got, expected):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("cell", CELLS)
def test_parameters_and_initialisation_are_torchs(cell: str, bias: bool, bidirectional: bool) -> None:
    ours = stack(cell, bias=bias, bidirectional=bidirectional).state_dict()
    torch.manual_seed(0)
    theirs = stock(cell, bias=bias, bidirectional=bidirectional).state_dict()
    assert list(ours) == list(theirs)
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name


@pytest.mark.parametrize("given", [True, False], ids=["state", "no-state"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("cell", CELLS)
def test_outputs_states_and_gradients_are_torchs(cell: str, device: str, bias: bool, given: bool) -> None:
    ours, theirs = stack(cell, bias=bias).to(device), stock(cell, bias=bias).to(device)
    theirs.load_state_dict(ours.state_dict())
    ours.load_state_dict(theirs.state_dict())
    x, theirs_x = text(device=device).requires_grad_(), text(device=device).requires_grad_()
    state = some_state(cell, device=device) if given else None
    outputs, after = ours(x, state)

    stacked = [torch.stack(parts).detach().requires_grad_() for parts in zip(*state)] if state else None  # (h,) or (h, c)
    hx = None if stacked is None else tuple(stacked) if cell == "lstm" else stacked[0]
    expected, final = theirs(theirs_x, hx)
    finals = final if cell == "lstm" else (final,)
    torch.testing.assert_close(outputs, expected)
    assert_states_equal(after, tuple(zip(*(f.unbind(0) for f in finals))))

    (outputs.square().sum() + sum(s.sum() for layer in after for s in layer)).backward()
    (expected.square().sum() + sum(f.sum() for f in finals)).backward()
    torch.testing.assert_close(x.grad, theirs_x.grad)
    for name, parameter in theirs.named_parameters():
        torch.testing.assert_close(ours.get_parameter(name).grad, parameter.grad, rtol=1e-4, atol=1e-4)
    if state and stacked:
        for index, theirs_s in enumerate(stacked):
            torch.testing.assert_close(torch.stack([gradient(layer[index]) for layer in state]), theirs_s.grad)


@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_two_windows_with_the_state_carried_are_one(cell: str, layer_norm: bool) -> None:
    model, x = stack(cell, layer_norm=layer_norm), text()
    whole, after = model(x, None)
    first, middle = model(x[:3], None)
    second, last = model(x[3:], middle)
    torch.testing.assert_close(torch.cat([first, second]), whole)
    assert_states_equal(last, after)


def test_no_state_is_zeros() -> None:
    model, x = stack(), text()
    state = model.initial_state(B, x)
    assert len(state) == DEPTH and all(s.shape == (B, H) and not s.any() for layer in state for s in layer)
    assert torch.equal(model(x, state)[0], model(x, None)[0])


def test_a_state_of_another_depth_is_refused() -> None:
    with pytest.raises(ValueError, match="state is that of 2 layers; expected 3"):
        stack()(text(), some_state("lstm", 2))


@pytest.mark.parametrize("cell", CELLS)
def test_lengths_are_those_of_packed_sequences(cell: str) -> None:
    model, lengths = stack(cell), torch.tensor([7, 4, 1])
    outputs, after = model(text(), None, lengths=lengths)
    for column, length in enumerate(lengths.tolist()):
        alone, final = model(text()[:length, column : column + 1], None)
        torch.testing.assert_close(outputs[:length, column], alone[:, 0])
        assert_states_equal(tuple(tuple(s[column : column + 1] for s in layer) for layer in after), final)


@pytest.mark.parametrize("backend", ["reference", "explicit", "fused", "native"])
def test_backends_agree(backend: str) -> None:
    torch.testing.assert_close(stack(backend=backend)(text(), None)[0], stack()(text(), None)[0])


def test_layer_norm_normalises_what_is_handed_up_and_not_the_state() -> None:
    plain, normed = stack(num_layers=1), stack(num_layers=1, layer_norm=True)
    outputs, after = plain(text(), None)
    got, state = normed(text(), None)
    torch.testing.assert_close(got, nn.functional.layer_norm(outputs, (H,)))
    assert_states_equal(state, after)
    assert [name for name, _ in normed.named_parameters() if name.startswith("norms")] == ["norms.0.weight", "norms.0.bias"]
    assert stack(layer_norm=True)(text(), None)[0].mean(-1).abs().max() < 1e-6


@pytest.mark.parametrize("backend", ["auto", "fused"])
@pytest.mark.parametrize("cell", CELLS)
def test_weight_drop_leaves_the_weight_itself_and_its_gradient_is_masked(cell: str, backend: str) -> None:
    model = stack(cell, num_layers=1, weight_hh=0.5, backend=backend)
    weight = model.get_parameter("weight_hh_l0")
    before = weight.detach().clone()
    outputs, _ = model(text(), None, generator=torch.Generator().manual_seed(3))
    outputs.square().sum().backward()
    assert torch.equal(weight, before)
    dropped = gradient(weight).eq(0).double().mean().item()
    assert 0.2 < dropped < 0.8 if cell != "rnn_relu" else dropped > 0.2
    plain = stack(cell, num_layers=1)
    assert not torch.equal(plain(text(), None)[0], outputs)
    assert torch.equal(model.eval()(text(), None)[0], stack(cell, num_layers=1, backend=backend)(text(), None)[0])


@pytest.mark.parametrize("options", [{"between_layers": 0.5}, {"between_layers": 0.5, "locked": True}, {"weight_hh": 0.5}], ids=str)
def test_dropout_draws_in_training_only_and_from_the_generator(options: dict[str, Any]) -> None:
    model, x, plain = stack(**options), text(), stack()

    def run(seed: int) -> Tensor:
        outputs: Tensor = model(x, None, generator=torch.Generator().manual_seed(seed))[0]
        return outputs

    assert torch.equal(run(1), run(1))
    assert not torch.equal(run(1), run(2))
    model.eval()
    assert torch.equal(run(1), plain(x, None)[0])


def test_dropout_is_between_layers_and_neither_before_nor_after() -> None:
    assert torch.equal(stack(num_layers=1, between_layers=0.9)(text(), None)[0], stack(num_layers=1)(text(), None)[0])
    outputs, _ = stack(between_layers=0.9)(text(), None)
    assert not (outputs == 0).any()


@pytest.mark.parametrize("locked", [True, False])
def test_locked_drops_the_same_features_at_every_step(locked: bool) -> None:
    """Of the gradient of what layer 0 hands up, the zeros are the mask's."""
    model = stack("rnn_tanh", num_layers=2, between_layers=0.5, locked=locked)
    seen: list[Tensor] = []

    class Tapped(nn.Module):
        def forward(self, y: Tensor) -> Tensor:
            y.retain_grad()
            seen.append(y)
            return y

    model.layer_norm, model.norms = True, nn.ModuleList([Tapped(), nn.Identity()])
    # With no product from step to step in layer 0, the gradient of its outputs comes from above alone.
    nn.init.zeros_(model.get_parameter("weight_hh_l0"))
    model(text(), None, generator=torch.Generator().manual_seed(4))[0].sum().backward()
    zeros = gradient(seen[0]).eq(0)  # (T, B, H)
    assert zeros.any() and not zeros.all()
    assert torch.equal(zeros, zeros[:1].expand_as(zeros)) == locked


# Both directions


LENGTHS = {"dense": None, "sorted": (7, 5, 4, 1), "unsorted": (1, 7, 0, 5), "none_reaches_T": (2, 0, 6, 2)}


def both_ways(cell: str, **options: Any) -> RecurrentStack:
    return stack(cell, bidirectional=True, **options)


def drawn(cell: str, dtype: torch.dtype, device: str = "cpu") -> tuple[Tensor, list[Tensor], Tensor, list[Tensor]]:
    """x (T, 4, I), initial states (2·DEPTH, 4, H) in torch's order, and cotangents of outputs and final states."""
    generator = torch.Generator().manual_seed(5)
    names = CELLS[cell].state_names

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device, dtype)

    x, initial = draw(T, 4, INPUTS).requires_grad_(), [draw(2 * DEPTH, 4, H).requires_grad_() for _ in names]
    return x, initial, draw(T, 4, 2 * H), [draw(2 * DEPTH, 4, H) for _ in names]


@functools.cache
def torchs(cell: str, lengths: tuple[int, ...] | None, final_state: bool, dtype: torch.dtype, device: str) -> dict[str, Tensor]:
    """Outputs, final states and the gradient of everything, as torch.nn finds them. Packing knows no empty sequence: those stand apart."""
    module = stock(cell, bidirectional=True)
    module.load_state_dict(both_ways(cell).state_dict())
    module.to(device, dtype)
    x, initial, d_outputs, d_final = drawn(cell, dtype, device)
    present = [b for b in range(4) if lengths is None or lengths[b] > 0]
    given = [s[:, present].contiguous() for s in initial]
    hx = tuple(given) if cell == "lstm" else given[0]
    if lengths is None:
        found, final = module(x, hx)
    else:
        packed = pack_padded_sequence(x[:, present], torch.tensor([lengths[b] for b in present]), enforce_sorted=False)
        packed, final = module(packed, hx)
        found, _ = pad_packed_sequence(packed, total_length=T)
    outputs = x.new_zeros(T, 4, 2 * H).index_copy(1, torch.tensor(present, device=device), found)
    finals = [s.index_copy(1, torch.tensor(present, device=device), f) for s, f in zip(initial, final if cell == "lstm" else (final,))]
    return named(cell, outputs, finals, x, initial, dict(module.named_parameters()), d_outputs, d_final, final_state)


def named(
    cell: str,
    outputs: Tensor,
    finals: list[Tensor],
    x: Tensor,
    initial: list[Tensor],
    weights: dict[str, Tensor],
    d_outputs: Tensor,
    d_final: list[Tensor],
    final_state: bool,
) -> dict[str, Tensor]:
    names = CELLS[cell].state_names
    leaves = {"x": x} | {f"{name}_0": s for name, s in zip(names, initial, strict=True)} | weights
    results = [outputs, *finals] if final_state else [outputs]
    grads = torch.autograd.grad(results, list(leaves.values()), [d_outputs, *d_final] if final_state else [d_outputs])
    values = {"outputs": outputs} | ({f"{name}_n": s for name, s in zip(names, finals, strict=True)} if final_state else {})
    return {name: value.detach() for name, value in values.items()} | {f"d_{name}": g for name, g in zip(leaves, grads, strict=True)}


def ours(cell: str, backend: str, lengths: tuple[int, ...] | None, final_state: bool, dtype: torch.dtype, device: str) -> dict[str, Tensor]:
    model = both_ways(cell, backend=backend).to(device, dtype)
    x, initial, d_outputs, d_final = drawn(cell, dtype, device)
    state = tuple(zip(*(s.unbind(0) for s in initial)))
    ends = None if lengths is None else torch.tensor(lengths, device=device)
    outputs, after = model(x, state, lengths=ends, final_state=final_state)
    assert len(after) == (2 * DEPTH if final_state else 0)
    finals = [torch.stack(parts) for parts in zip(*after)]
    return named(cell, outputs, finals, x, initial, dict(model.named_parameters()), d_outputs, d_final, final_state)


@pytest.mark.parametrize("final_state", [True, False], ids=["final", "no_final"])
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("cell, backend", list(product(CELLS, ("reference", "explicit", "fused", "native"))))
def test_both_directions_are_torchs_on_packed_sequences(
    cell: str, backend: str, device: str, lengths: tuple[int, ...] | None, final_state: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Outputs, h_n, c_n and the gradient of x, every weight and every initial state, within 4 times torch's own rounding."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    exact = torchs(cell, lengths, final_state, torch.float64, "cpu")
    rounded = torchs(cell, lengths, final_state, torch.float32, device)
    got32 = ours(cell, backend, lengths, final_state, torch.float32, device)
    assert got32.keys() == exact.keys()
    for name, got in got32.items():
        noise = (rounded[name].cpu().double() - exact[name]).abs().max()
        assert (got.cpu().double() - exact[name]).abs().max() <= 4 * noise + 1e-6, name
    for name, got in ours(cell, backend, lengths, final_state, torch.float64, device).items():
        torch.testing.assert_close(got.cpu(), exact[name], rtol=1e-11, atol=1e-11, msg=lambda text, name=name: f"{name}: {text}")  # type: ignore[misc]


def test_both_directions_are_twice_as_wide_and_have_twice_the_state() -> None:
    model, plain = both_ways("lstm"), stack("lstm")
    assert model.output_size == 2 * H and plain.output_size == H
    outputs, after = model(text(), None)
    assert outputs.shape == (T, B, 2 * H) and len(after) == 2 * DEPTH
    assert model.weights(1, 1).weight_ih.shape == (4 * H, 2 * H)
    with pytest.raises(ValueError, match="state is that of 3 layers; expected 6, each direction counted"):
        model(text(), some_state("lstm"))


@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_layers_read_both_directions_of_the_one_below(cell: str, layer_norm: bool) -> None:
    """A stack of two is two stacks of one, normalised in the whole width."""
    deep = both_ways(cell, num_layers=2, layer_norm=layer_norm)
    x, lengths = text(), torch.tensor([7, 4, 1])
    for layer in range(2):
        one = RecurrentStack(cell, x.size(-1), H, bidirectional=True)
        for direction, suffix in enumerate(("l0", "l0_reverse")):
            for name, weight in deep.weights(layer, direction)._asdict().items():
                one.get_parameter(f"{name}_{suffix}").data.copy_(weight)
        x = one(x, None, lengths=lengths)[0]
        x = nn.functional.layer_norm(x, (2 * H,)) if layer_norm else x
    torch.testing.assert_close(deep(text(), None, lengths=lengths)[0], x)


def test_residual_adds_what_a_layer_read_where_the_widths_agree() -> None:
    torch.manual_seed(0)
    wide = RecurrentStack("gru", 2 * H, H, 2, bidirectional=True, residual=True)
    for parameter in wide.parameters():  # a GRU of zeros from a state of zeros writes zeros
        nn.init.zeros_(parameter)
    x = torch.randn(T, B, 2 * H)
    assert torch.equal(wide(x, None)[0], x)
    narrow = both_ways("gru", num_layers=2, residual=True)
    for parameter in (p for name, p in narrow.named_parameters() if "l1" in name):
        nn.init.zeros_(parameter)
    first = both_ways("gru", num_layers=1)
    for name, parameter in first.named_parameters():
        parameter.data.copy_(narrow.get_parameter(name))
    torch.testing.assert_close(narrow(text(), None)[0], first(text(), None)[0])


def test_residual_goes_past_dropout_and_norm() -> None:
    """With the second layer's norm turned to nothing, what is left is what the first wrote, whole."""
    model = both_ways("lstm", num_layers=2, residual=True, between_layers=0.5, layer_norm=True)
    nn.init.zeros_(model.get_parameter("norms.1.weight"))
    outputs = model(text(), None, generator=torch.Generator().manual_seed(1))[0]
    one = both_ways("lstm", num_layers=1, layer_norm=True)
    one.load_state_dict({name: value for name, value in model.state_dict().items() if "l1" not in name and "norms.1" not in name})
    torch.testing.assert_close(outputs, one(text(), None)[0])


def test_weight_drop_reaches_both_directions() -> None:
    model = both_ways("lstm", num_layers=2, weight_hh=0.5)
    model(text(), None, generator=torch.Generator().manual_seed(3))[0].square().sum().backward()
    masks = [gradient(model.get_parameter(f"weight_hh_{suffix}")).eq(0) for suffix in ("l0", "l0_reverse", "l1", "l1_reverse")]
    assert all(0.2 < mask.double().mean() < 0.8 for mask in masks)
    assert not torch.equal(masks[0], masks[1])
