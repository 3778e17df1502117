"""The model: shapes, tying, and every dropout option in both of its states."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from charrnn.config import BigramsConfig, DropoutConfig, ModelConfig
from charrnn.layers.pooling import KINDS
from charrnn.models import count_parameters, recurrent_sizes
from charrnn.models.char_rnn import CharRNN
from charrnn.ops.cells import CELLS

# T time, B batch, V vocabulary size
T, B, V = 9, 4, 23
PLACES = ["embedding", "input", "between_layers", "output", "weight_hh"]


def model(labels: int | None = None, **settings: Any) -> CharRNN:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"embedding_size": 12, "hidden_size": 12, "num_layers": 2}
    return CharRNN(ModelConfig.model_validate(sizes | settings), V, labels)


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


@pytest.mark.parametrize("bidirectional", [False, True])
def test_what_the_configuration_says_of_the_stack_is_done(bidirectional: bool) -> None:
    width = 24 if bidirectional else 12
    sizes: dict[str, Any] = {"num_layers": 1, "embedding_size": width, "bidirectional": bidirectional}
    plain = model(**sizes)
    read = plain.embedding(ids())  # (T, B, E)
    written = plain.recurrent(read, None)[0]  # (T, B, W)
    normed = torch.nn.functional.layer_norm(written, (width,))
    for options, expected in (
        ({"residual": True}, read + written),
        ({"layer_norm": True}, normed),
        ({"residual": True, "layer_norm": True}, read + normed),
    ):
        ours = model(**sizes, **options)
        ours.load_state_dict(plain.state_dict(), strict=False)  # a norm begins as none: times 1, plus 0
        torch.testing.assert_close(logits(ours), plain.head(expected))


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
@pytest.mark.parametrize(
    "sizes",
    [
        {"embedding_size": 64, "hidden_size": 64},
        {"embedding_size": 256, "hidden_size": 256, "num_layers": 2},
        {"embedding_size": 128, "hidden_size": 64, "num_layers": 2, "bidirectional": True},
    ],
    ids=["one", "deep", "bidirectional"],
)
def test_cells_begin_with_inputs_of_unit_variance(tied: bool, sizes: dict[str, int]) -> None:
    ours = model(tied_embeddings=tied, **sizes)
    seen: list[Tensor] = []
    ours.recurrent.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        ours(torch.arange(V).unsqueeze(1), None)
    assert seen[0].std() == pytest.approx(1.0, abs=0.2)
    for layer, direction in product(range(ours.recurrent.num_layers), range(ours.recurrent.directions)):
        weight_ih = ours.recurrent.weights(layer, direction).weight_ih.detach()
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


# From both sides, in padded batches


LENGTHS = torch.tensor([9, 1, 6, 4])
BACKENDS = ("reference", "explicit", "fused", "native")
OPTIONS: dict[str, dict[str, Any]] = {
    "one_way": {},
    "bidirectional": {"bidirectional": True},
    "residual_norm": {"bidirectional": True, "embedding_size": 24, "residual": True, "layer_norm": True},
    "pairs": {"bidirectional": True, "bigrams": {"max_size": 64, "size": 3}},
    **{kind: {"bidirectional": True, "pooling": kind} for kind in KINDS},
}


def with_pairs(model: CharRNN) -> CharRNN:
    """All pairs of 8 ids are in its table, if it has one."""
    if model.bigrams is not None:
        model.bigrams.keep(torch.cartesian_prod(torch.arange(8), torch.arange(8)))
    return model


def beyond(lengths: Tensor = LENGTHS) -> Tensor:
    return torch.arange(T).unsqueeze(-1) >= lengths  # (T, B)


def answers(of: CharRNN, text: Tensor, lengths: Tensor | None) -> tuple[Tensor, list[Tensor]]:
    """The logits that mean something, and the gradient of each parameter for a loss that asks for these alone."""
    out = of(text, None, lengths=lengths)[0]
    out = out if of.pooling is not None or lengths is None else out[~beyond(lengths)]
    grads = torch.autograd.grad(out.float().square().sum(), [parameter for parameter in of.parameters() if parameter.requires_grad])
    return out.detach(), list(grads)


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
@pytest.mark.parametrize("cell, backend", list(product(CELLS, BACKENDS)))
def test_padding_moves_no_logit_and_no_gradient(cell: str, backend: str, depth: int) -> None:
    for options in ({}, {"bidirectional": True}):
        ours, text = model(cell=cell, backend=backend, num_layers=depth, **options), ids()
        other = torch.where(beyond(), (text + 1) % V, text)
        (logits, grads), (again, grads_again) = (answers(ours, given, LENGTHS) for given in (text, other))
        assert torch.equal(logits, again)
        assert all(torch.equal(a, b) for a, b in zip(grads, grads_again, strict=True))


@pytest.mark.parametrize("autocast", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", OPTIONS)
def test_padding_moves_nothing_with_any_option(name: str, autocast: bool) -> None:
    ours, text = with_pairs(model(**OPTIONS[name])), ids()
    other = torch.where(beyond(), (text + 1) % V, text)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        (logits, grads), (again, grads_again) = (answers(ours, given, LENGTHS) for given in (text, other))
    assert torch.equal(logits, again)
    assert all(torch.equal(a.to_dense(), b.to_dense()) for a, b in zip(grads, grads_again, strict=True))


@pytest.mark.parametrize("ragged", [True, False], ids=["ragged", "dense"])
@pytest.mark.parametrize("depth", [1, 2, 3, 4])
@pytest.mark.parametrize("cell, backend", list(product(CELLS, BACKENDS)))
def test_a_text_is_read_from_both_sides_and_alone(cell: str, backend: str, depth: int, ragged: bool) -> None:
    """A logit hears the ids on both sides of it, at every depth; it hears no other text in the batch."""
    ours, text = model(cell=cell, backend=backend, num_layers=depth, bidirectional=True), ids()
    lengths = LENGTHS if ragged else None
    changed = text.clone()
    changed[3, 2] = (text[3, 2] + 1) % V
    with torch.no_grad():
        logits, moved = (ours(given, None, lengths=lengths)[0] for given in (text, changed))
        runs = 6 if ragged else T
        assert (logits[:runs, 2] != moved[:runs, 2]).any(-1).all()
        assert torch.equal(logits[:, [0, 1, 3]][~beyond()[:, [0, 1, 3]]], moved[:, [0, 1, 3]][~beyond()[:, [0, 1, 3]]])
        for column, length in enumerate(LENGTHS.tolist() if ragged else [T] * B):
            alone = ours(text[:length, column : column + 1], None)[0][:, 0]
            torch.testing.assert_close(alone, logits[:length, column])


@pytest.mark.parametrize("name", OPTIONS)
def test_a_text_gets_the_answer_that_it_gets_alone(name: str) -> None:
    ours, text = model(**OPTIONS[name]), ids()
    logits, state = ours(text, None, lengths=LENGTHS)
    assert state == ()
    for column, length in enumerate(LENGTHS.tolist()):
        alone = ours(text[:length, column : column + 1], None)[0]
        if ours.pooling is None:
            torch.testing.assert_close(alone[:, 0], logits[:length, column])
        else:
            torch.testing.assert_close(alone[0], logits[column])


@pytest.mark.parametrize("locked", [False, True])
def test_rows_that_are_asked_for_are_those_of_all(locked: bool) -> None:
    ours = model(bidirectional=True, dropout={"output": 0.5, "input": 0.2, "locked": locked})
    at = torch.rand(T, B, generator=torch.Generator().manual_seed(2)) < 0.3
    at &= ~beyond()
    out, asked = (ours(ids(), None, lengths=LENGTHS, at=where, generator=torch.Generator().manual_seed(1))[0] for where in (None, at))
    assert asked.shape == (int(at.sum()), V)
    torch.testing.assert_close(asked, out[at])
    assert ours(ids(), None, at=torch.zeros_like(at))[0].shape == (0, V)


def test_both_directions_carry_their_state_too() -> None:
    ours, text = model(bidirectional=True), ids()
    _, state = ours(text, None)
    assert [[s.shape for s in layer] for layer in state] == [[(B, 12)] * 2] * 4
    assert not torch.equal(ours(text, None)[0], ours(text, state)[0])


@pytest.mark.parametrize("pooling", [None, *KINDS])
def test_labels_are_answered_a_step_or_a_text(pooling: str | None) -> None:
    ours = model(3, bidirectional=True, pooling=pooling)
    out, _ = ours(ids(), None, lengths=LENGTHS)
    assert out.shape == ((T, B, 3) if pooling is None else (B, 3))
    assert ours.head.in_features == (48 if pooling == "max_mean" else 24) and ours.crf is None
    torch.autograd.backward(out.square().sum())
    learned = [parameter for parameter in ours.parameters() if parameter.requires_grad]
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in learned)


def test_last_is_what_each_direction_knows_when_it_has_read_all() -> None:
    ours, text = model(3, bidirectional=True, pooling="last"), ids()
    _, state = ours.recurrent(ours.embedding(text), None)
    known = torch.cat([state[2][0], state[3][0]], -1)  # h of the last layer, forward and reverse
    torch.testing.assert_close(ours(text, None)[0], ours.head(known))


@pytest.mark.parametrize("locked", [False, True])
def test_what_is_pooled_is_dropped_for_each_text_anew(locked: bool) -> None:
    ours = model(3, pooling="max", dropout={"output": 0.5, "locked": locked})
    out, _ = ours(ids()[:, :1].expand(T, B), None, generator=torch.Generator().manual_seed(1))
    assert not torch.allclose(out[0], out[1])


def test_the_field_is_over_the_labels() -> None:
    ours = model(3, crf=True, bidirectional=True)
    assert ours.crf is not None and ours.crf.transitions.shape == (3, 3)
    emissions, _ = ours(ids(), None, lengths=LENGTHS)
    torch.autograd.backward(ours.crf.nats(emissions, torch.zeros(T, B, dtype=torch.int64), LENGTHS).sum())
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in ours.parameters())


def test_tied_in_both_directions_the_rows_are_as_wide_as_both() -> None:
    tied = model(bidirectional=True, tied_embeddings=True, embedding_size=24)
    assert tied.head.weight is tied.embedding.weight and tied.head.weight.shape == (V, 24)
    assert logits(tied).shape == (T, B, V)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="a pooled model has one answer a text; leave out `at`"):
        model(3, pooling="max")(ids(), None, at=torch.ones(T, B, dtype=torch.bool))
    with pytest.raises(ValueError, match="sequence 1 has length 0; expected at least 1 to pool it"):
        model(3, pooling="max")(ids(), None, lengths=torch.tensor([9, 0, 6, 4]))
    with pytest.raises(ValueError, match="tied embeddings share their rows with a head of ids; this one answers with labels"):
        model(3, tied_embeddings=True)


@pytest.mark.parametrize("cell", CELLS)
def test_both_directions_are_twice_as_wide_with_as_many_parameters_again(cell: str) -> None:
    gates = CELLS[cell].gates
    assert recurrent_sizes(model(cell=cell)) == (12, 2 * gates * 12 * (12 + 12 + 2), 0)
    one, both = (model(cell=cell, bidirectional=two, num_layers=1) for two in (False, True))
    assert recurrent_sizes(both) == (24, recurrent_sizes(one).forward, recurrent_sizes(one).forward)
    deep = recurrent_sizes(model(cell=cell, bidirectional=True))
    assert deep == (24, gates * 12 * ((12 + 12 + 2) + (24 + 12 + 2)), deep.forward)
    rest = V * 12 + (24 + 1) * V  # embedding and head
    assert count_parameters(model(cell=cell, bidirectional=True)) == deep.forward + deep.reverse + rest


@pytest.mark.parametrize("bidirectional", [False, True])
def test_pairs_are_read_beside_the_characters(bidirectional: bool) -> None:
    config = ModelConfig(embedding_size=4, hidden_size=5, bidirectional=bidirectional, bigrams=BigramsConfig(max_size=64, size=3))
    model = with_pairs(CharRNN(config, 9, 2))
    assert model.recurrent.input_size == 4 + 3 * (2 if bidirectional else 1)
    ids = torch.randint(0, 9, (6, 2), generator=torch.Generator().manual_seed(0))
    before = model(ids, None)[0]
    changed = ids.clone()
    changed[4] = (changed[4] + 1) % 9
    after = model(changed, None)[0]
    # In one direction no step may know of a later character, through its pairs neither.
    assert torch.equal(before[:4], after[:4]) == (not bidirectional)


def test_pairs_are_dropped_in_training_only() -> None:
    pairs = {"max_size": 64, "size": 3}
    ours, plain = with_pairs(model(bigrams=pairs, dropout={"bigrams": 0.5})), with_pairs(model(bigrams=pairs))
    assert torch.equal(logits(ours, 1), logits(ours, 1))
    assert not torch.equal(logits(ours, 1), logits(ours, 2))
    assert torch.equal(logits(ours.eval(), 1), logits(plain))


def test_some_characters_are_read_as_unknown_in_training_only() -> None:
    model = CharRNN(ModelConfig(embedding_size=4, hidden_size=5, dropout=DropoutConfig(unknown=0.5)), 9)
    ids = torch.full((400, 2), 3)
    read: list[Tensor] = []
    model.embedding.weight.data[0] = 0.0  # unknown's
    model.recurrent.register_forward_pre_hook(lambda module, inputs: read.append(inputs[0]))
    model(ids, None, generator=torch.Generator().manual_seed(0))
    hidden = (read[0] == 0).all(-1)
    assert 0.45 < float(hidden.float().mean()) < 0.55
    assert torch.equal(read[0][~hidden], model.embedding.weight[3].expand(int((~hidden).sum()), -1))
    model.eval()(ids, None)
    assert not (read[1] == 0).all(-1).any()


@pytest.mark.parametrize(
    "options, labels, deviation", [({}, None, 1.0), ({}, 3, 0.25), ({"crf": True}, 3, 0.25), ({"pooling": "max"}, 3, 1.0)]
)
def test_characters_begin_small_where_each_step_has_a_label(options: dict[str, Any], labels: int | None, deviation: float) -> None:
    torch.manual_seed(0)
    model = CharRNN(ModelConfig(embedding_size=64, hidden_size=8, **options), 200, labels)
    assert float(model.embedding.weight.detach().std()) == pytest.approx(deviation, rel=0.05)
