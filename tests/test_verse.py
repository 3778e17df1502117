"""Verse: whatever a model writes, it is what was asked for, by a checker that shares nothing with what is checked."""

from __future__ import annotations

import importlib.util
import itertools
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from charrnn.checkpoint import save_model
from charrnn.cli import main
from charrnn.config import ModelConfig, build_config
from charrnn.constraints import Constraint
from charrnn.data.forms import Form, form_of, parse_form
from charrnn.data.vocabulary import Vocabulary
from charrnn.errors import UserError
from charrnn.generation import generate
from charrnn.models.char_rnn import CharRNN
from charrnn.options import SamplingOptions
from charrnn.verse.build import LONGEST_LINE, build_verse
from charrnn.verse.options import VerseOptions

SCRIPT = Path(__file__).parent.parent / "scripts" / "bench_verse.py"
CHARACTERS = (
    "我爱你们春风花月山水天地日夜星云雨雪江河湖海草木树林鸟鱼马牛人家心情思念书琴酒茶诗歌声色光明白红青黄"
    "东西南北中前后左右上下高低长短大小多少来去归飞行坐立看听闻知见忘记梦醒秋冬夏寒暖清凉开落流转千万百十一二三"
    "楼台亭阁门窗船帆孤舟老翁童子君王"
)
CHINESE = Vocabulary(("unknown", "end"), "".join(sorted(set(CHARACTERS + "\n，。《》a"))))
ENGLISH = Vocabulary(("unknown",), "\n !',.ABCHIabcdefghijklmnopqrstuvwxyz\u2028")


def _checker() -> tuple[Callable[..., list[str]], Callable[[str], str | None]]:
    spec = importlib.util.spec_from_file_location("bench_verse", SCRIPT)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.mistakes, module.rhyme


mistakes, rhyme_of = _checker()


def model_for(vocabulary: Vocabulary) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return CharRNN(ModelConfig(embedding_size=5, hidden_size=9), len(vocabulary)).eval()


def sampled(vocabulary: Vocabulary, options: VerseOptions, count: int, prime: str = "", length: int = 300, seed: int = 1) -> list[str]:
    verse = build_verse(vocabulary, options, prime=prime)
    steps = generate(
        model_for(vocabulary),
        vocabulary,
        vocabulary.encode(prime),
        length=length if verse.length is None else verse.length,
        options=SamplingOptions(temperature=1.5),
        generator=torch.Generator().manual_seed(seed),
        num_samples=count,
        constraints=[verse.start.copy() for _ in range(count)],
    )
    return ["".join(pieces) for pieces in zip(*steps)]


def walked(constraint: Constraint, rng: random.Random) -> list[int]:
    """A text of which every character is any that is allowed."""
    ids: list[int] = []
    while not constraint.over:
        mask = constraint.allowed()
        assert mask is not None
        choices = mask.nonzero()[0].tolist()
        assert choices, "no way on"
        ids.append(rng.choice(choices))
        constraint.advance(ids[-1])
    return ids


# Forms


@pytest.mark.parametrize(
    "form, rhyme, tone, acrostic, at",
    [
        ("七绝", False, False, "", "start"),
        ("七绝", True, False, "我爱你们", "start"),
        ("七绝", True, True, "我爱你们", "start"),
        ("五绝", True, True, "", "start"),
        ("五律", True, True, "春江", "start"),
        ("七律", False, True, "", "start"),
        ("五绝", True, False, "月明花清", "end"),
        ("五绝", True, True, "月明酒清", "end"),
        ("6x4", True, False, "春", "end"),
        ("3x1", False, False, "春秋", "start"),
    ],
)
def test_200_of_200_are_as_asked(form: str, rhyme: bool, tone: bool, acrostic: str, at: Any) -> None:
    size = parse_form(form)
    verses = sampled(CHINESE, VerseOptions(form=size, rhyme=rhyme, tone=tone, acrostic=acrostic, acrostic_at=at), 200)
    assert len(set(verses)) > 150 or size.characters == 1
    for text in verses:
        wrong = mistakes(text, size.lines, size.characters, acrostic=acrostic, at_end=at == "end", rhymes=rhyme, tones=tone)
        assert not wrong, (text, wrong)
        assert size.lines == 1 or form_of(text) == size
        assert not re.search("[《》a]", text) and text.endswith("。")


def test_the_checker_finds_what_is_wrong() -> None:
    right = "白日依山尽，黄河入海流。欲穷千里目，更上一层楼。"
    assert not mistakes(right, 4, 5, rhymes=True, acrostic="白黄欲更")
    assert mistakes(right, 4, 7) and mistakes(right, 4, 5, acrostic="白白") and mistakes(right.replace("楼", "山"), 4, 5, rhymes=True)
    assert mistakes(right.replace("楼", "流"), 4, 5, rhymes=True) and mistakes(right.replace("河", "海"), 4, 5, tones=True)
    regular = "国破山河在，城春草木深。感时花溅泪，恨别鸟惊心。"
    assert not mistakes(regular, 4, 5, rhymes=True) and mistakes(regular, 4, 5, acrostic="国城恨")


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_no_verse_comes_to_a_place_without_a_way_on(data: st.DataObject) -> None:
    """Few characters, so that every rhyme is nearly used up, and a model that wants anything."""
    characters = data.draw(st.lists(st.sampled_from(CHARACTERS), min_size=2, max_size=25, unique=True))
    marks = data.draw(st.sampled_from(["\n", "，。", "，。\n"]))
    vocabulary = Vocabulary(("unknown", "end"), "".join(characters) + marks)
    width = data.draw(st.sampled_from([1, 2, 5]))
    lines = data.draw(st.sampled_from([2, 4, 6] if width == 5 else [2, 3, 4, 6]))
    tone = width == 5 and data.draw(st.booleans())
    acrostic, backwards = data.draw(st.text(st.sampled_from(characters), max_size=lines)), data.draw(st.booleans())
    at: Literal["start", "end"] = "end" if acrostic and backwards else "start"
    options = VerseOptions(form=Form(lines, width), rhyme=data.draw(st.booleans()), tone=tone, acrostic=acrostic, acrostic_at=at)
    try:
        verse = build_verse(vocabulary, options)
    except UserError:
        return
    for seed in range(5):
        ids = walked(verse.start.copy(), random.Random(seed))
        assert verse.length is not None and len(ids) <= verse.length
        text = vocabulary.decode(ids)
        at_end = at == "end" or width == 1
        assert not mistakes(text, lines, width, acrostic=acrostic, at_end=at_end, rhymes=options.rhyme, tones=tone), text


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from("江光床山天月秋流水酒"), min_size=1, max_size=5, unique=True), st.integers(2, 4), st.data())
def test_a_verse_is_refused_only_where_there_is_none(characters: list[str], lines: int, data: st.DataObject) -> None:
    acrostic = data.draw(st.text(st.sampled_from(characters), max_size=lines))

    def fits(verse: tuple[str, ...]) -> bool:
        ends = {line: verse[line] for line in (0, *range(1, lines, 2))}
        free = [end for line, end in ends.items() if line >= len(acrostic)]
        once = len(set(free)) == len(free) and not set(free) & {end for line, end in ends.items() if line < len(acrostic)}
        return once and "".join(verse).startswith(acrostic) and len({rhyme_of(end) for end in verse[1::2]}) == 1

    vocabulary = Vocabulary(("unknown",), "".join(characters) + "\n")
    there_is = any(fits(verse) for verse in itertools.product(characters, repeat=lines))
    try:
        verse = build_verse(vocabulary, VerseOptions(form=Form(lines, 1), rhyme=True, acrostic=acrostic))
    except UserError as error:
        assert not there_is, str(error)
    else:
        walked(verse.start.copy(), random.Random(0))
        assert there_is


def test_a_text_that_is_forked_goes_its_own_way() -> None:
    verse = build_verse(CHINESE, VerseOptions(form=Form(2, 1), rhyme=True))
    one, other = verse.start.copy(), verse.start.copy()
    one.advance(CHINESE.id("流"))
    fork = one.copy()
    fork.advance(CHINESE.id("，"))
    assert one.allowed() is not fork.allowed() and other.allowed() is verse.start.allowed()
    assert walked(fork, random.Random(1)) and not one.over


def test_lines_end_as_the_vocabulary_has_it() -> None:
    bare = Vocabulary(("unknown",), "".join(sorted(set(CHARACTERS))) + "\n")
    for text in sampled(bare, VerseOptions(form=Form(4, 5)), 5):
        assert re.fullmatch("(.{5}\n){3}.{5}", text)
    marked = Vocabulary(("unknown",), "".join(sorted(set(CHARACTERS))) + "，。")
    for text in sampled(marked, VerseOptions(form=Form(3, 5)), 5):
        assert re.fullmatch(".{5}，.{5}。.{5}。", text)


def test_latin_letters_fill_a_form_where_they_are_the_letters() -> None:
    for text in sampled(ENGLISH, VerseOptions(form=Form(2, 4), acrostic="Hi"), 5):
        assert re.fullmatch("H[A-Za-z]{3}\ni[A-Za-z]{3}", text)


# Lines of any length


def test_lines_of_any_length_are_as_many_as_asked() -> None:
    for text in sampled(ENGLISH, VerseOptions(acrostic="Hi", lines=3, max_line=12), 100):
        *lines, rest = text.split("\n")
        assert len(lines) == 3 and rest == "" and "\u2028" not in text
        assert all(1 <= len(line) <= 12 and not line[0].isspace() for line in lines)
        assert lines[0][0] == "H" and lines[1][0] == "i"


def test_lines_of_any_length_rhyme_and_end_as_asked() -> None:
    for text in sampled(CHINESE, VerseOptions(rhyme=True, lines=6, max_line=9, acrostic="春风"), 100):
        lines = re.sub("[，。《》]", "", text).rstrip("\n").split("\n")
        assert len(lines) == 6 and [line[0] for line in text.split("\n")[:2]] == ["春", "风"]
        ends = [line[-1] for line in lines[1::2]]
        assert len({rhyme_of(end) for end in ends}) == 1 and len(set(ends)) == 3
    for text in sampled(CHINESE, VerseOptions(acrostic="春风花", acrostic_at="end", max_line=1), 5):
        assert text.rstrip("\n") == "春\n风\n花"


def test_the_document_may_end_the_last_line_only() -> None:
    texts = sampled(Vocabulary(("unknown", "end"), "\nab"), VerseOptions(lines=2, max_line=3), 60)
    assert {text.endswith("\n") for text in texts} == {True, False}
    assert all(len(text.splitlines()) == 2 for text in texts)


def test_a_line_that_never_ends_is_ended() -> None:
    vocabulary = Vocabulary(("unknown",), "\nabcdefghijklmnopqrstuvwxyz" + CHARACTERS[:60])
    (text,) = sampled(vocabulary, VerseOptions(lines=2), 1)
    assert len(text.splitlines()) == 2 and max(map(len, text.splitlines())) <= LONGEST_LINE


def test_max_line_alone_goes_on_with_the_line_of_the_prime() -> None:
    for text in sampled(ENGLISH, VerseOptions(max_line=10), 20, prime="a\nbbbbbb", length=80):
        first, *lines = text.split("\n")
        assert len(text) == 80 and len(first) <= 4 and all(len(line) <= 10 for line in lines)


def test_a_long_line_ends_after_a_word_where_one_ends_near_its_end() -> None:
    constraint = build_verse(ENGLISH, VerseOptions(max_line=20)).start
    text = ""
    for character in "the quick brown fox jumps over the lazy dog again and again ":
        mask = constraint.allowed()
        assert mask is not None
        if not mask[ENGLISH.id(character)]:
            assert mask.nonzero()[0].tolist() == [ENGLISH.id("\n")]
            text += "\n"
            constraint.advance(ENGLISH.id("\n"))
        text += character
        constraint.advance(ENGLISH.id(character))
    assert text.split("\n") == ["the quick brown ", "fox jumps over ", "the lazy dog again ", "and again "]


# Mistakes


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"lines": 0}, "--lines 0: expected at least 1"),
        ({"max_line": 0}, "--max-line 0: expected at least 1"),
        ({"form": Form(4, 5), "lines": 4}, "--lines and --form are both given: expected one of them"),
        ({"form": Form(4, 5), "max_line": 4}, "--max-line and --form are both given: expected one of them"),
        ({"tone": True}, "--tone without --form: expected a form that has tones"),
        ({"rhyme": True}, "--rhyme without --form or --lines: expected a number of lines"),
        ({"rhyme": True, "lines": 1}, "--rhyme with one line: expected at least 2"),
        ({"acrostic_at": "end"}, "--acrostic-at without --acrostic: expected the characters to place"),
        ({"acrostic": "春风", "lines": 1}, "--acrostic of 2 characters for 1 lines: expected at most one a line"),
        ({"acrostic": "春风", "rhyme": True, "max_line": 1}, "--max-line 1 with --rhyme and --acrostic: expected at least 2"),
    ],
)
def test_options_that_mean_nothing(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        VerseOptions(**arguments)
    assert str(error.value).startswith(message)


def of(characters: str) -> Vocabulary:
    return Vocabulary(("unknown",), characters)


@pytest.mark.parametrize(
    "vocabulary, arguments, message",
    [
        (CHINESE, {"form": Form(4, 5), "acrostic": "我恨你"}, "--acrostic: the model does not know '恨' (U+6068); expected"),
        (CHINESE, {"form": Form(4, 5), "acrostic": "我a"}, "--acrostic: 'a' is none of the letters that the lines are of; expected"),
        (CHINESE, {"lines": 4, "acrostic": "。"}, "--acrostic: '。' is none of the letters"),
        (of("春风，"), {"form": Form(4, 5)}, "--form 五绝: the vocabulary has no mark '。' and no line end; expected both marks"),
        (of("春风"), {"form": Form(2, 9)}, "--form 2x9: the vocabulary has no mark '，' and '。' and no line end"),
        (of("，。\n"), {"form": Form(4, 5)}, "--form 五绝: the vocabulary has no letters; expected some"),
        (of("春风，。"), {"lines": 4}, "--lines: the vocabulary has no line end; expected one to end lines with"),
        (of("春风"), {"max_line": 4}, "--max-line: the vocabulary has no line end"),
        (of("春风"), {"acrostic": "春"}, "--acrostic: the vocabulary has no line end"),
        (of(" \n"), {"lines": 4}, "--lines: the vocabulary has only white space; expected something for the lines to begin with"),
        (
            of("春风花\n"),
            {"form": Form(4, 5), "rhyme": True},
            "--rhyme: 2 lines must end in different characters of one",
        ),
        (
            of("山关慢\n月"),
            {"form": Form(6, 5), "rhyme": True, "tone": True},
            "--rhyme: 3 lines must end in different characters of the tone",
        ),
        (of("abc\n"), {"lines": 2, "rhyme": True}, "--rhyme: 1 lines must end in different characters of one rhyme, and the most are"),
        (of("春风\n"), {"form": Form(4, 5), "tone": True}, "--tone: the vocabulary has no character of the tone 仄; expected some"),
        (
            CHINESE,
            {"form": Form(4, 5), "rhyme": True, "acrostic": "我爱你们", "acrostic_at": "end"},
            "--rhyme with --acrostic: '爱' (ai4, 开) and '们' (men2, 文) end even lines and do not rhyme",
        ),
        (
            CHINESE,
            {"form": Form(4, 5), "tone": True, "acrostic": "月月", "acrostic_at": "end"},
            "--tone with --acrostic: no pattern has room for it; in the first, line 2 ends with '月', 仄 (yue4), where 平 must stand",
        ),
        (
            of("ab\n"),
            {"lines": 2, "rhyme": True, "acrostic": "ab", "acrostic_at": "end"},
            "--rhyme: line 2 ends with 'b', of which no rhyme",
        ),
        (CHINESE, {"form": Form(4, 6), "tone": True}, "--tone: a form of 4 x 6 has no tone pattern"),
    ],
)
def test_what_the_vocabulary_cannot_fill_is_said(vocabulary: Vocabulary, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        build_verse(vocabulary, VerseOptions(**arguments))
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    "arguments, length, message",
    [
        ({"form": Form(4, 5)}, 23, "--length 23: --form 五绝 has 24 characters; expected at least as many"),
        ({"lines": 4, "max_line": 9}, 39, "--length 39: 4 lines can take 40 characters; expected at least as many"),
        ({"lines": 4}, 7, "--length 7: 4 lines can take 8 characters"),
    ],
)
def test_a_length_without_room_is_said(arguments: dict[str, Any], length: int, message: str) -> None:
    with pytest.raises(UserError) as error:
        build_verse(CHINESE, VerseOptions(**arguments), length)
    assert str(error.value).startswith(message)
    assert build_verse(CHINESE, VerseOptions(**arguments), length + 1).length


# The command line


@pytest.fixture
def said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    config = build_config({"data": {"path": "x"}, "model": {"embedding_size": 5, "hidden_size": 9}, "train": {"max_steps": 1}}, "test")
    path = tmp_path / "model.safetensors"
    save_model(path, model_for(CHINESE), config, CHINESE, 1, {})

    def said(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as end:
            main(["sample", str(path), "--device", "cpu", *map(str, arguments)])
        out, err = capsys.readouterr()
        return int(end.value.code or 0), out, err

    return said


def test_the_command_line_writes_verse(said: Callable[..., tuple[int, str, str]]) -> None:
    ask = ("--form", "七绝", "--rhyme", "--tone", "--acrostic", "我爱你们")
    for more in ((), ("--best-of", 5), ("--beam-width", 3), ("-n", 32)):
        code, out, err = said(*ask, "--seed", 1, *more)
        assert code == 0 and not err
        assert not mistakes(out.strip(), 4, 7, acrostic="我爱你们", rhymes=True, tones=True), out
    code, out, _ = said("--form", "2x5", "--prime", "诗", "--num-samples", 2, "--best-of", 3)
    assert [len(re.sub(r"\s", "", part)) for part in re.split("--- . ---", out)] == [0, 13, 13]
    code, out, _ = said("--lines", 2, "--max-line", 5, "--no-echo", "--prime", "诗")
    assert len(out.splitlines()) == 2 and max(map(len, out.splitlines())) <= 5


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("--form", "六绝"), "--form '六绝': unknown; expected 五绝"),
        (("--form", "4x5", "-n", 9), "--length 9: --form 五绝 has 24 characters"),
        (
            ("--beam-width", 3, "-t", 1),
            "--temperature and --beam-width are both given; expected one of them, for a beam",
        ),
        (("--beam-width", 3, "--best-of", 2), "--best-of and --beam-width are both given"),
        (("--beam-width", 3, "--num-samples", 4), "--num-samples 4: expected from 1 to the --beam-width, 3"),
        (("--beam-width", 3, "--continue"), "--continue and --beam-width are both given; expected one of them"),
        (
            ("--lines", 3, "--stop", "x"),
            "--stop and --lines are both given; expected one of them, for the verse ends",
        ),
        (("--form", "五绝", "--continue"), "--continue and --form are both given"),
        (("--best-of", 0), "--best-of 0: expected at least 1"),
        (("--best-of", 2, "-t", 0), "--best-of with --temperature 0: expected a temperature above 0"),
        (("--num-samples", 0, "--best-of", 2), "--num-samples 0: expected at least 1"),
        (("--best-of", 2, "--out", "/"), "--out /: cannot be written"),
    ],
)
def test_what_cannot_go_together(said: Callable[..., tuple[int, str, str]], arguments: tuple[object, ...], message: str) -> None:
    code, out, err = said(*arguments)
    assert code == 2 and out == "" and err.startswith(f"charrnn: error: {message}") and err.count("\n") == 1
