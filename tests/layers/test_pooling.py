"""A pooled vector is that of the sequence alone: checked against each one cut to its length."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from charrnn.layers.pooling import KINDS, Pooling

# T time, B batch, W width
T, B, W = 6, 4, 8
LENGTHS = torch.tensor([6, 1, 4, 3])
every_kind = pytest.mark.parametrize("kind", KINDS)


def pooling(kind: str, bidirectional: bool = False) -> Pooling:
    torch.manual_seed(0)
    return Pooling(kind, W, bidirectional=bidirectional)


def outputs() -> Tensor:
    return torch.randn(T, B, W, generator=torch.Generator().manual_seed(1)).requires_grad_()


def test_each_kind_is_what_it_says() -> None:
    x = outputs()
    for b, length in enumerate(LENGTHS.tolist()):
        alone = x[:length, b]
        assert torch.equal(pooling("last")(x, LENGTHS)[b], alone[-1])
        assert torch.equal(pooling("last", True)(x, LENGTHS)[b], torch.cat([alone[-1, : W // 2], alone[0, W // 2 :]]))
        assert torch.equal(pooling("max")(x, LENGTHS)[b], alone.amax(0))
        torch.testing.assert_close(pooling("mean")(x, LENGTHS)[b], alone.mean(0))
        torch.testing.assert_close(pooling("max_mean")(x, LENGTHS)[b], torch.cat([alone.amax(0), alone.mean(0)]))
        look = pooling("attention")
        scores = torch.tanh(alone @ look.key.weight.t() + look.key.bias) @ look.query.weight[0]
        torch.testing.assert_close(look(x, LENGTHS)[b], (scores.exp() / scores.exp().sum()) @ alone)


@every_kind
def test_no_lengths_are_all_of_it(kind: str) -> None:
    assert torch.equal(pooling(kind)(outputs(), None), pooling(kind)(outputs(), torch.full((B,), T)))


@every_kind
@pytest.mark.parametrize("beyond", [100.0, torch.nan])
def test_padding_leaves_no_trace(kind: str, beyond: float) -> None:
    layer, x, changed = pooling(kind), outputs(), outputs()
    padding = torch.arange(T).unsqueeze(-1) >= LENGTHS
    with torch.no_grad():
        changed[padding] = beyond
    got, expected = layer(changed, LENGTHS), layer(x, LENGTHS)
    assert torch.equal(got, expected)
    grads, expected_grads = (
        torch.autograd.grad(pooled.square().sum(), [given, *layer.parameters()]) for pooled, given in ((got, changed), (expected, x))
    )
    assert all(torch.equal(grad, expected_grad) for grad, expected_grad in zip(grads, expected_grads, strict=True))
    assert (grads[0][padding] == 0).all()


@every_kind
def test_bf16_outputs_are_pooled_in_bf16(kind: str) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        pooled = pooling(kind)(outputs().bfloat16(), LENGTHS)
    assert pooled.dtype == torch.bfloat16
    torch.testing.assert_close(pooled.float(), pooling(kind)(outputs(), LENGTHS), rtol=0.03, atol=0.03)


@every_kind
def test_a_text_of_length_0_is_refused(kind: str) -> None:
    with pytest.raises(ValueError) as refusal:
        pooling(kind)(outputs(), torch.tensor([6, 1, 0, 3]))
    assert str(refusal.value) == "sequence 2 has length 0; expected at least 1 to pool it"


def test_an_unknown_kind_is_named_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="unknown pooling 'sum'; expected one of last, max, mean, max_mean, attention"):
        Pooling("sum", W)
