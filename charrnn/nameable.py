"""What of the place of a character in its text has a name: inside quotes, so far from the line's beginning, so deep in brackets.

A number for each character, of the text up to it, itself read; but where rhymes fall, which is seen from what stands behind.

Axes: N characters.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.float64]  # (N,)

OPENING, CLOSING = "([{（【「『〔《", ")]}）】」』〕》"
QUOTES = {"“": "”", "«": "»", "「": "」", "『": "』", '"': '"'}
ENDS_SENTENCE = ".!?。！？"
MARKS = ",;:、，；：" + ENDS_SENTENCE
TAB = 8  # columns, as Python reads indentation

# How a number of steps is turned before a unit, which saturates, is asked to follow it. Which one is chosen on the first half of a text.
FORMS: dict[str, Callable[[Numbers], Numbers]] = {
    "n": lambda n: n,
    "log(1 + n)": np.log1p,
    **{f"min(n, {most})": partial(np.minimum, float(most)) for most in (5, 10, 20, 40)},
}
YES_OR_NO = ("inside quotes", "behind # on the line", "where rhymes fall")


def nameable(characters: Sequence[str]) -> dict[str, Numbers]:
    """By name, a number for each of N characters, (N,); "" is the end of a document, behind which all begins anew.

    inside quotes                       1 or 0: double quotes or their like; forgotten at a blank line, as one may never be closed
    characters since the line began     0 at the line end itself
    indentation of the line             columns of blanks before its first other character, so far; a tab goes on to a multiple of 8
    bracket depth                       of round, square, curly and Chinese ones; forgotten at a blank line
    characters since a mark             , ; : . ! ? and their Chinese like, or a line end: the position in a verse line
    characters since a sentence ended   . ! ? and their like, or a blank line; of Chinese verse the position in the couplet
    characters of the word so far       letters and digits in a run
    lines since a blank line
    behind # on the line                1 or 0: a comment in Python, a heading in Markdown
    where rhymes fall                   1 or 0: the last word of a line, and of Chinese text the last character before 。！？
    """
    count = len(characters)
    found = {name: np.zeros(count) for name in (
        "inside quotes", "characters since the line began", "indentation of the line", "bracket depth", "characters since a mark",
        "characters since a sentence ended", "characters of the word so far", "lines since a blank line", "behind # on the line",
    )}  # fmt: skip
    closes, depth, line, indentation, mark, sentence, word, lines = "", 0, 0, 0, 0, 0, 0, 0
    leads, comment, before = True, False, "\n"  # leads: only blanks so far on this line
    for i, c in enumerate(characters):
        if c == "" or (c == "\n" and before == "\n"):
            closes, depth, sentence, lines = "", 0, 0, 0
        elif c == "\n":
            lines, sentence = lines + 1, sentence + 1
        else:
            sentence = 0 if c in ENDS_SENTENCE else sentence + 1
        if c in ("", "\n"):
            line, indentation, mark, word, leads, comment = 0, 0, 0, 0, True, False
        else:
            line += 1
            mark = 0 if c in MARKS else mark + 1
            word = word + 1 if c.isalnum() or c == "_" else 0
            if leads and c in " \t":
                indentation = indentation + 1 if c == " " else (indentation // TAB + 1) * TAB
            else:
                leads = False
            if c == closes:
                closes = ""
            elif not closes and c in QUOTES:
                closes = QUOTES[c]
            comment = comment or (c == "#" and not closes)
            if c in OPENING:
                depth += 1
            elif c in CLOSING:
                depth = max(0, depth - 1)
        before = c or "\n"
        for name, number in zip(found, (closes != "", line, indentation, depth, mark, sentence, word, lines, comment)):
            found[name][i] = number
    found["where rhymes fall"] = _rhymes(characters)
    return found


def _rhymes(characters: Sequence[str]) -> Numbers:
    """From the end: behind a line end the word that ends the line; behind 。！？ the Chinese character before it."""
    rhymes = np.zeros(len(characters))
    asks = ""  # line: the last word of a line is looked for, inside: it is there, couplet: 。！？ has just been met
    for i in range(len(characters) - 1, -1, -1):
        c = characters[i]
        han = c != "" and unicodedata.category(c) == "Lo"
        if c == "\n":
            asks = "line"
        elif c in "。！？" and c:
            asks = "couplet"
        elif han:
            rhymes[i] = asks in ("couplet", "line")
            asks = ""
        elif c.isalnum() or c == "'":
            rhymes[i] = asks in ("line", "inside")
            asks = "inside" if rhymes[i] else ""
        elif asks == "inside":
            asks = ""
    return rhymes
