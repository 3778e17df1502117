"""Tables for a person, in columns that stand one below the other on a terminal."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from charrnn.errors import printable

if TYPE_CHECKING:
    from charrnn.metrics import Confusion

LONGEST = 32  # characters of a label
BARS = "▁▂▃▄▅▆▇█"
SQUARE = 20  # labels: what was answered for each of more is wider than a screen


def columns(text: str) -> int:
    """How wide a terminal shows a text: Chinese, Japanese and Korean characters take two columns, combining marks none."""
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def filled(text: str, width: int, *, right: bool = False) -> str:
    """With spaces up to a width in columns; `right`: with the text at the right end."""
    space = " " * (width - columns(text))
    return space + text if right else text + space


def aligned(rows: Sequence[Sequence[str]], left: Sequence[int] = (0,)) -> list[str]:
    """The lines of a table: the columns `left`, of text, begin at the left, the others, of figures, end at the right."""
    widths = [max(map(columns, column)) for column in zip(*rows)]
    lines = ("  ".join(filled(cell, width, right=i not in left) for i, (cell, width) in enumerate(zip(row, widths))) for row in rows)
    return [line.rstrip() for line in lines]


def sparkline(values: Sequence[float], width: int) -> str:
    """Values as bars of a line at most `width` wide, the lowest and the highest as such; of many, the mean of neighbours. NaN is a dot."""
    groups = min(width, len(values))
    cuts = [len(values) * i // groups for i in range(groups + 1)] if groups else [0]
    parts = [[value for value in values[a:b] if math.isfinite(value)] for a, b in pairwise(cuts)]
    means = [sum(part) / len(part) if part else math.nan for part in parts]
    there = [mean for mean in means if math.isfinite(mean)]
    low, reach = min(there, default=0.0), max(there, default=0.0) - min(there, default=0.0)
    share = (((mean - low) / reach if reach > 0 else 0.0) if math.isfinite(mean) else None for mean in means)
    return "".join("·" if one is None else BARS[min(len(BARS) - 1, int(one * len(BARS)))] for one in share)


def duration(seconds: float) -> str:
    """`45 s`, `12 min`, `3 h 10 min`, `2 d 3 h`."""
    whole = max(0, round(seconds))
    minutes, hours, days = round(whole / 60), whole // 3600, whole // 86400
    if whole < 100:
        return f"{whole} s"
    if minutes < 100:
        return f"{minutes} min"
    return f"{hours} h {whole // 60 % 60} min" if hours < 48 else f"{days} d {hours % 24} h"


def named(label: str) -> str:
    """A label as a table shows it."""
    shown = printable(label)
    return shown if len(shown) <= LONGEST else shown[: LONGEST - 1] + "…"


def confusion_table(confusion: Confusion, labels: Sequence[str]) -> str:
    """Rows are the truth, columns the answers and how well each label was told."""
    one, names = confusion.by_label(), [named(label) for label in labels]
    answers = names if len(names) <= SQUARE else []
    rows = [["truth \\ answer" if answers else "truth", *answers, "texts", "precision", "recall", "F1"]]
    shares = [[f"{share:.1%}" for share in part.tolist()] for part in (one.precision(), one.recall(), one.f1())]
    for i, name in enumerate(names):
        counts = [f"{count:,}" for count in confusion.counts[i].tolist()] if answers else []
        rows.append([name, *counts, f"{int(one.true[i]):,}", *(part[i] for part in shares)])
    return "\n".join(aligned(rows))
