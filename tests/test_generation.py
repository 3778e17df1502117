"""Filters against their definitions, and the engine against the model it runs.

Axes: B batch, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from charrnn.config import ModelConfig
from charrnn.data.vocabulary import SYMBOLS, Vocabulary
from charrnn.errors import UserError
from charrnn.generation import generate, prepare_prime
from charrnn.models.char_rnn import CharRNN
from charrnn.options import SamplingOptions
from charrnn.sampling import PRIME_WINDOW, filter_logits, keep_min_p, keep_top_k, keep_top_p, penalize_repetition, repeats, sample
from charrnn.search import beam_search
from charrnn.texts import Texts
from tests.sampling_options import options_of_all_kinds

STREAM = Vocabulary(("unknown",), "\nabcdefg")
DOCUMENTS = Vocabulary(("unknown", "end"), "abcdefg")
GREEDY = SamplingOptions(temperature=0)

logit = st.floats(-20, 20).map(lambda x: round(x, 1))  # coarse, so that equals occur
rows = st.lists(logit, min_size=1, max_size=12)


def model_for(vocabulary: Vocabulary, cell: str = "lstm", seed: int = 3) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = ModelConfig(cell=cell, embedding_size=5, hidden_size=9, num_layers=2, dropout={"output": 0.5})  # type: ignore[arg-type]
        model = CharRNN(config, len(vocabulary))
        with torch.no_grad():
            for weight in model.parameters():
                weight.mul_(3)  # a model with opinions, and some of them about the past
    return model.eval()


class Scripted(nn.Module):
    """Says the same logits whatever it reads, or those of the step it is at; keeps what it read."""

    def __init__(self, script: Sequence[Sequence[float]]) -> None:
        super().__init__()
        self.script = nn.Parameter(torch.tensor(script))
        self.reads: list[Tensor] = []

    def forward(self, inputs: Tensor, state: object) -> tuple[Tensor, tuple[tuple[Tensor]]]:
        (step,) = state[0] if state else (torch.zeros(inputs.size(1), 1),)  # type: ignore[index]
        self.reads.append(inputs)
        at = step[:, 0].long().clamp(max=len(self.script) - 1)
        return self.script[at].expand(inputs.size(0), -1, -1), ((step + 1,),)


def wanting(vocabulary: Vocabulary, text: str) -> Scripted:
    """A model that says `text`, "$" being the end of a document and "?" the unknown symbol."""
    ids = [{"$": vocabulary.end, "?": vocabulary.unknown}.get(c, vocabulary.id(c)) for c in text]
    return Scripted([[40.0 * (i == id_) for i in range(len(vocabulary))] for id_ in ids])


def written(
    model: nn.Module,
    vocabulary: Vocabulary,
    prime: str = "",
    *,
    length: int = 30,
    options: SamplingOptions | None = None,
    seed: int = 1,
    num_samples: int = 1,
    stop: Sequence[str] = (),
    continue_documents: bool = False,
    separator: str = "\n\n",
) -> list[str]:
    steps = generate(
        model,
        vocabulary,
        vocabulary.encode(prime),
        length=length,
        options=options or SamplingOptions(),
        generator=torch.Generator().manual_seed(seed),
        num_samples=num_samples,
        stop=stop,
        continue_documents=continue_documents,
        separator=separator,
    )
    return ["".join(pieces) for pieces in zip(*steps)] or [""] * num_samples


def survivors(logits: Tensor) -> set[int]:
    return set((logits[0] > -math.inf).nonzero().flatten().tolist())


# Filters


@given(rows, st.integers(1, 15))
def test_top_k_keeps_what_fewer_than_k_beat(row: list[float], k: int) -> None:
    expected = {i for i, x in enumerate(row) if sum(y > x for y in row) < k}
    assert survivors(keep_top_k(torch.tensor([row], dtype=torch.float64), k)) == expected


@given(rows, st.floats(0.01, 0.99))
def test_top_p_keeps_the_smallest_set_that_holds_the_share(row: list[float], p: float) -> None:
    weights = [math.exp(x) for x in row]
    total, kept = sum(weights), survivors(keep_top_p(torch.tensor([row], dtype=torch.float64), p))
    shares = sorted((w / total for w in weights), reverse=True)
    needed = next(n for n in range(1, len(row) + 1) if sum(shares[:n]) >= p - 1e-12)
    assert len(kept) == needed
    assert min(row[i] for i in kept) >= max((row[i] for i in range(len(row)) if i not in kept), default=-math.inf)


@given(rows, st.floats(0.01, 1))
def test_min_p_compares_with_the_best(row: list[float], p: float) -> None:
    kept = survivors(keep_min_p(torch.tensor([row], dtype=torch.float64), p))
    best = max(row)
    for i, x in enumerate(row):
        ratio = math.exp(x - best)
        if abs(ratio - p) > 1e-9:
            assert (i in kept) == (ratio > p)


@given(st.lists(st.integers(0, 3), max_size=12), st.integers(1, 4))
def test_repeats_are_those_that_would_complete_a_run_already_there(history: list[int], n: int) -> None:
    runs = [history[i : i + n] for i in range(len(history) - n + 1)]
    assert repeats(history, n) == {i for i in range(4) if (history + [i])[-n:] in runs}


def test_repetition_penalty_only_lowers_what_was_said_within_the_window() -> None:
    logits = torch.tensor([[2.0, -2.0, 2.0, -2.0, 0.0, 3.0]])
    penalized = penalize_repetition(logits, [[5, 0, 1, 0, 4]], 2.0, window=4)
    assert penalized.tolist() == [[1.0, -4.0, 2.0, -2.0, 0.0, 3.0]]
    assert logits.tolist() == [[2.0, -2.0, 2.0, -2.0, 0.0, 3.0]]  # what came in is as it was
    assert penalize_repetition(logits, [[]], 2.0, window=4).tolist() == logits.tolist()


@given(st.lists(st.lists(logit, min_size=6, max_size=6), min_size=1, max_size=3), options_of_all_kinds, st.data())
def test_something_always_survives_and_nothing_forbidden_does(
    several: list[list[float]], options: SamplingOptions, data: st.DataObject
) -> None:
    history = [data.draw(st.lists(st.integers(1, 5), max_size=10)) for _ in several]
    logits = torch.tensor(several, dtype=torch.float64)
    logits[:, 0] = 1e30
    generators = [torch.Generator().manual_seed(i) for i in range(len(several))]
    filtered = filter_logits(logits, options, history, (0,))
    assert not filtered.isnan().any()
    assert (filtered > -math.inf).any(-1).all()
    drawn = sample(filtered, options, generators)
    assert (drawn > 0).all() and (filtered.gather(1, drawn[:, None]) > -math.inf).all()


def test_filters_apply_after_temperature() -> None:
    logits = torch.tensor([[0.0, -1.0, -2.0]], dtype=torch.float64)
    assert survivors(filter_logits(logits, SamplingOptions(temperature=1, min_p=0.2), [[]])) == {0, 1}
    assert survivors(filter_logits(logits, SamplingOptions(temperature=2, min_p=0.2), [[]])) == {0, 1, 2}


def test_draws_follow_the_distribution() -> None:
    options = SamplingOptions(temperature=2)
    logits = filter_logits(torch.tensor([[0.0, 1.0, 3.0, 2.0]]), options, [[]], (3,)).expand(2000, -1)
    generator = torch.Generator().manual_seed(0)
    shares = sample(logits, options, [generator] * 2000).bincount(minlength=4) / 2000
    expected = torch.tensor([0.0, 0.5, 1.5, -math.inf]).softmax(-1)
    torch.testing.assert_close(shares, expected, atol=0.04, rtol=0)


# Options


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"top_p": 1.5}, "--top-p 1.5: expected a share above 0 and at most 1; leave the flag out to keep all characters"),
        ({"top_p": 0.0}, "--top-p 0.0: expected a share above 0"),
        ({"top_k": 0}, "--top-k 0: expected at least 1"),
        ({"min_p": -0.1}, "--min-p -0.1: expected a share from 0 to 1"),
        ({"temperature": -1.0}, "--temperature -1.0: expected a number from 0 up"),
        ({"temperature": math.nan}, "--temperature nan: expected"),
        ({"repetition_penalty": 0.0}, "--repetition-penalty 0.0: expected a number from 0.000001 to 1,000,000"),
        ({"repetition_penalty": 1e-320}, "--repetition-penalty 1e-320: expected a number from 0.000001 to 1,000,000"),
        ({"top_k": 2**64 + 1}, "--top-k 18446744073709551617: expected at least 1, at most 1,000,000,000"),
        ({"repetition_window": 2**64}, "--repetition-window 18446744073709551616: expected at least 1 character, at most 1,000,000,000"),
        ({"no_repeat_ngram": 2**63 + 1}, "--no-repeat-ngram 9223372036854775809: expected a number of characters, at most 1,000,000,000"),
        ({"repetition_window": 0}, "--repetition-window 0: expected at least 1"),
        ({"no_repeat_ngram": -1}, "--no-repeat-ngram -1: expected a number of characters"),
    ],
)
def test_options_that_mean_nothing(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(UserError) as error:
        SamplingOptions(**arguments)  # type: ignore[arg-type]
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"length": -1}, "--length -1: expected"),
        ({"num_samples": 0}, "--num-samples 0: expected"),
        ({"stop": ["a", ""]}, "--stop '': expected"),
    ],
)
def test_arguments_that_mean_nothing_are_refused_before_the_first_step(arguments: dict[str, int], message: str) -> None:
    settings: dict[str, object] = {"length": 3, "options": GREEDY, "generator": torch.Generator(), **arguments}
    with pytest.raises(UserError) as error:
        generate(model_for(STREAM), STREAM, [], **settings)  # type: ignore[arg-type]
    assert str(error.value).startswith(message)


# The engine


@pytest.mark.parametrize("cell, weights", [("rnn_tanh", 7), ("gru", 20), ("lstm", 13)])  # whose text does not settle on one character
@pytest.mark.parametrize("prime", ["", "a", "abcabcab"])
def test_greedy_text_is_what_one_pass_over_it_predicts(cell: str, weights: int, prime: str) -> None:
    model = model_for(STREAM, cell, weights)
    (text,) = written(model, STREAM, prime, options=GREEDY, seed=1)
    assert len(text) == 30 and len(set(text)) > 3 and [text] == written(model, STREAM, prime, options=GREEDY, seed=2)
    read = STREAM.encode((prime or "\n") + text)
    with torch.no_grad():
        logits, _ = model(torch.tensor(read[:-1]).unsqueeze(-1), None)
    logits[..., STREAM.unknown] = -math.inf
    assert STREAM.decode(logits[-30:, 0].argmax(-1).tolist()) == text


def test_a_long_prime_is_read_in_windows_to_the_same_effect() -> None:
    model, prime = model_for(STREAM), ("abcdefg\n" * PRIME_WINDOW)[: 2 * PRIME_WINDOW + 5]
    (text,) = written(model, STREAM, prime, length=1, options=GREEDY)
    with torch.no_grad():
        logits, _ = model(torch.tensor(STREAM.encode(prime)).unsqueeze(-1), None)
    logits[..., STREAM.unknown] = -math.inf
    assert STREAM.decode([int(logits[-1, 0].argmax())]) == text


def test_a_seed_is_a_text() -> None:
    model = model_for(STREAM)
    assert written(model, STREAM, "a", seed=5) == written(model, STREAM, "a", seed=5)
    assert written(model, STREAM, "a", seed=5) != written(model, STREAM, "a", seed=6)


def test_a_sample_does_not_depend_on_how_many_there_are() -> None:
    model, options = model_for(STREAM), SamplingOptions(temperature=1.5, top_p=0.95, repetition_penalty=1.1, no_repeat_ngram=5)
    many = written(model, STREAM, "ab", options=options, num_samples=4)
    assert len(set(many)) == 4
    for count in (1, 2, 3):
        assert written(model, STREAM, "ab", options=options, num_samples=count) == many[:count]


@pytest.mark.parametrize("length", [0, 1, 17])
@pytest.mark.parametrize("prime", ["", "abc"])
def test_length_counts_new_characters(length: int, prime: str) -> None:
    model = model_for(STREAM)
    assert [len(text) for text in written(model, STREAM, prime, length=length, num_samples=3)] == [length] * 3


def test_text_streams() -> None:
    model = wanting(STREAM, "abcd")
    steps = generate(model, STREAM, [], length=4, options=GREEDY, generator=torch.Generator(), num_samples=2)
    assert next(steps) == ["a", "a"]
    assert len(model.reads) == 1  # one character is out before the next is worked out
    assert list(steps) == [["b", "b"], ["c", "c"], ["d", "d"]]
    assert [tuple(read.shape) for read in model.reads] == [(1, 1), (1, 2), (1, 2), (1, 2)]


@pytest.mark.parametrize("stops_early", [False, True])
def test_the_model_and_the_callers_gradients_are_left_as_they_were(stops_early: bool) -> None:
    model = model_for(STREAM).train()
    steps = generate(model, STREAM, [], length=5, options=GREEDY, generator=torch.Generator())
    next(steps)
    assert not torch.is_inference_mode_enabled() and torch.is_grad_enabled()
    if stops_early:
        steps.close()
    else:
        list(steps)
    assert model.training


@settings(max_examples=20, deadline=None)
@given(options_of_all_kinds, st.sampled_from([STREAM, DOCUMENTS]))
def test_unknown_is_never_written_and_ngrams_never_twice(options: SamplingOptions, vocabulary: Vocabulary) -> None:
    logits = [1e6] + [0.0] * (len(vocabulary) - 1)
    for text in written(Scripted([logits]), vocabulary, "ab", length=12, options=options, num_samples=2):
        assert set(text) <= set(vocabulary.characters)
        n, whole = options.no_repeat_ngram, "ab" + text
        runs = [whole[i : i + n] for i in range(len(whole) - n + 1)]
        if n > 1:  # eight characters cannot fill twelve places without one coming twice
            assert len(runs) == len(set(runs))


def test_no_repeat_ngram_changes_a_text_that_goes_in_circles() -> None:
    model = Scripted([[0.0, 0.0, 9.0, 8.0, 7.0, 0.0, 0.0, 0.0, 0.0]])
    assert written(model, STREAM, length=6, options=GREEDY) == ["aaaaaa"]
    assert written(model, STREAM, length=6, options=SamplingOptions(temperature=0, no_repeat_ngram=2)) == ["aabaca"]


def test_repetition_penalty_changes_a_text_that_goes_in_circles() -> None:
    model = Scripted([[0.0, 0.0, 9.0, 8.0, 7.0, 0.0, 0.0, 0.0, 0.0]])
    options = SamplingOptions(temperature=0, repetition_penalty=1.5, repetition_window=2)
    assert written(model, STREAM, length=6, options=options) == ["abcabc"]


@pytest.mark.parametrize(
    "stop, text", [(["cd"], "abcd"), (["zz", "b"], "ab"), (["ab", "abc"], "ab"), (["ef\n"], "abcdefab"), (["ga"], "abcdefab")]
)
def test_stop_strings_end_the_text_they_end(stop: list[str], text: str) -> None:
    assert written(wanting(STREAM, "abcdefab"), STREAM, "g", length=8, options=GREEDY, stop=stop) == [text]


def test_one_sample_may_stop_before_the_others() -> None:
    model = model_for(STREAM)
    free = written(model, STREAM, "a", length=20, num_samples=3)
    stop = free[0][4:6]
    for text, stopped in zip(free, written(model, STREAM, "a", length=20, num_samples=3, stop=[stop])):
        assert stopped == (text[: text.index(stop) + 2] if stop in text else text)


def test_a_document_ends_where_its_end_is_drawn() -> None:
    model = wanting(DOCUMENTS, "ab$cd$e")
    assert written(model, DOCUMENTS, options=GREEDY) == ["ab"]
    assert written(model, DOCUMENTS, options=GREEDY, continue_documents=True, length=9, separator="\n") == ["ab\ncd\neee"]
    assert written(model, DOCUMENTS, options=GREEDY, continue_documents=True, length=3) == ["ab\n"]
    assert written(model, DOCUMENTS, options=GREEDY, continue_documents=True, length=9, stop=["\n"]) == ["ab\n"]


def test_repetition_is_counted_within_a_document() -> None:
    options = SamplingOptions(temperature=0, no_repeat_ngram=1)
    model = wanting(DOCUMENTS, "ab$ab$ab")
    assert written(model, DOCUMENTS, options=options, continue_documents=True, length=8, separator="\n") == ["ab\nab\nab"]


def test_a_document_is_never_empty() -> None:
    model = Scripted([[0.0, 9.0, 1.0] + [0.0] * 6])
    assert written(model, DOCUMENTS, options=GREEDY) == ["a"]
    assert written(model, DOCUMENTS, "b", options=GREEDY) == [""]
    assert written(model, DOCUMENTS, options=GREEDY, continue_documents=True, length=7) == ["a\n\na\n\na"]


@pytest.mark.parametrize(
    "vocabulary, prime, read",
    [
        (STREAM, "", "\n"),
        (STREAM, "ab", "ab"),
        (Vocabulary(("unknown",), "xyz"), "", "x"),
        (DOCUMENTS, "", "$"),
        (DOCUMENTS, "ab", "$ab"),
    ],
)
def test_what_the_model_reads_before_it_writes(vocabulary: Vocabulary, prime: str, read: str) -> None:
    model = wanting(vocabulary, "a")
    written(model, vocabulary, prime, length=1)
    assert model.reads[0].flatten().tolist() == [vocabulary.end if c == "$" else vocabulary.id(c) for c in read]


def test_a_model_that_has_gone_astray_is_an_error() -> None:
    with pytest.raises(UserError, match=r"not finite.*sample from an earlier checkpoint"):
        written(Scripted([[math.nan] * len(STREAM)]), STREAM)


# Primes


def test_prime_characters_in_another_width_are_read() -> None:
    vocabulary = Vocabulary(("unknown",), "a,。Ａ")
    primed, warnings = prepare_prime(vocabulary, "a，A。")
    assert primed.text == "a,Ａ。" and primed.ids == vocabulary.encode("a,Ａ。")
    assert warnings == ["--prime: the model knows another form of some characters and reads '，' as ',', 'A' as 'Ａ'"]


def test_a_blank_is_never_written() -> None:
    """A language model may have one from a model that fills, which it began with."""
    vocabulary = Vocabulary(SYMBOLS, "ab")
    model = Scripted([[0.0, 0.0, 40.0, 2.0, 1.0]] * 9)
    greedy = SamplingOptions(temperature=0)
    assert written(model, vocabulary, length=3, options=greedy) == ["aaa"]
    assert beam_search(model, vocabulary, [], width=1, length=3) == ["aaa"]


def test_unknown_prime_characters_are_named_and_dropped() -> None:
    primed, warnings = prepare_prime(STREAM, "aqbqz")
    assert primed.text == "ab"
    assert warnings == ["--prime: the model does not know 'q' (U+0071), 'z' (U+007A); dropped"]
    primed, warnings = prepare_prime(STREAM, "hijklmnopq")
    assert primed.ids == [] and "'o' (U+006F) and 2 more" in warnings[0]
    assert warnings[0].endswith("nothing is left of the prime, so the text starts as a document starts")
    assert prepare_prime(STREAM, "abc") == (primed.__class__("abc", STREAM.encode("abc"), {}, []), [])


def test_unknown_prime_characters_can_be_an_error() -> None:
    with pytest.raises(UserError) as error:
        prepare_prime(STREAM, "aqb", on_unknown="error")
    assert str(error.value) == (
        "--prime: the model does not know 'q' (U+0071); expected characters of its training text; leave them out, or pass --on-unknown drop"
    )


def test_thousands_of_documents_that_one_call_has_drawn_are_written() -> None:
    end, a = DOCUMENTS.end, DOCUMENTS.id("a")
    assert end is not None
    texts = Texts(DOCUMENTS, [], 15_000, SamplingOptions(), [1], separator="\n")
    assert texts.grow([[a, end] * 5_000]) == ["a\n" * 5_000] and not texts.over
    assert texts.grow([[a, a, end, a]]) == ["aa\na"] and texts.left == 15_000 - 10_004
    alone = Texts(DOCUMENTS, [], 9, SamplingOptions(), [1])
    assert alone.grow([[a, end, a]]) == ["a"] and alone.over
