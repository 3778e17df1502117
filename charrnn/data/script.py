"""Simplified and traditional characters: conversion by OpenCC, and which characters it has to choose for."""

from __future__ import annotations

from collections import defaultdict
from typing import Literal

from charrnn.errors import DataError

Script = Literal["simplified", "traditional"]

# The characters in common use. OpenCC's tables know many more, and would call a character ambiguous for a rare form of it.
_COMMON = {"simplified": "gb2312", "traditional": "big5"}
_CONFIGS = {"simplified": "t2s", "traditional": "s2t"}
_IDEOGRAPHS = range(0x4E00, 0xA000)


class Converter:
    """Text to one script. `ambiguous` counts the characters read so far that stand for several of that script.

    Which one is meant, OpenCC decides by the words around them: 头发 becomes 頭髮 and 发展 becomes 發展.
    """

    def __init__(self, script: Script) -> None:
        try:
            import opencc
        except ImportError:
            raise DataError(f"data.script: {script} needs OpenCC, which is not installed; pip install 'charrnn[zh]'") from None
        self.script = script
        self.ambiguous = 0
        self._convert = opencc.OpenCC(_CONFIGS[script]).convert
        other: Script = "traditional" if script == "simplified" else "simplified"
        self._several = _ambiguous(self._convert, opencc.OpenCC(_CONFIGS[other]).convert, _COMMON[script])

    def __call__(self, text: str) -> str:
        if text.isascii():
            return text
        self.ambiguous += sum(map(self._several.__contains__, text))
        return self.uncounted(text)

    def uncounted(self, text: str) -> str:
        try:
            return str(self._convert(text))
        except UnicodeEncodeError:
            raise DataError(
                "data.script: the text holds halves of characters (surrogates), which cannot be converted; take them out"
            ) from None


def _ambiguous(there, back, common: str) -> frozenset[str]:  # type: ignore[no-untyped-def]
    """The characters that several common characters of the other script become when they are turned back.

    A character that is also one of that script is among them: 后 is 后, the empress, and 後, behind.
    """
    ideographs = [chr(point) for point in _IDEOGRAPHS]
    forms: defaultdict[str, set[str]] = defaultdict(set)
    for character, origin in zip(ideographs, back("\n".join(ideographs)).split("\n")):
        if _is_in(character, common):
            forms[origin].add(character)
    for character, form in zip(ideographs, there("\n".join(ideographs)).split("\n")):
        forms[character].add(form)
    return frozenset(character for character, found in forms.items() if len(found) > 1)


def _is_in(character: str, encoding: str) -> bool:
    try:
        character.encode(encoding)
    except UnicodeEncodeError:
        return False
    return True
