"""Search against looking at everything: all paths through a tiny CTC, all texts that a tiny decoder can write."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import groupby, product
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from charrnn.config import DecodingConfig, ModelConfig
from charrnn.data.vocabulary import Vocabulary
from charrnn.decoding import Fusion, Hypothesis, PrefixScorer, beam_search, decode, greedy, longest
from charrnn.models.char_rnn import CharRNN
from charrnn.models.speller import Encoded
from charrnn.models.transcriber import Transcriber

FEATURES, VOCABULARY = 4, Vocabulary(("unknown", "end"), "abc")
UNKNOWN, END, A, B, C = range(5)
LENGTHS = (9, 5, 1, 12)


def transcriber(seed: int = 0, vocabulary: Vocabulary = VOCABULARY, *, gain: float = 6.0, **decoder: Any) -> Transcriber:
    torch.manual_seed(seed)
    sizes = {"hidden_size": 6, "attention_size": 4, "location_filters": 2, "location_width": 2} | decoder
    config = {"embedding_size": 4, "hidden_size": 5, "bidirectional": True, "pyramid": {"levels": 1}, "decoder": sizes, "cell": "gru"}
    model = Transcriber(ModelConfig.model_validate(config), FEATURES, len(vocabulary))
    with torch.no_grad():
        model.speller.head.weight.mul_(gain)  # what it thinks hangs on what it has written
        if model.ctc is not None:
            model.ctc.weight.mul_(gain)
    return model.eval()


def heard(model: Transcriber, lengths: tuple[int, ...] = LENGTHS) -> Encoded:
    x = torch.randn(max(lengths), len(lengths), FEATURES, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        return model.encode(x, torch.tensor(lengths))


def settings(**decoding: Any) -> DecodingConfig:
    return DecodingConfig.model_validate(decoding)


def scripted(after: dict[int, int]) -> Transcriber:
    """Writes behind each character, whatever it hears, the one that is named."""
    torch.manual_seed(0)
    config = {"embedding_size": 5, "hidden_size": 2, "cell": "rnn_tanh", "pyramid": {"levels": 1}, "decoder": {"hidden_size": 5}}
    model = Transcriber(ModelConfig.model_validate(config), FEATURES, len(VOCABULARY)).eval()
    with torch.no_grad():
        for parameter in [*model.speller.recurrent.parameters(), *model.speller.head.parameters()]:
            parameter.zero_()
        model.speller.embedding.weight.copy_(torch.eye(5))
        model.speller.recurrent.get_parameter("weight_ih_l0")[:, :5] = 10 * torch.eye(5)  # the state is the character before, and no more
        for before, i in after.items():
            model.speller.head.weight[i, before] = 10.0
    return model


# Connectionist temporal classification


def all_texts(log_p: Tensor) -> dict[tuple[int, ...], float]:
    """The probability of each text, (S, V) log probabilities: the sum over all paths that come to it."""
    steps, symbols = log_p.shape
    found: dict[tuple[int, ...], float] = {}
    for path in product(range(symbols), repeat=steps):
        text = tuple(i for i, _ in groupby(path) if i)
        found[text] = found.get(text, 0.0) + math.exp(sum(float(log_p[s, i]) for s, i in enumerate(path)))
    return found


@pytest.mark.parametrize("steps, symbols", [(1, 3), (4, 4), (5, 3), (6, 2)])
@pytest.mark.parametrize("scale", [1.0, 8.0])
def test_beginnings_are_as_probable_as_all_paths_that_begin_so(steps: int, symbols: int, scale: float) -> None:
    """Of every beginning, those with one character several times included, and one that no path has room for."""
    logits = scale * torch.randn(steps, symbols, generator=torch.Generator().manual_seed(steps), dtype=torch.float64)
    texts = all_texts(logits.log_softmax(-1))
    scorer = PrefixScorer(logits)
    level, states = [()], scorer.begin()
    beginnings: list[tuple[int, ...]] = list(level)
    for length in range(steps + 2):
        whole, longer = scorer.whole(states), scorer.longer(states, torch.arange(symbols).expand(len(beginnings), -1))
        assert whole.shape == (len(beginnings),) and longer.shape == (len(beginnings), symbols)
        for k, beginning in enumerate(beginnings):
            assert math.exp(float(whole[k])) == pytest.approx(texts.get(beginning, 0.0), rel=1e-9)
            for i in range(1, symbols):
                every = sum(p for text, p in texts.items() if text[: length + 1] == (*beginning, i))
                assert math.exp(float(longer[k, i])) == pytest.approx(every, rel=1e-9), (beginning, i)
        rows = torch.arange(len(beginnings)).repeat_interleave(symbols - 1)
        ids = torch.arange(1, symbols).repeat(len(beginnings))
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(length))[:40]  # any rows, in any order
        states = scorer.extend(states, rows[order], ids[order])
        beginnings = [(*beginnings[int(rows[n])], int(ids[n])) for n in order]


def test_a_long_recording_neither_overflows_nor_vanishes() -> None:
    """Against torch's own sum over the paths of a whole text."""
    logits = 20 * torch.randn(1500, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    text = torch.randint(1, 4, (200,), generator=torch.Generator().manual_seed(2))
    scorer = PrefixScorer(logits)
    states = scorer.begin()
    for i in text:
        states = scorer.extend(states, torch.tensor([0]), i.view(1))
    nats = torch.nn.functional.ctc_loss(
        logits.log_softmax(-1).unsqueeze(1), text.unsqueeze(0), torch.tensor([1500]), torch.tensor([200]), reduction="sum"
    )
    assert -float(scorer.whole(states)[0]) == pytest.approx(float(nats), rel=1e-9)
    assert not scorer.longer(states, torch.arange(4).view(1, -1))[:, 1:].isnan().any()


# Beam search


@dataclass
class Language:
    """A language model, and what it says of a text by reading it at once."""

    model: CharRNN
    vocabulary: Vocabulary
    weight: float

    def fusion(self) -> Fusion:
        return Fusion(self.model, self.vocabulary, VOCABULARY, self.weight)

    def nats(self, text: tuple[int, ...], ended: bool) -> float:
        own = self.vocabulary
        ids = [own.id(VOCABULARY.decode([i])) for i in text]
        with torch.inference_mode():
            if own.end is None:
                if not ids:
                    return 0.0
                logits, _ = self.model(torch.tensor(ids).unsqueeze(1), None)
                odds = logits[:, 0].double().log_softmax(-1)
                return -sum(float(odds[k, i]) for k, i in enumerate(ids[1:]))
            logits, _ = self.model(torch.tensor([own.end, *ids]).unsqueeze(1), None)
            odds = logits[:, 0].double().log_softmax(-1)
            return -sum(float(odds[k, i]) for k, i in enumerate([*ids, own.end] if ended else ids))


def language(symbols: tuple[str, ...], characters: str, weight: float = 0.7) -> Language:
    torch.manual_seed(5)
    own = Vocabulary(symbols, characters)
    model = CharRNN(ModelConfig(embedding_size=4, hidden_size=6, num_layers=2), len(own)).eval()
    return Language(model, own, weight)


LANGUAGES = {
    "none": None,
    "with_end": language(("unknown", "end"), "abc"),
    "stream": language(("unknown",), "cab"),
    "knows_no_b": language(("unknown", "end", "blank"), "acxyz", 1.5),
}


def score(model: Transcriber, encoded: Encoded, text: tuple[int, ...], config: DecodingConfig, language: Language | None) -> float:
    """Of a whole text, by teacher forcing, by torch's CTC, and by a language model that reads it at once."""
    with torch.inference_mode():
        logits = model(encoded, torch.tensor([END, *text]).unsqueeze(1))[:, 0].double()
        logits[:, UNKNOWN] = -torch.inf
        odds = logits.log_softmax(-1)
        total = (1 - config.ctc_weight) * sum(float(odds[k, i]) for k, i in enumerate((*text, END)))
        if config.ctc_weight:
            ctc = model.ctc_logits(encoded)
            assert ctc is not None
            steps = torch.tensor([len(ctc)])
            target, length = torch.tensor([text], dtype=torch.int64), torch.tensor([len(text)])
            total -= config.ctc_weight * float(
                torch.nn.functional.ctc_loss(ctc.double().log_softmax(-1), target, steps, length, reduction="sum")
            )
        if language is not None:
            total -= language.weight * language.nats(text, ended=True)
    return float(total / ((5 + len(text) + 1) / 6) ** config.length_normalization)


def ranked(model: Transcriber, encoded: Encoded, config: DecodingConfig, language: Language | None) -> list[tuple[tuple[int, ...], float]]:
    assert config.max_length is not None
    texts = [text for length in range(config.max_length + 1) for text in product((A, B, C), repeat=length)]
    scored = [(text, score(model, encoded, text, config, language)) for text in texts]
    return sorted(((text, s) for text, s in scored if s > -math.inf), key=lambda pair: -pair[1])


@pytest.mark.parametrize("spoken", LANGUAGES)
@pytest.mark.parametrize("length_normalization", [0.0, 0.6, 2.0])
@pytest.mark.parametrize("ctc_weight", [0.0, 0.4])
def test_a_beam_as_wide_as_everything_finds_the_best_of_all_texts(ctc_weight: float, length_normalization: float, spoken: str) -> None:
    config = settings(beam_width=1000, ctc_weight=ctc_weight, length_normalization=length_normalization, max_length=3)
    for seed in range(3):
        model = transcriber(seed)
        encoded = heard(model).column(seed)
        best = ranked(model, encoded, config, LANGUAGES[spoken])
        language = LANGUAGES[spoken]
        (found,) = beam_search(model, encoded, VOCABULARY, config, language.fusion() if language else None)
        assert tuple(found[0].ids) == best[0][0] and found[0].finished
        told = {tuple(hypothesis.ids): hypothesis.score for hypothesis in found}
        assert len(told) == len(found) and [h.score for h in found] == sorted(told.values(), reverse=True)
        for text, expected in dict(best).items():
            if text in told:
                assert told[text] == pytest.approx(expected, rel=1e-4, abs=1e-4), text


def test_all_that_can_be_said_is_found_where_nothing_ends_the_search() -> None:
    """With scores that grow by length the search cannot stop early, so what it found is all there is, in order."""
    model = transcriber(1)
    encoded, config = heard(model).column(0), settings(beam_width=1000, length_normalization=5.0, max_length=3)
    best = ranked(model, encoded, config, None)
    (found,) = beam_search(model, encoded, VOCABULARY, config)
    assert [tuple(hypothesis.ids) for hypothesis in found] == [text for text, _ in best[: len(found)]]
    assert len(found) >= 27


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("length_normalization", [0.0, 2.0])
def test_the_best_few_of_a_beam_are_the_best_of_all_texts(length_normalization: float, count: int) -> None:
    """The search goes on until none can overtake any of them."""
    for seed in range(3):
        model = transcriber(seed)
        config = settings(beam_width=1000, length_normalization=length_normalization, max_length=3)
        encoded = heard(model).column(seed)
        (found,) = beam_search(model, encoded, VOCABULARY, config, count=count)
        found = found[:count]
        assert [tuple(one.ids) for one in found] == [text for text, _ in ranked(model, encoded, config, None)[:count]]
        assert all(one.finished for one in found)


def test_where_fewer_have_come_to_an_end_the_likeliest_others_stand_behind_them() -> None:
    """An a may end; what begins otherwise never does."""
    model = scripted({END: A, A: END, B: C, C: B})
    with torch.no_grad():
        model.speller.head.bias[END] = -30.0
    config = settings(beam_width=4, max_length=3, length_normalization=0.0)
    (found,) = beam_search(model, heard(model, (6,)).column(0), VOCABULARY, config, count=4)
    ended = [one for one in found if one.finished]
    assert len(found) == len({tuple(one.ids) for one in found}) == 4 and 0 < len(ended) < 4
    assert found[: len(ended)] == ended and all(len(one.ids) == len(one.nats) == 3 for one in found[len(ended) :])
    for some in (ended, found[len(ended) :]):
        assert [one.score for one in some] == sorted((one.score for one in some), reverse=True)


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_text_longer_than_the_steps_is_none_to_the_encoder(language: str) -> None:
    """One step has room for one character, whatever the decoder would rather write."""
    model, spoken = transcriber(2), LANGUAGES[language]
    with torch.no_grad():
        model.speller.head.bias[END] = -30
    encoded = heard(model).column(2)
    (found,) = beam_search(model, encoded, VOCABULARY, settings(beam_width=4, ctc_weight=0.3), spoken.fusion() if spoken else None)
    assert len(encoded.outputs) == 1 and all(h.finished and len(h.ids) <= 1 for h in found)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("length_normalization", [0.0, 0.6])
@pytest.mark.parametrize("max_length", [1, 3, None])
def test_a_beam_of_one_is_greedy(max_length: int | None, length_normalization: float, seed: int) -> None:
    model = transcriber(seed)
    config = settings(length_normalization=length_normalization, max_length=max_length)
    together = heard(model)
    for b, one in enumerate(greedy(model, together, VOCABULARY, config)):
        ((found,),) = beam_search(model, together.column(b), VOCABULARY, config)
        assert (found.ids, found.finished) == (one.ids, one.finished)
        assert found.nats == pytest.approx(one.nats, abs=1e-5) and found.score == pytest.approx(one.score, abs=1e-5)
        torch.testing.assert_close(found.alignment, one.alignment)


def test_a_wider_beam_is_never_worse_than_greedy_here() -> None:
    for seed in range(6):
        model = transcriber(seed)
        together, config = heard(model), settings(beam_width=8, length_normalization=0.0, max_length=6)
        for b, one in enumerate(greedy(model, together, VOCABULARY, config)):
            (found,) = beam_search(model, together.column(b), VOCABULARY, config)
            assert len(found) <= 8 and (found[0].score >= one.score - 1e-5 or not one.finished)


@pytest.mark.parametrize("spoken", ["none", "with_end", "stream"])
@pytest.mark.parametrize("ctc_weight", [0.0, 0.4])
@pytest.mark.parametrize("beam_width, count", [(1, 1), (3, 2), (8, 8)])
def test_what_is_searched_side_by_side_is_found_as_if_alone(beam_width: int, count: int, ctc_weight: float, spoken: str) -> None:
    """Though some come to an end long before others, and are of other lengths."""
    said, config = LANGUAGES[spoken], settings(beam_width=beam_width, ctc_weight=ctc_weight)
    for seed in range(3):
        model = transcriber(seed)
        together = heard(model)
        found = beam_search(model, together, VOCABULARY, config, said.fusion() if said else None, count=count)
        assert len(found) == len(LENGTHS)
        for b, texts in enumerate(found):
            (alone,) = beam_search(model, together.column(b), VOCABULARY, config, said.fusion() if said else None, count=count)
            assert [(text.ids, text.finished) for text in texts] == [(text.ids, text.finished) for text in alone]
            for text, other in zip(texts, alone):
                assert text.score == pytest.approx(other.score, abs=1e-4) and text.nats == pytest.approx(other.nats, abs=1e-4)
                torch.testing.assert_close(text.alignment, other.alignment, atol=1e-4, rtol=1e-4)


def test_the_model_is_asked_once_a_step_of_all_sequences(monkeypatch: pytest.MonkeyPatch) -> None:
    """And of fewer at a time only where their hypotheses would be too many."""
    model, asked = scripted({END: A, A: B, B: A}), list[int]()
    own = model.next

    def counting(ids: Tensor, *more: Any) -> Any:
        asked.append(len(ids))
        return own(ids, *more)

    monkeypatch.setattr(model, "next", counting)
    config = settings(beam_width=3, max_length=20)
    beam_search(model, heard(model), VOCABULARY, config)
    assert len(asked) == 21 and max(asked) == 3 * len(LENGTHS)
    monkeypatch.setattr("charrnn.decoding.ROWS", 7)
    asked.clear()
    beam_search(model, heard(model), VOCABULARY, config)
    assert len(asked) == 2 * 21 and max(asked) == 6


# What is never written, and what has no end


BLANKED = Vocabulary(("unknown", "end", "blank"), "ab")


@pytest.mark.parametrize("beam_width", [1, 3])
@pytest.mark.parametrize("ctc_weight", [0.0, 0.5])
def test_symbols_are_never_written_and_cost_nothing(ctc_weight: float, beam_width: int) -> None:
    model = transcriber(0, BLANKED)
    with torch.no_grad():
        model.speller.head.bias[[0, 2]] = 50.0
    for found in decode(model, heard(model), BLANKED, settings(beam_width=beam_width, ctc_weight=ctc_weight, max_length=4)):
        assert not {0, 1, 2} & set(found.ids)
        assert found.confidence > 0.01  # what cannot be written takes nothing from what can


@pytest.mark.parametrize("ctc_weight", [0.0, 0.3])
@pytest.mark.parametrize("beam_width, bias", [(1, -1e9), (3, -1e9), (1, -math.inf), (4, -math.inf), (50, -math.inf)])
@pytest.mark.parametrize("max_length", [1, 5, None])
def test_where_no_end_comes_the_likeliest_is_returned_and_marked(
    max_length: int | None, beam_width: int, ctc_weight: float, bias: float
) -> None:
    model = transcriber(3)
    with torch.no_grad():
        model.speller.head.bias[END] = bias
    together = heard(model)
    config = settings(beam_width=beam_width, ctc_weight=ctc_weight, max_length=max_length, length_normalization=0.6)
    assert together.lengths is not None
    for found, steps in zip(decode(model, together, VOCABULARY, config), together.lengths.tolist()):
        assert len(found.ids) <= longest(steps, config)
        if not ctc_weight:  # else there is not always a way in which the encoder's steps hold so many
            assert not found.finished and len(found.ids) == longest(steps, config) == (max_length or 2 * steps + 8)
        if not found.finished:
            assert len(found.nats) == len(found.ids) > 0
        assert found.alignment.shape == (len(found.ids), steps) and 0 <= found.confidence <= 1 and found.score <= 0


def test_who_hardly_ever_ends_is_not_cut_off_where_it_would_cost_least() -> None:
    """An end is come to where it is among the likeliest, and not already because it is possible."""
    model = transcriber(3)
    with torch.no_grad():
        model.speller.head.bias[END] = -40.0
    for beam_width in (1, 3):
        ((found, *_),) = beam_search(model, heard(model).column(0), VOCABULARY, settings(beam_width=beam_width, max_length=6))
        assert not found.finished and len(found.ids) == 6


class Counting(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """How many numbers torch writes."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        self.count += sum(part.numel() for part in (found if isinstance(found, (tuple, list)) else [found]) if isinstance(part, Tensor))
        return found


def test_a_text_twice_as_long_is_twice_the_work() -> None:
    """Nothing that grows with what has been written is copied at each character of it."""
    model = transcriber(3)
    with torch.no_grad():
        model.speller.head.bias[END] = -math.inf
    encoded, work = heard(model).column(3), []
    for length in (60, 120, 240):
        with Counting() as counting:  # type: ignore[no-untyped-call]
            (found,) = beam_search(model, encoded, VOCABULARY, settings(beam_width=4, ctc_weight=0.0, max_length=length))
        assert len(found[0].ids) == length and len(found[0].alignment) == length
        work.append(counting.count)
    assert work[2] - work[1] < 2.1 * (work[1] - work[0])


def test_an_end_behind_the_last_character_that_is_allowed_is_an_end() -> None:
    """A text of exactly the length that is allowed is whole."""
    model = scripted({END: A, A: B, B: END})
    for beam_width in (1, 2):
        config = settings(beam_width=beam_width, max_length=2)
        (found,) = decode(model, heard(model, (6,)), VOCABULARY, config)
        assert (found.ids, found.finished, len(found.nats)) == ([A, B], True, 3)
    (cut,) = decode(model, heard(model, (6,)), VOCABULARY, settings(max_length=1))
    assert (cut.ids, cut.finished, len(cut.nats)) == ([A], False, 1)


def test_ctc_is_not_asked_of_a_model_without_it() -> None:
    model = transcriber(ctc_weight=0.0)
    with pytest.raises(ValueError, match=r"^ctc_weight is above 0, and the model was trained without a CTC head$"):
        decode(model, heard(model), VOCABULARY, settings(ctc_weight=0.3))


# Batches, alignments, confidence


@pytest.mark.parametrize("decoding", [{}, {"beam_width": 3}, {"ctc_weight": 0.4, "beam_width": 2}], ids=str)
def test_each_of_a_ragged_batch_is_as_if_alone(decoding: dict[str, Any]) -> None:
    """Its limit too is its own: others may write on."""
    for seed in range(4):
        model = transcriber(seed)
        if seed % 2:
            model.speller.head.bias.data[END] = -4.0
        together = heard(model)
        assert together.lengths is not None
        found = decode(model, together, VOCABULARY, settings(**decoding))
        assert len(found) == len(LENGTHS)
        for b, steps in enumerate(together.lengths.tolist()):
            (alone,) = decode(model, together.column(b), VOCABULARY, settings(**decoding))
            assert (found[b].ids, found[b].finished) == (alone.ids, alone.finished)
            assert found[b].nats == pytest.approx(alone.nats, abs=1e-4)
            assert found[b].alignment.shape == (len(alone.ids), steps)
            torch.testing.assert_close(found[b].alignment, alone.alignment)
            torch.testing.assert_close(found[b].alignment.sum(1), torch.ones(len(alone.ids)))


def test_the_alignment_is_where_it_looked_for_each_character_and_the_nats_what_they_cost() -> None:
    for seed, decoding in product(range(3), ({"max_length": 4}, {"max_length": 4, "beam_width": 3})):
        model = transcriber(seed)
        encoded = heard(model).column(3)
        (found,) = decode(model, encoded, VOCABULARY, settings(**decoding))
        with torch.inference_mode():
            spelling, before, looked, nats = model.start(encoded), END, [], []
            for i in [*found.ids, END] if found.finished else found.ids:
                logits, spelling = model.next(torch.tensor([before]), spelling, encoded)
                logits[:, UNKNOWN] = -torch.inf
                nats.append(-float(logits.log_softmax(-1)[0, i]))
                looked.append(spelling.alignment[:, 0])
                before = i
        assert found.nats == pytest.approx(nats, abs=1e-5)
        assert found.confidence == pytest.approx(math.exp(-sum(nats) / len(nats)))
        if found.ids:
            torch.testing.assert_close(found.alignment, torch.stack(looked[: len(found.ids)]))


def test_nothing_that_is_surely_said_has_an_empty_alignment() -> None:
    model = transcriber()
    model.speller.head.bias.data[END] = 1e3
    for decoding in ({}, {"beam_width": 2, "ctc_weight": 0.2}):
        (found,) = decode(model, heard(model, (9,)), VOCABULARY, settings(**decoding))
        assert (found.ids, found.finished, found.alignment.shape) == ([], True, (0, 5)) and found.confidence == pytest.approx(1)


def test_confidence_is_a_mean_of_probabilities() -> None:
    none = torch.zeros(0, 1)
    assert Hypothesis([A, B], [math.log(2), math.log(8)], 0.0, False, none).confidence == pytest.approx(0.25)
    assert Hypothesis([], [], 0.0, False, none).confidence == 0.0


@pytest.mark.parametrize("steps, max_length, expected", [(1, None, 10), (100, None, 208), (100, 7, 7), (1, 500, 500)])
def test_how_much_may_be_written(steps: int, max_length: int | None, expected: int) -> None:
    assert longest(steps, settings(max_length=max_length)) == expected


def test_weights_that_have_gone_astray_raise_nothing() -> None:
    model = transcriber()
    model.speller.head.bias.data.fill_(math.nan)
    for decoding in ({}, {"beam_width": 3}, {"beam_width": 3, "ctc_weight": 0.3}):
        assert not any(found.finished for found in decode(model, heard(model), VOCABULARY, settings(**decoding)))
