"""The field against a walk through every sequence of labels there is."""

from __future__ import annotations

from itertools import pairwise, product

import pytest
import torch
from torch import Tensor

from charrnn.data.batch import IGNORED
from charrnn.layers.crf import CRF, NONE

# T time, B batch, K labels
T, K = 5, 3
LENGTHS = (5, 1, 3, 0, 2, 4)
B = len(LENGTHS)


def crf(seed: int = 0, whole_numbers: bool = False) -> CRF:
    model, generator = CRF(K), torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        drawn = torch.randn(parameter.shape, generator=generator)
        parameter.data.copy_(drawn.round() if whole_numbers else drawn)
    return model


def emissions(seed: int = 1, steps: int = T) -> Tensor:
    return torch.randn(steps, B, K, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def targets(steps: int = T) -> Tensor:
    return torch.randint(K, (steps, B), generator=torch.Generator().manual_seed(2))


def score(start: Tensor, transitions: Tensor, end: Tensor, scores: Tensor, labels: tuple[int, ...]) -> Tensor:
    """s(y) of the docstring, for the emissions (length, K) of one sequence."""
    steps = torch.stack([scores[t, label] for t, label in enumerate(labels)]).sum()
    pairs = torch.stack([transitions[a, b] for a, b in pairwise(labels)]).sum() if len(labels) > 1 else 0
    return start[labels[0]] + steps + pairs + end[labels[-1]]


def brute_force(start: Tensor, transitions: Tensor, end: Tensor, scores: Tensor, known: list[int]) -> Tensor:
    every = list(product(range(K), repeat=len(known)))
    all_scores = torch.stack([score(start, transitions, end, scores, labels) for labels in every])
    fits = torch.tensor([all(k in (NONE, label) for k, label in zip(known, labels)) for labels in every])
    return all_scores.logsumexp(0) - all_scores[fits].logsumexp(0)


@pytest.mark.parametrize("unknown", [False, True], ids=["known", "some_unknown"])
@pytest.mark.parametrize("ragged", [True, False], ids=["ragged", "dense"])
def test_nats_and_every_gradient_are_those_of_all_sequences(ragged: bool, unknown: bool) -> None:
    model, given, labels = crf(), emissions(), targets()
    if unknown:
        labels[[0, 2, 4, 0], [0, 0, 0, 4]] = NONE
    lengths = LENGTHS if ragged else (T,) * B
    weights = torch.arange(1.0, B + 1)
    nats = model.nats(given, labels, torch.tensor(lengths) if ragged else None)

    start, transitions, end, exact = (p.detach().double().requires_grad_() for p in (model.start, model.transitions, model.end, given))
    known = [labels[:length, b].tolist() for b, length in enumerate(lengths)]
    expected = torch.stack(
        [
            brute_force(start, transitions, end, exact[: len(sequence), b], sequence) if sequence else torch.zeros((), dtype=torch.float64)
            for b, sequence in enumerate(known)
        ]
    )
    torch.testing.assert_close(nats.double(), expected, rtol=1e-5, atol=1e-5)
    got = torch.autograd.grad((nats * weights).sum(), [model.start, model.transitions, model.end, given])
    wanted = torch.autograd.grad((expected * weights).sum(), [start, transitions, end, exact])
    for ours, theirs in zip(got, wanted, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-5)


def test_probabilities_of_all_sequences_sum_to_one() -> None:
    model, given = crf(), emissions()
    every = torch.tensor(list(product(range(K), repeat=T))).t()  # (T, K^T)
    nats = model.nats(given[:, :1].expand(-1, every.size(1), -1), every, None)
    assert nats.neg().exp().sum().item() == pytest.approx(1.0, abs=1e-4)


def test_it_begins_as_a_softmax_at_each_step() -> None:
    given, labels = emissions(), targets()
    expected = torch.nn.functional.cross_entropy(given.flatten(0, 1), labels.flatten(), reduction="none").view(T, B).sum(0)
    torch.testing.assert_close(CRF(K).nats(given, labels, None), expected)


@pytest.mark.parametrize("seed", range(4))
def test_decode_finds_the_best_of_all_sequences(seed: int) -> None:
    """Whole numbers tie often, and exactly: then the lowest label at the end decides, then at the step before, and so on."""
    model, given = crf(seed, whole_numbers=True), emissions(seed + 10).detach().round()
    decoded = model.decode(given, torch.tensor(LENGTHS))
    for b, length in enumerate(LENGTHS):
        assert (decoded[length:, b] == NONE).all()
        if length:
            every = list(product(range(K), repeat=length))
            best = max(
                every, key=lambda y: (score(model.start, model.transitions, model.end, given[:, b], y).item(), [-k for k in y[::-1]])
            )
            assert tuple(decoded[:length, b].tolist()) == best


def test_decode_of_nothing_but_ties_is_the_lowest_label() -> None:
    assert torch.equal(CRF(K).decode(torch.zeros(T, B, K), None), torch.zeros(T, B, dtype=torch.int64))


def test_what_is_no_label_is_what_data_calls_ignored() -> None:
    assert NONE == IGNORED


def test_padding_and_batch_mates_leave_no_trace() -> None:
    model, lengths = crf(), torch.tensor(LENGTHS)
    given, changed, labels, others = emissions(), emissions(), targets(), targets()
    padding = torch.arange(T).unsqueeze(-1) >= lengths
    with torch.no_grad():
        changed[padding] = 100
        others[padding] = NONE
    results = []
    for scores, sequence in ((given, labels), (changed, others)):
        nats = model.nats(scores, sequence, lengths)
        results.append([nats, *torch.autograd.grad(nats.sum(), [scores, *model.parameters()]), model.decode(scores, lengths)])
    assert all(torch.equal(got, expected) for got, expected in zip(*results, strict=True))
    for b, length in enumerate(LENGTHS):
        if length:
            alone = model.nats(given[:length, b : b + 1], labels[:length, b : b + 1], None)
            torch.testing.assert_close(alone[0], results[0][0][b])


def test_one_step_has_a_gradient_for_every_parameter() -> None:
    model, given = crf(), emissions(steps=1)
    grads = torch.autograd.grad(model.nats(given, targets(1), None).sum(), [model.transitions, model.start, model.end, given])
    assert not grads[0].any() and all(grad.any() for grad in grads[1:])


def test_autocast_and_bf16_emissions_are_summed_in_fp32() -> None:
    model, given, labels, lengths = crf(), emissions(), targets(), torch.tensor(LENGTHS)
    low = given.detach().bfloat16()
    expected = model.nats(low.float(), labels, lengths)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model.nats(low, labels, lengths), expected)
        assert expected.dtype == torch.float32
        assert torch.equal(model.decode(low, lengths), model.decode(low.float(), lengths))


def test_a_long_text_neither_overflows_nor_vanishes() -> None:
    model = crf()
    given = (emissions(steps=500).detach() * 50).requires_grad_()
    nats = model.nats(given, targets(500), None)
    (grad,) = torch.autograd.grad(nats.sum(), given)
    assert nats.isfinite().all() and (nats >= 0).all() and grad.isfinite().all()
