"""A pair of neighbours has a vector of its own, of what is there and of nothing else."""

from __future__ import annotations

import torch

from charrnn.layers.bigrams import Bigrams

# T time, B batch, P size of a pair's vector
T, B, P = 5, 3, 4


def bigrams(following: bool = True, buckets: int = 4096) -> Bigrams:
    module = Bigrams(buckets, P, following=following)
    torch.nn.init.normal_(module.table.weight, generator=torch.Generator().manual_seed(0))
    return module


def text() -> torch.Tensor:
    return torch.randint(0, 50, (T, B), generator=torch.Generator().manual_seed(1))


def test_a_step_has_the_pair_that_ends_there_and_the_one_that_begins_there() -> None:
    ids = torch.tensor([[7], [8], [7], [8]])
    pairs = bigrams()(ids, None)[:, 0]  # (T, 2P)
    before, behind = pairs[:, :P], pairs[:, P:]
    assert torch.equal(before[1:], behind[:-1])
    assert torch.equal(before[1], before[3])  # 7 8, both times
    assert not torch.equal(before[1], before[2])  # 8 7 is another pair
    assert not torch.equal(before[0], before[2])  # the beginning is a neighbour too
    assert torch.equal(bigrams(following=False)(ids, None)[:, 0], before)


def test_padding_is_the_edge_of_the_text_and_leaks_nothing() -> None:
    ids, lengths, module = text(), torch.tensor([5, 2, 3]), bigrams()
    padded = module(ids, lengths)
    for b, length in enumerate(lengths.tolist()):
        assert torch.equal(padded[:length, b], module(ids[:length, b : b + 1], None)[:, 0])
        ids[length:, b] += 1
    again = module(ids, lengths)
    assert all(torch.equal(padded[:length, b], again[:length, b]) for b, length in enumerate(lengths.tolist()))


def test_pairs_are_spread_over_the_table() -> None:
    """Of 10,000 pairs in 2¹⁶ buckets about 9,285 find one each, as many as random ones would: 65,535 · (1 - e^(-10000 / 65535))."""
    first, second = torch.meshgrid(torch.arange(100), torch.arange(100), indexing="ij")
    module = Bigrams(1 << 16, 1, following=False)
    torch.nn.init.zeros_(module.table.weight)
    module.table.weight.data[:, 0] = torch.arange(1 << 16).float()
    buckets = module(torch.stack([first.flatten(), second.flatten()]), None)[1, :, 0]  # (10,000)
    assert 9_100 < len(buckets.unique()) < 9_500


def test_dropped_pairs_are_no_pair_in_particular_and_in_training_only() -> None:
    module, ids = bigrams(following=False), torch.zeros(200, 5, dtype=torch.int64)
    kept = module(ids, None)
    generator = torch.Generator().manual_seed(2)
    dropped = module(ids, None, dropped=0.5, generator=generator)
    none = (dropped == module.table.weight[0]).all(-1)
    assert 0.4 < float(none.float().mean()) < 0.6
    assert torch.equal(dropped[~none], kept[~none])
    assert torch.equal(module.eval()(ids, None, dropped=0.5), kept)
