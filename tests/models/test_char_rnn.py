"""The model: shapes, tying, and every dropout option in both of its states."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from charrnn.config import ModelConfig
from charrnn.models.char_rnn import CharRNN, count_parameters

# T time, B batch, V vocabulary size
T, B, V = 9, 4, 23
PLACES = ["embedding", "input", "between_layers", "output", "weight_hh"]


def model(**settings: Any) -> CharRNN:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"embedding_size": 12, "hidden_size": 12, "num_layers": 2}
    return CharRNN(ModelConfig.model_validate(sizes | settings), V)


def ids() -> Tensor:
    return torch.randint(V, (T, B), generator=torch.Generator().manual_seed(1))


def logits(of: CharRNN, seed: int | None = None) -> Tensor:
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    out: Tensor = of(ids(), None, generator=generator)[0]
    return out


@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("cell, states", [("rnn_tanh", 1), ("rnn_relu", 1), ("lstm", 2), ("gru", 1)])
def test_shapes(cell: str, states: int, layer_norm: bool) -> None:
    out, state = model(cell=cell, layer_norm=layer_norm, embedding_size=5)(ids(), None)
    assert out.shape == (T, B, V)
    assert [[s.shape for s in layer] for layer in state] == [[(B, 12)] * states] * 2


def test_it_is_embedding_torchs_lstm_and_head() -> None:
    ours = model(embedding_size=5)
    lstm = torch.nn.LSTM(5, 12, 2)
    lstm.load_state_dict(ours.recurrent.state_dict())
    torch.testing.assert_close(logits(ours), ours.head(lstm(ours.embedding(ids()))[0]))


def test_it_sees_no_later_character() -> None:
    ours, text = model(), ids()
    changed = text.clone()
    changed[5] = (changed[5] + 1) % V
    assert torch.equal(ours(text, None)[0][:5], ours(changed, None)[0][:5])
    assert not torch.equal(ours(text, None)[0][5], ours(changed, None)[0][5])


def test_state_carried_over_two_windows_equals_one() -> None:
    ours, text = model(), ids()
    whole, _ = ours(text, None)
    first, state = ours(text[:4], None)
    second, _ = ours(text[4:], state)
    torch.testing.assert_close(torch.cat([first, second]), whole)


def test_tied_embeddings_are_one_tensor() -> None:
    tied, loose = model(tied_embeddings=True), model()
    assert tied.head.weight is tied.embedding.weight
    assert loose.head.weight is not loose.embedding.weight
    assert count_parameters(loose) - count_parameters(tied) == V * 12
    torch.autograd.backward(logits(tied).sum())
    assert tied.embedding.weight.grad is not None
    # A start near the uniform guess, which N(0, 1) rows in the head would miss by nats.
    assert torch.nn.functional.cross_entropy(logits(tied).flatten(0, 1), ids().flatten()) < torch.tensor(float(V)).log() + 0.3


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("sizes", [{"embedding_size": 64, "hidden_size": 64}, {"embedding_size": 256, "hidden_size": 256, "num_layers": 2}])
def test_cells_begin_with_inputs_of_unit_variance(tied: bool, sizes: dict[str, int]) -> None:
    ours = model(tied_embeddings=tied, **sizes)
    seen: list[Tensor] = []
    ours.recurrent.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        ours(torch.arange(V).unsqueeze(1), None)
    assert seen[0].std() == pytest.approx(1.0, abs=0.2)
    for layer in range(ours.recurrent.num_layers):
        weight_ih = ours.recurrent.weights(layer).weight_ih.detach()
        read = torch.randn(200, weight_ih.size(1)) @ weight_ih.t()
        assert read.std() == pytest.approx(1.0, abs=0.1)


def test_count_parameters() -> None:
    assert count_parameters(model(num_layers=1, embedding_size=5)) == V * 5 + 4 * 12 * (5 + 12 + 2) + (12 + 1) * V


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("locked", [False, True])
@pytest.mark.parametrize("place", PLACES)
def test_every_dropout(place: str, locked: bool, tied: bool) -> None:
    ours = model(dropout={place: 0.5, "locked": locked}, tied_embeddings=tied)
    plain = model(tied_embeddings=tied)
    assert torch.equal(logits(ours, 1), logits(ours, 1))
    assert not torch.equal(logits(ours, 1), logits(ours, 2))
    assert not torch.equal(logits(ours, 1), logits(plain))
    torch.autograd.backward(logits(ours, 1).square().sum())
    for name, parameter in ours.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.any(), name
    assert torch.equal(logits(ours.eval()), logits(plain))


def test_all_dropouts_at_once_draw_from_the_generator_alone() -> None:
    ours = model(dropout={place: 0.3 for place in PLACES} | {"locked": ["input", "output"]})
    before = torch.get_rng_state()
    assert torch.equal(logits(ours, 1), logits(ours, 1))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("place", ["input", "output"])
@pytest.mark.parametrize("locked", [False, True, "here", "elsewhere"])
def test_locked_is_by_place(place: str, locked: bool | str) -> None:
    """With one id over and over and no memory, two steps differ only by their masks."""
    named = {"here": [place], "elsewhere": ["between_layers"]}
    setting = named[locked] if isinstance(locked, str) else locked
    ours = model(cell="rnn_tanh", num_layers=1, dropout={place: 0.5, "locked": setting})
    torch.nn.init.zeros_(ours.recurrent.get_parameter("weight_hh_l0"))
    out, _ = ours(torch.full((T, B), 3), None, generator=torch.Generator().manual_seed(1))
    steady = torch.allclose(out, out[:1].expand_as(out))
    assert steady == (locked in (True, "here"))


def test_a_dropped_character_is_dropped_at_every_step() -> None:
    ours = model(dropout={"embedding": 0.5})
    ours.recurrent.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    seen: list[Tensor] = []
    text = torch.arange(V).repeat(2).unsqueeze(1)  # (2V, 1): each character twice
    ours(text, None, generator=torch.Generator().manual_seed(1))
    gone = (seen[0] == 0).all(-1).squeeze(1)  # (2V,)
    assert torch.equal(gone[:V], gone[V:]) and gone.any() and not gone.all()
