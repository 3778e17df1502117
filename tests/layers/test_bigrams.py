"""A pair of neighbours has a vector of its own, of what is there and of nothing else."""

from __future__ import annotations

import pytest
import torch

from charrnn.layers.bigrams import Bigrams

# T time, B batch, P size of a pair's vector
T, B, P = 5, 3, 4


def bigrams(pairs: list[tuple[int, int]], following: bool = True) -> Bigrams:
    module = Bigrams(len(pairs) + 2, P, following=following)
    torch.nn.init.normal_(module.table.weight, generator=torch.Generator().manual_seed(0))
    module.keep(torch.tensor(pairs))
    return module


def test_a_step_has_the_pair_that_ends_there_and_the_one_that_begins_there() -> None:
    ids = torch.tensor([[7], [8], [7], [8], [9]])
    module = bigrams([(8, 7), (7, 8)])
    pairs = module(ids, None)[:, 0]  # (T, 2P)
    before, behind = pairs[:, :P], pairs[:, P:]
    none = module.table.weight[0]
    assert torch.equal(before[1:], behind[:-1])
    assert torch.equal(before[1], before[3])  # 7 8, both times
    assert not torch.equal(before[1], before[2])  # 8 7 is another pair
    for vector in (before[0], behind[-1], before[4]):  # the edges, and 8 9, which is not in the table
        assert torch.equal(vector, none)
    assert not any(torch.equal(vector, none) for vector in before[1:4])
    assert torch.equal(bigrams([(8, 7), (7, 8)], following=False)(ids, None)[:, 0], before)


def test_padding_is_the_edge_of_the_text_and_leaks_nothing() -> None:
    ids = torch.randint(0, 4, (T, B), generator=torch.Generator().manual_seed(1))
    lengths, module = torch.tensor([5, 2, 3]), bigrams([(a, b) for a in range(4) for b in range(4)])
    padded = module(ids, lengths)
    for b, length in enumerate(lengths.tolist()):
        assert torch.equal(padded[:length, b], module(ids[:length, b : b + 1], None)[:, 0])
        ids[length:, b] = (ids[length:, b] + 1) % 4
    again = module(ids, lengths)
    assert all(torch.equal(padded[:length, b], again[:length, b]) for b, length in enumerate(lengths.tolist()))


def test_one_character_has_no_neighbour() -> None:
    module = bigrams([(1, 1)])
    assert torch.equal(module(torch.ones(1, 2, dtype=torch.int64), None), module.table.weight[0].repeat(2).expand(1, 2, -1))


def test_dropped_pairs_are_none_and_in_training_only() -> None:
    module, ids = bigrams([(0, 0)], following=False), torch.zeros(200, 5, dtype=torch.int64)
    kept = module(ids, None)
    dropped = module(ids, None, dropped=0.5, generator=torch.Generator().manual_seed(2))
    none = (dropped == module.table.weight[0]).all(-1)
    assert 0.4 < float(none.float().mean()) < 0.6
    assert torch.equal(dropped[~none], kept[~none])
    assert torch.equal(module.eval()(ids, None, dropped=0.5), kept)


def test_a_table_has_room_for_so_many() -> None:
    with pytest.raises(ValueError, match="3 pairs; the table has room for 2"):
        Bigrams(2, P, following=True).keep(torch.zeros(3, 2, dtype=torch.int64))
