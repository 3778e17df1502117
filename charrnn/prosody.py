"""How Chinese characters sound: which rhyme, which are level, and the tone patterns of regulated verse.

Sounds are those of the modern standard language, as pypinyin has them. The rhymes are the fourteen of 中华新韵 (2005), the
tones 平 (the first and the second) and 仄 (the third and the fourth). A character of several readings has the first that
pypinyin lists and that bears a tone, and that one alone: 长 is zhǎng, 了 is liǎo. The entering tone of Middle Chinese, which
the poets of the Tang heard in 月 or 白, cannot be known from pinyin, so this is not 平水韵.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache
from typing import NamedTuple

from charrnn.errors import UserError

LEVEL, OBLIQUE, EITHER = "平", "仄", "-"

_RHYMES = {
    "麻": "a ia ua",
    "波": "o e uo",
    "皆": "ie ve ê",
    "开": "ai uai",
    "微": "ei uei",
    "豪": "ao iao",
    "尤": "ou iou",
    "寒": "an ian uan van",
    "文": "en in uen vn",
    "唐": "ang iang uang",
    "庚": "eng ing ueng ong iong",
    "齐": "i er v",
    "姑": "u",
}
RHYME_OF = {final: rhyme for rhyme, finals in _RHYMES.items() for final in finals.split()}
RHYMES = (*_RHYMES, "支")
BUZZED = frozenset(["zh", "ch", "sh", "r", "z", "c", "s"])  # after these an i is another vowel: the rhyme 支

# The four lines of regulated verse, by how they end, with `-` where either tone may stand (王力, 诗词格律).
_LINES = {
    5: {"a": "-仄平平仄", "B": "平平仄仄平", "b": "-平平仄仄", "A": "-仄仄平平"},
    7: {"a": "-平-仄平平仄", "B": "-仄平平仄仄平", "b": "-仄-平平仄仄", "A": "-平-仄仄平平"},
}
# A verse goes round in a B b A, from either half; its first line may rhyme too, and then is the level line of its kind.
_ROUNDS = ("aBbA", "bAaB")
_RHYMING_FIRST = {"a": "A", "b": "B"}


class Sound(NamedTuple):
    syllable: str  # as zhang3
    rhyme: str | None  # None for the few that are all consonant, as 嗯
    tone: str  # LEVEL or OBLIQUE


class Pattern(NamedTuple):
    """The tones of a regulated verse."""

    lines: tuple[str, ...]  # LEVEL, OBLIQUE or EITHER a character
    first_rhymes: bool


def sounds(characters: Iterable[str], asked_by: str) -> dict[str, Sound]:
    """The sound of each character that has one. Raises UserError, naming the flag `asked_by`, where pypinyin is not installed."""
    try:
        import pypinyin  # noqa: F401 - an extra, asked for before it is used below
    except ModuleNotFoundError:
        raise UserError(f"{asked_by}: pypinyin is not installed; expected it for how characters sound; pip install 'charrnn[zh]'") from None
    return {character: sound for character in characters if (sound := _sound(character))}


@cache
def _sound(character: str) -> Sound | None:
    from pypinyin import Style, pinyin
    from pypinyin.contrib.tone_convert import to_finals, to_initials

    readings = pinyin(character, style=Style.TONE3, heteronym=True)[0]
    syllable = next((reading for reading in readings if re.fullmatch(r"[a-zê]+[1-4]", reading)), None)
    if syllable is None:  # no Chinese character, or one without a tone in any reading
        return None
    plain = syllable[:-1]
    final = to_finals(plain, strict=True)
    rhyme = "支" if final == "i" and to_initials(plain, strict=True) in BUZZED else RHYME_OF.get(final)
    return Sound(syllable, rhyme, LEVEL if syllable[-1] in "12" else OBLIQUE)


def patterns(lines: int, characters: int) -> list[Pattern]:
    """The four patterns of a regulated verse of any even number of lines. Raises UserError for a form that has none."""
    if characters not in _LINES or lines % 2:
        raise UserError(
            f"--tone: a form of {lines} x {characters} has no tone pattern; "
            "expected an even number of lines of 5 or 7 characters, as 五绝 and 七律 have; leave --tone out"
        )
    kinds = _LINES[characters]
    found = []
    for first in _ROUNDS:
        plain = [kinds[first[i % 4]] for i in range(lines)]
        found.append(Pattern(tuple(plain), False))
        found.append(Pattern((kinds[_RHYMING_FIRST[first[0]]], *plain[1:]), True))
    return found
