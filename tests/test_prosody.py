"""Sounds and tone patterns."""

from __future__ import annotations

import sys

import pytest

from charrnn.errors import UserError
from charrnn.prosody import LEVEL, OBLIQUE, Sound, patterns, sounds


@pytest.mark.parametrize(
    "character, expected",
    [
        ("诗", Sound("shi1", "支", LEVEL)),
        ("四", Sound("si4", "支", OBLIQUE)),
        ("鸡", Sound("ji1", "齐", LEVEL)),
        ("鱼", Sound("yu2", "齐", LEVEL)),
        ("儿", Sound("er2", "齐", LEVEL)),
        ("湖", Sound("hu2", "姑", LEVEL)),
        ("圆", Sound("yuan2", "寒", LEVEL)),
        ("云", Sound("yun2", "文", LEVEL)),
        ("中", Sound("zhong1", "庚", LEVEL)),
        ("月", Sound("yue4", "皆", OBLIQUE)),
        ("酒", Sound("jiu3", "尤", OBLIQUE)),
        ("归", Sound("gui1", "微", LEVEL)),
        ("长", Sound("zhang3", "唐", OBLIQUE)),  # the first of its readings
        ("了", Sound("liao3", "豪", OBLIQUE)),  # the first that bears a tone
        ("嗯", Sound("n2", None, LEVEL)),
    ],
)
def test_a_character_has_a_rhyme_and_a_tone(character: str, expected: Sound) -> None:
    assert sounds(character, "--rhyme") == {character: expected}


def test_what_is_not_chinese_has_no_sound() -> None:
    assert sounds("aあ□，7", "--rhyme") == {}


@pytest.mark.parametrize("lines, characters", [(4, 5), (4, 7), (8, 5), (8, 7), (12, 5)])
def test_patterns_are_regulated(lines: int, characters: int) -> None:
    found = patterns(lines, characters)
    assert len({pattern.lines for pattern in found}) == 4
    for pattern in found:
        assert {len(line) for line in pattern.lines} == {characters}
        assert all(line[-1] == LEVEL for line in pattern.lines[1::2])
        assert (pattern.lines[0][-1] == LEVEL) == pattern.first_rhymes
        assert all(line[-1] == OBLIQUE for line in pattern.lines[2::2])
        seconds = [line[1] for line in pattern.lines]
        assert all(odd != even for odd, even in zip(seconds[::2], seconds[1::2]))  # 对
        assert all(even == odd for even, odd in zip(seconds[1::2], seconds[2::2]))  # 粘


@pytest.mark.parametrize("lines, characters", [(4, 6), (3, 5)])
def test_other_forms_have_no_pattern(lines: int, characters: int) -> None:
    with pytest.raises(UserError, match=f"--tone: a form of {lines} x {characters} has no tone pattern; expected an even"):
        patterns(lines, characters)


def test_without_pypinyin_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pypinyin", None)
    with pytest.raises(UserError) as error:
        sounds("诗", "--rhyme")
    assert str(error.value).startswith("--rhyme: pypinyin is not installed") and "pip install 'charrnn[zh]'" in str(error.value)
