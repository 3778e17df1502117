"""Tables whose columns stand one below the other, whatever they hold."""

from __future__ import annotations

import torch

from charrnn.metrics import Confusion
from charrnn.tables import aligned, columns, confusion_table


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
