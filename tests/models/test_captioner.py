"""The captioner: what it is told at its first step, computed by hand; never again; and one step after the other is the whole."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from charrnn.config import ModelConfig
from charrnn.layers.vision import ResidualBlock
from charrnn.models.captioner import Captioner
from charrnn.models.speller import Encoded
from charrnn.models.teller import Teller, Told

# P pictures of SIZE pixels a side, B captions of L characters, J numbers of a vector, H hidden_size, V vocabulary size
P, SIZE, B, L, J, H, V = 3, 16, 4, 6, 5, 4, 7
END = 1
CELLS = ["rnn_tanh", "rnn_relu", "lstm", "gru"]
WAYS = ["first_step", "first_input", "attention"]


def settings(**model: Any) -> ModelConfig:
    sizes = {"embedding_size": 3, "hidden_size": H, "cnn": {"width": 4, "stages": 2}, "decoder": {"attention_size": 3}}
    return ModelConfig.model_validate(sizes | model)


def captioner(features: int | None = None, dtype: torch.dtype = torch.float64, **model: Any) -> Captioner:
    torch.manual_seed(0)
    return Captioner(settings(**model), features, V).to(dtype).eval()


def teller(**model: Any) -> Teller:
    torch.manual_seed(0)
    return Teller(settings(**model), J, V).double().eval()


def drawn(*shape: int, seed: int = 1) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def said() -> Tensor:
    """The characters before each, `end` first."""
    ids = torch.randint(2, V, (L, B), generator=torch.Generator().manual_seed(2))
    return torch.cat([torch.full((1, B), END), ids[:-1]])


def by_hand(model: Teller, ids: Tensor, vector: Tensor | None, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """One step of the first layer from U, W, V and the equations: h, or h and c."""
    U, W, b_ih, b_hh = model.recurrent.weights(0)
    assert b_ih is not None and b_hh is not None
    told = model.embedding.weight[ids] @ U.T + b_ih  # U x
    if vector is not None:
        told = told + vector @ model.image.weight.T  # + V X
    from_h = state[0] @ W.T + b_hh  # W s
    if model.recurrent.cell == "rnn_tanh":
        return (torch.tanh(told + from_h),)
    if model.recurrent.cell == "rnn_relu":
        return (torch.relu(told + from_h),)
    if model.recurrent.cell == "lstm":
        i, f, g, o = (told + from_h).chunk(4, -1)
        c = torch.sigmoid(f) * state[1] + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(c), c
    (x_r, x_z, x_n), (h_r, h_z, h_n) = told.chunk(3, -1), from_h.chunk(3, -1)
    r, z = torch.sigmoid(x_r + h_r), torch.sigmoid(x_z + h_z)
    return ((1 - z) * torch.tanh(x_n + r * h_n) + z * state[0],)


@pytest.mark.parametrize("backend", ["auto", "reference", "explicit", "fused"])
@pytest.mark.parametrize("cell", CELLS)
def test_the_picture_enters_the_preactivation_of_step_0_and_no_other(cell: str, backend: str) -> None:
    model, X, ids = teller(cell=cell, backend=backend), drawn(B, J), said()
    zeros = (torch.zeros(B, H, dtype=torch.float64),) * (2 if cell == "lstm" else 1)
    s_0 = by_hand(model, ids[0], X, zeros)  # f(U x_0 + W s_-1 + V X)
    s_1 = by_hand(model, ids[1], None, s_0)  # f(U x_1 + W s_0)
    logits_0, after_0 = model.next(ids[0], model.start(Told(X)), Told(X))
    logits_1, after_1 = model.next(ids[1], after_0, Told(X))
    for ours, expected in zip((*after_0.recurrent[0], *after_1.recurrent[0]), (*s_0, *s_1)):
        torch.testing.assert_close(ours, expected)
    whole = model(Told(X), ids)
    torch.testing.assert_close(whole[0], model.head(s_0[0]))
    torch.testing.assert_close(whole[1], model.head(s_1[0]))
    torch.testing.assert_close(torch.stack([logits_0, logits_1]), whole[:2])


@pytest.mark.parametrize("cell", CELLS)
def test_without_a_vector_it_is_a_language_model(cell: str) -> None:
    model, ids = teller(cell=cell, num_layers=2), said()
    outputs, _ = model.recurrent(model.embedding(ids), None)
    torch.testing.assert_close(model(Told(torch.zeros(B, J, dtype=torch.float64)), ids), model.head(outputs))


@pytest.mark.parametrize("way", ["first_step", "first_input"])
def test_another_picture_after_the_first_step_changes_nothing(way: str) -> None:
    model, ids = teller(image_as=way), said()
    _, place = model.next(ids[0], model.start(Told(drawn(B, J))), Told(drawn(B, J)))
    one, another = (model.next(ids[1], place, Told(drawn(B, J, seed=seed)))[0] for seed in (1, 2))
    assert torch.equal(one, another)


def test_a_picture_as_first_input_is_a_step_before_the_first_character() -> None:
    model, X, ids = teller(image_as="first_input", num_layers=2), drawn(B, J), said()
    steps = torch.cat([(X @ model.image.weight.T).unsqueeze(0), model.embedding(ids)])  # Vinyals et al. 2015, equations 10 and 11
    outputs, _ = model.recurrent(steps, None)
    torch.testing.assert_close(model(Told(X), ids), model.head(outputs[1:]))


def test_gradients_of_the_injection_are_those_of_the_sum_written_out() -> None:
    model, X, ids = teller(cell="gru", layer_norm=True), drawn(B, J).requires_grad_(), said()
    loss = model(Told(X), ids).square().sum()
    asked = [X, model.image.weight, *model.recurrent.weights(0)[:2]]
    got = torch.autograd.grad(loss, asked)
    state: tuple[Tensor, ...] = (torch.zeros(B, H, dtype=torch.float64),)
    written = []
    for t in range(L):
        state = by_hand(model, ids[t], X if t == 0 else None, state)
        written.append(state[0])
    again = model.head(model.recurrent.norms[0](torch.stack(written))).square().sum()
    expected = torch.autograd.grad(again, asked)
    for ours, theirs in zip(got, expected):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("way", WAYS)
def test_one_character_after_the_other_is_all_at_once(way: str) -> None:
    model, ids = captioner(image_as=way, num_layers=2), said()
    source = model.encode(drawn(P, 3, SIZE, SIZE)).rows(torch.tensor([0, 2, 2, 1]))
    place, steps = model.start(source), []
    for t in range(L):
        logits, place = model.next(ids[t], place, source)
        steps.append(logits)
    torch.testing.assert_close(torch.stack(steps), model(source, ids))


@pytest.mark.parametrize("way", WAYS)
def test_a_picture_is_told_of_alike_whatever_stands_beside_it(way: str) -> None:
    model, ids, pictures = captioner(image_as=way), said(), drawn(P, 3, SIZE, SIZE)
    together = model(model.encode(pictures).rows(torch.tensor([2, 1, 0, 2])), ids)
    for b, picture in enumerate([2, 1, 0, 2]):
        alone = model(model.encode(pictures[picture : picture + 1]), ids[:, b : b + 1])
        torch.testing.assert_close(alone, together[:, b : b + 1])


@pytest.mark.parametrize("way", WAYS)
def test_every_weight_learns(way: str) -> None:
    model = captioner(image_as=way).train()
    for block in model.modules():
        if isinstance(block, ResidualBlock):
            torch.nn.init.normal_(block.conv2.weight)  # at 0, as they begin, they let no gradient through to those before them
    logits = model(model.encode(drawn(P, 3, SIZE, SIZE)).rows(torch.tensor([0, 1, 1, 2])), said())
    logits.log_softmax(-1)[..., 2].sum().backward()
    still = [name for name, weight in model.named_parameters() if weight.requires_grad and (weight.grad is None or not weight.grad.any())]
    assert still == []


def test_attention_looks_at_every_place_of_the_grid() -> None:
    model = captioner(image_as="attention")
    source = model.encode(drawn(P, 3, SIZE, SIZE))
    assert isinstance(source, Encoded) and source.outputs.shape == (4, P, 8)  # 16 pixels, halved three times; 4 channels, twice as many
    _, place = model.next(torch.full((P,), END), model.start(source), source)
    assert place.alignment.shape == (4, P)
    torch.testing.assert_close(place.alignment.sum(0), torch.ones(P, dtype=place.alignment.dtype))


def test_ready_features_need_no_cnn() -> None:
    model, ids = captioner(features=J), said()
    assert model.encoder is None and not any(name.startswith("encoder.") for name, _ in model.named_parameters())
    features = drawn(B, J)
    source = model.encode(features)
    assert isinstance(source, Told)
    torch.testing.assert_close(source.vector, features / (1 + 1e-5) ** 0.5)  # as they are, before any were seen
    assert model(source, ids).shape == (L, B, V)


def test_what_pictures_have_in_common_is_taken_out() -> None:
    model, features = captioner(features=J), 100 + 3 * drawn(32, J)
    model.train()
    for _ in range(400):
        source = model.encode(features)
    assert isinstance(source, Told)
    torch.testing.assert_close(source.vector.mean(0), torch.zeros(J, dtype=torch.float64), atol=1e-3, rtol=0)
    torch.testing.assert_close(source.vector.var(0, correction=0), torch.ones(J, dtype=torch.float64), atol=1e-3, rtol=0)
    model.eval()
    seen = model.encode(features)
    assert isinstance(seen, Told)
    torch.testing.assert_close(seen.vector, source.vector, atol=1e-3, rtol=0)


def test_memory_begins_long() -> None:
    for cell, gate in (("lstm", 1), ("gru", 1)):
        model = teller(cell=cell, hidden_size=64)
        _, _, bias_ih, bias_hh = model.recurrent.weights(0)
        assert bias_ih is not None and bias_hh is not None
        kept = torch.sigmoid((bias_ih + bias_hh).detach()[gate * 64 : (gate + 1) * 64])
        assert float(kept.min()) >= 0.5 and float(kept.max()) < 1 and float(kept.median()) > 0.9
