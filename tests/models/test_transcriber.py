"""The transcriber: one step after the other is the whole, each sequence of a batch is itself, and what training changes in how it runs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from charrnn.config import ModelConfig
from charrnn.models.speller import Encoded
from charrnn.models.transcriber import CTC_BLANK, Transcriber

# T frames, B batch, FEATURES numbers of a frame, V vocabulary size, L characters
FEATURES, V, L = 4, 6, 5
LENGTHS = (9, 4, 1, 7)
T, B = max(LENGTHS), len(LENGTHS)
END = 1


def settings(**model: Any) -> ModelConfig:
    decoder = {"hidden_size": 5, "attention_size": 3, "location_filters": 2, "location_width": 2} | model.pop("decoder", {})
    sizes = {"embedding_size": 3, "hidden_size": 4, "bidirectional": True, "pyramid": {"levels": 2}}
    return ModelConfig.model_validate(sizes | model | {"decoder": decoder})


def transcriber(*, normalised: bool = False, dtype: torch.dtype = torch.float64, **model: Any) -> Transcriber:
    torch.manual_seed(0)
    built = Transcriber(settings(**model), FEATURES, V, normalised=normalised)
    with torch.no_grad():
        built.speller.head.weight.mul_(5)  # so that what is the likeliest differs from character to character
    return built.to(dtype).eval()


def frames(dtype: torch.dtype = torch.float64) -> Tensor:
    x = torch.randn(T, B, FEATURES, generator=torch.Generator().manual_seed(1))
    return nn.utils.rnn.pad_sequence([x[:length, b] for b, length in enumerate(LENGTHS)]).to(dtype)


def said() -> Tensor:
    """The characters before each, `end` first."""
    drawn = torch.randint(2, V, (L, B), generator=torch.Generator().manual_seed(2))
    return torch.cat([torch.full((1, B), END), drawn[:-1]])


def encoded(model: Transcriber) -> Encoded:
    return model.encode(frames(next(model.parameters()).dtype), torch.tensor(LENGTHS))


CELLS = ["rnn_tanh", "rnn_relu", "lstm", "gru"]
DECODERS: list[dict[str, Any]] = [{"attention": "additive"}, {"attention": "location", "num_layers": 2}]


@pytest.mark.parametrize("decoder", DECODERS, ids=["additive", "location"])
@pytest.mark.parametrize("cell", CELLS)
def test_one_character_after_the_other_is_all_at_once(cell: str, decoder: dict[str, Any]) -> None:
    model = transcriber(cell=cell, decoder=decoder)
    heard, previous = encoded(model), said()
    whole = model(heard, previous)
    assert whole.shape == (L, B, V) and whole.dtype == torch.float64
    spelling = model.start(heard)
    for i in range(L):
        logits, spelling = model.next(previous[i], spelling, heard)
        assert torch.equal(logits, whole[i])
        torch.testing.assert_close(spelling.alignment.sum(0), torch.ones(B, dtype=torch.float64))


def test_a_step_is_that_of_the_paper() -> None:
    """s_i = RNN(s_{i-1}, [y_{i-1} ; c_{i-1}]), c_i = attention(s_i, h), logits = U [s_i ; c_i] + b."""
    model = transcriber(cell="lstm")
    heard, previous = encoded(model), said()
    cell = nn.LSTMCell(3 + 8, 5).double()
    cell.load_state_dict({name.removesuffix("_l0"): p for name, p in model.speller.recurrent.state_dict().items()})
    s = c = torch.zeros(B, 5, dtype=torch.float64)
    context = torch.zeros(B, 8, dtype=torch.float64)
    lengths = [3, 1, 1, 2]
    alignment = torch.stack([torch.tensor([1 / n] * n + [0.0] * (3 - n), dtype=torch.float64) for n in lengths], 1)
    for i, expected in enumerate(model(heard, previous)):
        s, c = cell(torch.cat([model.speller.embedding.weight[previous[i]], context], -1), (s, c))
        context, alignment = model.speller.attention(s, heard.outputs, heard.keys, heard.mask, alignment)
        logits = torch.cat([s, context], -1) @ model.speller.head.weight.T + model.speller.head.bias
        torch.testing.assert_close(logits, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("normalised", [False, True])
def test_each_of_a_ragged_batch_is_as_if_alone(normalised: bool) -> None:
    model = transcriber(normalised=normalised)
    if model.mean is not None:
        model.mean.data.normal_()  # so that padding is not zero when it is normalised
    together, previous = encoded(model), said()
    assert together.lengths is not None and together.lengths.tolist() == [3, 1, 1, 2]
    logits, ctc = model(together, previous), model.ctc_logits(together)
    assert ctc is not None
    for b, length in enumerate(LENGTHS):
        alone = model.encode(frames()[:length, b : b + 1], None)
        steps = len(alone.outputs)
        for heard in (alone, together.column(b)):
            assert heard.lengths is None and heard.mask is None
            torch.testing.assert_close(heard.outputs, together.outputs[:steps, b : b + 1])
            torch.testing.assert_close(model(heard, previous[:, b : b + 1])[:, 0], logits[:, b])
            found = model.ctc_logits(heard)
            assert found is not None
            torch.testing.assert_close(found[:, 0], ctc[:steps, b])


def test_copies_of_a_column_and_rows_of_where_the_decoder_stands() -> None:
    model = transcriber()
    heard = encoded(model)
    three = heard.column(3, 3)
    assert three.outputs.shape == (2, 3, 8) and three.keys.shape == (2, 3, 3)
    assert all(torch.equal(three.outputs[:, k], heard.outputs[:2, 3]) for k in range(3))
    _, spelling = model.next(torch.tensor([2, 3, 4]), model.start(three), three)
    order = torch.tensor([2, 0, 0, 1])
    rows = spelling.rows(order)
    _, expected = model.next(torch.tensor([4, 2, 2, 3]), model.start(heard.column(3, 4)), heard.column(3, 4))
    torch.testing.assert_close(rows, expected)


def test_it_starts_without_a_memory_and_having_looked_everywhere() -> None:
    model = transcriber(cell="lstm", decoder={"num_layers": 2})
    heard = encoded(model)
    spelling = model.start(heard)
    assert len(spelling.recurrent) == 2 and all(s.shape == (B, 5) and not s.any() for layer in spelling.recurrent for s in layer)
    assert spelling.context.shape == (B, 8) and not spelling.context.any()
    assert spelling.alignment[:, 0].tolist() == pytest.approx([1 / 3] * 3)
    assert spelling.alignment[:, 1].tolist() == pytest.approx([1, 0, 0])


# Training


def own_guesses(model: Transcriber, heard: Encoded, told: Tensor) -> Tensor:
    """The characters before each, (L, B), those that are not told being the likeliest by what stands before them."""
    before = said()
    for i in range(1, L):
        guesses = model(heard, before[:i])[-1].argmax(-1)
        before[i] = torch.where(told[i], before[i], guesses)
    return before


@pytest.mark.parametrize("rate", [0.0, 0.5, 1.0])
def test_scheduled_sampling_tells_the_true_character_so_often(rate: float) -> None:
    model = transcriber()
    heard = encoded(model)
    expected_draw = torch.rand(L, B, generator=torch.Generator().manual_seed(3)) < rate
    told = own_guesses(model, heard, expected_draw)
    guessed = own_guesses(model, heard, torch.zeros(L, B, dtype=torch.bool))
    assert not torch.equal(guessed, said())  # else nothing is shown
    model.train()
    found = model(heard, said(), teacher_forcing_rate=rate, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(found, model(heard, told))
    if rate in (0.0, 1.0):
        assert torch.equal(told, said() if rate else guessed)


def test_who_is_not_being_trained_is_always_told() -> None:
    model = transcriber()
    heard = encoded(model)
    assert torch.equal(model(heard, said(), teacher_forcing_rate=0.0), model(heard, said()))


def test_what_it_guesses_itself_has_a_gradient_through_its_embedding_and_none_through_the_guess() -> None:
    """In double precision against a definition, with the guesses of one pass as they are."""
    model = transcriber().train()
    guessed = own_guesses(model, encoded(model), torch.zeros(L, B, dtype=torch.bool))
    d = torch.randn(L, B, V, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    parameters = [p for name, p in model.named_parameters() if not name.startswith("ctc")]
    ours = torch.autograd.grad(model(encoded(model), said(), teacher_forcing_rate=0.0), parameters, d)
    theirs = torch.autograd.grad(model(encoded(model), guessed), parameters, d)
    for got, expected in zip(ours, theirs):
        torch.testing.assert_close(got, expected)


PLACES: list[dict[str, Any]] = [{place: 0.5} for place in ("embedding", "input", "between_layers", "output", "weight_hh")]


@pytest.mark.parametrize("dropout", PLACES + [{"input": 0.5, "between_layers": 0.5, "locked": True}], ids=str)
def test_dropout_is_of_training_and_drawn_from_the_generator(dropout: dict[str, Any]) -> None:
    still, model = transcriber(), transcriber(dropout=dropout).train()

    def run(seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        heard = model.encode(frames(), torch.tensor(LENGTHS), generator=generator)
        logits: Tensor = model(heard, said(), generator=generator)
        return logits

    assert torch.equal(run(1), run(1)) and not torch.equal(run(1), run(2))
    model.eval()
    assert torch.equal(run(1), still(encoded(still), said()))


def test_locked_input_drops_the_same_features_of_all_frames() -> None:
    model = transcriber(dropout={"input": 0.5, "locked": ["input"]}).train()
    seen: list[Tensor] = []
    model.encoder.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    model.encode(torch.ones(T, B, FEATURES, dtype=torch.float64), None, generator=torch.Generator().manual_seed(1))
    (read,) = seen
    assert set(read.flatten().tolist()) == {0.0, 2.0} and torch.equal(read, read[:1].expand_as(read))


def test_every_parameter_has_a_gradient_that_is_right() -> None:
    """By differences of the loss itself, along a random direction in each parameter."""
    model = transcriber(cell="gru", layer_norm=True, decoder={"num_layers": 2})
    targets = torch.randint(2, V, (L, B), generator=torch.Generator().manual_seed(5))

    def loss() -> Tensor:
        heard = encoded(model)
        ctc = model.ctc_logits(heard)
        assert ctc is not None
        return nn.functional.cross_entropy(model(heard, said()).flatten(0, 1), targets.flatten()) + ctc.square().mean()

    torch.autograd.backward(loss())
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), name
        way, step = torch.randn_like(parameter), 1e-6
        with torch.no_grad():
            parameter.add_(way, alpha=step)
            above = loss()
            parameter.add_(way, alpha=-2 * step)
            below = loss()
            parameter.add_(way, alpha=step)
        assert float((above - below) / (2 * step)) == pytest.approx(float((parameter.grad * way).sum()), rel=1e-4, abs=1e-8), name


# What it is made of


def test_frames_are_normalised_by_what_is_stored_and_never_trained() -> None:
    model, plain = transcriber(normalised=True), transcriber()
    assert model.mean is not None and model.deviation is not None and plain.mean is None
    with torch.no_grad():
        model.mean.copy_(torch.tensor([1.0, -2.0, 0.0, 3.0]))
        model.deviation.copy_(torch.tensor([0.5, 1.0, 2.0, 4.0]))
    x = frames()
    torch.testing.assert_close(
        model.encode(x * model.deviation + model.mean, torch.tensor(LENGTHS)).outputs, plain.encode(x, torch.tensor(LENGTHS)).outputs
    )
    model(encoded(model), said()).sum().backward()
    assert model.mean.grad is None and model.deviation.grad is None
    assert {"mean", "deviation"} <= set(model.state_dict())


def test_without_a_weight_there_is_no_ctc_head() -> None:
    model = transcriber(decoder={"ctc_weight": 0.0})
    assert model.ctc is None and model.ctc_logits(encoded(model)) is None and not [n for n in model.state_dict() if "ctc" in n]
    assert CTC_BLANK == 0


def test_additive_attention_has_no_filters() -> None:
    model = transcriber(decoder={"attention": "additive"})
    assert model.speller.attention.filters is None and model.speller.attention.location is None


@pytest.mark.parametrize("pyramid, steps", [({"levels": 0}, 9), ({"levels": 1}, 5), ({"levels": 3}, 2), ({"levels": 2, "reduction": 3}, 1)])
def test_time_grows_shorter_from_level_to_level(pyramid: dict[str, int], steps: int) -> None:
    heard = encoded(transcriber(pyramid=pyramid))
    assert heard.outputs.shape == (steps, B, 8) and heard.keys.shape == (steps, B, 3)


def test_weights_begin_of_unit_variance() -> None:
    model = Transcriber(settings(hidden_size=64, embedding_size=64, decoder={"hidden_size": 64}), 80, 50)
    assert float(model.speller.embedding.weight.detach().std()) == pytest.approx(1, rel=0.1)
    for stack in model.recurrent_stacks():
        weight = stack.weights(0).weight_ih
        assert float(weight.detach().std()) == pytest.approx(weight.size(1) ** -0.5, rel=0.1)
    assert len(model.recurrent_stacks()) == 4 and model.recurrent_stacks()[-1] is model.speller.recurrent


def test_on_meta_only_shapes_are_made() -> None:
    with torch.device("meta"):
        model = Transcriber(settings(), FEATURES, V, normalised=True)
    assert {name: p.shape for name, p in model.named_parameters()} == {
        name: p.shape for name, p in transcriber(normalised=True).named_parameters()
    }


def test_what_backward_needs_grows_with_frames_and_characters() -> None:
    model = transcriber()

    def numbers(steps: int, batch: int, characters: int) -> int:
        return model.numbers_kept(torch.Size((steps, batch, FEATURES)), torch.Size((characters, batch)), characters * batch)

    base = numbers(100, 4, 20)
    assert base < numbers(200, 4, 20) < 2 * base and base < numbers(100, 4, 40) < 2 * base
    assert numbers(100, 8, 20) == 2 * base
    kept = sum(t.numel() for t in saved(model, frames().repeat(12, 1, 1)[:100], 20))
    assert kept / 3 < base < 3 * kept


def saved(model: Transcriber, x: Tensor, characters: int) -> list[Tensor]:
    """What autograd keeps of frames (T, B, F) and so many characters, each storage once, without the weights."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    found: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in own and tensor.is_floating_point():
            found.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        heard = model.encode(x, None)
        logits = model(heard, torch.ones(characters, B, dtype=torch.int64))
        kept = list(found.values())
        del logits
    return kept
