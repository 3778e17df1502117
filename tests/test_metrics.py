"""Sums travel, and one division at the edge."""

from __future__ import annotations

import math

import pytest
import torch

from charrnn.metrics import Tally, cost, less_is_better, sayable


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
