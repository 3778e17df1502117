"""Labels for texts of any length: the same wherever windows are cut, and the best sequence of a whole document."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from charrnn.config import DataConfig, ModelConfig
from charrnn.data.corpus import Ids
from charrnn.data.vocabulary import Vocabulary
from charrnn.layers.crf import CRF
from charrnn.models.char_rnn import CharRNN
from charrnn.tagging import Scheme, Tagged, choose, closes_of, decide, emissions, mark, probabilities, viterbi

V, K = 12, 4


class Neighbours(nn.Module):
    """Sees `reach` characters on both sides and no further; beyond the ends of what it reads it sees id 0."""

    def __init__(self, reach: int) -> None:
        super().__init__()
        self.reach = reach
        self.weight = nn.Parameter(torch.randint(-9, 10, (2 * reach + 1, V, K), generator=torch.Generator().manual_seed(1)).float())

    def forward(self, inputs: Tensor, state: object, *, lengths: Tensor | None = None) -> tuple[Tensor, tuple[()]]:
        steps, batch = inputs.shape
        if lengths is not None:
            inputs = inputs.masked_fill(torch.arange(steps).unsqueeze(1) >= lengths, 0)
        edge = inputs.new_zeros(self.reach, batch)
        wide = torch.cat([edge, inputs, edge])
        return sum((self.weight[i][wide[i : i + steps]] for i in range(len(self.weight))), torch.zeros(())), ()


def text(count: int, seed: int = 0) -> Ids:
    return np.random.default_rng(seed).integers(1, V, count)


def bilstm(crf: bool = False) -> CharRNN:
    torch.manual_seed(0)
    return CharRNN(ModelConfig(embedding_size=6, hidden_size=8, bidirectional=True, crf=crf), V, K).eval()


@pytest.mark.parametrize("length", [9, 16, 30, 57])
def test_what_a_margin_covers_is_the_same_wherever_windows_are_cut(length: int) -> None:
    edges = np.array([0, 100, 103, 103, 150])
    whole = emissions(Neighbours(2), text(150), edges, 1000)
    assert torch.equal(emissions(Neighbours(2), text(150), edges, length, margin=2), whole)
    assert not torch.equal(emissions(Neighbours(2), text(150), edges, length, margin=1), whole)  # too little is seen


def test_a_document_knows_nothing_of_its_neighbours() -> None:
    edges = np.array([0, 7, 20])
    together = emissions(bilstm(), text(20), edges, 50)
    alone = torch.cat([emissions(bilstm(), text(20)[a:b], np.array([0, b - a]), 50) for a, b in pairwise(edges)])
    torch.testing.assert_close(together, alone)


def test_an_lstm_in_windows_nearly_answers_as_over_the_whole_text() -> None:
    edges = np.array([0, 400])
    whole = emissions(bilstm(), text(400), edges, 400)
    one, other = (emissions(bilstm(), text(400), edges, length) for length in (64, 90))
    torch.testing.assert_close(one, whole, atol=2e-3, rtol=0)
    torch.testing.assert_close(other, whole, atol=2e-3, rtol=0)
    cut_hard = emissions(bilstm(), text(400), edges, 64, margin=0)
    assert (cut_hard - whole).abs().max() > 10 * (one - whole).abs().max()


def crf(seed: int, labels: int = K) -> CRF:
    layer, generator = CRF(labels), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(2 * torch.randn(parameter.shape, generator=generator))
    return layer


@settings(deadline=None, max_examples=25)  # two cores may be busy with something else
@given(st.integers(1, 60), st.integers(1, 9), st.integers(0, 999))
def test_viterbi_in_chunks_is_viterbi(count: int, chunk: int, seed: int) -> None:
    values = torch.randn(count, K, generator=torch.Generator().manual_seed(seed))
    expected = crf(seed).decode(values.unsqueeze(1), None).squeeze(1)
    assert torch.equal(viterbi(crf(seed), values, chunk), expected)


def test_a_crf_judges_documents_one_by_one_and_whole() -> None:
    model = bilstm(crf=True)
    model.crf = crf(3)
    values = torch.randn(700, K, generator=torch.Generator().manual_seed(2))
    edges = np.array([0, 1, 40, 40, 660, 700])
    found = decide(model, values, edges, marks=False)
    for begin, end in pairwise(edges):
        if end > begin:
            assert found[begin:end].tolist() == model.crf.decode(values[begin:end].unsqueeze(1), None).squeeze(1).tolist()


def test_probabilities_with_a_crf_are_its_marginals() -> None:
    model = bilstm(crf=True)
    model.crf = crf(5)
    values, edges = torch.randn(700, K, generator=torch.Generator().manual_seed(4)), np.array([0, 3, 700])
    found = probabilities(model, Tagged(decide(model, values, edges, marks=False), values, edges))
    torch.testing.assert_close(found.sum(1), torch.ones(700), atol=1e-3, rtol=0)
    weights = torch.zeros(K, K, K)  # of all 64 sequences of the first document
    for i in range(K):
        for j in range(K):
            for k in range(K):
                score = -model.crf.nats(values[:3].unsqueeze(1), torch.tensor([[i], [j], [k]]), None)
                weights[i, j, k] = score.exp().item()
    by_hand = torch.stack([weights.sum((1, 2)), weights.sum((0, 2)), weights.sum((0, 1))])
    torch.testing.assert_close(found[:3], by_hand, atol=1e-3, rtol=0)
    alone = Tagged(decide(model, values[3:], np.array([0, 697]), marks=False), values[3:], np.array([0, 697]))
    torch.testing.assert_close(found[3:], probabilities(model, alone), atol=1e-3, rtol=0)


def test_marks_are_weighed_together_against_none() -> None:
    shares = torch.tensor([[0.4, 0.35, 0.25], [0.6, 0.3, 0.1], [0.2, 0.3, 0.5]]).log()
    assert choose(shares, None, marks=True).tolist() == [1, 0, 2]
    assert choose(shares, None, marks=False).tolist() == [0, 0, 2]
    assert choose(shares, torch.tensor([-1.0, 0.0, 0.0]), marks=True).tolist() == [1, 1, 2]
    assert choose(shares, torch.tensor([0.0, 0.0, 1.0]), marks=True).tolist() == [2, 0, 2]


@pytest.mark.parametrize(
    "labels, answers, spans",
    [
        (["O", "B-A", "I-A", "B-B"], "O B-A I-A O B-A B-A B-B", {(1, 3, "A"), (4, 5, "A"), (5, 6, "A"), (6, 7, "B")}),
        (["O", "B-A", "I-A", "I-B"], "I-A I-A I-B O I-B", {(0, 2, "A"), (2, 3, "B"), (4, 5, "B")}),  # begun by an I-, as CoNLL's scorer
        (["O", "B-A", "I-A", "E-A", "S-A"], "B-A I-A E-A S-A S-A O E-A", {(0, 3, "A"), (3, 4, "A"), (4, 5, "A"), (6, 7, "A")}),
        (["B", "M", "E", "S"], "B M E S B E", {(0, 3, "span"), (3, 4, "span"), (4, 6, "span")}),
        (["O", "N", "V"], "N N O V", {(0, 1, "N"), (1, 2, "N"), (3, 4, "V")}),
    ],
)
def test_spans_of_labels(labels: list[str], answers: str, spans: set[tuple[int, int, str]]) -> None:
    scheme = Scheme.of(labels)
    found = scheme.spans([labels.index(label) for label in answers.split()], [0, len(answers.split())])
    assert {(start, stop, scheme.kinds[kind]) for start, stop, kind in found} == spans


def test_a_span_ends_with_its_document() -> None:
    scheme = Scheme.of(["O", "B-A", "I-A"])
    assert list(scheme.spans([1, 2, 2, 2, -1, 2], [0, 2, 6])) == [(0, 2, 0), (2, 4, 0), (5, 6, 0)]


def test_documents_of_a_text() -> None:
    assert closes_of("a\n\nb\nc", "lines") == [2, 3, 5]
    assert closes_of("a\nb\n \n\nc", "blank_lines") == [7]
    assert closes_of("a\nb", "auto") == []


def test_a_text_without_anything_to_read_stays_as_it_is() -> None:
    vocabulary = Vocabulary.from_counts({ord(c): 1 for c in "道可非常名，。"}, ends=False)
    data = DataConfig.model_validate({"path": "x", "labels": "punctuation", "marks": "，。", "example_length": 8})
    torch.manual_seed(0)
    model = CharRNN(ModelConfig(embedding_size=4, hidden_size=4), len(vocabulary), 3).eval()
    assert mark(model, vocabulary, data, "\n 「」\n").written(("", "，", "。")) == ["\n 「」\n"]
    assert mark(model, vocabulary, data, "").written(("", "，", "。")) == [""]
