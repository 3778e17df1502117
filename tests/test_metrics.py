"""Sums travel, and one division at the edge."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from charrnn.journal import cost, sayable
from charrnn.metrics import Confusion, Edits, Spans, Tally, bleu, edit_distance
from charrnn.ranking import less_is_better


def tally(nats: float, count: int, correct: int) -> Tally:
    return Tally(torch.tensor(nats, dtype=torch.float64), torch.tensor(count), torch.tensor(correct))


@pytest.mark.parametrize(
    "unit, keys",
    [
        ("blank", ["val_nats_per_blank", "val_bits_per_blank", "val_perplexity", "val_accuracy"]),
        ("example", ["val_nats_per_example", "val_perplexity", "val_accuracy"]),
    ],
)
def test_a_unit_stands_in_the_keys(unit: str, keys: list[str]) -> None:
    metrics = tally(4 * math.log(2), 2, 1).as_metrics("val_", unit)
    assert list(metrics) == keys
    assert metrics[f"val_nats_per_{unit}"] == pytest.approx(2 * math.log(2))
    told, of = cost(metrics, "val_")
    assert (told, of) == ((2.0, "bits/blank") if unit == "blank" else (pytest.approx(2 * math.log(2)), "nats/example"))


def test_of_what_less_is_better() -> None:
    assert [less_is_better(name) for name in ("nats_per_char", "bits_per_blank", "val_perplexity", "accuracy", "val_f1")] == [
        True, True, True, False, False,
    ]  # fmt: skip


def test_means() -> None:
    metrics = tally(8 * math.log(2), 4, 3).as_metrics("val_")
    expected = {"val_nats_per_char": 2 * math.log(2), "val_bits_per_char": 2.0, "val_perplexity": 4.0, "val_accuracy": 0.75}
    assert metrics == pytest.approx(expected)


def test_keys_without_prefix() -> None:
    assert list(tally(1, 1, 1).as_metrics()) == ["nats_per_char", "bits_per_char", "perplexity", "accuracy"]


def test_unequal_parts_weigh_by_their_count() -> None:
    total = Tally.zero("cpu") + tally(10, 10, 1) + tally(6, 2, 1)
    assert total.nats_per_char() == pytest.approx(16 / 12)
    assert total.accuracy() == pytest.approx(2 / 12)
    assert (total.nats.dtype, total.count.dtype, total.correct.dtype) == (torch.float64, torch.int64, torch.int64)


def test_long_sums_keep_their_digits() -> None:
    total = Tally(torch.tensor(2.0**30, dtype=torch.float64), torch.tensor(1), torch.tensor(0))
    for _ in range(100):
        total = total + tally(0.01, 0, 0)
    assert total.nats_per_char() - 2.0**30 == pytest.approx(1.0, rel=1e-4)


def test_perplexity_of_a_lost_model_is_infinite() -> None:
    assert tally(1e4, 1, 0).perplexity() == math.inf
    assert math.isnan(tally(math.nan, 1, 0).perplexity())


def test_nothing_counted_has_no_mean() -> None:
    for mean in (Tally.nats_per_char, Tally.bits_per_char, Tally.perplexity, Tally.accuracy, Tally.as_metrics):
        with pytest.raises(ValueError, match="no characters were counted"):
            mean(Tally.zero("cpu"))


def test_json_cannot_say_what_is_not_finite() -> None:
    values = {"nats": math.nan, "perplexity": math.inf, "accuracy": 0.5, "step": 3, "file": "a.txt", "bits": None}
    assert sayable(values) == {"nats": None, "perplexity": None, "accuracy": 0.5, "step": 3, "file": "a.txt", "bits": None}


# Four labels: 0 is hit twice of three, 1 once of one but answered twice, 2 never, 3 is neither there nor answered.
TRUTH, ANSWERS = [0, 0, 0, 1, 2], [0, 0, 1, 1, 0]


def test_confusion_by_hand() -> None:
    found = Confusion.of(torch.tensor(TRUTH), torch.tensor(ANSWERS), 4)
    assert found.counts.tolist() == [[2, 1, 0, 0], [0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]
    labels = found.by_label()
    assert labels.precision().tolist() == pytest.approx([2 / 3, 1 / 2, 0, 0])
    assert labels.recall().tolist() == pytest.approx([2 / 3, 1, 0, 0])
    assert labels.f1().tolist() == pytest.approx([2 / 3, 2 / 3, 0, 0])
    assert found.as_metrics("val_") == pytest.approx({"val_accuracy": 3 / 5, "val_macro_f1": (2 / 3 + 2 / 3 + 0) / 3})


def test_confusions_add_up() -> None:
    parts = [Confusion.of(torch.tensor(TRUTH)[cut], torch.tensor(ANSWERS)[cut], 4) for cut in (slice(0, 2), slice(2, 5), slice(5, 5))]
    whole = Confusion.of(torch.tensor(TRUTH), torch.tensor(ANSWERS), 4)
    total = parts[0] + parts[1] + parts[2]
    assert torch.equal(total.counts, whole.counts) and total.counts.dtype == torch.int64


def test_confusion_against_counting_one_by_one() -> None:
    generator = torch.Generator().manual_seed(1)
    truth, answers = torch.randint(5, (2, 300), generator=generator)
    found = Confusion.of(truth, answers, 5)
    pairs = list(zip(truth.tolist(), answers.tolist()))
    scores = []
    for label in range(5):
        hit = sum(t == a == label for t, a in pairs)
        precision, recall = hit / sum(a == label for _, a in pairs), hit / sum(t == label for t, _ in pairs)
        scores.append(2 * precision * recall / (precision + recall))
    assert found.accuracy() == pytest.approx(sum(t == a for t, a in pairs) / 300)
    assert found.macro_f1() == pytest.approx(sum(scores) / 5)


def test_an_empty_confusion_has_no_accuracy() -> None:
    with pytest.raises(ValueError, match="nothing was answered"):
        Confusion.of(torch.tensor([], dtype=torch.int64), torch.tensor([], dtype=torch.int64), 2).as_metrics()


def test_spans_by_hand() -> None:
    truth = [(0, 2, 0), (4, 5, 0), (6, 9, 1)]
    answer = [(0, 2, 0), (4, 6, 0), (6, 9, 0), (10, 11, 1)]
    found = Spans.of(truth, answer, 3)
    assert (found.predicted.tolist(), found.true.tolist(), found.hit.tolist()) == ([3, 1, 0], [2, 1, 0], [1, 0, 0])
    assert found.as_metrics("test_") == pytest.approx({"test_precision": 1 / 4, "test_recall": 1 / 3, "test_f1": 2 / 7})
    # The third label was neither there nor answered.
    assert found.as_means() == pytest.approx({"precision": (1 / 3 + 0) / 2, "recall": (1 / 2 + 0) / 2, "f1": (2 / 5 + 0) / 2})


def test_spans_add_up_and_none_at_all_are_worth_nothing() -> None:
    total = Spans.of([(0, 1, 1)], [(0, 1, 1)], 2) + Spans.of([(0, 1, 0)], [], 2)
    assert total.recall().tolist() == [0, 1] and total.together().f1().tolist() == pytest.approx([2 / 3])
    for labels in (2, 0):
        none = Spans.of([], [], labels)
        assert set(none.as_metrics().values()) == set(none.as_means().values()) == {0.0}


def brute_force(first: str, second: str) -> int:
    """The definition: of the last characters, one is left out, one put in, or one stands for the other."""
    if not first or not second:
        return len(first) + len(second)
    substituted = brute_force(first[:-1], second[:-1]) + (first[-1] != second[-1])
    return min(substituted, brute_force(first[:-1], second) + 1, brute_force(first, second[:-1]) + 1)


@settings(deadline=None, max_examples=50)  # two cores may be busy with something else
@given(st.text("ab\U0001d11e", max_size=5), st.text("ab\U0001d11e", max_size=5))
def test_edit_distance_is_that_of_the_definition(first: str, second: str) -> None:
    assert edit_distance(first, second) == brute_force(first, second) == edit_distance(list(second), tuple(first))


@settings(deadline=None, max_examples=50)  # two cores may be busy with something else
@given(st.text("abc", max_size=30), st.text("abc", max_size=30), st.text("abc", max_size=30))
def test_edit_distance_is_a_distance(a: str, b: str, c: str) -> None:
    assert edit_distance(a, c) <= edit_distance(a, b) + edit_distance(b, c)
    assert (edit_distance(a, b) == 0) == (a == b)
    assert abs(len(a) - len(b)) <= edit_distance(a, b) <= max(len(a), len(b))


def test_edits_by_hand() -> None:
    found = Edits.of("one two three", "one too  there")
    assert (int(found.char_edits), int(found.chars), int(found.word_edits), int(found.words)) == (4, 13, 2, 3)
    assert (int(found.right), int(found.count)) == (0, 1)
    rates = {"val_char_error_rate": 4 / 13, "val_word_error_rate": 2 / 3, "val_sentence_accuracy": 0}
    assert found.as_metrics("val_") == pytest.approx(rates)
    assert Edits.of("a b", "a  b").as_metrics() == pytest.approx({"char_error_rate": 1 / 3, "word_error_rate": 0, "sentence_accuracy": 0})


def test_edits_add_up_and_long_texts_weigh_more() -> None:
    total = Edits.of("a", "b") + Edits.of("x" * 9, "x" * 9) + Edits.of("", "")
    assert total.as_metrics() == pytest.approx({"char_error_rate": 1 / 10, "word_error_rate": 1 / 2, "sentence_accuracy": 2 / 3})
    assert total.char_edits.dtype == torch.int64


def test_more_may_be_written_than_was_said() -> None:
    assert Edits.of("a", "abcd").char_error_rate() == 3 and Edits.of("", "abc").as_metrics()["char_error_rate"] == 3


def test_a_share_of_no_texts_is_none() -> None:
    none = Edits(*(torch.tensor(0) for _ in range(6)))
    with pytest.raises(ValueError, match=r"^no texts were counted, so there is no share of them$"):
        none.as_metrics()


@pytest.mark.parametrize("name", ["char_error_rate", "word_error_rate", "sentence_accuracy"])
@pytest.mark.parametrize("prefix", ["", "val_"])
def test_fewer_errors_are_better(prefix: str, name: str) -> None:
    assert less_is_better(prefix + name) == name.endswith("_error_rate")


@pytest.mark.parametrize(
    "answers, references, scores",
    [
        # 3 of 4 words, 2 of 3 pairs, 1 of 2 triples, and of the one of four none, for which sacreBLEU counts a half.
        (["the cat sat here"], [["the cat sat there"]], [3 / 4, (3 / 4 * 2 / 3) ** (1 / 2), (1 / 4) ** (1 / 3), (1 / 8) ** (1 / 4)]),
        # A word counts as often as the reference with most of it has it, and the length is that of the nearest reference.
        (["the the the"], [["the cat", "a the the"]], [2 / 3, (2 / 3 * 1 / 2) ** (1 / 2)]),
        # Too short; and sums over the corpus, not a mean over its texts. As many references as each has.
        (["a cat", "a dog barks"], [["a cat sat on a mat"], ["a dog barks", "dogs"]], [math.exp(1 - 9 / 5), math.exp(1 - 9 / 5)]),
        (["A Red Circle ."], [["a red circle."]], [1, 1, 1, 1]),
        # Chinese: each character is a word.
        (["红圆"], [["红色圆"]], [math.exp(1 - 3 / 2)]),
    ],
    ids=["precision", "clipped", "short", "case", "Chinese"],
)
def test_bleu_by_hand(answers: list[str], references: list[list[str]], scores: list[float]) -> None:
    found = bleu(answers, references, len(scores))
    assert found.scores == pytest.approx([100 * score for score in scores], abs=1e-6)
    assert "tok:char" in found.signature if references == [["红色圆"]] else "tok:13a" in found.signature
