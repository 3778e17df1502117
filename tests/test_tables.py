"""Tables whose columns stand one below the other, whatever they hold."""

from __future__ import annotations

import math

import torch

from charrnn.metrics import Confusion
from charrnn.tables import aligned, columns, confusion_table, duration, sparkline


def test_chinese_characters_take_two_columns() -> None:
    assert [columns(text) for text in ("good", "很好", "ｇ", "é", "e\u0301", "")] == [4, 4, 2, 1, 1, 0]
    assert aligned([["", "好评"], ["差", "1"], ["very", "22"]]) == ["      好评", "差       1", "very    22"]


def test_a_confusion_is_shown_with_what_each_label_reached() -> None:
    table = confusion_table(Confusion(torch.tensor([[1200, 300], [0, 500]])), ["好评", "差\t评"])
    assert table.split("\n") == [
        "truth \\ answer   好评  差\\t评  texts  precision  recall     F1",
        "好评            1,200     300  1,500     100.0%   80.0%  88.9%",
        "差\\t评              0     500    500      62.5%  100.0%  76.9%",
    ]
    assert len({columns(line) for line in table.split("\n")}) == 1


def test_of_many_labels_only_what_each_reached_is_shown() -> None:
    labels = [f"{'label' * 10} {n}" for n in range(30)]
    lines = confusion_table(Confusion(torch.eye(30, dtype=torch.int64)), labels).split("\n")
    assert len(lines) == 31 and max(map(columns, lines)) < 80
    assert lines[1].endswith("…      1     100.0%  100.0%  100.0%")


def test_a_curve_as_bars_of_a_line() -> None:
    assert sparkline([1, 2, 3, 4, 5, 6, 7, 8], 8) == "▁▂▃▄▅▆▇█" and sparkline([], 5) == "" and sparkline([2.0, 2.0], 5) == "▁▁"
    assert sparkline([3, math.nan, 1], 5) == "█·▁" and sparkline([math.nan], 5) == "·"
    assert sparkline([float(i) for i in range(1000)], 4) == "▁▃▆█"


def test_durations_are_short() -> None:
    told = [duration(seconds) for seconds in (0.4, 45, 99.4, 130, 5939, 6000, 11400, 180_000, 300_000)]
    assert told == ["0 s", "45 s", "99 s", "2 min", "99 min", "1 h 40 min", "3 h 10 min", "2 d 2 h", "3 d 11 h"]
