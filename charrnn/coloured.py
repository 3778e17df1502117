"""Characters in the colours of what a model made of them: on a terminal, in an HTML page, or as digits where there are no colours.

A colour is a class of the page: s0 to s7 for bits of surprisal, g0 to g7 for a share of 1, m4 to m1 for what is below 0 and p1 to p4 for
what is above. Each is a background in one hue of two, blue and orange, which no common colour blindness takes for one another.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

from charrnn.errors import glyph
from charrnn.finding import Found
from charrnn.inside import Looked, View, scale_of
from charrnn.page import SURPRISAL_LIGHT, SURPRISAL_STEPS, escape, page, surprisal_colour
from charrnn.tables import columns, filled

Colours = Literal["none", "256", "true"]

_SHARES = ("#ffffff", "#eef4fb", "#deebf7", "#cbdff1", "#b3d0ea", "#98c0e1", "#7bafd8", "#62a0d2")
_SHARES_DARK = ("#1f1f1e", "#1b232c", "#1a2a3a", "#1b3147", "#1d3a56", "#204466", "#245078", "#2a5c8a")
_SIGNED = {
    "m4": "#62a0d2", "m3": "#98c0e1", "m2": "#c4dbef", "m1": "#e4eef8", "p1": "#fdeedd", "p2": "#fbd5aa", "p3": "#f5b975", "p4": "#eb9a44",
}  # fmt: skip
_SIGNED_DARK = {
    "m4": "#2a5c8a", "m3": "#21486c", "m2": "#1c364f", "m1": "#1a2733", "p1": "#30261a", "p2": "#4d361a", "p3": "#6a4719", "p4": "#855816",
}  # fmt: skip
_LIGHT = {f"g{i}": colour for i, colour in enumerate(_SHARES)} | _SIGNED
_DARK = {f"g{i}": colour for i, colour in enumerate(_SHARES_DARK)} | _SIGNED_DARK
_ALL = {f"s{i}": colour for i, colour in enumerate(SURPRISAL_LIGHT)} | _LIGHT
_PLAIN = ("", "s0", "g0")  # no background of their own
_CUBE = (0, 95, 135, 175, 215, 255)  # what a terminal of 256 colours can make of red, of green and of blue

STYLE = "\n".join(
    [
        *(f".{name} {{ background: {colour}; }}" for name, colour in _LIGHT.items()),
        "@media (prefers-color-scheme: dark) {",
        *(f"  .{name} {{ background: {colour}; }}" for name, colour in _DARK.items()),
        "}",
        ".text { font: 1rem/1.3 ui-monospace, monospace; }",
        ".line { display: flex; flex-wrap: wrap; margin: 0 0 .6rem; min-height: 1.3rem; }",
        ".line > span { display: flex; flex-direction: column; min-width: 1.1ch; text-align: center; white-space: pre; }",
        ".line b { font-weight: 600; }",
        ".line i { font-style: normal; font-size: .72rem; line-height: 1.35; }",
        ".legend span { display: inline-block; padding: .1rem .5rem; color: var(--text); }",
    ]
)


def colours_of(is_terminal: bool, environment: Mapping[str, str]) -> Colours:
    """What can be shown: nothing where standard output is no terminal, is a dumb one, or NO_COLOR is set to anything (no-color.org)."""
    if not is_terminal or environment.get("NO_COLOR") or environment.get("TERM", "dumb") == "dumb":
        return "none"
    return "true" if environment.get("COLORTERM", "") in ("truecolor", "24bit") else "256"


def colour(view: View, value: float | None, scale: float) -> str:
    """The class of a value, of the view's scale; "" for none, and for what is near 0 of what has a sign."""
    if value is None or not math.isfinite(value):
        return ""
    if view.by == "surprisal":
        return surprisal_colour(value)
    if view.by == "gate" and view.name != "candidate":
        return _share(value)
    step = round(4 * min(1.0, abs(value) / scale))
    return "" if step == 0 else f"{'m' if value < 0 else 'p'}{step}"


def _share(value: float) -> str:
    return f"g{int(min(7, max(0.0, 8 * value)))}"


def marks(view: View, looked: Sequence[Looked]) -> str:
    """A digit for each value: whole bits of surprisal, up to 9; or 0 for the lowest to 9 for the highest of all. `-` for none."""
    known = [one.value for one in looked if one.value is not None and math.isfinite(one.value)]
    low, wide = (0.0, 9.0) if view.by == "surprisal" else (min(known, default=0.0), max(known, default=0.0) - min(known, default=0.0))
    return "".join(
        "-" if one.value is None or not math.isfinite(one.value) else str(int(min(9, 9 * (one.value - low) / (wide or 1) + 1e-9)))
        for one in looked
    )


def on_terminal(looked: Sequence[Looked], view: View, wide: int, colours: Colours) -> Iterator[str]:
    """Lines of the text in colours, no wider than so many columns, each with the likely next characters below every one of its own."""
    scale = scale_of(view, looked)
    for line in _lines(looked, wide):
        cells = [[("" if one.character == " " else glyph(one.character), colour(view, one.value, scale))] for one in line]
        for cell, one in zip(cells, line):
            cell += [(glyph(character), _share(share)) for character, share in one.likely]
        widths = [_width(one) for one in line]
        for row in range(max(map(len, cells))):
            yield "".join(
                _painted(filled(*(cell[row][0], width)), cell[row][1], colours) if row < len(cell) else " " * width
                for cell, width in zip(cells, widths)
            )
        if any(len(cell) > 1 for cell in cells):
            yield ""


def _width(one: Looked) -> int:
    return max(1, *(columns(glyph(character)) for character in (one.character, *(character for character, _ in one.likely))))


def _lines(looked: Sequence[Looked], wide: int) -> Iterator[list[Looked]]:
    line: list[Looked] = []
    used = 0
    for one in looked:
        if line and used + _width(one) > wide:
            yield line
            line, used = [], 0
        line.append(one)
        used += _width(one)
        if one.character in ("", "\n"):
            yield line
            line, used = [], 0
    if line:
        yield line


def _painted(text: str, name: str, colours: Colours) -> str:
    if name in _PLAIN or colours == "none":
        return text
    red, green, blue = (int(_ALL[name][i : i + 2], 16) for i in (1, 3, 5))
    if colours == "true":
        return f"\x1b[38;2;0;0;0;48;2;{red};{green};{blue}m{text}\x1b[0m"
    r, g, b = (min(range(6), key=lambda i: abs(_CUBE[i] - part)) for part in (red, green, blue))
    return f"\x1b[38;5;16;48;5;{16 + 36 * r + 6 * g + b}m{text}\x1b[0m"


def looked_page(looked: Sequence[Looked], view: View, model: str) -> str:
    """A page that needs nothing but itself: the text in colours, what was likely below each character, and all of it as a table."""
    told = f"{len(looked):,} characters as {model} reads them, coloured by {view}"
    likely = max((len(one.likely) for one in looked), default=0)
    below = f"Below each character stand the {likely} that the model takes to be next, the likeliest first." if likely else ""
    rows = "".join(_row(one, view) for one in looked)
    number = "" if view.by == "surprisal" else f"<th>{escape(str(view))}</th>"
    body = (
        f"<header><h1>Inside</h1><p>{escape(told)}. {below}</p>{_legend(view, looked)}</header>\n"
        f'<main>\n<section class="card" aria-label="The text in colours">\n{_text(looked, view)}</section>\n'
        f'<details class="card"><summary>Every character as a table</summary>\n<div class="scroll" tabindex="0" role="region" '
        f'aria-label="Every character">\n<table><thead><tr><th>character</th><th>bits</th>{number}<th>likely next</th></tr></thead>\n'
        f"<tbody>\n{rows}</tbody></table></div></details>\n</main>\n"
    )
    return page(told, body, style=STYLE)


def found_page(found: Found, samples: Sequence[tuple[View, Sequence[Looked]]], model: str) -> str:
    """A page that needs nothing but itself: the table of what units follow, and a sample in the colours of each feature's best unit."""
    told = f"What single units of {model} follow"
    rows = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>\n" for row in found_rows(found))
    heads = "".join(f"<th>{escape(name)}</th>" for name in FOUND_HEADS)
    parts = "".join(
        f'<section class="card"><h2>{escape(f"{follows.feature}: {view}")}</h2>\n{_legend(view, looked)}{_text(looked, view)}</section>\n'
        for follows, (view, looked) in zip(found.follows, samples)
    )
    body = (
        f"<header><h1>{escape(told)}</h1><p>{escape(found_note(found))}</p></header>\n"
        f'<main>\n<div class="card scroll" tabindex="0" role="region" aria-label="Table of units">\n'
        f"<table><thead><tr>{heads}</tr></thead>\n<tbody>\n{rows}</tbody></table></div>\n{parts}</main>\n"
    )
    return page(told, body, style=STYLE)


FOUND_HEADS = ("feature", "form", "unit", "goes", "explained", "first half", "control", "all units", "their control")


def found_rows(found: Found) -> list[tuple[str, ...]]:
    """A row for each unit that was found, with what its feature has in common in the first."""
    rows: list[tuple[str, ...]] = []
    for one in found.follows:
        for i, (unit, rises, fitted, explained) in enumerate(zip(one.units, one.rises, one.fitted, one.explained)):
            shared = [f"{one.control:.1%}", f"{one.probe:.1%}", f"{one.probe_control:.1%}"] if i == 0 else ["", "", ""]
            names = (one.feature, one.form) if i == 0 else ("", "")
            rows.append((*names, str(unit), "up" if rises else "down", f"{explained:.1%}", f"{fitted:.1%}", *shared))
    return rows


def found_note(found: Found) -> str:
    """How the shares are to be read."""
    absent = f" Not in this text, or the same all through a half of it: {', '.join(found.absent)}." if found.absent else ""
    return (
        f"Of {found.units:,} units. Units and forms were chosen on the first {found.counted:,} characters; explained is the share of the "
        f"feature's variance on the other {found.counted:,}, below 0 where its mean alone does better. Control: the best unit of all, with "
        f"the feature shifted around. All units: a ridge regression on them together.{absent}"
    )


def _text(looked: Sequence[Looked], view: View) -> str:
    """Lines of columns, which a screen reader reads as the text that they are."""
    scale = scale_of(view, looked)
    lines: list[str] = []
    for line in _lines(looked, 10**9):
        cells: list[str] = []
        for one in line:
            likely = "".join(_cell("i", glyph(character), _share(share)) for character, share in one.likely)
            shown = one.character if one.character == " " else glyph(one.character)
            cells.append(f'<span title="{escape(_title(one, view))}">{_cell("b", shown, colour(view, one.value, scale))}{likely}</span>')
        lines.append(f'<div class="line">{"".join(cells)}</div>\n')
    told = "".join(one.character if one.character == " " else glyph(one.character) for one in looked)
    return f'<div class="text" role="img" aria-label="{escape(told)}">\n{"".join(lines)}</div>\n'


def _cell(element: str, text: str, name: str) -> str:
    named = "" if name in _PLAIN else f' class="{name}"'
    return f"<{element}{named}>{escape(text)}</{element}>"


def _title(one: Looked, view: View) -> str:
    told = [glyph(one.character), _bits(one)]
    if view.by != "surprisal" and one.value is not None:
        told.append(f"{view} {one.value:+.3f}")
    if one.likely:
        told.append("next: " + " ".join(f"{glyph(character)} {share:.0%}" for character, share in one.likely))
    return "; ".join(told)


def _bits(one: Looked) -> str:
    return "not scored" if one.bits is None else f"{one.bits:.2f} bits"


def _row(one: Looked, view: View) -> str:
    value = "" if view.by == "surprisal" else f'<td class="number">{"" if one.value is None else f"{one.value:+.4f}"}</td>'
    likely = " ".join(f"{glyph(character)} {share:.1%}" for character, share in one.likely)
    bits = "" if one.bits is None else f"{one.bits:.2f}"
    return f'<tr><td>{escape(glyph(one.character))}</td><td class="number">{bits}</td>{value}<td>{escape(likely)}</td></tr>\n'


def _legend(view: View, looked: Sequence[Looked]) -> str:
    if view.by == "surprisal":
        steps = [(f"s{i}", f"{i} bits" if i < SURPRISAL_STEPS - 1 else f"{i} and more") for i in range(SURPRISAL_STEPS)]
    elif scale_of(view, looked) == 1.0 and view.by == "gate":
        steps = [(f"g{i}", f"{i / 8:g}") for i in range(8)]
    else:
        scale = scale_of(view, looked)
        steps = [(f"m{i}", f"{-scale * i / 4:.2g}") for i in range(4, 0, -1)] + [("", "0")]
        steps += [(f"p{i}", f"{scale * i / 4:.2g}") for i in range(1, 5)]
    spans = "".join(f'<span class="{name}">{escape(text)}</span>' for name, text in steps)
    return f'<p class="legend" aria-label="Colours">{spans}</p>\n'
