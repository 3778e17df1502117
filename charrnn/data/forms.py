"""The forms of Chinese verse: how many lines of how many characters."""

from __future__ import annotations

import re
from dataclasses import dataclass

from charrnn.errors import UserError

MARKS = "，。！？；、：,.!?;:"  # that part two lines of a verse
_BREAK = re.compile(f"[{re.escape(MARKS)}\\s]+")


@dataclass(frozen=True)
class Form:
    """`lines` lines of `characters` characters each, marks not counted."""

    lines: int
    characters: int

    @property
    def name(self) -> str:
        """五绝 for 4x5 and so on; NxM where there is no name."""
        return next((name for name, form in FORMS.items() if form == self), f"{self.lines}x{self.characters}")


FORMS = {"五绝": Form(4, 5), "七绝": Form(4, 7), "五律": Form(8, 5), "七律": Form(8, 7)}
_ALIASES = (("絕", "绝"), ("詩", "诗"), ("言绝句", "绝"), ("言律诗", "律"))  # 五言絕句 is 五绝


def parse_form(text: str, place: str = "form") -> Form:
    """五绝, 七绝, 五律, 七律 or NxM, lines × characters. Raises UserError naming the place and what is expected."""
    name = text.strip()
    for alias, plain in _ALIASES:
        name = name.replace(alias, plain)
    if name in FORMS:
        return FORMS[name]
    match = re.fullmatch(r"([1-9]\d{0,2})\s*[x×X*]\s*([1-9]\d{0,2})", name)
    if not match:
        raise UserError(f"{place} {text!r}: unknown; expected {', '.join(FORMS)} or lines x characters as 4x7")
    return Form(int(match[1]), int(match[2]))


def form_of(text: str) -> Form | None:
    """The form of a verse, by its lines between marks and white space; None where they differ in length or there are fewer than two."""
    lines = [line for line in _BREAK.split(text) if line]
    if len(lines) < 2 or len({len(line) for line in lines}) > 1:
        return None
    return Form(len(lines), len(lines[0]))
