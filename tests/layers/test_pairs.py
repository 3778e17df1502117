"""Pairs of neighbours: each character is read with both of its own, and with no padding."""

from __future__ import annotations

import pytest
import torch

from charrnn.config import ModelConfig, build_config
from charrnn.errors import ConfigError
from charrnn.layers.pairs import ROWS, Pairs
from charrnn.models.char_rnn import CharRNN


def layer(width: int = 3) -> Pairs:
    torch.manual_seed(0)
    pairs = Pairs(width)
    pairs.initialise()
    return pairs


def test_a_pair_has_one_vector_at_both_of_its_characters() -> None:
    pairs = layer()
    found = pairs(torch.tensor([[5, 7], [6, 7], [5, 5], [6, 7]]))  # (4, 2, 6)
    assert torch.equal(found[0, 0, 3:], found[1, 0, :3]) and torch.equal(found[0, 0, 3:], found[2, 0, 3:])  # 5 6 comes twice
    assert not torch.equal(found[1, 0, 3:], found[0, 0, 3:])  # 6 5 is another pair
    assert torch.equal(found[0, 1, :3], pairs.weight[0]) and torch.equal(found[-1, 1, 3:], pairs.weight[0])


def test_few_pairs_share_a_row() -> None:
    pairs = layer(1)
    first, second = torch.meshgrid(torch.arange(150), torch.arange(150), indexing="ij")
    found = pairs(torch.stack([first.flatten(), second.flatten()]))[0, :, 1]
    assert len(found.unique()) > 0.85 * 150 * 150  # thrown at random, 92 in 100 rows would hold one


def test_padding_makes_no_pair() -> None:
    pairs = layer()
    texts = torch.tensor([[5, 5], [6, 6], [0, 7]])
    found = pairs(texts, torch.tensor([2, 3]))
    assert torch.equal(found[:2, 0], pairs(texts[:2, :1])[:, 0])
    assert torch.equal(found[:, 1], pairs(texts[:, 1:])[:, 0])


def test_dropped_pairs_are_told_nowhere() -> None:
    pairs = layer()
    ids = torch.randint(9, (200, 4), generator=torch.Generator().manual_seed(1))
    found = pairs(ids, drop=0.4, generator=torch.Generator().manual_seed(2))
    gone = (found[1:, :, :3] == pairs.weight[0]).all(-1)
    assert 0.3 < gone.float().mean() < 0.5 and torch.equal(found[:-1, :, 3:], found[1:, :, :3])
    assert torch.equal(found, pairs(ids, drop=0.4, generator=torch.Generator().manual_seed(2)))


def test_a_model_reads_them_beside_its_embedding() -> None:
    config = ModelConfig.model_validate(
        {"embedding_size": 4, "hidden_size": 5, "pairs": 3, "bidirectional": True, "dropout": {"pairs": 0.5}}
    )
    model = CharRNN(config, 9, labels=2)
    assert model.recurrent.weights(0).weight_ih.shape == (20, 4 + 6) and model.get_parameter("pairs.weight").shape == (ROWS, 3)
    inputs = torch.tensor([[1], [2], [3]])
    model.eval()
    assert torch.equal(model(inputs, None)[0], model(inputs, None)[0])
    model.train()
    assert not torch.equal(model(inputs, None)[0], model(inputs, None)[0])


@pytest.mark.parametrize(
    "model, message",
    [
        ({"pairs": 3}, "model.pairs: 3 is of task classify and tag, and task is lm; leave it out, or set task: classify"),
        (
            {"dropout": {"pairs": 0.5}},
            "dropout.pairs is of model.pairs, and there are none; set pairs to their width, or leave dropout.pairs",
        ),
    ],
)
def test_a_task_that_would_read_its_answer_in_them_refuses_them(model: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_config({"data": {"path": "x"}, "model": model, "train": {"max_steps": 1}}, "x.yaml")
