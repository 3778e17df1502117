"""Attention against sums written out, one sequence and one step at a time."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from charrnn.layers.attention import Attention, uniform
from charrnn.layers.pyramid import within

# S encoder steps, B batch, W width of the encoder's outputs, Q width of the query, A attention_size, K location filters
S, W, Q, A, K, REACH = 6, 4, 3, 5, 2, 2
LENGTHS = (6, 1, 4, 3)
B = len(LENGTHS)


def attention(filters: int, dtype: torch.dtype = torch.float64) -> Attention:
    torch.manual_seed(0)
    model = Attention(Q, W, A, filters=filters, reach=REACH).to(dtype)
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    return model


def given(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """A query, the encoder's outputs with zeros behind the shorter ones, and the alignment before."""
    generator = torch.Generator().manual_seed(1)
    query, outputs = torch.randn(B, Q, generator=generator), torch.randn(S, B, W, generator=generator)
    mask = within(torch.tensor(LENGTHS), S)
    before = torch.rand(S, B, generator=generator) * mask
    drawn = query, outputs * mask.unsqueeze(-1), before / before.sum(0)
    return drawn[0].to(dtype).requires_grad_(), drawn[1].to(dtype).requires_grad_(), drawn[2].to(dtype).requires_grad_()


def plain(model: Attention, query: Tensor, outputs: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
    """Of one sequence: query (Q,), outputs (length, W), before (length,) -> context (W,), alignment (length,)."""
    energies = []
    for s in range(len(outputs)):
        inner = model.query.weight @ query + model.key.weight @ outputs[s] + model.key.bias
        if model.filters is not None and model.location is not None:
            for k in range(K):
                reached = [
                    model.filters.weight[k, 0, d + REACH] * before[s + d] for d in range(-REACH, REACH + 1) if 0 <= s + d < len(outputs)
                ]
                inner = inner + model.location.weight[:, k] * torch.stack(reached).sum()
        energies.append((model.energy.weight[0] * torch.tanh(inner)).sum())
    odds = torch.stack([energy.exp() for energy in energies])
    alignment = odds / odds.sum()
    return torch.stack([share * step for share, step in zip(alignment, outputs)]).sum(0), alignment


@pytest.mark.parametrize("filters", [0, K])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_context_alignment_and_every_gradient_are_those_of_the_sums(dtype: torch.dtype, filters: int) -> None:
    model, mask = attention(filters, dtype), within(torch.tensor(LENGTHS), S)
    query, outputs, before = given(dtype)
    context, alignment = model(query, outputs, model.keys(outputs), mask, before)
    found = [plain(model, query[b], outputs[:n, b], before[:n, b]) for b, n in enumerate(LENGTHS)]
    contexts, alignments = torch.stack([c for c, _ in found]), nn.utils.rnn.pad_sequence([a for _, a in found])
    assert alignment.dtype == context.dtype == dtype
    rtol, atol = (1e-11, 1e-12) if dtype == torch.float64 else (1e-4, 1e-5)
    torch.testing.assert_close(context, contexts, rtol=rtol, atol=atol)
    torch.testing.assert_close(alignment, alignments, rtol=rtol, atol=atol)

    leaves = {"query": query, "outputs": outputs, **dict(model.named_parameters())} | ({"before": before} if filters else {})
    d = torch.randn(B, W, generator=torch.Generator().manual_seed(2)).to(dtype), torch.rand(S, B).to(dtype)
    ours = torch.autograd.grad((context, alignment), list(leaves.values()), d)
    theirs = torch.autograd.grad((contexts, alignments), list(leaves.values()), d)
    for name, got, expected in zip(leaves, ours, theirs):
        got = got * mask if name == "before" else got  # what it was beyond a length is 0, and nobody else's to move
        torch.testing.assert_close(got, expected, rtol=rtol, atol=atol, msg=lambda text, name=name: f"{name}: {text}")  # type: ignore[misc]


@pytest.mark.parametrize("filters", [0, K])
def test_nothing_beyond_a_length_has_weight_or_gradient_or_a_say(filters: int) -> None:
    model, mask = attention(filters), within(torch.tensor(LENGTHS), S)
    query, outputs, before = given()
    _, dirty, _ = given()
    with torch.no_grad():
        dirty[~mask] = 1e3
    results = []
    for read in (outputs, dirty):
        context, alignment = model(query, read, model.keys(read), mask, before)
        grads = torch.autograd.grad(context.square().sum(), [read, *model.parameters()])
        results.append([context, alignment, *grads])
        assert not alignment[~mask].any() and not grads[0][~mask].any()
        torch.testing.assert_close(alignment.sum(0), torch.ones(B, dtype=torch.float64))
    assert all(torch.equal(clean, other) for clean, other in zip(*results))


def test_no_mask_is_one_of_all_steps() -> None:
    model = attention(K)
    query, outputs, before = given()
    whole = torch.ones(S, B, dtype=torch.bool)
    for got, expected in zip(
        model(query, outputs, model.keys(outputs), None, before), model(query, outputs, model.keys(outputs), whole, before)
    ):
        assert torch.equal(got, expected)


def test_only_with_filters_does_it_know_where_it_looked() -> None:
    query, outputs, before = given()
    elsewhere = before.flip(0)
    for filters in (0, K):
        model = attention(filters)
        one, other = (model(query, outputs, model.keys(outputs), None, looked)[1] for looked in (before, elsewhere))
        assert torch.equal(one, other) == (filters == 0)


def test_a_shift_of_all_that_was_seen_shifts_where_it_looks() -> None:
    """The convolution is one over steps, the same at each of them, and its first weight is of the step that lies farthest back."""
    model = attention(1)
    assert model.filters is not None and model.location is not None
    with torch.no_grad():
        for parameter in (model.query.weight, model.key.weight, model.key.bias, model.filters.weight):
            parameter.zero_()
        model.filters.weight[0, 0, 0] = 1.0  # looks REACH steps back
        model.location.weight.fill_(1.0)
        model.energy.weight.fill_(100.0)
    query, outputs, _ = given()
    for s in range(S - REACH):
        before = torch.zeros(S, B, dtype=torch.float64)
        before[s] = 1.0
        assert model(query, outputs, model.keys(outputs), None, before)[1].argmax(0).tolist() == [s + REACH] * B


def test_half_the_precision_still_sums_to_one_in_float32() -> None:
    model = attention(K, torch.float32)
    query, outputs, before = given(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        context, alignment = model(query, outputs.bfloat16(), model.keys(outputs), within(torch.tensor(LENGTHS), S), before)
    assert alignment.dtype == torch.float32 and context.dtype == torch.bfloat16
    torch.testing.assert_close(alignment.sum(0), torch.ones(B))


def test_large_energies_neither_overflow_nor_vanish() -> None:
    model = attention(0, torch.float32)
    with torch.no_grad():
        model.energy.weight.fill_(1e4)
    query, outputs, before = given(torch.float32)
    context, alignment = model(query, outputs, model.keys(outputs), within(torch.tensor(LENGTHS), S), before)
    (grad,) = torch.autograd.grad(context.sum(), outputs)
    assert alignment.isfinite().all() and grad.isfinite().all()


@pytest.mark.parametrize("dtype, kept", [(torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64, torch.float64)])
def test_who_has_not_looked_yet_looked_everywhere_alike(dtype: torch.dtype, kept: torch.dtype) -> None:
    outputs = torch.full((S, B, W), math.nan, dtype=dtype)  # what they hold is not read
    alignment = uniform(within(torch.tensor(LENGTHS), S), outputs)
    for b, length in enumerate(LENGTHS):
        assert alignment[:, b].tolist() == pytest.approx([1 / length] * length + [0] * (S - length))
    assert uniform(None, outputs).tolist() == [pytest.approx([1 / S] * B)] * S
    assert alignment.dtype == uniform(None, outputs).dtype == kept
